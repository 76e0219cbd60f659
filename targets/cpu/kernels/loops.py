"""Loop nests and lane shuffles that the memory-bound kernels share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cpu.codegen import Expr, loop

PARALLEL_ELEMENTS = 16384  # below, waking the threads (several us) costs more than it saves


def offset_of(base: Expr, index: Sequence[Expr], strides: Sequence[int]) -> Expr:
    """``base`` plus the dot product of an index and strides."""
    for i, stride in zip(index, strides, strict=True):
        if stride and not (isinstance(i, int) and i == 0):
            base = base + i * stride
    return base


@contextmanager
def nest(extents: Sequence[int], threads: int = 1) -> Iterator[list[Expr]]:
    """Nested loops; with several threads the outer ones become one parallel loop."""
    fused, outer = 1, 0
    while threads > 1 and outer < len(extents) and fused < 4 * threads:
        fused *= extents[outer]
        outer += 1
    with ExitStack() as stack:
        index: list[Expr] = []
        if outer:
            flat = stack.enter_context(loop(fused, parallel=True))
            for extent in reversed(extents[:outer]):
                index.insert(0, flat % extent if extent > 1 else 0)
                flat = flat // extent
        for extent in extents[outer:]:
            index.append(stack.enter_context(loop(extent)))
        yield index


@contextmanager
def vectors(count: int, threads: int = 1) -> Iterator[Expr]:
    """A loop over ``count`` vectors, parallel in equal shares if there are several threads."""
    with loop(count, parallel=threads > 1) as i:
        yield i


def threads_for(elements: int, threads: int) -> int:
    """The threads that a job of so many elements deserves."""
    return threads if elements >= PARALLEL_ELEMENTS else 1


def lane_mask(valid: int, lanes: int) -> Expr:
    """True in the first ``valid`` lanes."""
    return T.broadcast(T.int32(valid), lanes) > T.ramp(T.int32(0), 1, lanes)


def shuffle(a: Expr, b: Expr, indices: Sequence[int]) -> Expr:
    """Lanes of two vectors: index i < lanes takes ``a[i]``, others ``b[i - lanes]``."""
    return tirx.Shuffle([a, b], [tirx.IntImm("int32", i) for i in indices])


def lane(a: Expr, index: int) -> Expr:
    """One lane of a vector as a scalar."""
    return tirx.Shuffle([a], [tirx.IntImm("int32", index)])


def part(a: Expr, start: int, count: int) -> Expr:
    """``count`` lanes from ``start`` on."""
    return tirx.Shuffle([a], [tirx.IntImm("int32", start + i) for i in range(count)])


@functools.cache
def interleave_steps(rows: int, lanes: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """How to interleave ``rows`` vectors: per output vector, indices for each two-input shuffle.

    Step r combines the result so far with row r + 1: output element e comes from row e % rows.
    """
    outputs = []
    for j in range(rows):
        steps = []
        for r in range(1, rows):
            step = []
            for i in range(lanes):
                row, position = (j * lanes + i) % rows, (j * lanes + i) // rows
                if row == r:
                    step.append(lanes + position)
                else:
                    step.append(position if r == 1 and row == 0 else i)
            steps.append(tuple(step))
        outputs.append(tuple(steps))
    return tuple(outputs)


@functools.cache
def deinterleave_steps(rows: int, lanes: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """How to separate ``rows`` interleaved sequences that fill ``rows`` vectors.

    Output r holds elements r, r + rows, ...; step s combines the result so far with vector s + 1.
    """
    outputs = []
    for r in range(rows):
        steps = []
        for s in range(1, rows):
            step = []
            for i in range(lanes):
                source, position = divmod(r + i * rows, lanes)
                if source == s:
                    step.append(lanes + position)
                else:
                    step.append(position if s == 1 and source == 0 else i)
            steps.append(tuple(step))
        outputs.append(tuple(steps))
    return tuple(outputs)


def combine(sources: Sequence[Expr], steps: Sequence[Sequence[int]]) -> Expr:
    """Applies the steps of one output of the two functions above."""
    value = sources[0]
    for source, step in zip(sources[1:], steps, strict=True):
        value = shuffle(value, source, step)
    return value


def transpose_square(rows: list[Expr], bind: Callable[[Expr], Expr]) -> list[Expr]:
    """Transposes ``lanes`` vectors of ``lanes`` elements by log2(lanes) rounds of shuffles."""
    lanes = len(rows)
    for level in range(int(math.log2(lanes))):
        half = 1 << level
        low = [i if not i & half else lanes + (i ^ half) for i in range(lanes)]
        high = [i ^ half if not i & half else lanes + i for i in range(lanes)]
        result = list(rows)
        for r in range(lanes):
            if not r & half:
                a, b = rows[r], rows[r | half]
                result[r] = bind(shuffle(a, b, low))
                result[r | half] = bind(shuffle(a, b, high))
        rows = result
    return rows
