"""What a graph computes by which operators, whatever its nodes and values are called."""

from __future__ import annotations

import hashlib

from pwopt.ir.graph import Graph, Node

_COMMUTATIVE = ("Add", "Max", "Mean", "Min", "Mul", "Sum")
DIGITS = 4  # of a scalar: passes in another order round it elsewhere


def canonical(graph: Graph) -> list[tuple[str, str]]:
    """A hash for each output, equal for equal graphs up to naming and the order of creation.

    It covers operators, attributes, wiring, and constants: scalars and integers by value, weights
    by type, since their last bits depend on the order in which factors were folded into them.
    """
    hashes: dict[tuple[int, int], str] = {}
    for node in graph.topological():
        operands = ["" if v is None else hashes[v.node.id, v.index] for v in graph.operands(node)]
        if node.is_op(*_COMMUTATIVE):
            operands.sort()
        text = repr((_content(node), operands))
        for index in range(len(node.types)):
            hashes[node.id, index] = hashlib.sha256(f"{index} {text}".encode()).hexdigest()[:16]
    return [(name, hashes[value.node.id, value.index]) for name, value in graph.outputs]


def _content(node: Node) -> tuple[object, ...]:
    if node.is_input:
        return (node.out.name,)
    if not node.is_constant:
        attributes = sorted((name, str(value)) for name, value in node.attributes.items())
        return node.domain, node.op, attributes
    array = node.get("value")
    if array.dtype.kind in "iub":
        return str(array.dtype), array.tolist()
    number = f"{float(array.reshape(-1)[0]):.{DIGITS}g}" if array.size == 1 else ""
    return str(array.dtype), array.shape, number
