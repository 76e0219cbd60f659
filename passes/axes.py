"""Operators that treat each axis by itself, over an operand whose axes are permuted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.rewriting import int_list, is_dynamic, text

Perm = tuple[int, ...]  # axis k of the operand is axis perm[k] of what it is a Transpose of
Moved = tuple[list["Value | np.ndarray | None"], dict[str, Any]]


def before_transpose(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    """A node's operands but the first, and its attributes, without the Transpose of the first.

    Returns:
        operands, arrays for new constants, and attributes; None where a Transpose does not pass.
    """
    rule = _RULES.get(node.op)
    found = None if rule is None or node.domain else rule(graph, node, perm)
    return found if found is None or len(node.types) == 1 else None


def _pad(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    if any(is_dynamic(graph, node, slot) for slot in (1, 3)):
        return None
    pads, axes = int_list(graph, node, 1, "pads"), int_list(graph, node, 3, "axes")
    rank = len(perm)
    axes = tuple(range(rank)) if axes is None else axes
    if pads is None or len(pads) != 2 * len(axes):
        return None
    placed = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        placed[perm[axis]] = pads[i]
        placed[rank + perm[axis]] = pads[len(axes) + i]
    if "pads" in node.attributes:
        return [], {**node.attributes, "pads": tuple(placed)}
    return [np.array(placed, np.int64), graph.operand(node, 2)], dict(node.attributes)


def _slice(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    starts, axes = int_list(graph, node, 1, "starts"), int_list(graph, node, 3, "axes")
    if starts is None or is_dynamic(graph, node, 3):
        return None
    axes = tuple(perm[a] for a in (range(len(starts)) if axes is None else axes))
    if "starts" in node.attributes:
        return [], {**node.attributes, "axes": axes}
    rest = graph.operands(node)
    steps = rest[4] if len(rest) > 4 else None
    return [*rest[1:3], np.array(axes, np.int64), steps], dict(node.attributes)


def _resize(graph: Graph, node: Node, perm: Perm) -> Moved | None:
    if graph.opset < 11 or text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    if "axes" in node.attributes:
        axes = tuple(perm[a] for a in node.attributes["axes"])
        return list(graph.operands(node)[1:]), {**node.attributes, "axes": axes}
    rest: list[Value | np.ndarray | None] = [graph.operand(node, 1)]
    for slot in (2, 3):
        value = graph.operand(node, slot)
        array = graph.constant_value(value)
        if value is None or (array is not None and array.size == 0):
            rest.append(value)
        elif array is None or array.size != len(perm):
            return None
        else:
            rest.append(array[np.argsort(perm)])
    return rest, dict(node.attributes)


_RULES: dict[str, Callable[[Graph, Node, Perm], Moved | None]] = {
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
}
BY_AXIS = frozenset(_RULES)
