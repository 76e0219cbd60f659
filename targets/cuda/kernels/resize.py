"""Resize: nearest, linear and cubic, over height and width, channels last."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import Array, Expr, Memory, let, unrolled
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.copy import copy
from pwopt.targets.cuda.kernels.threads import (
    by_vectors,
    channel_access,
    filled,
    lanes_for,
    per_output,
    unravel,
)
from pwopt.targets.resampling import repeated, split
from pwopt.targets.views import View

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


def resize(mode: str, x: View, y: View) -> Kernel:
    """Resizes an (N, H, W, C) tensor by tables, in float32; pointers x, indices, weights, y.

    Indices (int32) and weights (float32) are those of :func:`~pwopt.targets.resampling.pack`. A
    thread computes 16 bytes of channels of an output pixel.
    """
    taps = _TAPS[mode]
    n, height, width, channels = y.shape
    lanes = lanes_for([x, y], [x.strides[3], y.strides[3]], channels)
    vectors = -(-channels // lanes)
    read, write = channel_access(x, lanes), channel_access(y, lanes)

    def body(index: Expr, source: Memory, indices: Memory, weights: Memory, target: Memory) -> None:
        image, row, column, vector = unravel(index, [n, height, width, vectors])
        rows, columns = let(row * taps), let((height + column) * taps)

        def compute(count: int) -> None:
            sums = filled(count, T.float32(0))
            with unrolled(taps) as i, unrolled(taps) as j:
                line, place = let(indices[rows + i]), let(indices[columns + j])
                weight = let(weights[rows + i] * weights[columns + j])
                at = x.at(image, line, place, vector * lanes)
                for e, value in enumerate(read.load(source, at, count)):
                    sums[e] = value if mode == "nearest" else sums[e] + value * weight
            _store(sums, count, target, y.at(image, row, column, vector * lanes))

        def _store(sums: Array, count: int, target: Memory, at: Expr) -> None:
            write.store(target, at, [sums[e] for e in range(count)])

        by_vectors(vector, channels, lanes, compute)

    dtypes = [x.dtype, "int32", "float32", y.dtype]
    return per_output(dtypes, n * height * width * vectors, body)


def upsample(x: View, y: View, factors: tuple[int, int]) -> Kernel:
    """Nearest-neighbour enlargement by whole factors: each pixel repeats; pointers x, y."""
    return copy(repeated(x, factors), split(y, factors))
