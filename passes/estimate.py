"""Sizes that a rewrite is weighed by before it is made."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import Dim

MARGIN = 0.02  # of the time before: a rewrite that is predicted to save less is not made


def sizes(value: Value) -> tuple[int, ...] | None:
    """A value's shape with an open first axis counted as one; None where another one is open."""
    shape: tuple[Dim, ...] | None = value.tensor.shape
    if shape is None:
        return None
    known = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(shape)]
    result = tuple(d for d in known if isinstance(d, int))
    return result if len(result) == len(known) else None


def spread(shape: Sequence[int], axis: int) -> int:
    """Number of pixels: all elements but those along the channel axis."""
    return math.prod(d for i, d in enumerate(shape) if i != axis)


def constant_growth(
    graph: Graph, gone: Iterable[Node], new_bytes: int, kept: Collection[Value | None] = ()
) -> int:
    """Bytes by which the constants grow: new ones less those that only ``gone`` reads.

    Args:
        graph: the graph.
        gone: nodes that are about to be erased.
        new_bytes: of the new constants.
        kept: constants that a new node reads, too.
    """
    absent = set(gone)
    freed: dict[Value, int] = {}
    for node in absent:
        for value in graph.operands(node):
            if value is None or not value.node.is_constant or graph.is_output(value):
                continue
            if value in kept or value in freed:
                continue
            if graph.reader_count(value) > len(absent):
                continue
            if all(reader in absent for reader in graph.readers(value)):
                freed[value] = value.tensor.bytes or 0
    return new_bytes - sum(freed.values())
