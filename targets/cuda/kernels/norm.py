"""Normalisations: local response (LRN) and mean/variance (instance, layer, group)."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import Array, Expr, Memory, all_of, let, unrolled, when
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.reduce import add
from pwopt.targets.cuda.kernels.slices import Place, Slices
from pwopt.targets.cuda.kernels.threads import (
    by_vectors,
    channel_access,
    lanes_for,
    per_output,
    unravel,
)
from pwopt.targets.views import View


def local_response(
    x: View,
    y: View,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    bias: float = 1.0,
) -> Kernel:
    """``x / (bias + alpha / size * (sum of squares over size channels)) ** beta``.

    A thread computes 16 bytes of channels of a pixel. Pointers x, y.

    Args:
        x: (N, H, W, C), not empty; not in place, since neighbours are read again.
        y: output.
        size: channels of the window, (size - 1) // 2 of them before the middle.
        alpha: scale of the squares.
        beta: exponent.
        bias: added to the squares.
    """
    n, height, width, channels = x.shape
    before = (size - 1) // 2
    lanes = lanes_for([x, y], [x.strides[3], y.strides[3]], channels)
    vectors = -(-channels // lanes)
    write = channel_access(y, lanes)

    def body(index: Expr, source: Memory, target: Memory) -> None:
        *pixel, vector = unravel(index, [n, height, width, vectors])
        first, base = let(vector * lanes), let(x.at(*pixel, 0))

        def compute(count: int) -> None:
            values = Array(count + size - 1, "float32", "values")
            with unrolled(count + size - 1) as j:
                channel = let(first + j - before)
                values[j] = T.float32(0)
                with when(all_of(channel >= 0, channel < channels)):
                    values[j] = source.load(base + channel * x.strides[3])[0]
            results = []
            for e in range(count):
                squares: Expr = T.float32(0)
                for k in range(size):
                    squares = squares + values[e + k] * values[e + k]
                level = let(squares * T.float32(alpha / size) + T.float32(bias))
                results.append(values[e + before] * T.exp(T.log(level) * T.float32(-beta)))
            write.store(target, y.at(*pixel, first), results)

        by_vectors(vector, channels, lanes, compute)

    return per_output([x.dtype, y.dtype], n * height * width * vectors, body)


def mean_variance(
    x: View,
    axes: Sequence[int],
    y: View,
    *,
    scale: View | None = None,
    bias: View | None = None,
    epsilon: float = 1e-5,
) -> Kernel:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias``, statistics over ``axes``.

    Pointers x, scale and bias if present, y.

    Args:
        x: input, not empty; may be y itself.
        axes: nonnegative; (1, 2) of (N, H, W, C) is InstanceNormalization, the last ones are
            LayerNormalization; a group is one more dimension of the views.
        y: output, of x's shape.
        scale: view of y's shape (stride 0 broadcasts), if any.
        bias: likewise.
        epsilon: added to the variance.
    """
    extras = [v for v in (scale, bias) if v is not None]
    slices = Slices([x, *extras, y], axes)
    share = 1.0 / max(1, slices.count)

    def body(place: Place) -> None:
        sums = place.sums(0.0)

        def add_value(offsets: list[Expr]) -> None:
            for e, value in enumerate(place.load(0, 0, offsets)):
                sums[e] = sums[e] + value

        place.walk(add_value)
        means = [let(t * T.float32(share)) for t in place.total(add, sums)]
        squares = place.sums(0.0)

        def add_square(offsets: list[Expr]) -> None:
            for e, value in enumerate(place.load(0, 0, offsets)):
                difference = let(value - means[e])
                squares[e] = squares[e] + difference * difference

        place.walk(add_square)
        inverses = [
            let(T.float32(1) / T.sqrt(t * T.float32(share) + T.float32(epsilon)))
            for t in place.total(add, squares)
        ]

        def finish(offsets: list[Expr]) -> None:
            columns = [place.load(i, i, offsets) for i in range(1 + len(extras))]
            results = []
            for e, value in enumerate(columns[0]):
                result = (value - means[e]) * inverses[e]
                if scale is not None:
                    result = result * columns[1][e]
                if bias is not None:
                    result = result + columns[-1][e]
                results.append(result)
            place.store(offsets, results)

        place.walk(finish)

    return slices.kernel([v.dtype for v in (x, *extras, y)], body)
