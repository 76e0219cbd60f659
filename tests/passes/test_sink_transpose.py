"""Transposes go down until they cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.sink_transpose import SinkTranspose
from tests.passes.building import Build, Outcome, check, transform

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels last, channels first


def last(b: Build, x: Value) -> Value:
    return b.op("Transpose", x, perm=LAST)


def first(b: Build, x: Value) -> Value:
    return b.op("Transpose", x, perm=FIRST)


def conv(b: Build, x: Value, channels: int) -> Value:
    """A convolution as exporters of channels-last frameworks write it."""
    return last(b, b.conv(first(b, x), channels))


def transposes(outcome: Outcome) -> int:
    return outcome.ops.count("Transpose")


def reasons(graph: Graph) -> list[str]:
    outcome = check(graph, SinkTranspose())
    assert not outcome.remarks
    return [why for _, why in outcome.missed]


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.op("Relu", b.op("Add", conv(b, b.input("batch", 5, 4, 3), 6), b.weight(6)))
    x = b.op("ReduceMean", conv(b, x, 7), axes=(1, 2), keepdims=0)
    golden("sink_transpose", to_text(transform(b.output(x), SinkTranspose()).graph, hashes=False))


def test_residual_network() -> None:
    b = Build()
    x = b.op("Relu", conv(b, b.input(2, 5, 4, 3), 6))
    for _ in range(3):
        y = b.op("Clip", b.op("Mul", conv(b, x, 6), b.weight(4, 6)), 0.0, 6.0)
        x = b.op("Relu", b.op("Add", x, conv(b, y, 6)))
    outcome = check(b.output(x), SinkTranspose())
    assert transposes(outcome) == 2


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [17, 18])
def test_reduction(keepdims: int, opset: int) -> None:
    b = Build(opset)
    x = last(b, b.input(2, 5, 4, 3))
    if opset == 18:
        x = b.op("ReduceMean", x, b.shape(1, -2), keepdims=keepdims)
    else:
        x = b.op("ReduceMean", x, axes=(1, -2), keepdims=keepdims)
    outcome = check(b.output(b.op("Relu", x)), SinkTranspose())
    assert transposes(outcome) == keepdims


def test_squeeze_and_excite() -> None:
    b = Build()
    x = b.op("Relu", conv(b, b.input(2, 5, 4, 3), 6))
    gate = b.op("Sigmoid", conv(b, b.op("ReduceMean", x, axes=(1, 2)), 6))
    outcome = check(b.output(conv(b, b.op("Mul", x, gate), 4)), SinkTranspose())
    assert transposes(outcome) == 2


@pytest.mark.parametrize("axis", [1, 3])
def test_concat(axis: int) -> None:
    b = Build()
    x, y = b.input(2, 6, 4, 3), b.input(2, 6, 4, 3, name="y")
    joined = b.op("Concat", b.op("Tanh", last(b, x)), last(b, y), axis=axis)
    outcome = check(b.output(first(b, joined)), SinkTranspose())
    assert outcome.ops == ["Tanh", "Concat"]


def test_fewer_elements_are_transposed() -> None:
    b = Build()
    x, y = b.input(2, 6, 4, 3), b.input(2, 6, 4, 3, name="y")
    outcome = check(b.output(b.op("Add", last(b, x), last(b, y))), SinkTranspose())
    assert outcome.ops == ["Add", "Transpose"]


def test_several_readers_that_cancel() -> None:
    b = Build()
    x = last(b, b.input(2, 6, 4, 3))
    y = b.op("Relu", x)
    outcome = check(b.output(b.conv(first(b, y), 4), b.conv(first(b, y), 4), x), SinkTranspose())
    assert transposes(outcome) == 1


def test_transposes_that_combine() -> None:
    b = Build()
    x = b.op("Relu", last(b, b.input(2, 6, 4, 3)))
    outcome = check(b.output(b.op("Transpose", x, perm=(3, 0, 1, 2))), SinkTranspose())
    assert outcome.ops == ["Relu", "Transpose"]


def test_open_sizes() -> None:
    b = Build()
    x = b.op("Relu", last(b, b.input("n", 6, "h", "w")))
    outcome = check(b.output(first(b, x)), SinkTranspose(), sizes={"n": 2, "h": 5, "w": 3})
    assert outcome.ops == ["Relu"]


def test_no_gain() -> None:
    b = Build()
    x = b.op("Relu", last(b, b.input(2, 6, 4, 3)))
    assert reasons(b.output(x)) == [
        "as many elements would be transposed behind what follows as before"
    ]


def test_graph_output_in_between() -> None:
    b = Build()
    x = b.op("Relu", last(b, b.input(2, 6, 4, 3)))
    outcome = check(b.output(x, first(b, x)), SinkTranspose())
    assert transposes(outcome) == 1


@pytest.mark.parametrize("op", ["Softmax", "Flatten"])
def test_what_a_transpose_does_not_pass(op: str) -> None:
    b = Build()
    assert reasons(b.output(b.op(op, last(b, b.input(2, 6, 4, 3)), axis=1))) == []


def test_other_operands() -> None:
    b = Build()
    x = last(b, b.input(2, 6, 4, 3))
    assert reasons(b.output(first(b, b.op("Add", x, b.input(6, name="y"))))) == []
    b = Build()
    x, y = b.input(2, 4, 4, 4), b.input(2, 4, 4, 4, name="y")
    assert reasons(b.output(b.op("Add", last(b, x), first(b, y)))) == []


def test_transpose_in_the_midst() -> None:
    b = Build()
    x = b.op("Relu", last(b, b.input(2, 4, 4, 4)))
    x = b.op("Add", x, last(b, x))
    attributes: dict[str, Any] = {"perm": FIRST}
    outcome = transform(b.output(b.op("Transpose", x, **attributes)), SinkTranspose())
    assert transposes(outcome) <= 3


def test_zero_size() -> None:
    b = Build()
    x = b.op("Relu", last(b, b.input(0, 6, 4, 3)))
    transform(b.output(first(b, x)), SinkTranspose())


def around(b: Build, op: str, *operands: Value | None, **attributes: Any) -> Graph:
    """An operator of one operand in the other layout, between two Transposes."""
    x = b.op("Transpose", b.input(2, 3, 5, 7), perm=(0, 2, 3, 1))
    y = b.op(op, x, *operands, **attributes)
    return b.output(b.op("Transpose", y, perm=(0, 3, 1, 2)))


@pytest.mark.parametrize("opset", [10, 13, 18])
def test_pad(opset: int) -> None:
    b = Build(opset)
    if opset == 10:
        graph = around(b, "Pad", pads=(0, 1, 2, 3, 0, 4, 5, 6), value=0.5)
    elif opset == 13:
        graph = around(b, "Pad", b.shape(0, 1, 2, 3, 0, 4, 5, 6), b.number(0.5))
    else:
        graph = around(b, "Pad", b.shape(1, 2, 3, 4), None, b.shape(-3, 3))
    # ONNX Runtime 1.31 fails at its own transposing of a Pad with axes.
    assert check(graph, SinkTranspose(), runtime=opset < 18).ops == ["Pad"]


@pytest.mark.parametrize("opset", [9, 17])
def test_slice(opset: int) -> None:
    b = Build(opset)
    if opset == 9:
        graph = around(b, "Slice", starts=(1, 0), ends=(4, 2), axes=(2, 3))
    else:
        ends = b.shape(0, 5), b.shape(2, 0), b.shape(0, -2), b.shape(1, -2)
        graph = around(b, "Slice", *ends)
    assert check(graph, SinkTranspose()).ops == ["Slice"]


def test_slice_of_the_first_axes() -> None:
    b = Build()
    graph = around(b, "Slice", b.shape(0, 1, 2), b.shape(2, 4, 5))
    assert check(graph, SinkTranspose()).ops == ["Slice"]


@pytest.mark.parametrize("how", ["scales", "sizes", "axes"])
def test_resize(how: str) -> None:
    b = Build(18)
    scales = b.graph.constant(np.array([1, 2, 3, 1], np.float32))
    if how == "scales":
        graph = around(b, "Resize", None, scales, mode="linear")
    elif how == "sizes":
        graph = around(b, "Resize", None, None, b.shape(2, 10, 6, 3), mode="nearest")
    else:
        graph = around(b, "Resize", None, None, b.shape(10, 6), axes=(1, 2), mode="nearest")
    # The same for a Resize with axes.
    assert check(graph, SinkTranspose(), runtime=how != "axes").ops == ["Resize"]


def test_pads_that_are_not_constant() -> None:
    b = Build()
    graph = around(b, "Pad", b.input(8, name="pads", dtype="int64"))
    assert transform(graph, SinkTranspose()).ops == ["Transpose", "Pad", "Transpose"]
