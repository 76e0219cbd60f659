"""Reductions over any axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import Expr, let, when
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import maximum, minimum
from pwopt.targets.cuda.kernels.slices import Place, Slices
from pwopt.targets.views import View


@dataclass(frozen=True)
class Reduction:
    """An associative operation with what surrounds it.

    Attributes:
        join: of two partial results.
        identity: its neutral element.
        prepare: of each element before joining.
        finish: of the total, given the number of elements.
    """

    join: Callable[[Expr, Expr], Expr]
    identity: float
    prepare: Callable[[Expr], Expr] = lambda x: x
    finish: Callable[[Expr, int], Expr] = lambda x, count: x


def add(a: Expr, b: Expr) -> Expr:
    """The sum."""
    return a + b


def _square(a: Expr) -> Expr:
    a = let(a)
    return a * a


REDUCTIONS = {
    "Sum": Reduction(add, 0.0),
    "Mean": Reduction(add, 0.0, finish=lambda x, count: x * T.float32(1.0 / count)),
    "Max": Reduction(maximum, -math.inf),
    "Min": Reduction(minimum, math.inf),
    "Prod": Reduction(lambda a, b: a * b, 1.0),
    "L1": Reduction(add, 0.0, lambda a: T.fabs(a)),
    "L2": Reduction(add, 0.0, _square, lambda x, count: T.sqrt(x)),
    "SumSquare": Reduction(add, 0.0, _square),
    "LogSum": Reduction(add, 0.0, finish=lambda x, count: T.log(x)),
}


def reduce(kind: str, x: View, axes: Sequence[int], y: View) -> Kernel:
    """Reduces ``axes``, which keep extent 1 in ``y``, in float32; pointers x, y.

    Args:
        kind: a key of :data:`REDUCTIONS`.
        x: input, not empty.
        axes: nonnegative.
        y: output, of x's rank.
    """
    operation = REDUCTIONS[kind]
    slices = Slices([x, y.broadcast(x.shape)], axes)

    def body(place: Place) -> None:
        parts = place.sums(operation.identity)

        def join(offsets: list[Expr]) -> None:
            for e, value in enumerate(place.load(0, 0, offsets)):
                parts[e] = operation.join(parts[e], operation.prepare(value))

        place.walk(join)
        totals = place.total(operation.join, parts)
        with when(place.leads):
            place.store(place.bases, [operation.finish(t, slices.count) for t in totals])

    return slices.kernel([x.dtype, y.dtype], body)
