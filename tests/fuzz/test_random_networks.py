"""Random networks: optimized, exported and compiled, they compute what ONNX Runtime computes.

A few always run; `python -m pytest -m fuzz --fuzz-examples 5000` runs as many as asked, from a seed
of its own that `--hypothesis-seed` repeats.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwopt.passes import default_pipeline
from tests.fuzz.checking import MACHINES, Machine, check_compiled, check_export, optimized, oracle
from tests.fuzz.generator import Example, networks

FEW = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
machines = st.sampled_from(MACHINES)
shuffled = st.permutations([each.name for each in default_pipeline()])


@settings(FEW, max_examples=150)
@given(example=networks(), machine=machines, closed=st.booleans())
def test_exported(example: Example, machine: Machine, closed: bool) -> None:
    answers = oracle(example)
    check_export(answers, optimized(answers, machine, closed=closed))


@settings(FEW, max_examples=50)
@given(example=networks(), machine=machines, order=shuffled)
def test_passes_in_any_order(example: Example, machine: Machine, order: list[str]) -> None:
    answers = oracle(example)
    check_export(answers, optimized(answers, machine, ",".join(order)))


@settings(FEW, max_examples=8)
@given(example=networks(max_layers=4), machine=machines)
def test_compiled(example: Example, machine: Machine) -> None:
    answers = oracle(example)
    check_compiled(answers, optimized(answers, machine), machine)


@settings(FEW, max_examples=5)
@given(example=networks(max_layers=4), machine=machines)
def test_compiled_without_passes(example: Example, machine: Machine) -> None:
    answers = oracle(example)
    check_compiled(answers, answers.graph, machine, separate=True)


@pytest.mark.fuzz
def test_long(request: pytest.FixtureRequest) -> None:
    @settings(FEW, max_examples=request.config.getoption("--fuzz-examples"), derandomize=False)
    @given(
        example=networks(),
        machine=machines,
        kind=st.sampled_from(["optimized", "shuffled", "plain"]),
        order=shuffled,
        separate=st.booleans(),
    )
    def check(
        example: Example, machine: Machine, kind: str, order: list[str], separate: bool
    ) -> None:
        answers = oracle(example)
        graph = answers.graph
        if kind != "plain":
            passes = ",".join(order) if kind == "shuffled" else None
            graph = optimized(answers, machine, passes)
            check_export(answers, graph)
        check_compiled(answers, graph, machine, separate=separate)

    check()
