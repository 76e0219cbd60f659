"""What can be written in several ways is written in one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.printer import to_text
from pwopt.passes.canonicalize import Canonicalize
from tests.passes.building import Build, check, transform

Rule = Callable[[Build, Value], Value]


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.op("Pad", b.input("batch", 3, 9, 7), b.shape(0, 0, 1, 2, 0, 0, 0, 1))
    x = b.op("AveragePool", b.conv(x, 4, 3), kernel_shape=(8, 8), auto_pad="VALID")
    x = b.op("Sum", x, x, x)
    x = b.op("MatMul", b.op("Reshape", x, b.shape(0, -1)), b.weight(4, 5))
    graph = b.output(b.op("Clip", b.op("Div", x, 4.0), 0.0))
    golden("canonicalize", to_text(transform(graph, Canonicalize()).graph, hashes=False))


def only(graph: Graph, op: str) -> Node:
    (found,) = (n for n in graph.nodes() if n.op == op)
    return found


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize("size", [7, 10])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad(op: str, auto_pad: str, size: int, stride: int) -> None:
    b = Build()
    x, attributes = b.input(2, 4, size, 5), {"auto_pad": auto_pad, "strides": (stride, 2)}
    y = b.conv(x, 6, 3, **attributes) if op == "Conv" else None
    y = y or b.op(op, x, kernel_shape=(3, 2), **attributes)
    outcome = check(b.output(y), Canonicalize())
    node = only(outcome.graph, op)
    assert "auto_pad" not in node.attributes
    assert len(node.get("pads")) == 4


def test_auto_pad_of_unknown_size() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, "h", "w"), 6, 3, auto_pad="SAME_UPPER", strides=(2, 2))
    outcome = check(b.output(x), Canonicalize(), sizes={"h": 7, "w": 9})
    assert outcome.missed == [
        ("Conv 'conv1'", "auto_pad=SAME_UPPER needs the spatial sizes of float32[1x4xhxw]")
    ]


def test_defaults_are_written_out() -> None:
    b = Build()
    outcome = check(b.output(b.conv(b.input(1, 4, 7, 5), 6, 3)), Canonicalize())
    assert dict(only(outcome.graph, "Conv").attributes) == {
        "kernel_shape": (3, 3),
        "strides": (1, 1),
        "dilations": (1, 1),
        "group": 1,
        "pads": (0, 0, 0, 0),
    }


@pytest.mark.parametrize(("size", "ceil_mode"), [(7, 0), (8, 1)])
def test_ceil_mode_without_effect(size: int, ceil_mode: int) -> None:
    b = Build()
    x = b.op("MaxPool", b.input(1, 2, size, 7), kernel_shape=(3, 3), strides=(2, 2), ceil_mode=1)
    assert only(check(b.output(x), Canonicalize()).graph, "MaxPool").get("ceil_mode") == ceil_mode


def test_ceil_mode_whose_last_window_starts_behind_the_image() -> None:
    b = Build()
    x = b.op("MaxPool", b.input(1, 2, 17, 7), kernel_shape=(1, 1), strides=(3, 1), ceil_mode=1)
    assert only(check(b.output(x), Canonicalize()).graph, "MaxPool").get("ceil_mode") == 0


CHANGED: list[tuple[Rule, list[str]]] = [
    (lambda b, x: b.op("AveragePool", x, kernel_shape=(6, 5)), ["GlobalAveragePool"]),
    (lambda b, x: b.op("ReduceMean", x, axes=(-1, 2)), ["GlobalAveragePool"]),
    (
        lambda b, x: b.op("ReduceMean", x, axes=(2, 3), keepdims=0),
        ["GlobalAveragePool", "Flatten"],
    ),
    (lambda b, x: b.op("Reshape", x, b.shape(2, -1)), ["Flatten"]),
    (lambda b, x: b.op("Sum", x, x, x), ["Add", "Add"]),
    (lambda b, x: b.op("Div", x, b.positive(4, 1, 1)), ["Mul"]),
    (lambda b, x: b.op("Sub", x, 0.5), ["Add"]),
    (lambda b, x: b.op("Clip", x, 0.0), ["Relu"]),
    (lambda b, x: b.op("Clip", b.op("Relu", x), -1.0, 0.5), ["Clip"]),
    (lambda b, x: b.op("Relu", b.op("Clip", x, -1.0, 0.5)), ["Clip"]),
    (lambda b, x: b.op("Min", b.op("Max", x, -0.5), 0.5), ["Clip"]),
    (lambda b, x: b.op("Max", 0.0, x), ["Relu"]),
]


@pytest.mark.parametrize("index", range(len(CHANGED)))
def test_changed(index: int) -> None:
    rule, ops = CHANGED[index]
    b = Build()
    assert check(b.output(rule(b, b.input(2, 4, 6, 5))), Canonicalize()).ops == ops


KEPT: list[Rule] = [
    lambda b, x: b.op("ReduceMean", x, axes=(1, 2)),
    lambda b, x: b.op("ReduceMean", x),
    lambda b, x: b.op("Reshape", x, b.shape(4, -1)),
    lambda b, x: b.op("Sub", 0.5, x),
    lambda b, x: b.op("Div", 0.5, x),
    lambda b, x: b.op("Div", x, 1e-45),
    lambda b, x: b.op("Clip", x, 0.5),
    lambda b, x: b.op("Max", x, b.weight(4, 1, 1)),
]


@pytest.mark.parametrize("index", range(len(KEPT)))
def test_kept(index: int) -> None:
    b = Build()
    graph = b.output(KEPT[index](b, b.input(2, 4, 6, 5)))
    outcome = transform(graph, Canonicalize())
    assert not outcome.remarks
    assert outcome.graph.version == graph.version


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(alpha: float, beta: float, transposed: int) -> None:
    b = Build()
    w = b.weight(6, 5) if transposed else b.weight(5, 6)
    x = b.op("Gemm", b.input(3, 5), w, b.weight(6), alpha=alpha, beta=beta, transB=transposed)
    node = only(check(b.output(x), Canonicalize()).graph, "Gemm")
    assert node.get("transB") == 1
    assert (node.get("alpha"), node.get("beta")) == (1.0, 1.0)


def test_gemm_with_a_sum_that_is_not_constant() -> None:
    b = Build()
    c = b.input(6, name="c")
    graph = b.output(b.op("Gemm", b.input(3, 5), b.weight(5, 6), c, beta=2.0))
    assert check(graph, Canonicalize()).missed == [
        ("Gemm 'gemm1'", "beta=2 multiplies a C that is not constant")
    ]


def padded(op: str, around: tuple[int, ...], value: float = 0.0, **attributes: object) -> Graph:
    b = Build()
    x = b.op("Pad", b.input(1, 4, 7, 5), b.shape(*around), value)
    y = b.conv(x, 6, 3, **attributes) if op == "Conv" else b.op(op, x, **attributes)
    return b.output(y)


def test_pad_into_a_convolution() -> None:
    outcome = check(padded("Conv", (0, 0, 1, 2, 0, 0, 0, 1), pads=(1, 1, 0, 0)), Canonicalize())
    assert outcome.ops == ["Conv"]
    assert only(outcome.graph, "Conv").get("pads") == (2, 3, 0, 1)


def test_pad_into_an_average_pool() -> None:
    graph = padded("AveragePool", (0, 0, 1, 1, 0, 0, 0, 1), kernel_shape=(2, 2))
    outcome = check(graph, Canonicalize())
    assert outcome.ops == ["AveragePool"]
    assert only(outcome.graph, "AveragePool").get("count_include_pad") == 1


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (padded("Conv", (0, 0, 1, 0, 0, 0, 0, 0), 1.0), "Pad 'pad1' pads with 1"),
        (
            padded("Conv", (0, 0, -1, 0, 0, 0, 0, 0)),
            "Pad 'pad1' crops: pads (0, 0, -1, 0, 0, 0, 0, 0)",
        ),
        (
            padded("Conv", (1, 0, 0, 0, 0, 0, 0, 0)),
            "Pad 'pad1' pads batch or channels: pads (1, 0, 0, 0, 0, 0, 0, 0)",
        ),
        (
            padded("AveragePool", (0, 0, 1, 0, 0, 0, 0, 0), kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
            "AveragePool 'averagepool1' leaves its own padding out of the mean",
        ),
        (
            padded("AveragePool", (0, 0, 2, 0, 0, 0, 0, 0), kernel_shape=(2, 2)),
            "AveragePool 'averagepool1' cannot hold pads (2, 0, 0, 0)",
        ),
    ],
)
def test_pad_that_stays(graph: Graph, why: str) -> None:
    # ONNX Runtime itself moves a Pad into a pool that cannot hold it, and then refuses the model.
    outcome = check(graph, Canonicalize(), runtime=False)
    assert "Pad" in outcome.ops
    assert [text for _, text in outcome.missed] == [why]


def test_pad_with_another_reader() -> None:
    b = Build()
    x = b.op("Pad", b.input(1, 4, 7, 5), b.shape(0, 0, 1, 1, 0, 0, 1, 1))
    outcome = check(b.output(b.conv(x, 6, 3), b.op("Relu", x)), Canonicalize())
    assert [why for _, why in outcome.missed] == [
        "'pad1_out' has another reader, so Pad 'pad1' stays"
    ]


def test_integers_keep_their_division() -> None:
    b = Build()
    x = b.input(2, 3, dtype="int64")
    outcome = transform(b.output(b.op("Div", x, b.graph.constant(np.array(2)))), Canonicalize())
    assert outcome.ops == ["Div"]
