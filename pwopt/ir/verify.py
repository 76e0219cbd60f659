"""The invariants of a graph, checked after every pass that changed it.

1. The graph has no cycle.
2. Operand slots are dense: every edge's slot is below its reader's arity, no slot has two edges,
   the last slot is not empty, and the operands that the graph keeps are those of the edges.
3. An operand exists: its node is in the graph and has that result.
4. A constant's array has the type that the node declares.
5. Declared result types do not contradict the inferred ones, where :mod:`pwopt.ir.shapes` has a
   rule; an operator that declares more results than the rule knows is checked on the known ones.
6. Outputs exist: their node is in the graph and has that result, and no output name stands twice.
7. Inputs have unique names that are not empty, and are input nodes of the graph.
8. A node has one name per result, empty for none. Names are wishes: two values may share one, and
   export makes them unique.
9. Internal ops are well-formed: see :func:`pwopt.ir.internal.check`.

Nodes are immutable, so what was found right about a node holds as long as it reads the same values:
of a graph that was valid before it suffices to check the nodes that its log names since then.
"""

from __future__ import annotations

from collections.abc import Sequence

from pwopt.errors import IRError, VerificationError
from pwopt.ir import internal, shapes
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.types import TensorType, of_array


def verify(graph: Graph, since: int | None = None) -> None:
    """Checks every invariant of the module's text.

    Args:
        graph: the graph.
        since: a version of it that was valid; what did not change after it is not checked again.

    Raises:
        VerificationError: one is broken; the message holds its number and the node's label.
    """
    nodes = graph._nodes
    changed = nodes if since is None else sorted(graph.changed_since(since) & nodes.keys())
    for each in changed:
        node = nodes[each]
        _check_node(graph, node, _operands(graph, node))
    if since is None or not _is_ordered(graph):
        _check_acyclic(graph)
    _check_ends(graph)


def _fail(number: int, where: str, what: str) -> VerificationError:
    return VerificationError(f"invariant {number}: {where}: {what}")


def _operands(graph: Graph, node: Node) -> tuple[Value | None, ...]:
    """Invariants 2 and 3, and the operands."""
    slots: list[Value | None] = [None] * node.arity
    nodes = graph._nodes
    for source, edges in graph._pred[node.id].items():
        producer = nodes.get(source)
        for slot, data in edges.items():
            if not isinstance(slot, int) or not 0 <= slot < node.arity:
                raise _fail(2, node.label, f"operand slot {slot} of {node.arity}")
            if slots[slot] is not None:
                raise _fail(2, node.label, f"operand slot {slot} has two edges")
            if producer is None:
                raise _fail(3, node.label, f"operand {slot} is of a node that is not in the graph")
            index, has = data["index"], len(producer.types)
            if not 0 <= index < has:
                raise _fail(3, node.label, f"operand {slot}: {producer.label} has {has} results")
            slots[slot] = Value(producer, index)
    if slots and slots[-1] is None:
        raise _fail(2, node.label, f"the last of {node.arity} operand slots is empty")
    if slots != graph._operands[node.id]:
        raise _fail(2, node.label, "its operands are not those of its edges")
    return tuple(slots)


def _check_node(graph: Graph, node: Node, operands: Sequence[Value | None]) -> None:
    """Invariants 4, 5, 8 and 9."""
    if node.is_constant:
        _check_constant(node)
    if len(node.names) != len(node.types):
        raise _fail(8, node.label, f"{len(node.names)} names for {len(node.types)} results")
    if node.domain == KERNEL_DOMAIN:
        try:
            internal.check(node, operands)
        except IRError as error:
            raise _fail(9, node.label, str(error)) from error
    if not shapes.has_rule(node.op, node.domain):
        return
    try:
        inferred = shapes.infer(
            graph, node.op, node.domain, node.attributes, operands, results=len(node.types)
        )
    except IRError as error:
        raise _fail(5, node.label, str(error)) from error
    for index, (declared, derived) in enumerate(zip(node.types, inferred, strict=False)):
        if not derived.accepts(declared):  # type: ignore[arg-type]
            raise _fail(5, node.label, f"result {index} is declared {declared}, but is {derived}")


def _check_constant(node: Node) -> None:
    declared = node.types[0] if len(node.types) == 1 else None
    try:
        actual = of_array(node.attributes["value"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _fail(4, node.label, f"no array: {error}") from error
    if not isinstance(declared, TensorType) or declared != actual:
        raise _fail(4, node.label, f"is declared {declared}, but holds {actual}")


def _is_ordered(graph: Graph) -> bool:
    """Whether the graph finds an order for its nodes, which it keeps for the next pass."""
    try:
        graph.topological()
    except IRError:
        return False
    return True


def _check_acyclic(graph: Graph) -> None:
    """Invariant 1, by taking away nodes whose operands are all gone."""
    waiting = {node: len(producers) for node, producers in graph._pred.items()}
    ready = [node for node, count in waiting.items() if not count]
    taken = 0
    for node in ready:
        taken += 1
        for reader in graph._succ[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if taken < len(waiting):
        stuck = min(node for node, count in waiting.items() if count)
        known = graph._nodes.get(stuck)
        raise _fail(1, known.label if known else f"node {stuck}", "depends on itself")


def _check_ends(graph: Graph) -> None:
    """Invariants 6 and 7."""
    names: set[str] = set()
    for name, value in graph.outputs:
        if value.node not in graph:
            raise _fail(6, f"output {name!r}", f"{value.label} is not in the graph")
        if not 0 <= value.index < len(value.node.types):
            raise _fail(6, f"output {name!r}", f"{value.node.label} has no result {value.index}")
        if name in names:
            raise _fail(6, f"output {name!r}", "stands twice")
        names.add(name)
    names = set()
    for node in graph.inputs:
        if node not in graph or not node.is_input:
            raise _fail(7, node.label, "is listed as an input but is none of the graph")
        if not node.out.name or node.out.name in names:
            raise _fail(7, node.label, f"input name {node.out.name!r} is empty or stands twice")
        names.add(node.out.name)
