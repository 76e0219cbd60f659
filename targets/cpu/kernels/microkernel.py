"""The register tile that convolutions and matrix products share.

A tile computes ``pixels x vectors`` accumulators: rows of the implicit matrix of input windows
times a panel of packed weights. One step of the reduction loads a vector per weight column,
broadcasts one input element per pixel and multiplies them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cpu import bfloat16
from pwopt.targets.cpu.codegen import Expr, Memory, Register, broadcast, let, loop

# Reductions this short are unrolled, and a few rounds of a very short one: a loop would cost more.
_UNROLLED_STEPS = 8
_UNROLLED_ROUNDS = 32
# Steps a round of longer ones: measured 2-9 % over single steps, 8 is slower again. Of the 16 steps
# of a cache line, between prefetches, 2 a round are 1-2 % better than 4.
_STEPS_A_ROUND = 4
_STEPS_OF_A_LINE = 2

LINE = 16  # float32 elements of a cache line


@dataclass(frozen=True)
class Span:
    """``count`` consecutive blocks of ``size`` elements each, the first one at ``start``."""

    start: int
    count: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.count * self.size


def balanced(extent: int, limit: int, start: int = 0) -> tuple[Span, ...]:
    """Splits a range into the fewest blocks of at most ``limit``, of two sizes at most."""
    blocks = -(-extent // limit)
    size, larger = divmod(extent, blocks)
    spans = []
    if larger:
        spans.append(Span(start, larger, size + 1))
    spans.append(Span(start + larger * (size + 1), blocks - larger, size))
    return tuple(spans)


def blocks_of(spans: Sequence[Span]) -> int:
    """Number of blocks of a split range."""
    return sum(span.count for span in spans)


def each_block(spans: Sequence[Span], index: Expr | None = None) -> Iterator[tuple[Span, Expr]]:
    """Emits the code between two steps of the iteration once per span.

    Args:
        spans: a split range.
        index: number of the only block wanted, an expression; None loops over all of them.

    Yields:
        A span and the first element of the current block of it.
    """
    first = 0
    for span in spans:
        if index is None:
            with loop(span.count) as i:
                yield span, i * span.size + span.start
        elif len(spans) == 1:
            yield span, index * span.size + span.start
        else:
            inside = index < first + span.count
            with T.If(inside if first == 0 else tirx.all(index >= first, inside)), T.Then():
                yield span, let((index - first) * span.size + span.start)
        first += span.count


def unravel(index: Expr, extents: Sequence[int]) -> list[Expr]:
    """The coordinates of a row-major index."""
    parts: list[Expr] = []
    for extent in reversed(extents[1:]):
        if extent == 1:
            parts.append(0)
        else:
            parts.append(let(index % extent))
            index = let(index // extent)
    return [index, *reversed(parts)] if extents else []


@dataclass(frozen=True)
class Reduction:
    """One dimension of a reduction: its extent and its step in the broadcast operand."""

    extent: int
    x_stride: int


def merged(*dims: Reduction) -> tuple[Reduction, ...]:
    """The same walk in fewer loops: neighbours whose strides continue each other become one."""
    result: list[Reduction] = []
    for dim in dims:
        if dim.extent == 1:
            continue
        if result and result[-1].x_stride == dim.extent * dim.x_stride:
            result[-1] = Reduction(result[-1].extent * dim.extent, dim.x_stride)
        else:
            result.append(dim)
    return tuple(result)


@dataclass(frozen=True)
class Operands:
    """What a tile multiplies.

    Attributes:
        x: memory of the broadcast operand.
        pixels: element offset of each pixel from the tile's first one.
        weights: gives the vector of column ``v`` at a step of the reduction.
        prefetch: called with each step, may emit prefetches.
        prefetch_line: called with x offset and step where a cache line of the pixels begins.
        pairs: elements of both are pairs of bfloat16; a step adds the products of two channels.
    """

    x: Memory
    pixels: tuple[int, ...]
    weights: Callable[[Expr, int], Expr]
    prefetch: Callable[[Expr], None] | None = None
    prefetch_line: Callable[[Expr, Expr], None] | None = None
    pairs: bool = False


Accumulators = list[list[Register]]


def accumulate(
    into: Accumulators,
    operands: Operands,
    dims: Sequence[Reduction],
    x: Expr,
    lanes: int,
    step: Expr = 0,
) -> None:
    """Adds the products over ``dims`` to ``into[pixel][vector]``.

    Args:
        into: accumulators.
        operands: both factors.
        dims: the reduction, outermost dimension first.
        x: element offset of the tile's first pixel at the reduction's start.
        lanes: elements of a vector.
        step: number of the first step.
    """
    if not dims:
        _step(into, operands, x, step, lanes)
        return
    dim, inner = dims[0], dims[1:]
    steps = math.prod(d.extent for d in inner)
    limit = _UNROLLED_ROUNDS if inner and steps < _UNROLLED_STEPS else _UNROLLED_STEPS
    if dim.extent * steps <= limit and not _revisits(operands.pixels, dims):
        for k in range(dim.extent):
            at = x + k * dim.x_stride
            accumulate(into, operands, inner, at, lanes, step + k * steps)
        return
    if not inner and operands.prefetch_line and dim.x_stride == 1 and dim.extent % LINE == 0:
        with loop(dim.extent // LINE) as block:
            at, step = let(x + block * LINE), let(step + block * LINE)
            operands.prefetch_line(at, step)
            _steps(into, operands, Reduction(LINE, 1), at, step, lanes, _STEPS_OF_A_LINE)
        return
    if not inner:
        _steps(into, operands, dim, x, step, lanes)
        return
    with loop(dim.extent) as k:
        at, step = let(x + k * dim.x_stride), let(step + k * steps)
        accumulate(into, operands, inner, at, lanes, step)


def _steps(
    into: Accumulators,
    operands: Operands,
    dim: Reduction,
    x: Expr,
    step: Expr,
    lanes: int,
    limit: int = _STEPS_A_ROUND,
) -> None:
    """A loop over one dimension, several steps a round."""
    size = math.gcd(dim.extent, limit)
    if _revisits(operands.pixels, [Reduction(size, dim.x_stride)]):
        size = 1
    with loop(dim.extent // size) as k:
        at, first = let(x + k * (size * dim.x_stride)), let(step + k * size)
        for i in range(size):
            _step(into, operands, at + i * dim.x_stride, first + i, lanes)


def _revisits(pixels: Sequence[int], dims: Sequence[Reduction]) -> bool:
    """Whether two pixels read the same element at different steps.

    Unrolled, LLVM would keep such elements in registers from one step to the other and spill the
    accumulators instead: 14x2 tiles of a 3x3 stem drop from 70 % of the peak to 27 %.
    """
    offsets = set(pixels)
    for dim in dims:
        steps = [k * dim.x_stride for k in range(dim.extent)]
        count = len(offsets) * len(steps)
        offsets = {o + s for o in offsets for s in steps}
        if len(offsets) < count:
            return True
    return False


def _step(into: Accumulators, operands: Operands, x: Expr, step: Expr, lanes: int) -> None:
    columns = [let(operands.weights(step, v)) for v in range(len(into[0]))]
    if operands.prefetch:
        operands.prefetch(step)
    for row, pixel in zip(into, operands.pixels, strict=True):
        factor = let(operands.x.load(x + pixel))
        for register, column in zip(row, columns, strict=True):
            if operands.pairs:
                total = bfloat16.dot(register.get(), T.broadcast(factor, lanes), column, lanes)
            else:
                total = register.get() + broadcast(factor, lanes) * column
            register.set(total)
