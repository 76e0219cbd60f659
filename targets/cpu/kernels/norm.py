"""Normalisations: local response (LRN) and mean/variance (instance, layer, group)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels import functions
from pwopt.targets.cpu.kernels.loops import lane_mask, nest, shuffle, threads_for
from pwopt.targets.cpu.kernels.rows import Offsets, Rows


def local_response(
    x: View,
    y: View,
    hardware: Hardware,
    threads: int = 1,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
) -> tirx.PrimFunc:
    """``x / (bias + alpha / size * (sum of squares over size channels)) ** beta``.

    Args:
        x: (N, H, W, C) float32; not in place, since neighbours are read again.
        y: output.
        hardware: the processor.
        threads: of the executable.
        size: channels of the window, (size - 1) // 2 of them before the middle.
        alpha: scale of the squares.
        beta: exponent.
        bias: added to the squares.

    Returns:
        A function over the pointers x, y.
    """
    before, after = (size - 1) // 2, size // 2
    contiguous = x.strides[3] == y.strides[3] == 1 and max(before, after) <= hardware.lanes
    lanes = hardware.lanes if contiguous and x.shape[3] > 1 else 1
    n, h, w, channels = x.shape
    step = x.strides[3]

    def squares(source: Memory, base: Expr, start: Expr, first: int | None) -> Expr:
        """The window sums of one vector; ``first`` is ``start`` where it is known to be an edge."""
        total: Expr = None
        for k in range(-before, after + 1):
            if first is not None and (first + k >= channels or first + k <= -lanes):
                continue
            low = first is not None and first + k < 0
            at = base + (start if low else start + k) * step
            value = let(source.load(at, lanes))
            value = value * value
            if first is not None:
                position = first if low else first + k
                if position + lanes > channels:
                    mask = lane_mask(channels - position, lanes)
                    value = T.Select(mask, value, broadcast(0.0, lanes))
                if low:  # nothing may be read before the tensor: shift the lanes instead
                    moved = [lanes + i + k for i in range(lanes)]
                    value = shuffle(broadcast(0.0, lanes), let(value), moved)
            total = value if total is None else total + value
        return total

    def body(source: Memory, destination: Memory) -> None:
        def vector(index: Sequence[Expr], base: Expr, start: Expr, first: int | None) -> None:
            total = squares(source, base, start, first)
            level = let(total * broadcast(alpha / size, lanes) + broadcast(bias, lanes))
            value = source.load(base + start * step, lanes) * _inverse_power(level, beta, lanes)
            valid = lanes if first is None else min(lanes, channels - first)
            destination.store(y.at(*index, start), value, lanes, valid)

        if 0 in x.shape:
            return
        starts = range(0, channels, lanes)
        inside = [s for s in starts if s >= before and s + lanes + after <= channels]
        with nest([n, h, w], threads_for(math.prod(x.shape), threads)) as index:
            base = let(x.at(*index, 0))
            for start in starts:
                if start not in inside:
                    vector(index, base, start, start)
            if inside:
                with loop(len(inside)) as i:
                    vector(index, base, i * lanes + inside[0], None)

    return kernel([x.dtype, y.dtype], body)


def _inverse_power(x: Expr, beta: float, lanes: int) -> Expr:
    exact = functions.power_of_constant(x, -beta, lanes)
    if exact is not None:
        return exact
    scaled = let(functions.log(x, lanes) * broadcast(-beta, lanes))
    return functions.exp(scaled, lanes)


def mean_variance(
    x: View,
    axes: Sequence[int],
    y: View,
    hardware: Hardware,
    threads: int = 1,
    *,
    scale: View | None = None,
    bias: View | None = None,
    epsilon: float = 1e-5,
) -> tirx.PrimFunc:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias``, statistics over ``axes``.

    Args:
        x: input; may be y itself.
        axes: nonnegative; (1, 2) of (N, H, W, C) is InstanceNormalization, the last ones are
            LayerNormalization; a group is one more dimension of the views.
        y: output, of x's shape.
        hardware: the processor.
        threads: of the executable.
        scale: view of y's shape (stride 0 broadcasts), if any.
        bias: likewise.
        epsilon: added to the variance.

    Returns:
        A function over the pointers x, scale and bias if present, y.
    """
    extras = [v for v in (scale, bias) if v is not None]
    rows = Rows([x, *extras, y], axes, hardware.lanes)
    lanes, share = rows.lanes, broadcast(1.0 / max(1, rows.count), rows.lanes)

    def add(a: Expr, b: Expr) -> Expr:
        return a + b

    def body(source: Memory, *others: Memory) -> None:
        def one(bases: Offsets, valid: int) -> None:
            sums = Register(lanes, broadcast(0.0, lanes))

            def add_value(at: Offsets, width: int) -> None:
                sums.set(sums.get() + rows.masked(rows.load(source, 0, at), width, 0.0))

            rows.walk(bases, add_value, valid)
            mean = let(rows.total(add, sums.get()) * share)
            deviations = Register(lanes, broadcast(0.0, lanes))

            def add_square(at: Offsets, width: int) -> None:
                difference = let(rows.load(source, 0, at) - mean)
                square = rows.masked(difference * difference, width, 0.0)
                deviations.set(deviations.get() + square)

            rows.walk(bases, add_square, valid)
            variance = rows.total(add, deviations.get()) * share
            root = T.sqrt(variance + broadcast(epsilon, lanes))
            inverse = let(broadcast(1.0, lanes) / root)

            def finish(at: Offsets, width: int) -> None:
                value = (rows.load(source, 0, at) - mean) * inverse
                if scale is not None:
                    value = value * rows.load(others[0], 1, at)
                if bias is not None:
                    value = value + rows.load(others[-2], len(extras), at)
                others[-1].store(at[-1], value, lanes, width)

            rows.walk(bases, finish, valid)

        if 0 not in x.shape:
            rows.each(one, threads_for(math.prod(x.shape), threads))

    return kernel(["float32"] * (2 + len(extras)), body)
