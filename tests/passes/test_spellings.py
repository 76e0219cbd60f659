"""What exporters write in several operators is recognised, in every spelling."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.ir.graph import Graph
from pwopt.passes import default_pipeline
from pwopt.passes.canonicalize import Canonicalize
from pwopt.pipeline import Pass
from tests.passes.building import Build, check, transform
from tests.passes.spellings import ACTIVATIONS, LAYERS, activation, layer


def whole_pipeline() -> list[Pass]:
    """The default passes as often as these graphs need, what lowers last."""
    passes = default_pipeline() * 3
    return sorted(passes, key=lambda each: each.lowers)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    outcome = check(activation(name), *whole_pipeline())
    assert outcome.ops == [".Map"]
    assert outcome.program("Map") == ACTIVATIONS[name][0]


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    outcome = check(layer(name), *whole_pipeline(), sizes={"N": 2})
    assert outcome.ops == LAYERS[name][0]


def after_canonicalize(graph: Graph) -> list[str]:
    return check(graph, Canonicalize()).ops


def test_a_slope_that_widens_the_result() -> None:
    b = Build()
    x = b.input(1, 8, 5, 3)
    negative = b.op("Mul", b.op("Min", x, 0.0), b.weight(4, 8, 1, 1))
    assert "PRelu" not in after_canonicalize(b.output(b.op("Add", b.op("Relu", x), negative)))


def test_parts_of_different_values() -> None:
    b = Build()
    x, y = b.input(2, 3), b.input(2, 3, name="y")
    values = [
        b.op("Add", b.op("Relu", x), b.op("Mul", b.op("Min", y, 0.0), 0.1)),
        b.op("Where", b.op("Greater", x, 0.0), y, b.op("Mul", x, 0.1)),
        b.op("Where", b.op("Greater", x, 0.5), x, b.op("Mul", x, 0.1)),
        b.op("Where", b.op("Greater", x, 0.0), x, b.op("Mul", y, 0.1)),
    ]
    ops = after_canonicalize(b.output(*values))
    assert not {"LeakyRelu", "PRelu"} & set(ops)
    assert ops.count("Where") == 3


def test_an_exponential_that_is_read_elsewhere() -> None:
    b = Build()
    above = b.op("Add", b.op("Exp", b.input(2, 3)), 1.0)
    ops = after_canonicalize(b.output(b.op("Log", above), b.op("Sqrt", above)))
    assert ops == ["Exp", "Add", "Log", "Sqrt"]


def test_a_sum_that_is_not_above_one() -> None:
    b = Build()
    x = b.input(2, 3)
    ops = after_canonicalize(b.output(b.op("Log", b.op("Add", b.op("Exp", x), 2.0))))
    assert ops == ["Exp", "Add", "Log"]


def test_a_one_of_higher_rank() -> None:
    b = Build()
    x = b.input(2, 3)
    y = b.op("Div", b.number(1.0, 1, 1, 1), b.op("Add", b.op("Exp", b.op("Neg", x)), 1.0))
    outcome = check(b.output(y), Canonicalize())
    assert outcome.ops == ["Sigmoid", "Mul"]
    assert outcome.graph.outputs[0][1].shape == (1, 2, 3)


def test_integers_keep_their_where() -> None:
    b = Build(opset=13)
    x = b.input(2, 3, dtype="int32")
    zero = b.graph.constant(np.zeros((), np.int32))
    graph = b.output(b.op("Where", b.op("Greater", x, zero), x, zero))
    assert transform(graph, Canonicalize()).ops == ["Greater", "Where"]
