"""The stride of 1x1 convolutions goes up to where the pixels that they skip are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pwopt.cost import graph_macs
from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.hoist_stride import HoistStride
from tests.passes.building import Build, Outcome, check, transform

HALF: dict[str, Any] = {"strides": (2, 2)}
SAME: dict[str, Any] = {"pads": (1, 1, 1, 1)}


def strides(outcome: Outcome) -> list[tuple[int, ...]]:
    return [node.get("strides") for node in outcome.graph.topological() if node.op == "Conv"]


def reasons(graph: Graph) -> list[str]:
    outcome = check(graph, HoistStride())
    assert not outcome.remarks
    return [why for _, why in outcome.missed]


def block(b: Build, x: Value, **attributes: Any) -> Value:
    """A bottleneck with a shortcut, then the two convolutions that begin the next stage."""
    y = b.op("Relu", b.conv(x, 16))
    y = b.op("Relu", b.conv(y, 16, 3, **SAME))
    x = b.op("Relu", b.op("Add", b.conv(y, 64), x))
    return b.op("Add", b.conv(x, 32, **HALF), b.conv(x, 32, **HALF))


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    outcome = transform(b.output(block(b, b.input(1, 64, 17, 16))), HoistStride())
    golden("hoist_stride", to_text(outcome.graph, hashes=False))


@pytest.mark.parametrize("batch", [1, 3])
def test_residual_block(batch: int) -> None:
    b = Build()
    graph = b.output(block(b, b.input(batch, 64, 17, 16)))
    outcome = check(graph, HoistStride())
    assert strides(outcome) == [None, (2, 2), (1, 1), (1, 1), (1, 1)]
    assert outcome.ops.count("MaxPool") == 1
    before = 272 * (64 * 16 + 16 * 16 * 9 + 16 * 64) + 2 * 72 * 64 * 32
    after = 272 * 64 * 16 + 72 * (16 * 16 * 9 + 16 * 64 + 2 * 64 * 32)
    assert (graph_macs(graph), graph_macs(outcome.graph)) == (batch * before, batch * after)


@pytest.mark.parametrize("size", [9, 12, 13, 14])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("own", [1, 2, 3])
def test_stride_of_a_convolution_before(size: int, kernel: int, own: int) -> None:
    b = Build()
    x = b.conv(b.input(1, 32, size, 12), 32, kernel, strides=(own, 1), pads=(1, 0, 0, 0))
    outcome = check(b.output(b.conv(x, 32, strides=(2, 3))), HoistStride())
    assert strides(outcome) == [(2 * own, 3), (1, 1)]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_before(op: str) -> None:
    b = Build()
    x = b.op(op, b.input(2, 32, 15, 14), kernel_shape=(3, 3), **SAME)
    outcome = check(b.output(b.conv(x, 16, **HALF)), HoistStride())
    assert outcome.ops == [op, "Conv"]
    assert strides(outcome) == [(1, 1)]


def test_depthwise_and_dilated() -> None:
    b = Build()
    x = b.conv(b.input(1, 32, 15, 14), 32, 3, group=32, dilations=(2, 2), **SAME)
    assert strides(check(b.output(b.conv(x, 16, **HALF)), HoistStride())) == [(2, 2), (1, 1)]


def test_gate_and_concat() -> None:
    b = Build()
    x, gate = b.input(2, 16, 15, 14), b.input(2, 32, 1, 1, name="gate")
    x = b.op("Concat", b.conv(x, 16, 3, **SAME), b.op("Sigmoid", b.conv(x, 16)), axis=1)
    x = b.op("Add", b.op("Mul", gate, x), b.weight(32, 1, 1))
    x = b.op("Mul", x, b.op("Sigmoid", b.batch_norm(x, 32)))
    outcome = check(b.output(b.conv(x, 16, **HALF)), HoistStride())
    assert strides(outcome) == [(2, 2), (2, 2), (1, 1)]
    assert "MaxPool" not in outcome.ops


def test_one_spatial_axis() -> None:
    b = Build()
    x = b.op("Relu", b.conv(b.input(2, 64, 65), 64, 3))
    assert strides(check(b.output(b.conv(x, 32, strides=(2,))), HoistStride())) == [(2,), (1,)]


def test_open_sizes() -> None:
    b = Build()
    x = b.op("Relu", b.conv(b.input("n", 64, "h", "w"), 64, 3))
    graph = b.output(b.conv(x, 32, **HALF))
    outcome = check(graph, HoistStride(), sizes={"n": 2, "h": 9, "w": 8})
    assert strides(outcome) == [(2, 2), (1, 1)]


def test_value_with_other_readers_is_copied() -> None:
    b = Build()
    x = b.op("Relu", b.input(1, 64, 32, 32))
    y = b.op("Relu", b.op("Add", b.conv(x, 64), x))
    outcome = check(b.output(b.conv(y, 64, **HALF), b.op("Exp", x)), HoistStride())
    assert outcome.ops.count("MaxPool") == 1
    assert outcome.remarks[0][1] == (
        "moved the strides (2, 2) of Conv 'conv2' up to Conv 'conv1', a copy of 'relu1_out'"
    )


def test_shared_weights() -> None:
    b = Build()
    weight = b.weight(64, 64, 1, 1)
    x = b.op("Conv", b.op("Conv", b.input(1, 64, 32, 32), weight), weight, **HALF)
    assert strides(check(b.output(x), HoistStride())) == [(2, 2), (1, 1)]


def test_another_reader() -> None:
    b = Build()
    x = b.op("Relu", b.conv(b.input(1, 64, 16, 16), 64))
    graph = b.output(b.conv(x, 64, **HALF), b.conv(x, 64))
    assert reasons(graph) == ["Conv 'conv3' reads every pixel of 'relu1_out'"]


def test_other_strides() -> None:
    b = Build()
    x = b.op("Relu", b.conv(b.input(1, 64, 16, 16), 64))
    graph = b.output(b.conv(x, 64, **HALF), b.conv(x, 64, strides=(4, 4)))
    assert reasons(graph) == [
        "Conv 'conv3' reads every pixel of 'relu1_out'",
        "Conv 'conv2' reads every pixel of 'relu1_out'",
    ]


def test_graph_output() -> None:
    b = Build()
    x = b.op("Relu", b.conv(b.input(1, 64, 16, 16), 64))
    assert reasons(b.output(x, b.conv(x, 64, **HALF))) == ["'relu1_out' is an output of the graph"]


@pytest.mark.parametrize(
    "attributes", [{"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}, {"pads": (1, 1, 1, 1)}], ids=str
)
def test_what_a_stride_does_not_pass(attributes: dict[str, Any]) -> None:
    b = Build()
    x = b.input(1, 32, 16, 15)
    if attributes == SAME:
        x = b.conv(b.op("Relu", b.conv(x, 32)), 32, **HALF, **attributes)
    else:
        x = b.op("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), **attributes)
        x = b.conv(x, 32, **HALF)
    assert reasons(b.output(x)) == []


def test_constant_that_differs_by_pixel() -> None:
    b = Build()
    x = b.op("Add", b.conv(b.input(1, 32, 16, 16), 32), b.weight(1, 32, 16, 16))
    assert reasons(b.output(b.conv(x, 32, **HALF))) == []


def test_that_it_would_not_pay() -> None:
    b = Build()
    x = b.op("Add", b.input(1, 4, 3, 3), b.input(1, 4, 3, 3, name="y"))
    (why,) = reasons(b.output(b.conv(x, 4, **HALF)))
    assert why.startswith("it would take ")


def test_zero_size() -> None:
    b = Build()
    x = b.op("Relu", b.conv(b.input(0, 64, 16, 16), 64))
    transform(b.output(b.conv(x, 64, **HALF)), HoistStride())
