"""Guarded memory finds what kernels do outside theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import pwopt
from pwopt.hardware import AVX2
from pwopt.models.builder import ModelBuilder
from pwopt.targets.cpu import codegen
from pwopt.targets.cpu.module import build_module
from pwopt.targets.plan import Plan
from tests.targets.guarding import OverrunError, compile_guarded
from tests.targets.lowering_helpers import normal

FEEDS = {"input": normal(1, 8, 5, 5)}


def run(separate: bool) -> dict[str, Any]:
    """Two convolutions of 13 channels in guarded memory; the second one's are an output."""
    b = ModelBuilder("guarded")
    x = b.input((1, 8, 5, 5))
    graph = pwopt.load(b.build(b.global_pool(b.conv(b.conv(x, 13), 13))))
    executable, guard = compile_guarded(graph, separate=separate, hardware=AVX2)
    return guard.run(executable, FEEDS)


@pytest.mark.parametrize("separate", [False, True])
def test_sound_kernels_pass(separate: bool) -> None:
    (y,) = run(separate).values()
    assert y.shape == (1, 13, 1, 1)


@pytest.mark.parametrize(("separate", "where"), [(True, "between the buffers"), (False, "outside")])
def test_a_store_behind_a_buffer_is_found(
    separate: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(self: Any, offset: Any, value: Any, lanes: int = 1, valid: int | None = None) -> None:
        """Stores all of a vector of which only a part is valid."""
        original(self, offset, value, lanes)

    original: Callable[..., None] = codegen.Memory.store
    monkeypatch.setattr(codegen.Memory, "store", store)
    with pytest.raises(OverrunError, match=where):
        run(separate)


def test_a_value_that_is_never_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(plans: Sequence[Plan], *rest: Any, **options: Any) -> Any:
        """Without the first call of a kernel."""
        plans[0].steps = plans[0].steps[1:]
        return build_module(plans, *rest, **options)

    monkeypatch.setattr("pwopt.targets.cpu.compile.build_module", build)
    with pytest.raises(OverrunError, match="depends on what the memory held"):
        run(separate=False)
