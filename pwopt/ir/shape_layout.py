"""Result types of what moves elements without computing: reshapes, slices, concatenations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pwopt.errors import IRError
from pwopt.ir.shape_base import (
    Call,
    Rule,
    Shape,
    add,
    broadcast,
    normalize_axes,
    normalize_axis,
    product,
    same,
)
from pwopt.ir.types import Dim, TensorType, Type


def _listed(call: Call, attribute: str, slot: int) -> tuple[int, ...] | None:
    """Integers that are an attribute in old operator sets and an operand in newer ones."""
    if attribute in call.attributes:
        return tuple(call.attributes[attribute])
    return call.ints(slot)


def _unknown(rank: int | None) -> Shape | None:
    return None if rank is None else (None,) * rank


def _reshape(call: Call) -> Sequence[Type]:
    x, wanted = call.shape(0), _listed(call, "shape", 1)
    if wanted is None:
        return call.tensor(_unknown(call.count(1)))
    result: list[Dim] = []
    rest = None if x is None else list(x)  # input dimensions that no copied axis accounts for
    copies_zero = not call.get("allowzero", 0)
    for axis, dim in enumerate(wanted):
        if dim != 0 or not copies_zero:
            result.append(dim)
        elif x is None or rest is None:
            result.append(None)
        else:
            if axis >= len(x):
                raise IRError(f"shape {wanted} copies axis {axis} of {call.type(0)}")
            result.append(x[axis])
            rest.remove(x[axis])
    if wanted.count(-1) > 1:
        raise IRError(f"shape {wanted} leaves two dimensions open")
    given = math.prod(d for d in wanted if d > 0) * (0 if not copies_zero and 0 in wanted else 1)
    if -1 in wanted:
        open_dim = None if rest is None else _quotient(rest, given, call, wanted)
        result[wanted.index(-1)] = open_dim
    elif rest is not None and product(rest) not in (None, given) and isinstance(product(rest), int):
        raise IRError(f"{call.type(0)} does not reshape to {wanted}")
    return call.tensor(result)


def _quotient(rest: list[Dim], given: int, call: Call, wanted: Sequence[int]) -> Dim:
    """The dimension that -1 stands for."""
    symbols = [d for d in rest if not isinstance(d, int)]
    number = math.prod(d for d in rest if isinstance(d, int))
    if given == 0:
        return None
    if not symbols:
        if number % given:
            raise IRError(f"{call.type(0)} does not reshape to {tuple(wanted)}")
        return number // given
    return symbols[0] if len(symbols) == 1 and number == given else None


def _flatten(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    if x is None:
        return call.tensor((None, None))
    axis = call.get("axis", 1)
    if not -len(x) <= axis <= len(x):
        raise IRError(f"axis {axis} does not exist in rank {len(x)}")
    axis = axis + len(x) if axis < 0 else axis
    return call.tensor((product(x[:axis]), product(x[axis:])))


def _squeeze(call: Call) -> Sequence[Type]:
    x, axes = call.shape(0), _listed(call, "axes", 1)
    if axes is None and call.has(1):
        count = call.count(1)
        return call.tensor(_unknown(None if x is None or count is None else len(x) - count))
    if x is None:
        return call.tensor(None)
    if axes is None:
        static = all(isinstance(d, int) for d in x)
        return call.tensor(tuple(d for d in x if d != 1) if static else None)
    axes = normalize_axes(axes, len(x))
    for a in axes:
        same(x[a], 1)
    return call.tensor(d for i, d in enumerate(x) if i not in axes)


def _unsqueeze(call: Call) -> Sequence[Type]:
    x, axes = call.shape(0), _listed(call, "axes", 1)
    if x is None or axes is None:
        count = call.count(1) if axes is None else len(axes)
        return call.tensor(_unknown(None if x is None or count is None else len(x) + count))
    axes = normalize_axes(axes, len(x) + len(axes))
    dims = iter(x)
    return call.tensor(1 if i in axes else next(dims) for i in range(len(x) + len(axes)))


def _expand(call: Call) -> Sequence[Type]:
    x, shape = call.shape(0), call.ints(1)
    if shape is None:
        count = call.count(1)
        known = x is not None and count is not None
        return call.tensor(_unknown(max(len(x or ()), count or 0)) if known else None)
    return call.tensor(broadcast(x, shape))


def _tile(call: Call) -> Sequence[Type]:
    x, repeats = call.shape(0), call.ints(1)
    if x is None or repeats is None:
        return call.tensor(_unknown(None if x is None else len(x)))
    return call.tensor(product(pair) for pair in zip(x, repeats, strict=True))


def _transpose(call: Call) -> Sequence[Type]:
    x, perm = call.shape(0), call.get("perm")
    if x is None:
        return call.tensor(_unknown(None if perm is None else len(perm)))
    order = tuple(range(len(x)))[::-1] if perm is None else tuple(perm)
    if sorted(order) != list(range(len(x))):
        raise IRError(f"perm {order} does not permute {call.type(0)}")
    return call.tensor(x[a] for a in order)


def _concat(call: Call) -> Sequence[Type]:
    shapes = [call.shape(i) for i in range(len(call.operands))]
    known = [s for s in shapes if s is not None]
    if not known:
        return call.tensor(None)
    rank = len(known[0])
    axis = normalize_axis(call.get("axis", 1), rank)
    result = list(known[0])
    for shape in known[1:]:
        if len(shape) != rank:
            raise IRError(f"operands of rank {rank} and {len(shape)}")
        for i, dim in enumerate(shape):
            result[i] = add(result[i], dim) if i == axis else same(result[i], dim)
    if len(known) < len(shapes):
        result[axis] = None
    return call.tensor(result)


def _split(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    sizes: Sequence[Dim] | None = _listed(call, "split", 1)
    parts = call.get("num_outputs", call.results) if not call.has(1) else call.count(1)
    parts = parts if sizes is None else len(sizes)
    if parts is None:
        raise IRError("the number of parts is not known")
    if x is None:
        return call.tensor(None) * parts
    axis = normalize_axis(call.get("axis", 0), len(x))
    total = x[axis]
    if sizes is None and not call.has(1) and isinstance(total, int):
        chunk = -(-total // parts)
        sizes = [chunk] * (parts - 1) + [total - chunk * (parts - 1)]
    if sizes is not None and isinstance(total, int):
        same(total, sum(s for s in sizes if isinstance(s, int)))
    dims = [None] * parts if sizes is None else sizes
    return tuple(TensorType(call.dtype(), (*x[:axis], d, *x[axis + 1 :])) for d in dims)


def _slice_bounds(
    call: Call,
) -> tuple[Sequence[int] | None, Sequence[int] | None, Sequence[int] | None, Sequence[int] | None]:
    """starts, ends, axes and steps; None where not known (absent axes and steps are filled in)."""
    if "starts" in call.attributes:
        starts, ends = tuple(call.get("starts")), tuple(call.get("ends"))
        return starts, ends, call.get("axes") or range(len(starts)), (1,) * len(starts)
    starts_, ends_ = call.ints(1), call.ints(2)
    count = call.count(1)
    axes: Sequence[int] | None = call.ints(3)
    if not call.has(3) and count is not None:
        axes = range(count)
    steps = call.ints(4)
    if not call.has(4) and count is not None:
        steps = (1,) * count
    return starts_, ends_, axes, steps


def _slice(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    starts, ends, axes, steps = _slice_bounds(call)
    if x is None or axes is None:
        return call.tensor(_unknown(None if x is None else len(x)))
    result = list(x)
    for i, axis in enumerate(normalize_axes(axes, len(x))):
        dim = x[axis]
        if starts is None or ends is None or steps is None:
            result[axis] = None
        elif isinstance(dim, int):
            result[axis] = _slice_length(dim, starts[i], ends[i], steps[i])
        elif not (starts[i] == 0 and steps[i] == 1 and ends[i] >= np.iinfo(np.int32).max):
            result[axis] = None
    return call.tensor(result)


def _slice_length(dim: int, start: int, end: int, step: int) -> int:
    if step == 0:
        raise IRError("a step of 0")
    # ONNX clamps as Python does, except that a far negative end of a reverse slice means "to the
    # first element", which Python's own negative end would as well.
    return len(range(*slice(start, end, step).indices(dim)))


def _gather(call: Call) -> Sequence[Type]:
    x, indices = call.shape(0), call.shape(1)
    if x is None or indices is None:
        return call.tensor(None)
    axis = normalize_axis(call.get("axis", 0), len(x))
    return call.tensor((*x[:axis], *indices, *x[axis + 1 :]))


def _gather_elements(call: Call) -> Sequence[Type]:
    return call.tensor(call.shape(1))


def _pad(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    pads = call.get("pads", call.get("paddings")) or call.ints(1)
    if x is None or pads is None or (call.has(3) and call.ints(3) is None):
        return call.tensor(_unknown(None if x is None else len(x)))
    axes = normalize_axes(call.ints(3) or range(len(x)), len(x))
    if len(pads) != 2 * len(axes):
        raise IRError(f"{len(pads)} pads for {len(axes)} axes")
    result = list(x)
    for i, axis in enumerate(axes):
        result[axis] = add(x[axis], pads[i] + pads[len(axes) + i])
    return call.tensor(result)


def _resize(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    if x is None:
        return call.tensor(None)
    scales, sizes = _resize_factors(call)
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return call.tensor(_unknown(len(x)))
    axes = normalize_axes(call.get("axes") or range(len(x)), len(x))
    result = list(x)
    for i, axis in enumerate(axes):
        dim = x[axis]
        if sizes is not None:
            result[axis] = sizes[i]
        elif scales is None:
            result[axis] = None
        elif isinstance(dim, int):
            # In float32, as ONNX's own inference and the runtimes round.
            result[axis] = int(np.floor(np.float32(dim) * np.float32(scales[i])))
        elif scales[i] != 1:
            result[axis] = None
    return call.tensor(result)


def _resize_factors(call: Call) -> tuple[Sequence[float] | None, Sequence[int] | None]:
    if "scales" in call.attributes:
        return call.get("scales"), None
    if "height_scale" in call.attributes:
        return (1.0, 1.0, call.get("height_scale"), call.get("width_scale")), None
    slot = 1 if call.op == "Upsample" or call.opset < 11 else 2
    array = call.array(slot)
    scales = None if array is None or not array.size else [float(s) for s in array.reshape(-1)]
    return scales, (call.ints(3) or None) if slot == 2 else None


def _shape_of(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    length = None if x is None else len(x[slice(call.get("start", 0), call.get("end"))])
    return (TensorType("int64", (length,)),)


def _constant_of_shape(call: Call) -> Sequence[Type]:
    value = call.get("value")
    dtype = "float32" if value is None else str(np.asarray(value).dtype)
    shape = call.ints(0)
    return (TensorType(dtype, _unknown(call.count(0)) if shape is None else shape),)


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape_of,
    "Size": lambda call: (TensorType("int64", ()),),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
