"""The networkx graph behind a :class:`~pwopt.ir.graph.Graph`, with that graph's few changes fast.

Networkx's own ``add_edge`` and its like serve any keyword and any hashable; on a model of 100,000
operations they took a seventh of all time. The methods here leave the same adjacency behind:
``_succ[producer][reader]`` and ``_pred[reader][producer]`` are one dict, from slot to edge data.
Edge and node data are immutable, and one for all that are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    Networkx = nx.MultiDiGraph[int]
else:
    Networkx = nx.MultiDiGraph

Edges = dict[int, Mapping[str, int]]  # between two nodes, by slot
_NO_DATA: Mapping[str, int] = MappingProxyType({})


@functools.cache
def _reads(index: int) -> Mapping[str, int]:
    """Edge data: the result that is read."""
    return MappingProxyType({"index": index})


class Wiring(Networkx):
    """A MultiDiGraph of node ids; an edge's key is the operand slot, its ``index`` the result."""

    _node: dict[int, Mapping[str, int]]
    _succ: dict[int, dict[int, Edges]]
    _pred: dict[int, dict[int, Edges]]

    def insert(self, node: int) -> None:
        """Adds a node without edges."""
        self._succ[node], self._pred[node], self._node[node] = {}, {}, _NO_DATA

    def remove(self, node: int) -> None:
        """Removes a node that nothing reads."""
        for producer in self._pred.pop(node):
            del self._succ[producer][node]
        del self._succ[node], self._node[node]

    def connect(self, producer: int, reader: int, slot: int, index: int) -> None:
        """Adds an edge; the slot must be free."""
        edges = self._succ[producer].get(reader)
        if edges is None:
            edges = self._succ[producer][reader] = self._pred[reader][producer] = {}
        edges[slot] = _reads(index)

    def disconnect(self, producer: int, reader: int, slot: int) -> None:
        """Removes an edge."""
        edges = self._succ[producer][reader]
        del edges[slot]
        if not edges:
            del self._succ[producer][reader], self._pred[reader][producer]

    def twin(self) -> Wiring:
        """An independent copy."""
        other = Wiring()
        other._node.update(self._node)
        other._pred.update((node, {}) for node in self._node)
        for producer, readers in self._succ.items():
            copied = other._succ[producer] = {r: edges.copy() for r, edges in readers.items()}
            for reader, edges in copied.items():
                other._pred[reader][producer] = edges
        return other
