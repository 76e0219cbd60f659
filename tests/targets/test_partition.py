"""Cutting graphs into segments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import TensorType
from pwopt.ir.verify import verify
from pwopt.targets.partition import Segment, partition, value_key

FLOAT = TensorType("float32", (2, 3))


def random_graph(seed: int, count: int) -> tuple[Graph, list[Node]]:
    """A graph of unary and binary operations with some outputs, and a part of its nodes."""
    rng = np.random.default_rng(seed)
    graph = Graph("random")
    values: list[Value] = [graph.add_input(f"x{i}", FLOAT) for i in range(2)]
    values.append(graph.constant(np.ones((2, 3), np.float32), "c"))
    nodes = []
    for _ in range(count):
        picked = [values[int(rng.integers(len(values)))] for _ in range(int(rng.integers(1, 3)))]
        nodes.append(graph.add("Relu" if len(picked) == 1 else "Add", picked))
        values.append(nodes[-1].out)
    for i, node in enumerate(nodes):
        if not graph.uses(node.out) or rng.random() < 0.2:
            graph.add_output(f"y{i}", node.out)
    return graph, [n for n in nodes if rng.random() < 0.4]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25))
def test_segments_run_in_order_and_hold_every_node_once(seed: int, count: int) -> None:
    graph, foreign = random_graph(seed, count)
    segments = partition(graph, foreign)
    known = {value_key(n.out) for n in graph.inputs}
    for segment in segments:
        verify(segment.graph)
        assert {n.names[0] for n in segment.graph.inputs} <= known
        known |= {name for name, _ in segment.graph.outputs}
    assert {value_key(v) for _, v in graph.outputs} <= known
    originals = [n for s in segments for n in s.original.values()]
    assert len(originals) == len(set(originals)) == len(graph)
    for segment in segments:
        assert all((n not in foreign) == segment.compiled for n in segment.original.values())
    kinds = [s.compiled for s in segments]
    assert all(a != b for a, b in itertools.pairwise(kinds))


@pytest.fixture
def diamond() -> tuple[Graph, list[Node]]:
    """X -> a -> b, a -> f (foreign) -> d, b + d."""
    graph = Graph("diamond")
    x = graph.add_input("x", FLOAT)
    a = graph.add("Relu", [x])
    f = graph.add("Sin", [a.out], types=(FLOAT,))
    b = graph.add("Relu", [a.out])
    d = graph.add("Relu", [f.out])
    y = graph.add("Add", [b.out, d.out])
    graph.add_output("y", y.out)
    return graph, [a, f, b, d, y]


def ops(segments: list[Segment]) -> list[list[str]]:
    return [[n.op for n in s.original.values()] for s in segments]


def test_independent_nodes_do_not_wait(diamond: tuple[Graph, list[Node]]) -> None:
    graph, nodes = diamond
    assert ops(partition(graph, [nodes[1]])) == [["Relu", "Relu"], ["Sin"], ["Relu", "Add"]]


def test_only_what_others_read_crosses(diamond: tuple[Graph, list[Node]]) -> None:
    graph, nodes = diamond
    first, second, third = partition(graph, [nodes[1]])
    a, f, b, _, y = nodes
    assert {n for n, _ in first.graph.outputs} == {value_key(a.out), value_key(b.out)}
    assert [n.names[0] for n in second.graph.inputs] == [value_key(a.out)]
    assert {n.names[0] for n in third.graph.inputs} == {value_key(f.out), value_key(b.out)}
    assert [n for n, _ in third.graph.outputs] == [value_key(y.out)]


def test_all_or_nothing_elsewhere(diamond: tuple[Graph, list[Node]]) -> None:
    graph, nodes = diamond
    assert [s.compiled for s in partition(graph, nodes)] == [False]
    assert [s.compiled for s in partition(graph, [])] == [True]


def test_constants_are_copied_into_each_segment() -> None:
    graph = Graph("constants")
    c = graph.constant(np.ones((2, 3), np.float32), "c")
    a = graph.add("Add", [graph.add_input("x", FLOAT), c])
    b = graph.add("Mul", [a.out, c])
    graph.add_output("y", b.out)
    for segment in partition(graph, [b]):
        assert [n.names[0] for n in segment.graph.nodes() if n.is_constant] == ["c"]


def test_an_empty_graph_has_no_segments() -> None:
    assert partition(Graph("empty"), []) == []
