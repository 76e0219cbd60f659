"""Resize: nearest, linear and cubic, over height and width, channels last."""

from __future__ import annotations

import math

from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import Expr, Memory, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.copy import copy
from pwopt.targets.cpu.kernels.loops import nest, threads_for
from pwopt.targets.resampling import repeated, split

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


def resize(mode: str, x: View, y: View, hardware: Hardware, threads: int = 1) -> tirx.PrimFunc:
    """Resizes an (N, H, W, C) float32 tensor by tables.

    Returns:
        A function over the pointers x, indices (int32), weights (float32), y; indices and weights
        are those of :func:`~pwopt.targets.resampling.pack`.
    """
    taps = _TAPS[mode]
    n, height, width, channels = y.shape
    contiguous = x.strides[3] == y.strides[3] == 1 and channels > 1
    lanes = hardware.lanes if contiguous else 1

    def body(source: Memory, indices: Memory, weights: Memory, destination: Memory) -> None:
        def sample(at: Expr, stride: int) -> list[tuple[Expr, Expr]]:
            """(offset, weight) of each tap of one output row or column."""
            return [
                (let(indices.load(at + t) * stride), let(weights.load(at + t))) for t in range(taps)
            ]

        def pixel(index: list[Expr], rows: list[tuple[Expr, Expr]]) -> None:
            i, _, column = index
            columns = sample(height * taps + column * taps, x.strides[2])
            places = [
                (let(x.at(i, 0, 0, 0) + r + c), broadcast(let(p * q), lanes))
                for r, p in rows
                for c, q in columns
            ]

            def vector(channel: Expr, valid: int) -> None:
                total: Expr = None
                for base, weight in places:
                    value = source.load(base + channel * x.strides[3], lanes)
                    if mode != "nearest":
                        value = value * weight
                    total = value if total is None else total + value
                destination.store(y.at(*index, channel), total, lanes, valid)

            if channels // lanes:
                with loop(channels // lanes) as c:
                    vector(c * lanes, lanes)
            if channels % lanes:
                vector(channels - channels % lanes, channels % lanes)

        if 0 in y.shape:
            return
        with nest([n, height], threads_for(math.prod(y.shape), threads)) as (i, row):
            rows = sample(row * taps, x.strides[1])
            with loop(width) as column:
                pixel([i, row, column], rows)

    return kernel([x.dtype, "int32", "float32", y.dtype], body)


def upsample(
    x: View, y: View, factors: tuple[int, int], hardware: Hardware, threads: int = 1
) -> tirx.PrimFunc:
    """Nearest-neighbour enlargement by whole factors: each pixel repeats; any dtype.

    Returns:
        A function over the pointers x, y.
    """
    n, h, w, c = x.shape
    down, right = factors
    if y.shape != (n, h * down, w * right, c):
        raise ValueError(f"{x.shape} enlarged {factors} times is not {y.shape}")
    return copy(repeated(x, factors), split(y, factors), hardware, threads)
