"""Quantized models: sums that round to the other side are no mistake, wrong ones are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import NumericsError, checks, rounding
from pwopt.checks import Reference
from tests.targets.lowering_helpers import model, node, normal

SHAPE = (1, 3, 16, 16)
WEIGHTS = np.random.default_rng(0).integers(-127, 127, (8, 3, 1, 1)).astype(np.int8)


def quantized() -> onnx.ModelProto:
    """A 1x1 convolution between QuantizeLinear and DequantizeLinear, many sums at a half step."""
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("DequantizeLinear", "wq ws wz", "wd", axis=0),
        node("Conv", "xd wd", "c"),
        node("Relu", "c", "r"),
        node("QuantizeLinear", "r s z", "rq"),
        node("DequantizeLinear", "rq s z", "y"),
    ]
    constants: dict[str, np.ndarray] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "wq": WEIGHTS,
        "ws": np.full(8, 0.02, np.float32),
        "wz": np.zeros(8, np.int8),
    }
    return model(nodes, {"x": normal(*SHAPE)}, "y", constants)


def test_a_quantized_model_is_optimized_compiled_and_compared() -> None:
    result = pwopt.optimize(quantized())
    assert result.report.verification.status == "passed"
    (off,) = result.report.verification.outputs
    assert off.error <= off.tolerance <= checks.MAX_TOLERANCE
    table = pwopt.compare(quantized(), pwopt.compile(result.graph), optimized=result.graph, runs=1)
    assert "WRONG" not in str(table)


def test_a_wrong_quantized_model_is_found() -> None:
    original = pwopt.load(quantized())
    answers = checks.reference(original, None)
    assert isinstance(answers, Reference)
    wrong = quantized()
    next(t for t in wrong.graph.initializer if t.name == "ws").CopyFrom(
        onnx.numpy_helper.from_array(np.full(8, 0.03, np.float32), "ws")
    )
    with pytest.raises(NumericsError, match="differs from the original"):
        checks.verify(answers, pwopt.load(wrong))


def test_only_the_steps_are_moved() -> None:
    graph = pwopt.load(quantized())
    moved = rounding.jittered(graph)
    for each in moved.nodes():
        if each.is_op("QuantizeLinear"):
            scale = moved.constant_value(moved.operand(each, 1))
            assert scale is not None
            assert 0 < abs(float(scale) / 0.05 - 1) < 2e-6
        if each.is_op("DequantizeLinear"):
            stored = moved.constant_value(moved.operand(each, 0))
            assert stored is None or np.array_equal(stored, WEIGHTS)
    assert rounding.quantizes(graph)
    assert not rounding.quantizes(pwopt.load(model([node("Neg", "x", "y")], {"x": normal(2)}, "y")))
