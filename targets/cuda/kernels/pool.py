"""Max, average and L2 pooling, channels last."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import Array, Expr, Memory, all_of, let, serial, unrolled, when
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import maximum
from pwopt.targets.cuda.kernels.threads import (
    by_vectors,
    channel_access,
    filled,
    lanes_for,
    per_output,
    unravel,
)
from pwopt.targets.views import View
from pwopt.targets.windows import PoolAxis

_UNROLLED_TAPS = 16
_LOWEST = -3.4028234663852886e38


def pool(
    kind: str,
    x: View,
    y: View,
    window: tuple[PoolAxis, PoolAxis],
    *,
    count_include_pad: bool = False,
) -> Kernel:
    """Pooling of an (N, H, W, C) tensor, computed in float32; pointers x, y.

    A thread computes 16 bytes of channels of an output pixel.

    Args:
        kind: "max", "average" or "l2".
        x: input; nothing outside it is read.
        y: output, not empty; its shape decides ceil_mode.
        window: over height and width.
        count_include_pad: the average divides by padding elements too.
    """
    if kind not in ("max", "average", "l2"):
        raise ValueError(f"pooling kind {kind}")
    n, height, width, channels = y.shape
    lanes = lanes_for([x, y], [x.strides[3], y.strides[3]], channels)
    vectors = -(-channels // lanes)
    read, write = channel_access(x, lanes), channel_access(y, lanes)
    rows, columns = window

    def body(index: Expr, source: Memory, target: Memory) -> None:
        image, row, column, vector = unravel(index, [n, height, width, vectors])
        top = let(row * rows.stride - rows.begin)
        left = let(column * columns.stride - columns.begin)

        def compute(count: int) -> None:
            sums = filled(count, T.float32(_LOWEST if kind == "max" else 0.0))
            with _taps(rows, columns) as k, _taps(columns, rows) as j:
                line, place = let(top + k * rows.dilation), let(left + j * columns.dilation)
                with when(all_of(_inside(line, rows, x, 1, y), _inside(place, columns, x, 2, y))):
                    at = x.at(image, line, place, vector * lanes)
                    for e, value in enumerate(read.load(source, at, count)):
                        _join(kind, sums, e, value)
            share = _share(kind, x, y, window, (row, column), count_include_pad)
            results = []
            for e in range(count):
                value = sums[e] if share is None else sums[e] * share
                results.append(T.sqrt(value) if kind == "l2" else value)
            write.store(target, y.at(image, row, column, vector * lanes), results)

        by_vectors(vector, channels, lanes, compute)

    return per_output([x.dtype, y.dtype], n * height * width * vectors, body)


def _taps(axis: PoolAxis, other: PoolAxis) -> AbstractContextManager[Expr]:
    return (unrolled if axis.size * other.size <= _UNROLLED_TAPS else serial)(axis.size)


def _inside(position: Expr, axis: PoolAxis, x: View, dimension: int, y: View) -> Expr:
    """Whether a tap is inside the input; ``True`` where all are."""
    first, last = axis.begin <= 0, (y.shape[dimension] - 1) * axis.stride - axis.begin
    last_inside = last + (axis.size - 1) * axis.dilation < x.shape[dimension]
    return all_of(first or position >= 0, last_inside or position < x.shape[dimension])


def _join(kind: str, sums: Array, e: int, value: Expr) -> None:
    if kind == "max":
        sums[e] = maximum(sums[e], value)
    elif kind == "average":
        sums[e] = sums[e] + value
    else:
        value = let(value)
        sums[e] = sums[e] + value * value


def _share(
    kind: str,
    x: View,
    y: View,
    window: tuple[PoolAxis, PoolAxis],
    position: tuple[Expr, Expr],
    count_include_pad: bool,
) -> Expr:
    """What an average is multiplied by, or nothing for other kinds."""
    if kind != "average":
        return None
    counts: list[Expr] = []
    for axis, at, dimension in zip(window, position, (1, 2), strict=True):
        extent = x.shape[dimension]
        known = {_count(axis, o, extent, count_include_pad) for o in range(y.shape[dimension])}
        if len(known) == 1:
            counts.append(known.pop())
            continue
        start = let(at * axis.stride - axis.begin)
        if count_include_pad:
            end = T.min(start + axis.size * axis.dilation, extent + axis.end)
            counts.append(let(1 + (end - start - 1) // axis.dilation))
            continue
        d = axis.dilation
        first = T.max(0, (d - 1 - start) // d)  # the first tap that is not before the input
        last = T.min(axis.size, (extent - start + d - 1) // d)
        counts.append(let(T.max(last - first, 1)))
    rows, columns = counts
    if isinstance(rows, int) and isinstance(columns, int):
        return T.float32(1.0 / max(1, rows * columns))
    return let(T.float32(1.0) / T.cast(rows * columns, "float32"))


def _count(axis: PoolAxis, position: int, extent: int, count_include_pad: bool) -> int:
    """Elements that an output's average divides by, along one axis."""
    if count_include_pad:
        return axis.counted(position, extent)
    first, end = axis.taps(position, extent)
    return end - first


def covers(window: tuple[PoolAxis, PoolAxis], x: View, y: View) -> bool:
    """Whether the only window of each channel is the whole map."""
    whole = all(
        a.size == e and a.begin == a.end == 0 and a.dilation == 1
        for a, e in zip(window, x.shape[1:3], strict=True)
    )
    return whole and math.prod(y.shape[1:3]) == 1
