"""Rules, of every target, for operators that move or view data: most cost nothing."""

from __future__ import annotations

import math

import numpy as np

from pwopt.ir.graph import Node, Value
from pwopt.targets.lowering import Lowering
from pwopt.targets.plan import Tensor
from pwopt.targets.values import Unsupported, element_type, static_shape
from pwopt.targets.views import View, channels_last


def identity(lowering: Lowering, node: Node) -> None:
    """Identity and inference-time Dropout: the same memory."""
    if len(node.types) > 1 and lowering.is_read(node[1]):
        raise Unsupported("the mask of a Dropout is read")
    training = lowering.graph.operand(node, 2)
    if training is not None and lowering.constant_array(node, 2, "training_mode").any():
        raise Unsupported("training mode")
    lowering.alias(node.out, lowering.tensor(lowering.required(node, 0)))


def reshape(lowering: Lowering, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: a view where the layout allows, else a copy.

    The copy goes straight into the layout that the result is wanted in, where the operand's axes
    can be seen in it (a channel shuffle can); else into row-major order.
    """
    value = lowering.required(node, 0)
    shape = static_shape(node.out)
    old_shape = static_shape(value)
    tensor = lowering.tensor(value)
    view = tensor.view.reshape(shape)
    if view is not None:
        lowering.alias(node.out, tensor.with_view(view))
        return
    last = View.dense(shape, tensor.view.dtype, channels_last(len(shape)))
    if last.reshape(old_shape) is None:
        lowering.alias(node.out, _viewed(lowering.dense(value), shape))
        return
    result = lowering.result(node.out)
    target = result.view.reshape(old_shape)
    if target is not None:
        lowering.copy_into(tensor, result.with_view(target))
    else:  # a border cuts the axes apart
        lowering.copy_into(_viewed(lowering.dense(value), shape), result)


def _viewed(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A dense tensor under another shape."""
    view = tensor.view.reshape(shape)
    assert view is not None
    return tensor.with_view(view)


def transpose(lowering: Lowering, node: Node) -> None:
    """Transpose: a view."""
    tensor = lowering.tensor(lowering.required(node, 0))
    rank = len(tensor.view.shape)
    axes = node.get("perm", tuple(reversed(range(rank))))
    lowering.alias(node.out, tensor.with_view(tensor.view.permute(axes)))


def slice_(lowering: Lowering, node: Node) -> None:
    """Slice with constant bounds and positive or negative steps: a view."""
    value = lowering.required(node, 0)
    view = lowering.tensor(value).view
    rank = len(view.shape)
    if "starts" in node.attributes:
        starts, ends = node.get("starts"), node.get("ends")
        axes, steps = list(node.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts = lowering.constant_array(node, 1, "start").tolist()
        ends = lowering.constant_array(node, 2, "end").tolist()
        axes = _optional(lowering, node, 3, list(range(len(starts))))
        steps = _optional(lowering, node, 4, [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        window = range(view.shape[axis % rank])[start:end:step]
        view = view.slice(axis % rank, window.start if len(window) else 0, len(window), step)
    lowering.alias(node.out, lowering.tensor(value).with_view(view))


def split(lowering: Lowering, node: Node) -> None:
    """Split: one view per result."""
    tensor = lowering.tensor(lowering.required(node, 0))
    axis = node.get("axis", 0) % len(tensor.view.shape)
    start = 0
    for i in range(len(node.types)):
        extent = static_shape(node[i])[axis]
        lowering.alias(node[i], tensor.with_view(tensor.view.slice(axis, start, extent)))
        start += extent


def expand(lowering: Lowering, node: Node) -> None:
    """Expand: strides of 0."""
    tensor = lowering.tensor(lowering.required(node, 0))
    lowering.alias(node.out, tensor.with_view(tensor.view.broadcast(static_shape(node.out))))


def depth_to_space(lowering: Lowering, node: Node) -> None:
    """DepthToSpace and SpaceToDepth: a reshape, a transpose and a reshape."""
    n, c, h, w = static_shape(lowering.required(node, 0))
    b = node.get("blocksize")
    if node.op == "SpaceToDepth":
        inner, axes = (n, c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4)
    elif node.get("mode", "DCR") == "DCR":
        inner, axes = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    else:
        inner, axes = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    tensor = lowering.reshaped(lowering.required(node, 0), inner)
    moved = tensor.view.permute(axes)
    result = lowering.result(node.out)
    # The copy runs in the six-dimensional view, in which the result can always be seen.
    target = _split_axes(result.view, moved.shape, node.op == "SpaceToDepth")
    lowering.copy_into(tensor.with_view(moved), result.with_view(target))


def concat(lowering: Lowering, node: Node) -> None:
    """Concat: operands that were not produced in place are copied."""
    axis = node.get("axis", 0) % len(static_shape(node.out))
    element_type(node.out)
    whole = (
        lowering.result_of_concat(node.out)
        if axis == 1 and len(static_shape(node.out)) == 4
        else lowering.result(node.out, _common_order(lowering, node))
    )
    start = 0
    for value in lowering.operands(node):
        if value is None:
            raise Unsupported("an operand is absent")
        extent = static_shape(value)[axis]
        part = whole.with_view(whole.view.slice(axis, start, extent))
        if extent and lowering.tensor(value) != part:  # else its producer wrote it there
            lowering.copy_into(lowering.tensor(value), part)
        start += extent


def pad(lowering: Lowering, node: Node) -> None:
    """Pad with constants, by a fill and a copy (negative pads crop)."""
    if node.get("mode", "constant") != "constant":
        raise Unsupported(f"mode {node.get('mode')}")
    value = lowering.required(node, 0)
    tensor = lowering.tensor(value)
    rank = len(tensor.view.shape)
    pads = list(node.get("pads", ())) or lowering.constant_array(node, 1, "padding").tolist()
    fill_value = _pad_value(lowering, node)
    axes = [a % rank for a in _optional(lowering, node, 3, list(range(rank)))]
    begins, ends = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[i], pads[len(axes) + i]
    source = tensor.view
    for axis in range(rank):  # what is left of the operand
        first, last = max(0, -begins[axis]), source.shape[axis] - max(0, -ends[axis])
        source = source.slice(axis, first, max(0, last - first))
    result = lowering.result(node.out, tensor.view.order)
    target = result.view
    for axis in range(rank):
        target = target.slice(axis, max(0, begins[axis]), source.shape[axis])
    if any(p > 0 for p in pads):
        lowering.fill(result, fill_value)
    lowering.copy_into(tensor.with_view(source), result.with_view(target))


def gather(lowering: Lowering, node: Node) -> None:
    """Gather with constant indices that form a range: a view; others: one copy an index."""
    value = lowering.required(node, 0)
    tensor = lowering.tensor(value)
    axis = node.get("axis", 0) % len(tensor.view.shape)
    indices = lowering.constant_array(node, 1, "index")
    extent = tensor.view.shape[axis]
    flat = np.where(indices < 0, indices + extent, indices).reshape(-1)
    if flat.size == 0 or flat.min() < 0 or flat.max() >= extent:
        raise Unsupported(f"indices reach outside of axis {axis} of {extent}")
    steps = set(np.diff(flat).tolist())
    if indices.ndim == 0:
        view = tensor.view.slice(axis, int(flat[0]), 1)
        lowering.alias(node.out, tensor.with_view(_drop(view, axis)))
        return
    if indices.ndim == 1 and (flat.size == 1 or (len(steps) == 1 and steps != {0})):
        step = steps.pop() if steps else 1
        view = tensor.view.slice(axis, int(flat[0]), flat.size, step)
        lowering.alias(node.out, tensor.with_view(view))
        return
    if indices.ndim != 1 or flat.size > 4096:
        raise Unsupported("scattered indices")
    result = lowering.result(node.out, tensor.view.order)
    for at, index in enumerate(flat.tolist()):
        lowering.copy_into(
            tensor.with_view(tensor.view.slice(axis, index, 1)),
            result.with_view(result.view.slice(axis, at, 1)),
        )


def _drop(view: View, axis: int) -> View:
    keep = [a for a in range(len(view.shape)) if a != axis]
    return View(
        tuple(view.shape[a] for a in keep),
        tuple(view.strides[a] for a in keep),
        view.offset,
        view.dtype,
    )


def _optional(lowering: Lowering, node: Node, slot: int, default: list[int]) -> list[int]:
    value = lowering.graph.operand(node, slot)
    if value is None:
        return default
    return [int(v) for v in lowering.constant_array(node, slot, f"operand {slot}").reshape(-1)]


def _pad_value(lowering: Lowering, node: Node) -> float | int:
    """The padding as the number that stands for it in memory."""
    if lowering.graph.operand(node, 2) is None:
        value = np.asarray(node.get("value", 0.0), np.float32)
    else:
        value = lowering.constant_array(node, 2, "padding value").reshape(())
    if value.dtype.name == "bfloat16":
        value = value.view(np.uint16)
    number: float | int = value.item()
    return number


def _common_order(lowering: Lowering, node: Node) -> tuple[int, ...]:
    """The layout of most of the elements that are concatenated."""
    votes: dict[tuple[int, ...], int] = {}
    for value in lowering.operands(node):
        if value is not None and lowering.array(value) is None:
            view = lowering.tensor(value).view
            votes[view.order] = votes.get(view.order, 0) + view.elements
    if not votes:
        return tuple(range(len(static_shape(node.out))))
    return max(votes, key=lambda order: votes[order])


def _split_axes(view: View, shape: tuple[int, ...], space_to_depth: bool) -> View:
    """The result of a depth/space move as the six axes that are copied."""
    n, c, h, w = view.strides
    if space_to_depth:  # (n, b, b, c, h, w)
        depth = shape[3]
        strides = (n, shape[2] * depth * c, depth * c, c, h, w)
    else:  # (n, c, h, b, w, b)
        strides = (n, c, shape[3] * h, h, shape[5] * w, w)
    return View(shape, strides, view.offset, view.dtype)


def shape_of(lowering: Lowering, node: Node) -> None:
    """Shape and Size of a static value: constants."""
    value: Value = lowering.required(node, 0)
    shape = static_shape(value)
    if node.op == "Size":
        array = np.asarray(math.prod(shape), np.int64)
    else:
        array = np.asarray(shape[node.get("start", 0) : node.get("end", len(shape))], np.int64)
    lowering.alias(node.out, lowering.constant(array, key=("shape", node.out)))


RULES = {
    ("", op): rule
    for rule, ops in {
        identity: ("Identity", "Dropout"),
        reshape: ("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
        transpose: ("Transpose",),
        slice_: ("Slice",),
        split: ("Split",),
        expand: ("Expand",),
        depth_to_space: ("DepthToSpace", "SpaceToDepth"),
        concat: ("Concat",),
        pad: ("Pad",),
        gather: ("Gather",),
        shape_of: ("Shape", "Size"),
    }.items()
    for op in ops
}
