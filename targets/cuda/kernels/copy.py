"""Copies between views of one shape: other layouts and number formats, concatenation, padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import (
    WIDEST,
    Array,
    Block,
    Expr,
    Memory,
    all_of,
    barrier,
    kernel,
    let,
    pieces,
    unrolled,
    when,
)
from pwopt.targets.cuda.codegen import (
    copy as move,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.threads import (
    Access,
    by_vectors,
    channel_access,
    offset_of,
    per_output,
    unravel,
)
from pwopt.targets.views import View, collapse, itemsize

FLOATS = ("float32", "float16", "bfloat16")
_FEW = 8  # rows of a transposition that one thread holds
_TILE = 32  # side of the squares that go through shared memory
_ROWS = 8  # of a square that a block's threads move at a time


def copy(x: View, y: View) -> Kernel:
    """``y = x`` for views of one shape, not empty; a stride of 0 in ``x`` repeats elements.

    Neighbours on both sides move 16 bytes at a time. A transposition goes through registers, where
    one of the axes is short, or in squares through shared memory, so that reads and writes of a
    warp are neighbours. Pointers x, y.

    Raises:
        ValueError: of types between which there is no conversion.
    """
    if x.dtype != y.dtype and not (x.dtype in FLOATS and y.dtype in FLOATS):
        raise ValueError(f"a copy does not convert {x.dtype} to {y.dtype}")
    extents, (xs, ys) = collapse([x, y])
    job = _Copy(x, y, extents, xs, ys)
    columns = next((d for d, s in enumerate(xs) if s == 1 and extents[d] > 1), None)
    if columns is None or columns == len(extents) - 1 or ys[-1] != 1:
        return job.runs()
    if extents[-1] <= _FEW:
        return job.interleaved(columns)
    if extents[columns] <= _FEW:
        return job.separated(columns)
    return job.transposed(columns)


def fill(y: View, value: float) -> Kernel:
    """Sets every element of ``y``, which is not empty; pointer y."""
    extents, (ys,) = collapse([y])

    def body(index: Expr, memory: Memory) -> None:
        constant = T.cast(T.float32(value), y.dtype) if y.dtype in FLOATS else int(value)
        number = constant if y.dtype in FLOATS else getattr(T, y.dtype)(constant)
        memory[offset_of(y.offset, unravel(index, extents), ys)] = number

    return per_output([y.dtype], math.prod(extents), body)


def pad_channels(x: View, y: View) -> Kernel:
    """``y = x`` with zeros in the channels that ``x`` lacks; pointers x, y.

    A thread writes a pixel; neighbouring threads read neighbours of each channel of a planar image.

    Args:
        x: (N, H, W, C), not empty, any strides.
        y: (N, H, W, more), channels contiguous.
    """
    (*pixels, channels), wide = x.shape, y.shape[3]
    write = channel_access(y, wide)

    def body(index: Expr, source: Memory, target: Memory) -> None:
        at = unravel(index, pixels)
        values = [source.load(x.at(*at, c))[0] for c in range(channels)]
        values += [T.float32(0)] * (wide - channels)
        write.store(target, y.at(*at, 0), values)

    return per_output([x.dtype, y.dtype], math.prod(pixels), body)


class _Copy:
    """The ways to copy one collapsed nest; ``columns`` is the loop with x's unit stride."""

    def __init__(self, x: View, y: View, extents: list[int], xs: list[int], ys: list[int]) -> None:
        self.x, self.y, self.extents, self.xs, self.ys = x, y, extents, xs, ys
        self.converts = x.dtype != y.dtype

    def _places(self, index: Sequence[Expr], dims: Sequence[int]) -> tuple[Expr, Expr]:
        """Offsets in x and y of a position along some loops."""
        return (
            let(offset_of(self.x.offset, index, [self.xs[d] for d in dims])),
            let(offset_of(self.y.offset, index, [self.ys[d] for d in dims])),
        )

    def _kernel(self, work: int, body: Callable[[Expr, Memory, Memory], None]) -> Kernel:
        return per_output([self.x.dtype, self.y.dtype], work, body)

    def _moved(self, source: Memory, at: Expr, target: Memory, to: Expr) -> None:
        """One element."""
        if self.converts:
            target.store(to, source.load(at))
        else:
            target[to] = source[at]

    def runs(self) -> Kernel:
        """Along the innermost loop of both sides."""
        run, unit = self.extents[-1], self.xs[-1] == self.ys[-1] == 1
        sizes = itemsize(self.x.dtype), itemsize(self.y.dtype)
        if not unit:
            lanes = 1
        elif self.converts:
            lanes = min(run, WIDEST // min(sizes))
        else:  # as wide as divides everything
            jumps = [self.x.offset, self.y.offset, run, *self.xs[:-1], *self.ys[:-1]]
            lanes = math.gcd(WIDEST, *(j * sizes[0] for j in jumps)) // sizes[0]
        vectors = -(-run // lanes)
        dims = range(len(self.extents))
        read = Access.of(self.x.offset, self.xs, self.x.dtype, lanes)
        write = Access.of(self.y.offset, self.ys, self.y.dtype, lanes)

        def body(index: Expr, source: Memory, target: Memory) -> None:
            *outer, vector = unravel(index, [*self.extents[:-1], vectors])
            at, to = self._places([*outer, vector * lanes], dims)

            def put(count: int) -> None:
                if self.converts:
                    write.store(target, to, read.load(source, at, count))
                elif lanes > 1:
                    move(target.address(to), source.address(at), lanes * sizes[0])
                else:
                    target[to] = source[at]

            by_vectors(vector, run, lanes, put)

        return self._kernel(math.prod(self.extents[:-1]) * vectors, body)

    def interleaved(self, columns: int) -> Kernel:
        """Few long rows of x become neighbours in y: NCHW to NHWC with few channels."""
        rows = self.extents[-1]
        dims = [*(d for d in range(len(self.extents) - 1) if d != columns), columns]
        jumps = [self.y.offset, *(self.ys[d] for d in dims)]
        size = itemsize(self.y.dtype)
        align = math.gcd(WIDEST, *(j * size for j in jumps))

        def body(index: Expr, source: Memory, target: Memory) -> None:
            at, to = self._places(unravel(index, [self.extents[d] for d in dims]), dims)
            places = [at + r * self.xs[-1] for r in range(rows)]
            if self.converts:
                target.store(to, [source.load(p)[0] for p in places], align)
                return
            held = Array(rows, self.y.dtype, "held")
            for r, place in enumerate(places):
                held[r] = source[place]
            for start, width in pieces(rows, size, align):
                move(target.address(to + start), held.address(start), width)

        return self._kernel(math.prod(self.extents[:-1]), body)

    def separated(self, columns: int) -> Kernel:
        """Neighbours in x become few long rows of y: NHWC to NCHW with few channels."""
        count = self.extents[columns]
        dims = [d for d in range(len(self.extents)) if d != columns]

        def body(index: Expr, source: Memory, target: Memory) -> None:
            at, to = self._places(unravel(index, [self.extents[d] for d in dims]), dims)
            for c in range(count):
                self._moved(source, at + c, target, to + c * self.ys[columns])

        return self._kernel(math.prod(self.extents) // count, body)

    def transposed(self, columns: int) -> Kernel:
        """Squares of elements through shared memory, whose rows are one longer than the square."""
        last = len(self.extents) - 1
        outer = [d for d in range(last) if d != columns]
        across, down = -(-self.extents[columns] // _TILE), -(-self.extents[last] // _TILE)
        dims = [*outer, columns, last]

        def body(block: Block, source: Memory, target: Memory) -> None:
            extents = [*(self.extents[d] for d in outer), down, across]
            *index, band, strip = unravel(block.x, extents)
            square = block.static(_TILE * (_TILE + 1), self.x.dtype, "square")
            lane, row = block.thread % _TILE, block.thread // _TILE
            with unrolled(_TILE // _ROWS) as r:  # neighbours along the columns of x
                column, line = let(strip * _TILE + lane), let(band * _TILE + row + r * _ROWS)
                at, _ = self._places([*index, column, line], dims)
                with when(self._inside(column, columns, line)):
                    square[(row + r * _ROWS) * (_TILE + 1) + lane] = source[at]
            barrier()
            with unrolled(_TILE // _ROWS) as r:  # neighbours along the rows of y
                column, line = let(strip * _TILE + row + r * _ROWS), let(band * _TILE + lane)
                _, to = self._places([*index, column, line], dims)
                with when(self._inside(column, columns, line)):
                    self._moved(square, lane * (_TILE + 1) + row + r * _ROWS, target, to)

        blocks = math.prod(self.extents[d] for d in outer) * across * down
        return kernel(
            [self.x.dtype, self.y.dtype], body, grid=(blocks, 1, 1), threads=_TILE * _ROWS
        )

    def _inside(self, column: Expr, columns: int, line: Expr) -> Expr:
        width, height = self.extents[columns], self.extents[-1]
        return all_of(
            column < width if width % _TILE else True, line < height if height % _TILE else True
        )
