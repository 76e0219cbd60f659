"""onnx's own backend tests: optimized and exported, and compiled with and without the passes.

All of it (2,000 cases) takes ten minutes: ``pytest -m conformance tests/test_conformance.py``.
"""

from __future__ import annotations

import pytest

import pwopt
from tests.conformance import cases, check_compiled, check_export, ready

# What is known to fail, with the reason; the whole run fails if one of them starts to work.
EXPORT_EXCEPTIONS = {
    **dict.fromkeys(
        ("test_affine_grid_2d_expanded", "test_affine_grid_2d_align_corners_expanded"),
        "Range reads the one-element vector that an If yields; ONNX Runtime refuses that as soon "
        "as folding makes the If's condition constant",
    ),
}
COMPILE_EXCEPTIONS = {
    **EXPORT_EXCEPTIONS,
    "test_optional_has_element_empty_optional_input": "run() wants a value for every input, an "
    "optional without one included",
}
SHARDS = 16
SAMPLE = 37  # every so manieth case in the default run


def failures(start: int, step: int) -> tuple[int, dict[str, str], dict[str, str]]:
    """(cases that count, failures of export, failures of execution) by case."""
    count, exported, compiled = 0, dict[str, str](), dict[str, str]()
    for case in cases()[start::step]:
        prepared = ready(case)
        if prepared is None:
            continue
        count += 1
        try:
            optimized = pwopt.optimize(prepared.model, verify=False).graph
        except pwopt.PwoptError as error:
            exported[case.name] = str(error)
            continue
        if wrong := check_export(prepared, optimized):
            exported[case.name] = wrong
        for graph in (optimized, pwopt.load(prepared.model)):
            if wrong := check_compiled(prepared, graph):
                compiled[case.name] = wrong
    return count, exported, compiled


@pytest.mark.slow
def test_a_sample_of_the_cases() -> None:
    count, exported, compiled = failures(5, SAMPLE)
    assert count > 0.6 * len(cases()) / SAMPLE
    assert not exported.keys() - EXPORT_EXCEPTIONS.keys(), exported
    assert not compiled.keys() - COMPILE_EXCEPTIONS.keys(), compiled


@pytest.mark.conformance
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_cases(shard: int) -> None:
    _, exported, compiled = failures(shard, SHARDS)
    names = {case.name for case in cases()[shard::SHARDS]}
    assert exported.keys() == EXPORT_EXCEPTIONS.keys() & names, exported
    assert compiled.keys() == COMPILE_EXCEPTIONS.keys() & names, compiled


def test_exceptions_are_few_and_exist() -> None:
    names = {case.name for case in cases()}
    assert EXPORT_EXCEPTIONS.keys() | COMPILE_EXCEPTIONS.keys() <= names
    assert len(COMPILE_EXCEPTIONS) < 0.01 * len(names)
