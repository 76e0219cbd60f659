"""onnx's own backend tests: optimized and exported, and compiled with and without the passes.

What is compiled runs in guarded memory. All of it (2,000 cases) takes five minutes:
``pytest -m conformance tests/test_conformance.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

import pwopt
from tests.conformance import Ready, cases, check_compiled, check_export, ready

SHARDS = 16
SAMPLE = 37  # every so manieth case in the default run


@dataclass
class Tally:
    """What came of the cases that count, by name.

    Attributes:
        count: cases that ONNX Runtime passes.
        exported: failures after the passes, in ONNX Runtime.
        compiled: failures of execution.
    """

    count: int = 0
    exported: dict[str, str] = field(default_factory=dict)
    compiled: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, case: Ready) -> None:
        """Takes a case through everything."""
        self.count += 1
        try:
            optimized = pwopt.optimize(case.model, verify=False).graph
        except pwopt.PwoptError as error:
            self.exported[name] = str(error)
            return
        if wrong := check_export(case, optimized):
            self.exported[name] = wrong
        for graph, separate in ((optimized, False), (pwopt.load(case.model), True)):
            if wrong := check_compiled(case, graph, separate=separate):
                self.compiled[name] = wrong

    def __str__(self) -> str:
        def share(failed: dict[str, str]) -> str:
            passed = self.count - len(failed)
            return f"{passed} of {self.count} ({100 * passed / max(1, self.count):.2f} %)"

        return (
            f"conformance, of the cases that ONNX Runtime passes: {share(self.exported)} after "
            f"the passes and export, {share(self.compiled)} compiled"
        )


def tally(start: int, step: int) -> Tally:
    """The cases with such numbers."""
    made = Tally()
    for case in cases()[start::step]:
        prepared = ready(case)
        if prepared is not None:
            made.add(case.name, prepared)
    return made


@pytest.mark.slow
def test_a_sample_of_the_cases() -> None:
    found = tally(5, SAMPLE)
    assert found.count > 0.6 * len(cases()) / SAMPLE
    assert not found.exported
    assert not found.compiled


@pytest.fixture(scope="module")
def total(figures: list[str]) -> Iterator[Tally]:
    """Adds the shards up."""
    made = Tally()
    yield made
    figures.append(str(made))


@pytest.mark.conformance
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_cases(shard: int, total: Tally) -> None:
    found = tally(shard, SHARDS)
    total.count += found.count
    total.exported |= found.exported
    total.compiled |= found.compiled
    assert not found.exported
    assert not found.compiled
