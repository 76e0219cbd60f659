"""Cutting a graph into segments: what the target compiles, and what ONNX Runtime runs instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pwopt.ir.graph import Graph, Node, Value


@dataclass
class Segment:
    """A part of a graph as a graph of its own.

    Attributes:
        compiled: whether the target compiles it; otherwise ONNX Runtime runs it.
        graph: its nodes; inputs and outputs are named by :func:`value_key`.
        original: the node of the whole graph that each of its nodes stands for.
    """

    compiled: bool
    graph: Graph
    original: dict[Node, Node] = field(default_factory=dict)


def value_key(value: Value) -> str:
    """A name for a value that is unique in its graph."""
    return f"v{value.node.id}_{value.index}"


def partition(graph: Graph, elsewhere: Iterable[Node]) -> list[Segment]:
    """Segments in execution order, alternating, as few as a greedy schedule finds.

    Args:
        graph: the whole graph.
        elsewhere: the nodes that ONNX Runtime is to run.
    """
    foreign = set(elsewhere)
    order = [n for n in graph.topological() if not n.is_input and not n.is_constant]
    groups: list[tuple[bool, list[Node]]] = []
    done: set[Node] = set()
    pending = order
    compiled = not (order and order[0] in foreign)
    while pending:
        taken: list[Node] = []
        rest: list[Node] = []
        for node in pending:
            sources = (v.node for v in graph.operands(node) if v is not None)
            ready = all(n in done or n.is_input or n.is_constant for n in sources)
            if ready and (node not in foreign) == compiled:
                taken.append(node)
                done.add(node)
            else:
                rest.append(node)
        if taken:
            groups.append((compiled, taken))
        compiled = not compiled
        pending = rest
    return [_segment(graph, is_compiled, nodes) for is_compiled, nodes in groups]


def _segment(graph: Graph, compiled: bool, nodes: list[Node]) -> Segment:
    inside = set(nodes)
    part = Graph(f"{graph.name}_part", graph.opsets)
    part.metadata = {k: v for k, v in graph.metadata.items() if k != "training_info"}
    segment = Segment(compiled, part)
    mapped: dict[Value, Value] = {}

    def operand(value: Value | None) -> Value | None:
        if value is None or value in mapped:
            return None if value is None else mapped[value]
        array = graph.constant_value(value)
        if array is not None:
            mapped[value] = part.constant(array, value.name)
        else:
            mapped[value] = part.add_input(value_key(value), value.type)
        return mapped[value]

    for node in nodes:
        copy = part.add(
            node.op,
            [operand(v) for v in graph.operands(node)],
            node.attributes,
            domain=node.domain,
            types=node.types,
            names=[f"{value_key(node[i])}" for i in range(len(node.types))],
            name=node.name,
            origin=node.origin,
            captures=node.captures,
        )
        segment.original[copy] = node
        for i in range(len(node.types)):
            mapped[node[i]] = copy[i]
    for node in nodes:
        for i in range(len(node.types)):
            value = node[i]
            if graph.is_output(value) or any(u.node not in inside for u in graph.uses(value)):
                part.add_output(value_key(value), mapped[value])
    return segment
