"""What depends on constants and static shapes alone is evaluated, within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from pwopt.frontend import load
from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.ir.types import TensorType
from pwopt.passes.fold_constants import FoldConstants
from tests.passes.building import Build, check, transform


def flattened(b: Build, x: Value) -> Value:
    """As exporters write ``x.view(x.size(0), -1)``."""
    batch = b.op("Gather", b.op("Shape", x), b.shape(0), axis=0)
    return b.op("Reshape", x, b.op("Concat", batch, b.shape(-1), axis=0))


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.op("Mul", b.input("batch", 2, 3, 1), b.op("Exp", b.number(0.0, 3, 1)))
    golden("fold_constants", to_text(transform(b.output(flattened(b, x)), FoldConstants()).graph))


@pytest.mark.parametrize("batch", ["batch", 3])
def test_chain_of_shapes(batch: int | str) -> None:
    b = Build()
    outcome = check(
        b.output(flattened(b, b.input(batch, 2, 3, 1))), FoldConstants(), sizes={"batch": 3}
    )
    assert outcome.ops == ["Reshape"]


def test_known_dimension_beside_unknown_ones() -> None:
    b = Build()
    x = b.input("batch", 6, "h", "w")
    shape = b.op("Shape", x)
    channels = b.op("Slice", shape, b.shape(1), b.shape(2))
    target = b.op("Concat", b.shape(0), b.op("Div", channels, b.shape(2)), b.shape(-1), axis=0)
    outcome = check(
        b.output(b.op("Reshape", x, target)), FoldConstants(), sizes={"batch": 2, "h": 3, "w": 5}
    )
    assert outcome.ops == ["Reshape"]
    assert (outcome.graph.outputs[0][1].tensor.shape or ())[:2] == ("batch", 3)


def test_types_follow_in_the_same_run() -> None:
    b = Build()
    x = b.input(2, 3, 4)
    first = b.op("Reshape", x, b.op("Mul", b.shape(2, 3), b.shape(2, 2)))
    assert first.shape is None
    batch = b.op("Gather", b.op("Shape", b.op("Relu", first)), b.shape(1))
    outcome = check(
        b.output(b.op("Reshape", x, b.op("Concat", b.shape(-1), batch, axis=0))), FoldConstants()
    )
    assert outcome.ops == ["Reshape"]
    assert outcome.graph.outputs[0][1].shape == (4, 6)


def test_a_reshaped_weight_is_a_constant() -> None:
    b = Build()
    weight = b.op("Reshape", b.number(0.5, 2, 3, 1), b.shape(3, 2))
    outcome = check(b.output(b.op("MatMul", b.input(4, 3), weight)), FoldConstants())
    assert outcome.ops == ["MatMul"]


def test_two_unknown_dimensions_stay() -> None:
    b = Build()
    x, other = b.input("a", "b", "c"), b.input("d", "e", name="other")
    outcome = transform(b.output(b.op("Reshape", x, b.op("Shape", other))), FoldConstants())
    assert outcome.ops == ["Shape", "Reshape"]


def bomb(b: Build, op: str) -> Value:
    """Operators of a few bytes that ask for terabytes."""
    size = b.shape(1 << 20, 1 << 20)
    if op == "ConstantOfShape":
        return b.op(op, size)
    if op == "Expand":
        return b.op(op, b.number(1.0), size)
    if op == "Tile":
        return b.op(op, b.number(1.0, 1, 1), size)
    if op == "Range":
        limits = [b.graph.constant(np.array(i)) for i in (0, 1 << 40, 1)]
        return b.graph.add(op, limits, types=[TensorType("int64", (None,))]).out
    return b.op(op, b.number(1.0, 1, 1), None, None, size, mode="nearest")


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile", "Range", "Resize"])
def test_bombs_stay_and_are_cheap(op: str) -> None:
    b = Build()
    graph = b.output(b.op("Relu", bomb(b, op)))
    start = time.perf_counter()
    outcome = transform(graph, FoldConstants())
    assert time.perf_counter() - start < 5
    assert outcome.ops == [op, "Relu"]
    assert len(outcome.missed) == 1


def test_reason_of_size() -> None:
    b = Build()
    graph = b.output(b.op("Relu", b.op("Expand", b.number(1.0), b.shape(8))))
    outcome = transform(graph, FoldConstants(max_growth_bytes=19, max_weight_bytes=1000))
    assert [why for _, why in outcome.missed] == [
        "its result float32[8] would add 20 bytes; max-growth-bytes=19, max-weight-bytes=1000"
    ]


def weights(count: int) -> Graph:
    b = Build()
    x = b.input(1, 4, 3, 3)
    for _ in range(count):
        x = b.op("Conv", x, b.op("ConstantOfShape", b.shape(4, 4, 1, 1)))
    return b.output(x)


def test_weights_have_a_budget_of_their_own() -> None:
    outcome = check(weights(3), FoldConstants(max_growth_bytes=0, max_weight_bytes=170))
    assert outcome.ops.count("ConstantOfShape") == 1


def test_random_numbers_stay() -> None:
    b = Build()
    x = b.graph.add("RandomNormal", [], {"shape": (2,)}, types=[TensorType("float32", (2,))]).out
    assert transform(b.output(b.op("Relu", x)), FoldConstants()).ops == ["RandomNormal", "Relu"]


def test_training_dropout_stays() -> None:
    b = Build()
    true = b.graph.constant(np.array(True))
    graph = b.output(b.op("Dropout", b.number(1.0, 8), 0.5, true))
    assert transform(graph, FoldConstants()).ops == ["Dropout"]


def test_a_constant_may_be_an_output() -> None:
    b = Build()
    b.input(1)
    outcome = check(b.output(b.op("Neg", b.number(1.0, 3))), FoldConstants())
    assert outcome.ops == []
    assert outcome.graph.outputs[0][0] == "neg1_out"


def test_what_cannot_be_evaluated_stays() -> None:
    b = Build()
    result = TensorType("float32", (2,))
    x = b.graph.add("NoSuchOperator", [b.number(1.0, 2)], types=[result]).out
    outcome = transform(b.output(b.op("Relu", x)), FoldConstants())
    assert outcome.ops == ["NoSuchOperator", "Relu"]
    assert outcome.missed[0][1].startswith("it cannot be evaluated: ")


def test_what_decides_an_if_stays() -> None:
    branches = {
        f"{name}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["x"], [name])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3])],
        )
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        onnx.helper.make_node("Size", ["x"], ["size"]),
        onnx.helper.make_node("Equal", ["size", "six"], ["is_six"]),
        onnx.helper.make_node("If", ["is_six"], ["y"], **branches),
    ]
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 3]) for n in "xy")
    six = onnx.numpy_helper.from_array(np.array(6), "six")
    graph = load(onnx.helper.make_model(onnx.helper.make_graph(nodes, "if", [x], [y], [six])))
    outcome = transform(graph, FoldConstants())
    assert outcome.ops == ["Size", "Equal", "If"]
    assert outcome.missed[0][1] == "Size 'size' decides an If, and stays for the If's sake"
