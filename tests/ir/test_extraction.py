"""Parts of graphs as graphs of their own."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.errors import IRError
from pwopt.frontend.reference import evaluate
from pwopt.ir.extraction import extract
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import TensorType
from pwopt.ir.verify import verify
from tests.passes.building import Build


def network() -> tuple[Graph, dict[str, Node]]:
    """Three activations of which the middle one is read twice, once as an output."""
    b = Build()
    x = b.op("Mul", b.input("n", 3), b.weight(3))
    y = b.op("Relu", x)
    z = b.op("Add", b.op("Sigmoid", y), x)
    return b.output(y, z), {n.op: n for n in b.graph.nodes()}


def sample(value: Value) -> dict[Value, np.ndarray]:
    return {value: np.full((2, 3), 0.5, np.float32)}


def test_ends_of_a_part_are_what_others_read_and_compute() -> None:
    graph, nodes = network()
    part = extract(graph, [nodes["Relu"], nodes["Sigmoid"]], sample(nodes["Mul"].out))
    verify(part)
    (x,) = part.inputs
    assert (x.names, x.types) == (("mul1_out",), (TensorType("float32", (2, 3)),))
    assert [name for name, _ in part.outputs] == ["relu1_out", "sigmoid1_out"]
    feeds = {"mul1_out": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    relu, sigmoid = evaluate(part, feeds).values()
    assert np.array_equal(relu, np.maximum(feeds["mul1_out"], 0))
    assert np.allclose(sigmoid, 1 / (1 + np.exp(-relu)))


def test_constants_come_along_and_arrays_can_be_defaults() -> None:
    graph, nodes = network()
    part = extract(graph, [nodes["Mul"]], sample(graph.inputs[0].out), defaults=True)
    verify(part)
    factor = graph.constant_value(graph.operand(nodes["Mul"], 1))
    assert factor is not None
    (product,) = evaluate(part, {}).values()
    assert np.array_equal(product, np.broadcast_to(0.5 * factor.astype(np.float64), (2, 3)))


def test_the_graph_stays_as_it_was() -> None:
    graph, nodes = network()
    text = str(graph)
    part = extract(graph, [nodes["Mul"]], sample(graph.inputs[0].out))
    part.set_outputs([])
    part.erase_dead()
    assert str(graph) == text


def test_names_that_two_values_share_become_two() -> None:
    graph, kind = Graph(), TensorType("float32", (2,))
    values = [graph.add_input(name, kind) for name in ("a", "b")]
    x, y = (graph.add("Relu", [v], names=("same",)).out for v in values)
    node = graph.add("Add", [x, y], names=("same",))
    graph.add_output("out", node.out)
    part = extract(graph, [node], {v: np.zeros(2, np.float32) for v in (x, y)})
    verify(part)
    assert [n.names[0] for n in part.inputs] == ["same", "same_2"]
    assert [name for name, _ in part.outputs] == ["same_3"]


def test_values_of_unknown_type_cannot_be_cut() -> None:
    graph, nodes = network()
    with pytest.raises(IRError, match="mul1_out: nothing is known of its values"):
        extract(graph, [nodes["Relu"]], {})
