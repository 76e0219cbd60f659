"""What changes nothing goes; what might change something stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pwopt.ir.graph import Value
from pwopt.ir.printer import to_text
from pwopt.passes.eliminate_identity import EliminateIdentity
from tests.passes.building import Build, check, transform


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.op("Relu", b.op("Dropout", b.input("batch", 2, 3)))
    x = b.op("Transpose", b.op("Transpose", x, perm=(0, 2, 1)), perm=(1, 0, 2))
    graph = b.output(b.op("Identity", x))
    golden("eliminate_identity", to_text(transform(graph, EliminateIdentity()).graph))


Rule = Callable[[Build, Value], Value]

GONE: list[Rule] = [
    lambda b, x: b.op("Identity", x),
    lambda b, x: b.op("Dropout", x),
    lambda b, x: b.op("Cast", x, to=1),
    lambda b, x: b.op("Reshape", x, b.shape(0, 4, -1, 6)),
    lambda b, x: b.op("Expand", x, b.shape(1, 1)),
    lambda b, x: b.op("Tile", x, b.shape(1, 1, 1, 1)),
    lambda b, x: b.op("Transpose", x, perm=(0, 1, 2, 3)),
    lambda b, x: b.op("Transpose", b.op("Transpose", x)),
    lambda b, x: b.op("Pad", x, b.shape(0, 0, 0, 0, 0, 0, 0, 0)),
    lambda b, x: b.op("Slice", x, b.shape(0, 0), b.shape(1 << 60, 1 << 60), b.shape(1, 3)),
    lambda b, x: b.op("Concat", x, axis=1),
    lambda b, x: b.op("Sum", x),
    lambda b, x: b.op("AveragePool", x, kernel_shape=(1, 1)),
    lambda b, x: b.op("MaxPool", x, kernel_shape=(1, 1), strides=(1, 1)),
    lambda b, x: b.op("Mul", b.number(1.0, 1, 1), x),
    lambda b, x: b.op("Add", x, 0.0),
    lambda b, x: b.op("Sub", x, b.number(0.0, 4, 1, 1)),
    lambda b, x: b.op("Div", x, 1.0),
    lambda b, x: b.op("Pow", x, 1.0),
    lambda b, x: b.op("Squeeze", b.op("Unsqueeze", x, b.shape(0)), b.shape(0)),
    lambda b, x: b.op("Reshape", b.op("Flatten", x), b.shape(2, 4, 5, 6)),
]


@pytest.mark.parametrize("index", range(len(GONE)))
def test_gone(index: int) -> None:
    b = Build()
    x = b.op("Neg", b.input(2, 4, 5, 6))
    outcome = check(b.output(b.op("Relu", GONE[index](b, x))), EliminateIdentity())
    assert outcome.ops == ["Neg", "Relu"]


STAYS: list[Rule] = [
    lambda b, x: b.op("Cast", x, to=11),
    lambda b, x: b.op("Reshape", x, b.shape(4, 2, 5, 6)),
    lambda b, x: b.op("Expand", x, b.shape(3, 1, 1, 1, 1)),
    lambda b, x: b.op("Transpose", x),
    lambda b, x: b.op("Pad", x, b.shape(0, 0, 0, 0, 0, 0, 0, 1)),
    lambda b, x: b.op("Slice", x, b.shape(1), b.shape(1 << 60), b.shape(2)),
    lambda b, x: b.op("AveragePool", x, kernel_shape=(1, 1), strides=(2, 2)),
    lambda b, x: b.op("Mul", x, b.number(1.0, 3, 1, 1, 1, 1)),
    lambda b, x: b.op("Add", x, b.weight(4, 1, 1)),
    lambda b, x: b.op("Sub", 0.0, x),
]


@pytest.mark.parametrize("index", range(len(STAYS)))
def test_stays(index: int) -> None:
    b = Build()
    x = STAYS[index](b, b.op("Neg", b.input(2, 4, 5, 6)))
    assert len(check(b.output(b.op("Abs", x)), EliminateIdentity()).ops) == 3


def test_broadcast_of_an_unknown_dimension_stays() -> None:
    b = Build()
    graph = b.output(b.op("Relu", b.op("Add", b.input("n"), b.number(0.0, 8))))
    assert check(graph, EliminateIdentity(), sizes={"n": 1}).ops == ["Add", "Relu"]


def test_combines_views() -> None:
    b = Build()
    x = b.op("Flatten", b.op("Reshape", b.input("n", 4, 6), b.shape(0, 8, 3)))
    outcome = check(b.output(b.op("Relu", x)), EliminateIdentity(), sizes={"n": 3})
    assert outcome.ops == ["Reshape", "Relu"]


def test_ends_of_the_graph_keep_an_identity() -> None:
    b = Build()
    x = b.input(2, 3)
    y = b.op("Dropout", x)
    outcome = check(b.output(y, b.op("Identity", y)), EliminateIdentity())
    assert outcome.ops == ["Identity", "Identity"]
    assert [name for name, _ in outcome.graph.outputs] == ["dropout1_out", "identity1_out"]


def test_training_dropout() -> None:
    b = Build()
    x = b.op("Dropout", b.input(2, 3), 0.5, b.graph.constant(np.array(True)))
    assert transform(b.output(x), EliminateIdentity()).missed == [
        ("Dropout 'dropout1'", "it is in training mode")
    ]


def test_dropout_that_may_train() -> None:
    b = Build()
    x = b.op("Dropout", b.input(2, 3), 0.5, b.input(name="train", dtype="bool"))
    assert transform(b.output(x), EliminateIdentity()).missed == [
        ("Dropout 'dropout1'", "whether it trains is only known at run time")
    ]


def test_mask_that_is_read() -> None:
    b = Build()
    x = b.input(2, 3)
    kind = x.tensor
    from pwopt.ir.types import TensorType

    node = b.graph.add("Dropout", [x], types=[kind, TensorType("bool", (2, 3))], name="d")
    outcome = transform(b.output(b.op("Not", node[1]), node[0]), EliminateIdentity())
    assert outcome.missed == [("Dropout 'd'", "its mask is read")]


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Abs"])
def test_relu_of_what_is_never_negative(op: str) -> None:
    b = Build()
    x = b.op("MaxPool", b.op(op, b.input(1, 4, 6, 6)), kernel_shape=(2, 2), pads=(1, 1, 0, 0))
    graph = b.output(b.op("Tanh", b.op("Relu", b.op("Flatten", x, axis=1))))
    assert check(graph, EliminateIdentity()).ops == [op, "MaxPool", "Flatten", "Tanh"]


def test_relu_behind_a_clip() -> None:
    for low, ops in ((0.5, ["Clip", "AveragePool"]), (-0.5, ["Clip", "AveragePool", "Relu"])):
        b = Build()
        x = b.op("Clip", b.input(1, 4, 6, 6), low, 6.0)
        x = b.op("Relu", b.op("AveragePool", x, kernel_shape=(2, 2)))
        assert check(b.output(b.op("Tanh", x)), EliminateIdentity()).ops == [*ops, "Tanh"]


def test_a_transpose_that_moves_axes_of_size_one() -> None:
    b = Build()
    x = b.op("GlobalAveragePool", b.input("N", 4, 6, 6))
    x = b.op("Squeeze", b.op("Transpose", x, perm=(0, 2, 3, 1)), b.shape(1, 2))
    outcome = check(b.output(x), EliminateIdentity(), sizes={"N": 2})
    assert outcome.ops == ["GlobalAveragePool", "Reshape"]


def test_a_transpose_that_moves_data() -> None:
    b = Build()
    x = b.op("Transpose", b.input("N", 4, 6, 1), perm=(0, 2, 3, 1))
    graph = b.output(b.op("Squeeze", x, b.shape(2)))
    assert check(graph, EliminateIdentity(), sizes={"N": 2}).ops == ["Transpose", "Squeeze"]
