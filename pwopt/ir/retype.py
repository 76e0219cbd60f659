"""A graph with inputs of other types."""

from __future__ import annotations

from collections.abc import Mapping

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.shapes import has_rule, infer
from pwopt.ir.types import TensorType, Type


def retype(graph: Graph, inputs: Mapping[str, Type]) -> tuple[Graph, dict[Node, Node]]:
    """The same operations on inputs of other types, all result types inferred again.

    Where there is no inference rule, the element type and the rank are kept.

    Args:
        graph: is not changed.
        inputs: types of inputs, by name; the others keep theirs.

    Returns:
        the graph, and its nodes by those of ``graph``.

    Raises:
        IRError: a node does not take what it would get; the message names it.
    """
    made = Graph(graph.name, graph.opsets)
    made.metadata = dict(graph.metadata)
    nodes: dict[Node, Node] = {}
    for node in graph.inputs:
        name = node.names[0]
        new_type = inputs.get(name, node.types[0])
        nodes[node] = made.add_input(name, new_type, node.get("default")).node
    for node in graph.topological():
        if not node.is_input:
            nodes[node] = _again(graph, made, node, nodes)
    made.set_outputs([(name, nodes[v.node][v.index]) for name, v in graph.outputs])
    return made, nodes


def _again(graph: Graph, made: Graph, node: Node, nodes: Mapping[Node, Node]) -> Node:
    """Adds a node whose operands were added already."""
    operands: list[Value | None] = [
        None if v is None else nodes[v.node][v.index] for v in graph.operands(node)
    ]
    types = node.types
    if not node.is_constant:
        try:
            types = _types(made, node, operands)
        except IRError as error:
            raise IRError(f"{node.label}: {error}") from error
    return made.add_like(node, operands, types)


def _types(made: Graph, node: Node, operands: list[Value | None]) -> tuple[Type, ...]:
    if not has_rule(node.op, node.domain):
        return tuple(
            TensorType(t.dtype, None if t.rank is None else (None,) * t.rank)
            if isinstance(t, TensorType)
            else t
            for t in node.types
        )
    count = len(node.types)
    found = infer(made, node.op, node.domain, node.attributes, operands, results=count)
    types = [*found, *node.types[len(found) :]][:count]
    return tuple(
        TensorType(new.dtype or old.dtype, new.shape)
        if isinstance(new, TensorType) and isinstance(old, TensorType)
        else new
        for new, old in zip(types, node.types, strict=True)
    )
