"""Cuts a part out of a graph, as a graph of its own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import of_array


def extract(
    graph: Graph,
    nodes: Collection[Node],
    samples: Mapping[Value, np.ndarray],
    *,
    defaults: bool = False,
) -> Graph:
    """Some operations of a graph, with the constants that they read.

    What they read of others becomes an input of static shape; what others read of them, and what is
    an output of ``graph``, becomes an output. Nodes, weights and names are those of ``graph``.

    Args:
        graph: is not changed.
        nodes: the operations.
        samples: an array for each value that they read of others; gives the input's type.
        defaults: whether the arrays become the inputs' defaults, too.

    Raises:
        IRError: there is no array for a value.
    """
    chosen = {node.id for node in nodes}
    order = [node for node in graph.topological() if node.id in chosen]
    read = dict.fromkeys(v for node in order for v in graph.operands(node) if v is not None)
    part = Graph(graph.name, graph.opsets)
    part.metadata = copy.copy(graph.metadata)
    names = _Unique()
    inputs: dict[Value, Value] = {}
    for value in read:
        if value.node.is_constant and value.node not in part:
            part._place(value.node, [])
    part._next_id = graph._next_id
    for value in read:
        if value.node.id in chosen or value.node.is_constant:
            continue
        if value not in samples:
            raise IRError(f"{value.label}: nothing is known of its values")
        array = samples[value]
        name = names.of(value.name or f"input{len(inputs)}")
        inputs[value] = part.add_input(name, of_array(array), array if defaults else None)
    for node in order:
        slots = [None if v is None else inputs.get(v, v) for v in graph.operands(node)]
        part._place(node, slots)
    part._next_id = graph._next_id + len(inputs)
    for value in _results(graph, order, chosen):
        part.add_output(names.of(value.name or f"output{len(part.outputs)}"), value)
    return part


def _results(graph: Graph, order: list[Node], chosen: set[int]) -> list[Value]:
    """What the operations give to others."""
    return [
        value
        for node in order
        for value in (node[i] for i in range(len(node.types)))
        if graph.is_output(value) or any(use.node.id not in chosen for use in graph.uses(value))
    ]


class _Unique:
    """Names that each stand for one value."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, wish: str) -> str:
        """The name wished for, or one like it."""
        name, count = wish, 1
        while name in self._taken:
            count += 1
            name = f"{wish}_{count}"
        self._taken.add(name)
        return name
