"""Copies between views of one shape: transpositions, concatenation, slices, padding, borders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.codegen import Expr, Memory, View, kernel, let, loop
from pwopt.targets.cpu.kernels import loops
from pwopt.targets.views import collapse

_ITEM_BYTES = {"bool": 1, BFLOAT16: 4}  # in registers, where bfloat16 is float32
_INTERLEAVE_ROWS = 8  # above, whole square transpositions take fewer shuffles


def copy(x: View, y: View, hardware: Hardware, threads: int = 1) -> tirx.PrimFunc:
    """``y = x`` for views of one shape; a stride of 0 in ``x`` repeats elements.

    Elements of 1, 2, 4 or 8 bytes move as bit patterns, but those of bfloat16 views as float32, to
    and from which a copy converts. Runs with unit strides on both sides move as vectors; a
    transposition of 4-byte elements goes through registers.

    Returns:
        A function over x's pointer, then y's.
    """
    dtypes = [_carrier(x.dtype), _carrier(y.dtype)]
    if dtypes[0] != dtypes[1]:
        raise ValueError(f"a copy does not convert {x.dtype} to {y.dtype}")
    if BFLOAT16 in (x.dtype, y.dtype):
        dtypes = [x.dtype, y.dtype]

    def body(source: Memory, destination: Memory) -> None:
        copy_body(x, y, source, destination, hardware, threads)

    return kernel(dtypes, body)


def fill(y: View, value: float, hardware: Hardware, threads: int = 1) -> tirx.PrimFunc:
    """A function over y's pointer that sets every element to ``value``."""
    return kernel([y.dtype], lambda memory: fill_body(y, value, memory, hardware, threads))


def fill_border(
    x: View,
    border: tuple[int, int, int, int],
    value: float,
    hardware: Hardware,
    threads: int = 1,
) -> tirx.PrimFunc:
    """Sets the spatial border around an (N, H, W, C) view, which the planner reserved.

    Args:
        x: the tensor inside; its offset leaves room for the border.
        border: (top, left, bottom, right) in pixels.
        value: of every border element.
        hardware: the processor.
        threads: of the executable.
    """
    top, left, bottom, right = border
    n, h, w, c = x.shape
    regions = [
        View((n, top, left + w + right, c), x.strides, x.at(0, -top, -left, 0), x.dtype),
        View((n, bottom, left + w + right, c), x.strides, x.at(0, h, -left, 0), x.dtype),
        View((n, h, left, c), x.strides, x.at(0, 0, -left, 0), x.dtype),
        View((n, h, right, c), x.strides, x.at(0, 0, w, 0), x.dtype),
    ]

    def body(memory: Memory) -> None:
        for region in regions:
            fill_body(region, value, memory, hardware, threads)

    return kernel([x.dtype], body)


def _item_bytes(dtype: str) -> int:
    if dtype in _ITEM_BYTES:
        return _ITEM_BYTES[dtype]
    digits = dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) // 8


def _carrier(dtype: str) -> str:
    """The type that moves the bits."""
    return f"int{8 * _item_bytes(dtype)}"


def fill_body(y: View, value: float, memory: Memory, hardware: Hardware, threads: int) -> None:
    """The statements of :func:`fill`."""
    dtype = "float32" if y.dtype == BFLOAT16 else y.dtype
    constant = getattr(T, dtype)(value if "float" in dtype else int(value))
    lanes = hardware.lanes * 4 // _item_bytes(y.dtype)
    extents, (strides,) = collapse([y])
    if 0 in extents:
        return
    lanes = lanes if strides[-1] == 1 else 1
    spread = constant if lanes == 1 else T.broadcast(constant, lanes)
    with loops.nest(extents[:-1], loops.threads_for(math.prod(extents), threads)) as index:
        base = let(loops.offset_of(y.offset, index, strides[:-1]))
        blocks, rest = divmod(extents[-1], lanes)
        if blocks:
            with loop(blocks) as i:
                memory.store(base + i * (lanes * strides[-1]), spread, lanes)
        if rest:
            memory.store(base + blocks * lanes, spread, lanes, rest)


def copy_body(
    x: View, y: View, source: Memory, destination: Memory, hardware: Hardware, threads: int
) -> None:
    """The statements of :func:`copy`."""
    threads = loops.threads_for(math.prod(y.shape), threads)
    extents, (xs, ys) = collapse([x, y])
    if 0 in extents:
        return
    item = _item_bytes(x.dtype)
    move = _Move(source, destination, x.offset, y.offset, hardware.lanes * 4 // item)
    unit_y = len(extents) - 1 if ys[-1] == 1 else None
    unit_x = next((d for d, s in enumerate(xs) if s == 1 and extents[d] > 1), None)
    if unit_y is not None and unit_x is not None and unit_x != unit_y and item == 4:
        rows = extents[unit_y]
        if rows <= _INTERLEAVE_ROWS and ys[unit_x] == rows:
            move.interleave(extents, xs, ys, unit_x, threads)
            return
        columns = extents[unit_x]
        if columns <= _INTERLEAVE_ROWS and xs[unit_y] == columns:
            move.deinterleave(extents, xs, ys, unit_x, threads)
            return
        move.transpose(extents, xs, ys, unit_x, threads)
        return
    move.runs(extents, xs, ys, threads)


class _Move:
    """The ways to copy one collapsed nest; ``columns`` names the loop with x's unit stride."""

    def __init__(
        self, source: Memory, destination: Memory, x_offset: int, y_offset: int, lanes: int
    ) -> None:
        self.source, self.destination = source, destination
        self.x_offset, self.y_offset, self.lanes = x_offset, y_offset, lanes

    def _bases(
        self, index: Sequence[Expr], xs: Sequence[int], ys: Sequence[int]
    ) -> tuple[Expr, Expr]:
        return (
            let(loops.offset_of(self.x_offset, index, xs)),
            let(loops.offset_of(self.y_offset, index, ys)),
        )

    def runs(self, extents: list[int], xs: list[int], ys: list[int], threads: int) -> None:
        """Vectors along the last loop where both sides allow it, else element by element."""
        step_x, step_y, run = xs[-1], ys[-1], extents[-1]
        lanes = self.lanes if step_y == 1 and step_x in (0, 1) and run > 1 else 1
        many = math.prod(extents[:-1]) >= 2 * threads
        with loops.nest(extents[:-1], threads if many else 1) as index:
            x, y = self._bases(index, xs[:-1], ys[:-1])

            def move(at: Expr, valid: int) -> None:
                value = self.source.load(x + at * step_x, lanes if step_x else 1)
                if not step_x and lanes > 1:
                    value = T.broadcast(value, lanes)
                self.destination.store(y + at * step_y, value, lanes, valid)

            blocks, rest = divmod(run, lanes)
            if blocks:
                with loops.vectors(blocks, 1 if many else threads) as i:
                    move(i * lanes, lanes)
            if rest:
                move(blocks * lanes, rest)

    def _split(
        self, extents: list[int], xs: list[int], ys: list[int], columns: int
    ) -> tuple[list[int], list[int], list[int]]:
        """The nest without the loop over columns and the last one."""
        keep = [d for d in range(len(extents) - 1) if d != columns]
        return [extents[d] for d in keep], [xs[d] for d in keep], [ys[d] for d in keep]

    def interleave(
        self, extents: list[int], xs: list[int], ys: list[int], columns: int, threads: int
    ) -> None:
        """Few long rows of x become adjacent elements of y: NCHW to NHWC with few channels."""
        rows, length, lanes = extents[-1], extents[columns], self.lanes
        plan = loops.interleave_steps(rows, lanes)
        outer, outer_x, outer_y = self._split(extents, xs, ys, columns)
        blocks, rest = divmod(length, lanes)
        with loops.nest([*outer, blocks + (rest > 0)], threads) as (*index, block):
            x, y = self._bases([*index, block], [*outer_x, lanes], [*outer_y, lanes * rows])
            sources = [let(self.source.load(x + r * xs[-1], lanes)) for r in range(rows)]

            def put(count: int) -> None:
                for j in range(-(-count // lanes)):
                    valid = min(lanes, count - j * lanes)
                    value = loops.combine(sources, plan[j])
                    self.destination.store(y + j * lanes, value, lanes, valid)

            _either(block, blocks, rest, lambda: put(rows * lanes), lambda: put(rows * rest))

    def deinterleave(
        self, extents: list[int], xs: list[int], ys: list[int], columns: int, threads: int
    ) -> None:
        """Adjacent elements of x become few long rows of y: NHWC to NCHW with few channels."""
        rows, length, lanes = extents[columns], extents[-1], self.lanes
        plan = loops.deinterleave_steps(rows, lanes)
        outer, outer_x, outer_y = self._split(extents, xs, ys, columns)
        blocks, rest = divmod(length, lanes)
        with loops.nest([*outer, blocks + (rest > 0)], threads) as (*index, block):
            x, y = self._bases([*index, block], [*outer_x, lanes * rows], [*outer_y, lanes])

            def put(count: int) -> None:
                needed = -(-count * rows // lanes)  # loads past that would leave the slack
                sources = [
                    let(self.source.load(x + min(j, needed - 1) * lanes, lanes))
                    for j in range(rows)
                ]
                for r in range(rows):
                    value = loops.combine(sources, plan[r])
                    self.destination.store(y + r * ys[columns], value, lanes, count)

            _either(block, blocks, rest, lambda: put(lanes), lambda: put(rest))

    def transpose(
        self, extents: list[int], xs: list[int], ys: list[int], columns: int, threads: int
    ) -> None:
        """Squares of lanes x lanes elements through registers."""
        rows, length, lanes = extents[-1], extents[columns], self.lanes
        outer, outer_x, outer_y = self._split(extents, xs, ys, columns)
        blocks, rest = divmod(length, lanes)
        bands, last = divmod(rows, lanes)

        def square(x: Expr, y: Expr, height: int, width: int) -> None:
            tile = [
                let(self.source.load(x + min(r, height - 1) * xs[-1], lanes)) for r in range(lanes)
            ]
            tile = loops.transpose_square(tile, let)
            for i in range(width):
                self.destination.store(y + i * ys[columns], tile[i], lanes, height)

        def strip(x: Expr, y: Expr, width: int) -> None:
            if bands:
                with loop(bands) as b:
                    square(x + b * (lanes * xs[-1]), y + b * lanes, lanes, width)
            if last:
                square(x + bands * lanes * xs[-1], y + bands * lanes, last, width)

        with loops.nest([*outer, blocks + (rest > 0)], threads) as (*index, block):
            x, y = self._bases([*index, block], [*outer_x, lanes], [*outer_y, lanes * ys[columns]])
            _either(block, blocks, rest, lambda: strip(x, y, lanes), lambda: strip(x, y, rest))


def _either(
    block: Expr, blocks: int, rest: int, full: Callable[[], None], partial: Callable[[], None]
) -> None:
    """``full()`` for the first ``blocks`` blocks, ``partial()`` for a last one."""
    if not rest:
        full()
    elif not blocks:
        partial()
    else:
        with T.If(block < blocks):
            with T.Then():
                full()
            with T.Else():
                partial()
