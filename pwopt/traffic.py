"""What of a graph moves through memory on the CPU target, for the cost model to count."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pwopt import cost
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.program import BINARY, UNARY

PRODUCTS = frozenset(op for _, op in cost.MAC_OPS)
ELEMENTWISE = UNARY | BINARY | {"BatchNormalization", "Sum"}
_MAX_READERS = 256  # of a value that are looked at; all of 10,000, for each of them, take minutes
_FUSED_READERS = 4  # readers of a value at most that are taken for one fused group


def is_constant(value: Value | None) -> bool:
    """Whether an operand is there and known at build time."""
    return value is not None and value.node.is_constant


def in_registers(graph: Graph, value: Value, elements: int) -> bool:
    """Whether fusion will hand an elementwise operator this operand in registers."""
    node = value.node
    fused = node.op in PRODUCTS or node.op in ELEMENTWISE or node.domain == KERNEL_DOMAIN
    if not fused or graph.is_output(value) or cost.elements(value.type) != elements:
        return False
    if graph.reader_count(value) > _FUSED_READERS:
        return False
    return all(reader.op in ELEMENTWISE for reader in graph.readers(value))


def reorders(graph: Graph, node: Node) -> bool:
    """Whether a reshape has no view: it merges axes that channels-last memory keeps apart.

    These are the flattening of a map of several pixels, and the end of a channel shuffle.
    """
    if node.op not in ("Reshape", "Flatten"):
        return False
    x = graph.operand(node, 0)
    shape, result = (None, None) if x is None else (x.shape, node.out.shape)
    if x is None or shape is None or result is None or x.node.is_constant:
        return False
    if x.node.op == "Transpose" and len(shape) > 3:
        return True
    flat = len(shape) > 2 and shape[1] > 1 and math.prod(shape[2:]) > 1 and not x.node.is_input
    return flat and len(result) == 2


def in_place(graph: Graph, node: Node, operands: Iterable[Value]) -> bool:
    """Whether a result takes over the memory of an operand that nothing else reads."""
    return any(
        v.type == node.types[0] and not v.node.is_input and graph.reader_count(v) == 1
        for v in operands
        if not v.node.is_constant and not graph.is_output(v)
    )


def writes_slice(graph: Graph, concat: Node, value: Value | None) -> bool:
    """Whether the CPU target has an operand's producer write its channel slice in place."""
    if value is None or value.node.is_constant or value.node.is_input:
        return value is None
    rank = value.tensor.rank
    if rank != 4 or concat.get("axis") not in (1, -3) or graph.is_output(value):
        return False
    node = value.node
    strided = node.op in PRODUCTS or node.op in ELEMENTWISE or node.domain == KERNEL_DOMAIN
    if not strided and node.op not in ("MaxPool", "AveragePool", "Concat", "LRN", "Resize"):
        return False
    if graph.reader_count(value) > _MAX_READERS:
        return False
    others = (reader.id for reader in graph.readers(value) if reader.op == "Concat")
    return next(others, concat.id) == concat.id
