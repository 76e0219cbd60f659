"""Softmax and log-softmax over any axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import Expr, let
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import maximum
from pwopt.targets.cuda.kernels.reduce import add
from pwopt.targets.cuda.kernels.slices import Place, Slices
from pwopt.targets.views import View


def softmax(x: View, axes: Sequence[int], y: View, *, log: bool = False) -> Kernel:
    """``exp(x - max) / sum(exp(x - max))`` over ``axes``, or its logarithm; pointers x, y.

    Args:
        x: input, not empty; may be y itself.
        axes: nonnegative; several count as one flattened axis.
        y: output, of x's shape.
        log: log-softmax.
    """
    slices = Slices([x, y], axes)

    def body(place: Place) -> None:
        peaks = place.sums(-math.inf)

        def raise_peak(offsets: list[Expr]) -> None:
            for e, value in enumerate(place.load(0, 0, offsets)):
                peaks[e] = maximum(peaks[e], value)

        place.walk(raise_peak)
        tops = place.total(maximum, peaks)
        sums = place.sums(0.0)

        def accumulate(offsets: list[Expr]) -> None:
            for e, value in enumerate(place.load(0, 0, offsets)):
                sums[e] = sums[e] + T.exp(value - tops[e])

        place.walk(accumulate)
        totals = place.total(add, sums)
        scales = [let(T.log(t) if log else T.float32(1.0) / t) for t in totals]

        def finish(offsets: list[Expr]) -> None:
            results = []
            for value, top, scale in zip(place.load(0, 0, offsets), tops, scales, strict=True):
                results.append(value - top - scale if log else T.exp(value - top) * scale)
            place.store(offsets, results)

        place.walk(finish)

    return slices.kernel([x.dtype, y.dtype], body)
