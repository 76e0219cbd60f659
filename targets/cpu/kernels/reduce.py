"""Reductions over any axes, vectorized along whichever dimension is contiguous."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels import functions
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.loops import (
    lane,
    lane_mask,
    nest,
    offset_of,
    part,
    threads_for,
)
from pwopt.targets.views import merge

_BLOCK = 4  # vectors reduced together: enough independent chains for the adders


@dataclass(frozen=True)
class Reduction:
    """An associative operation with what surrounds it.

    Attributes:
        join: of two partial results.
        identity: its neutral element.
        prepare: of each element before joining.
        finish: of the total, given the number of elements and lanes.
    """

    join: Callable[[Expr, Expr], Expr]
    identity: float
    prepare: Callable[[Expr], Expr] = lambda x: x
    finish: Callable[[Expr, int, int], Expr] = lambda x, count, lanes: x


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _square(a: Expr) -> Expr:
    a = let(a)
    return a * a


REDUCTIONS = {
    "Sum": Reduction(_add, 0.0),
    "Mean": Reduction(_add, 0.0, finish=lambda x, count, n: x * broadcast(1.0 / count, n)),
    "Max": Reduction(lambda a, b: T.max(a, b), -math.inf),
    "Min": Reduction(lambda a, b: T.min(a, b), math.inf),
    "Prod": Reduction(lambda a, b: a * b, 1.0),
    "L1": Reduction(_add, 0.0, lambda a: T.fabs(a)),
    "L2": Reduction(_add, 0.0, _square, lambda x, count, n: T.sqrt(x)),
    "SumSquare": Reduction(_add, 0.0, _square),
    "LogSum": Reduction(_add, 0.0, finish=lambda x, count, n: functions.log(let(x), n)),
}


def reduce(
    kind: str,
    x: View,
    axes: Sequence[int],
    y: View,
    hardware: Hardware,
    threads: int = 1,
    *,
    program: Program | None = None,
    extras: Sequence[View] = (),
) -> tirx.PrimFunc:
    """Reduces ``axes`` of a float32 tensor, which keep extent 1 in ``y``.

    Args:
        kind: a key of :data:`REDUCTIONS`.
        x: input.
        axes: nonnegative.
        y: output, of x's rank.
        hardware: the processor.
        threads: of the executable.
        program: epilogue; argument 0 is the reduced value, then ``extras``.
        extras: further operands, views of y's shape.

    Returns:
        A function over the pointers x, extras, y.
    """
    job = Reducer(REDUCTIONS[kind], x, axes, y, program or Program(), extras, hardware)

    def body(source: Memory, *others: Memory) -> None:
        if 0 not in y.shape:
            job.emit(source, others, threads_for(math.prod(x.shape), threads))

    return kernel([view.dtype for view in (x, *extras, y)], body)


class Reducer:
    """One reduction kernel: kept loops outside, reduced loops inside, one of them along lanes."""

    def __init__(
        self,
        operation: Reduction,
        x: View,
        axes: Sequence[int],
        y: View,
        program: Program,
        extras: Sequence[View],
        hardware: Hardware,
    ) -> None:
        self.operation, self.program, self.hardware = operation, program, hardware
        self.offsets = [x.offset, *(e.offset for e in extras), y.offset]
        self.count = math.prod(x.shape[a] for a in axes)
        reduced = [d for d in axes if x.shape[d] != 1]
        kept = [d for d in range(len(x.shape)) if d not in axes and x.shape[d] != 1]
        reduced.sort(key=lambda d: -abs(x.strides[d]))
        kept.sort(key=lambda d: -abs(x.strides[d]))
        self.kept, self.kept_strides = merge(
            [x.shape[d] for d in kept],
            [[v.strides[d] for d in kept] for v in (x, *extras, y)],
        )
        self.reduced, (self.reduced_strides,) = merge(
            [x.shape[d] for d in reduced], [[x.strides[d] for d in reduced]]
        )

    def emit(self, source: Memory, others: Sequence[Memory], threads: int) -> None:
        """All outputs."""
        x_steps, y_steps = self.kept_strides[0], self.kept_strides[-1]
        extras_ok = all(s and s[-1] in (0, 1) for s in self.kept_strides[1:-1])
        if self.kept and x_steps[-1] == 1 and y_steps[-1] == 1 and extras_ok:
            self._across(source, others, threads)
            return
        along = bool(self.reduced) and self.reduced_strides[-1] == 1
        with nest(self.kept, threads) as index:
            base = let(offset_of(self.offsets[0], index, x_steps))
            total = self._along(source, base) if along else self._scalar(source, base)
            self._finish(total, others, index, 0, 1, 1)

    def _across(self, source: Memory, others: Sequence[Memory], threads: int) -> None:
        """Lanes are independent outputs."""
        lanes = self.hardware.lanes
        count = -(-self.kept[-1] // lanes)
        full, tail = divmod(self.kept[-1], lanes)
        block = max(b for b in range(1, _BLOCK + 1) if b == 1 or full // threads >= b)
        groups, rest = divmod(full, block)

        def run(index: Sequence[Expr], start: Expr, valid: Sequence[int]) -> None:
            base = let(offset_of(self.offsets[0], [*index, start], self.kept_strides[0]))
            totals = [Register(lanes, broadcast(self.operation.identity, lanes)) for _ in valid]
            with nest(self.reduced) as at:
                offset = offset_of(base, at, self.reduced_strides)
                for u, total in enumerate(totals):
                    value = self.operation.prepare(source.load(offset + u * lanes, lanes))
                    total.set(self.operation.join(total.get(), value))
            for u, total in enumerate(totals):
                self._finish(total.get(), others, index, start + u * lanes, lanes, valid[u])

        outer = self.kept[:-1]
        if groups:
            with nest([*outer, groups], threads) as (*index, group):
                run(index, group * (block * lanes), [lanes] * block)
        remaining = [lanes] * rest + ([tail] if tail else [])
        if remaining:
            with nest(outer, threads) as index:
                run(index, (count - len(remaining)) * lanes, remaining)

    def _along(self, source: Memory, base: Expr) -> Expr:
        """Lanes are parts of one sum; returns the scalar total."""
        lanes, run = self.hardware.lanes, self.reduced[-1]
        operation = self.operation
        block = min(_BLOCK, max(1, run // lanes))
        identity = broadcast(operation.identity, lanes)
        totals = [Register(lanes, identity) for _ in range(block)]
        with nest(self.reduced[:-1]) as at:
            row = let(offset_of(base, at, self.reduced_strides[:-1]))

            def add(total: Register, offset: Expr, valid: int) -> None:
                value = operation.prepare(source.load(offset, lanes))
                if valid < lanes:
                    value = T.Select(lane_mask(valid, lanes), value, identity)
                total.set(operation.join(total.get(), value))

            groups, rest = divmod(run, block * lanes)
            if groups:
                with loop(groups) as g:
                    for u, total in enumerate(totals):
                        add(total, row + g * (block * lanes) + u * lanes, lanes)
            for u in range(-(-rest // lanes)):
                start = groups * block * lanes + u * lanes
                add(totals[u], row + start, min(lanes, run - start))
        return across_lanes(operation.join, [t.get() for t in totals], lanes)

    def _scalar(self, source: Memory, base: Expr) -> Expr:
        total = Register(1, broadcast(self.operation.identity, 1))
        with nest(self.reduced) as at:
            value = self.operation.prepare(source.load(offset_of(base, at, self.reduced_strides)))
            total.set(self.operation.join(total.get(), value))
        return total.get()

    def _finish(
        self,
        total: Expr,
        others: Sequence[Memory],
        index: Sequence[Expr],
        start: Expr,
        lanes: int,
        valid: int,
    ) -> None:
        """Epilogue and store; ``index`` lacks the last kept loop if lanes run along it."""
        place = [*index, start] if lanes > 1 else index
        arguments = [self.operation.finish(total, self.count, lanes)]
        for memory, offset, steps in zip(
            others[:-1], self.offsets[1:-1], self.kept_strides[1:-1], strict=True
        ):
            width = lanes if lanes > 1 and steps[-1] == 1 else 1
            arguments.append(memory.load(offset_of(offset, place, steps), width))
        result = emit(self.program, arguments, lanes, self.hardware)
        at = offset_of(self.offsets[-1], place, self.kept_strides[-1])
        others[-1].store(at, result, lanes, valid)


def across_lanes(join: Callable[[Expr, Expr], Expr], values: Sequence[Expr], lanes: int) -> Expr:
    """The joined lanes of some vectors as a scalar."""
    total = values[0]
    for value in values[1:]:
        total = join(total, value)
    while lanes > 1:
        total = let(total)
        lanes //= 2
        if lanes > 1:
            total = join(part(total, 0, lanes), part(total, lanes, lanes))
        else:
            total = join(lane(total, 0), lane(total, 1))
    return let(total)
