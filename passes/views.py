"""Operators that only change the shape: when one changes nothing, and what two amount to."""

from __future__ import annotations

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import Dim

VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def is_view(graph: Graph, node: Node) -> bool:
    """Whether a node only changes the shape: so does a Transpose that moves axes of size one."""
    if node.is_op(*VIEWS):
        return True
    x = graph.operand(node, 0) if node.is_op("Transpose") else None
    shape = None if x is None else x.tensor.shape
    if shape is None:
        return False
    perm = node.get("perm") or tuple(range(len(shape)))[::-1]
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)


def same_shape(x: Value, view: Value) -> bool:
    """Whether a view of ``x`` provably has the shape of ``x``.

    One dimension may be open: the others being equal and not zero, the number of elements, which a
    view keeps, decides it.
    """
    before, after = x.tensor.shape, view.tensor.shape
    if before is None or after is None or len(before) != len(after):
        return False
    unequal = 0
    for a, b in zip(before, after, strict=True):
        if isinstance(a, int) and isinstance(b, int):
            if a != b:
                return False
        else:
            unequal += 1
    return not unequal or (unequal == 1 and 0 not in before)


def viewed_through(x: Value, view: Value) -> tuple[int, ...] | None:
    """The target shape with which one Reshape of ``x`` gives ``view``.

    Returns:
        the shape, one open dimension as -1; None where it cannot be told, or is empty.
    """
    shape = view.tensor.shape
    if shape is None or 0 in shape or (x.tensor.shape is not None and 0 in x.tensor.shape):
        return None
    open_dims = [d for d in shape if not isinstance(d, int)]
    if len(open_dims) > 1:
        return None
    return tuple(d if isinstance(d, int) else -1 for d in shape)


def is_flattening(x: Value, view: Value) -> bool:
    """Whether a view of ``x`` is ``Flatten(x, axis=1)``: the first axis stays, the rest is one."""
    before, after = x.tensor.shape, view.tensor.shape
    if before is None or after is None or len(after) != 2 or len(before) < 2:
        return False
    rest = 1
    for dim in before[1:]:
        if not isinstance(dim, int) or dim == 0:
            return False
        rest *= dim
    if after[1] != rest:
        return False
    first: tuple[Dim, Dim] = (before[0], after[0])
    # Equal numbers, or, by the number of elements, whatever the first axis is.
    return not all(isinstance(d, int) for d in first) or first[0] == first[1]
