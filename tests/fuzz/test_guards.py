"""Taking one guard away gives wrong answers, and random networks find them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from pwopt.errors import PwoptError
from pwopt.hardware import AVX2
from pwopt.passes import linear
from pwopt.targets.cpu import plan
from tests.fuzz import blocks, layers
from tests.fuzz.checking import Machine, check_compiled, check_export, optimized, oracle
from tests.fuzz.generator import Example, networks

MACHINE = Machine(AVX2, 1)


def wrong(check: Callable[[Example], None]) -> Callable[[Example], bool]:
    """Whether a check fails."""

    def fails(example: Example) -> bool:
        try:
            check(example)
        except (AssertionError, PwoptError):
            return True
        return False

    return fails


def exported(example: Example) -> None:
    answers = oracle(example)
    check_export(answers, optimized(answers, MACHINE))


def compiled(example: Example) -> None:
    answers = oracle(example)
    check_compiled(answers, answers.graph, MACHINE)


def counterexample(check: Callable[[Example], None], *kinds: Any, examples: int) -> Example:
    """The first random network that fails; raises NoSuchExample if there is none."""
    quick = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return find(networks(layers=kinds or blocks.LAYERS), wrong(check), settings=quick)


def test_shift_before_a_padded_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_shift_trouble", lambda node: None)
    kinds = (layers.unit, layers.conv, layers.batch_norm)
    counterexample(exported, *kinds, examples=200)


@pytest.mark.slow
def test_result_in_the_memory_of_an_operand_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(steps: list[plan.Step]) -> None:
        """In place without asking whether the operand dies, as the guard does."""
        for i, step in enumerate(steps):
            if step.in_place is None:
                continue
            old, new = (step.pointers[p].buffer for p in step.in_place)
            if old is new or {old.kind, new.kind} != {"workspace"} or old.bytes != new.bytes:
                continue
            for later in steps[i:]:
                later.pointers = tuple(
                    plan.Pointer(old, p.offset) if p.buffer is new else p for p in later.pointers
                )
            step.shares = True

    monkeypatch.setattr(plan, "_share_in_place", share)
    kinds = (layers.residual, layers.activation, layers.squeeze_excite)
    counterexample(compiled, *kinds, examples=100)
