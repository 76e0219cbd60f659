"""The fourteen networks through the main job; large, so behind a marker.

pwopt models fetch && python -m pytest -m models
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import numerics, ort
from pwopt.models import SUITE, labelled_data
from pwopt.models.datasets import LABELLED
from pwopt.running import Runner

pytestmark = pytest.mark.models


@pytest.mark.parametrize("name", SUITE)
def test_equals_the_original(name: str) -> None:
    model = SUITE[name]
    original = model.build()
    before = original.SerializeToString()
    result = pwopt.optimize(original, target="cpu", verify=False)
    exported = result.graph.to_onnx()
    onnx.checker.check_model(exported)
    assert original.SerializeToString() == before, "optimize changed its argument"
    executable = pwopt.compile(result.graph, target="cpu", threads=1)

    reference = ort.OrtModel(before, 1)
    optimized = ort.OrtModel(exported.SerializeToString(), 1)
    for seed in (0, 1):
        feeds = model.inputs(seed)
        expected = reference.run(feeds)
        for runner in (optimized, executable):
            found = runner.run(feeds)
            assert list(found) == list(expected), "names or order of the outputs"
            for difference in numerics.differences(expected, found):
                assert difference.ok, f"{type(runner).__name__}: {difference}"


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_accuracy_is_unchanged(name: str) -> None:
    model = SUITE[name]
    original = model.build()
    result = pwopt.optimize(original, verify=False)
    runners: list[Runner] = [
        ort.OrtModel(original.SerializeToString(), 1),
        ort.OrtModel(result.graph.to_onnx().SerializeToString(), 1),
        pwopt.compile(result.graph),
        pwopt.compile(result.graph, precision="bf16"),
    ]
    inputs, labels = labelled_data(name)
    right = []
    for runner in runners:
        firsts = [
            next(iter(runner.run({model.input_name: inputs[i : i + 1]}).values()))
            for i in range(len(inputs))
        ]
        classes = np.array([int(first.argmax()) for first in firsts])
        right.append(int((classes == labels).sum()))
    assert right[0] >= 0.85 * len(labels), "the original itself must be good"
    assert right[1] == right[0]
    assert right[2] == right[0]
    assert abs(right[3] - right[0]) <= 1
