"""The graph: immutable operations as nodes, operands as edges, on a private networkx MultiDiGraph.

Nodes are operations; constants and graph inputs are nodes too. An edge is one operand: its key is
the operand slot and its ``index`` the result that it reads, so ``Add(x, x)`` has two edges. Wiring
changes only through :meth:`Graph.add`, :meth:`Graph.replace_uses` and :meth:`Graph.erase`, and each
of them adds the nodes that it changed to a log, whose length is :attr:`Graph.version`.

The networkx graph is what holds. What every pass reads is kept beside it, because networkx's views
are slow: operands by node, readers by result where a node has several results, and the topological
order. Every method but those that speak of the whole graph takes time in proportion to what it
returns or changes, however many nodes the graph has.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import networkx as nx
import numpy as np

from pwopt.errors import IRError
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.node import (
    CONSTANT,
    GRAPH_DOMAIN,
    INPUT,
    KERNEL_DOMAIN,
    ONNX_DOMAIN,
    Node,
    Opaque,
    Use,
    Value,
)
from pwopt.ir.types import Type, of_array
from pwopt.ir.wiring import Edges, Networkx, Wiring

__all__ = [
    "CONSTANT",
    "GRAPH_DOMAIN",
    "INPUT",
    "KERNEL_DOMAIN",
    "ONNX_DOMAIN",
    "Graph",
    "Node",
    "Opaque",
    "Use",
    "Value",
    "walk_up",
]


_NOTHING: list[Value | None] = []  # operands of a constant; one list for all of them
_Key = tuple[int, int]  # of a value: node id and index


class Graph:
    """An ONNX graph as pwopt's passes see it.

    Attributes:
        name: the ONNX graph's name.
        opsets: operator set version by domain.
        metadata: whatever of the model file is carried along for export.
    """

    def __init__(self, name: str = "graph", opsets: Mapping[str, int] | None = None) -> None:
        self.name = name
        self.opsets: dict[str, int] = dict(opsets or {ONNX_DOMAIN: 17})
        self.metadata: dict[str, Any] = {}
        self._log: list[int] = []  # ids of nodes as they were added, rewired or erased
        self._graph = Wiring()
        self._nodes: dict[int, Node] = {}
        self._inputs: list[Node] = []
        self._outputs: list[tuple[str, Value]] = []
        self._output_names: set[str] = set()
        self._output_uses: dict[_Key, list[int]] = {}  # positions by value
        self._next_id = 0
        self._size = 0
        self._constant_bytes = 0
        self._operands: dict[int, list[Value | None]] = {}
        self._readers: dict[_Key, set[tuple[int, int]]] = {}  # of results of nodes with several
        self._order: tuple[int, list[Node]] = (-1, [])  # of one version

    # --- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of operations, constants and inputs not counted."""
        return self._size

    def __contains__(self, node: object) -> bool:
        return isinstance(node, Node) and self._nodes.get(node.id) is node

    @property
    def version(self) -> int:
        """Grows with every change of the wiring."""
        return len(self._log)

    @property
    def state(self) -> object:
        """Compares equal for as long as nothing about the graph changes."""
        settings = (self.name, tuple(self.opsets.items()), tuple(self.metadata.items()))
        return self._graph, len(self._log), settings  # restore() brings another wiring

    def changed_since(self, version: int) -> set[int]:
        """Ids of the nodes that were added, erased or got other operands since a version."""
        return set(self._log[version:])

    @property
    def opset(self) -> int:
        """Version of ONNX's own operator set."""
        return self.opsets.get(ONNX_DOMAIN, 1)

    @property
    def constant_bytes(self) -> int:
        """Size of all constants in bytes; kept up to date, so asking costs nothing."""
        return self._constant_bytes

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[tuple[str, Value], ...]:
        """The graph's outputs in order, by name."""
        return tuple(self._outputs)

    def nodes(self) -> list[Node]:
        """All nodes in order of creation; a snapshot, so the graph may change meanwhile."""
        return list(self._nodes.values())

    def topological(self) -> list[Node]:
        """All nodes, operands before users, else as close to creation order as that allows.

        Raises:
            IRError: the graph has a cycle.
        """
        if self._order[0] != self.version:
            self._order = (self.version, self._sorted())
        return list(self._order[1])

    def operands(self, node: Node) -> tuple[Value | None, ...]:
        """The values a node reads, by slot; None for an absent optional operand."""
        return tuple(self._operands[node.id])

    def operand(self, node: Node, slot: int) -> Value | None:
        """One operand, None where it is absent."""
        operands = self._operands[node.id]
        return operands[slot] if slot < len(operands) else None

    def uses(self, value: Value) -> list[Use]:
        """The slots that read a value, in a deterministic order. Graph outputs are not uses."""
        nodes, found = self._nodes, self._readers.get((value.node.id, value.index))
        if found is None:
            edges = self._succ[value.node.id]
            return [Use(nodes[r], slot) for r in sorted(edges) for slot in sorted(edges[r])]
        return [Use(nodes[reader], slot) for reader, slot in sorted(found)]

    def readers(self, value: Value) -> list[Node]:
        """The nodes that read a value, each once, in order of creation."""
        found = self._readers.get((value.node.id, value.index))
        ids = self._succ[value.node.id] if found is None else {reader for reader, _ in found}
        return [self._nodes[reader] for reader in sorted(ids)]

    def is_output(self, value: Value) -> bool:
        """Whether the value is an output of the graph."""
        return (value.node.id, value.index) in self._output_uses

    def reader_count(self, value: Value) -> int:
        """How many nodes read a value."""
        found = self._readers.get((value.node.id, value.index))
        if found is None:
            return len(self._succ[value.node.id])
        return len({reader for reader, _ in found})

    def only_use(self, value: Value) -> Use | None:
        """The single use of a value that is no graph output, else None."""
        if self.is_output(value) or self.reader_count(value) != 1:
            return None
        uses = self.uses(value)
        return uses[0] if len(uses) == 1 else None

    def constant_value(self, value: Value | None) -> np.ndarray | None:
        """The array of a constant, None for anything else. Never write to it."""
        if value is None or not value.node.is_constant:
            return None
        array: np.ndarray = value.node.attributes["value"]
        return array

    # --- writing -----------------------------------------------------------------------------

    def add(
        self,
        op: str,
        operands: Sequence[Value | None] = (),
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = ONNX_DOMAIN,
        types: Sequence[Type] | None = None,
        names: Sequence[str] = (),
        name: str = "",
        origin: Iterable[str] = (),
        captures: Sequence[str] = (),
    ) -> Node:
        """Adds an operation that reads ``operands``.

        Args:
            op: operator name.
            operands: values by slot, None for an absent one; trailing ones are dropped.
            attributes: by name; arrays and tuples must not be written to afterwards.
            domain: operator domain.
            types: result types; inferred from the operands if left out.
            names: result names wished for.
            name: ONNX node name.
            origin: names of the ONNX nodes it descends from.
            captures: see :class:`Node`.

        Raises:
            IRError: an operand is not of this graph, or ``types`` was left out and pwopt has no
                inference rule for the operator.
        """
        slots = list(operands)
        while slots and slots[-1] is None:
            slots.pop()
        for slot, value in enumerate(slots):
            if value is not None and value.node not in self:
                raise IRError(f"operand {slot} of {op}: {value.label} is not in the graph")
        frozen = MappingProxyType(dict(attributes or {}))
        if types is None:
            from pwopt.ir.shapes import infer

            types = infer(self, op, domain, frozen, slots)
        node = Node(
            id=self._next_id,
            op=op,
            domain=domain,
            attributes=frozen,
            types=tuple(types),
            names=(*names, *[""] * (len(types) - len(names))),
            name=name,
            origin=tuple(dict.fromkeys(origin)),
            arity=len(slots),
            captures=tuple(captures),
        )
        self._place(node, slots)
        return node

    def add_like(self, node: Node, operands: Sequence[Value | None], types: Sequence[Type]) -> Node:
        """Adds the operation of a node, of this or another graph, with its names and origin.

        Raises:
            IRError: an operand is not of this graph.
        """
        return self.add(
            node.op,
            operands,
            node.attributes,
            domain=node.domain,
            types=types,
            names=node.names,
            name=node.name,
            origin=node.origin,
            captures=node.captures,
        )

    def constant(self, array: np.ndarray, name: str = "", origin: Iterable[str] = ()) -> Value:
        """Adds a constant; the array must not be written to afterwards."""
        array = np.asarray(array)
        return self.add(
            CONSTANT,
            attributes={"value": array},
            domain=GRAPH_DOMAIN,
            types=(of_array(array),),
            names=(name,),
            origin=origin,
        ).out

    def add_input(self, name: str, value_type: Type, default: np.ndarray | None = None) -> Value:
        """Adds a graph input; ``default`` is the initializer of an input that need not be fed."""
        attributes = {} if default is None else {"default": default}
        node = self.add(
            INPUT, attributes=attributes, domain=GRAPH_DOMAIN, types=(value_type,), names=(name,)
        )
        self._inputs.append(node)
        return node.out

    def add_output(self, name: str, value: Value) -> None:
        """Appends a graph output."""
        if value.node not in self:
            raise IRError(f"output {name!r}: {value.label} is not in the graph")
        if name in self._output_names:
            raise IRError(f"output {name!r} stands twice")
        self._output_names.add(name)
        self._output_uses.setdefault((value.node.id, value.index), []).append(len(self._outputs))
        self._outputs.append((name, value))
        self._log.append(value.node.id)

    def set_outputs(self, outputs: Sequence[tuple[str, Value]]) -> None:
        """Replaces the whole list of graph outputs."""
        self._log.extend(value.node.id for _, value in self._outputs)
        self._outputs, self._output_names, self._output_uses = [], set(), {}
        for name, value in outputs:
            self.add_output(name, value)

    def replace_uses(self, old: Value, new: Value) -> None:
        """Lets every reader of ``old``, graph outputs included, read ``new`` instead."""
        if new.node not in self:
            raise IRError(f"{new.label} is not in the graph")
        if old == new:
            return
        for use in self.uses(old):
            self._unlink(old, use.node, use.slot)
            self._connect(new, use.node, use.slot)
        positions = self._output_uses.pop((old.node.id, old.index), [])
        for position in positions:
            self._outputs[position] = (self._outputs[position][0], new)
        if positions:
            self._output_uses.setdefault((new.node.id, new.index), []).extend(positions)
        self._log.append(new.node.id)

    def replace_operand(self, use: Use, new: Value) -> None:
        """Lets one operand slot read ``new``."""
        operand = self.operand(use.node, use.slot)
        if operand is not None:
            self._unlink(operand, use.node, use.slot)
        self._connect(new, use.node, use.slot)

    def erase(self, node: Node) -> None:
        """Removes a node that nothing reads.

        Raises:
            IRError: something still reads it, or it is an input of the graph.
        """
        if node.is_input:
            raise IRError(f"{node.label} is an input of the graph and stays")
        if self._is_read(node):
            raise IRError(f"{node.label} is still read")
        for slot, value in enumerate(self._operands.pop(node.id)):
            if value is not None and len(value.node.types) > 1:
                self._readers[value.node.id, value.index].discard((node.id, slot))
        self._graph.remove(node.id)
        del self._nodes[node.id]
        for index in range(len(node.types)):
            self._readers.pop((node.id, index), None)
        self._size -= node.domain != GRAPH_DOMAIN
        self._constant_bytes -= _bytes(node)
        self._log.append(node.id)

    def erase_dead(self, roots: Iterable[Node] | None = None) -> int:
        """Removes the nodes that no output depends on; only ``roots`` and above if given."""
        pending = list(self.topological() if roots is None else roots)
        erased = 0
        while pending:
            node = pending.pop()
            if node not in self or node.is_input or self._is_read(node):
                continue
            if roots is not None:
                pending.extend(v.node for v in self.operands(node) if v is not None)
            self.erase(node)
            erased += 1
        return erased

    @no_garbage_collection()
    def copy(self) -> Graph:
        """An independent graph over the same immutable nodes and arrays."""
        other = Graph(self.name, self.opsets)
        other.metadata = copy.copy(self.metadata)
        other._log = list(self._log)
        other._graph = self._graph.twin()
        other._nodes = dict(self._nodes)
        other._inputs = list(self._inputs)
        other._outputs = list(self._outputs)
        other._output_names = set(self._output_names)
        other._output_uses = {key: list(found) for key, found in self._output_uses.items()}
        other._next_id = self._next_id
        other._size = self._size
        other._constant_bytes = self._constant_bytes
        other._operands = {node: list(o) if o else o for node, o in self._operands.items()}
        other._readers = {key: set(found) for key, found in self._readers.items()}
        other._order = self._order
        return other

    def restore(self, other: Graph) -> None:
        """Becomes ``other``, a changed or unchanged copy of this graph, which it takes over."""
        self.__dict__.update(other.__dict__)

    def to_networkx(self) -> Networkx:
        """A copy of the wiring: node ids, each with its :class:`Node` as ``node``."""
        result = self._graph.copy()
        nx.set_node_attributes(result, self._nodes, "node")
        return result

    def to_onnx(self) -> Any:
        """The graph as an ``onnx.ModelProto``; internal ops are expanded into standard ones."""
        from pwopt.frontend import export

        return export(self)

    def __str__(self) -> str:
        from pwopt.ir.printer import to_text

        return to_text(self)

    @property
    def _pred(self) -> Mapping[int, Mapping[int, Edges]]:
        """Edges by reader, producer and slot: networkx's own dicts, its views take four times."""
        return self._graph._pred

    @property
    def _succ(self) -> Mapping[int, Mapping[int, Edges]]:
        """Edges by producer, reader and slot."""
        return self._graph._succ

    def _sorted(self) -> list[Node]:
        """The topological order; Kahn's algorithm, the oldest node that is ready first."""
        nodes, succ = self._nodes, self._succ
        if all(node < reader for node, readers in succ.items() for reader in readers):
            return list(nodes.values())  # created in order, as import leaves them
        waiting = {node: len(producers) for node, producers in self._pred.items()}
        ready = sorted(node for node, count in waiting.items() if not count)
        order: list[Node] = []
        while ready:
            first = heapq.heappop(ready)
            order.append(nodes[first])
            for reader in succ[first]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    heapq.heappush(ready, reader)
        if len(order) < len(waiting):
            raise IRError(f"graph {self.name!r} has a cycle")
        return order

    def _is_read(self, node: Node) -> bool:
        """Whether a node's results are operands or outputs."""
        if self._succ[node.id]:
            return True
        return any((node.id, index) in self._output_uses for index in range(len(node.types)))

    def _connect(self, value: Value, reader: Node, slot: int) -> None:
        """Lets a slot of a node in the graph, which holds nothing now, read a value."""
        self._link(value, reader, slot)
        self._operands[reader.id][slot] = value
        self._log.append(reader.id)

    def _link(self, value: Value, reader: Node, slot: int) -> None:
        self._graph.connect(value.node.id, reader.id, slot, value.index)
        if len(value.node.types) > 1:
            self._readers[value.node.id, value.index].add((reader.id, slot))

    def _unlink(self, value: Value, reader: Node, slot: int) -> None:
        self._graph.disconnect(value.node.id, reader.id, slot)
        if len(value.node.types) > 1:
            self._readers[value.node.id, value.index].discard((reader.id, slot))

    def _place(self, node: Node, slots: list[Value | None]) -> None:
        """Adds a node that reads values of the graph."""
        self._insert(node)
        for slot, value in enumerate(slots):
            if value is not None:
                self._link(value, node, slot)
        self._operands[node.id] = slots or _NOTHING
        self._log.append(node.id)

    def _insert(self, node: Node) -> None:
        self._graph.insert(node.id)
        self._nodes[node.id] = node
        self._next_id = node.id + 1
        self._size += node.domain != GRAPH_DOMAIN
        self._constant_bytes += _bytes(node)
        if len(node.types) > 1:
            self._readers.update(((node.id, index), set()) for index in range(len(node.types)))


def _bytes(node: Node) -> int:
    return Value(node).tensor.bytes or 0 if node.is_constant else 0


def walk_up(graph: Graph, value: Value) -> Iterator[Node]:
    """The nodes that a value depends on, itself first, each once."""
    pending, seen = [value.node], {value.node.id}
    while pending:
        node = pending.pop()
        yield node
        for operand in graph.operands(node):
            if operand is not None and operand.node.id not in seen:
                seen.add(operand.node.id)
                pending.append(operand.node)
