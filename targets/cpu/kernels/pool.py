"""Max, average and L2 pooling, channels last.

Output rows and columns whose windows are cut in the same way form *segments*; each pair of segments
has its own loops with constant tap ranges, so the interior carries no checks and nothing outside
the tensor is read. Within a block of output columns every input column is reduced vertically once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.loops import nest, offset_of, threads_for
from pwopt.targets.windows import PoolAxis

_COLUMNS = 4  # output columns that share input columns
_UNROLLED_TAPS = 36  # larger windows loop over their taps
_MAX_SEGMENTS = 5  # with more kinds of cut windows, bounds are computed instead
_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True)
class _Segment:
    """``count`` outputs from ``start`` on with taps first..end and the same divisor."""

    start: int
    count: int
    first: int
    end: int
    counted: int


def pool(
    kind: str,
    x: View,
    y: View,
    window: tuple[PoolAxis, PoolAxis],
    hardware: Hardware,
    threads: int = 1,
    *,
    count_include_pad: bool = False,
    program: Program | None = None,
    extras: Sequence[View] = (),
) -> tirx.PrimFunc:
    """Pooling of an (N, H, W, C) tensor, computed in float32.

    Args:
        kind: "max", "average" or "l2".
        x: input; nothing outside it is read.
        y: output; its shape decides ceil_mode.
        window: over height and width.
        hardware: the processor.
        threads: of the executable.
        count_include_pad: the average divides by padding elements too.
        program: epilogue; argument 0 is the pooled value, then ``extras``.
        extras: further operands, views of y's shape (stride 0 broadcasts).

    Returns:
        A function over the pointers x, extras, y.
    """
    if kind not in ("max", "average", "l2"):
        raise ValueError(f"pooling kind {kind}")
    writer = _Writer(y, program or Program(), tuple(extras), hardware)
    job = _Pool(kind, x, window, count_include_pad, writer)

    def body(source: Memory, *others: Memory) -> None:
        writer.bind(others)
        if 0 not in y.shape:
            job.emit(source, threads_for(math.prod(y.shape), threads))

    return kernel([view.dtype for view in (x, *extras, y)], body)


class _Writer:
    """Applies the epilogue to a vector of channels and stores it."""

    def __init__(
        self, y: View, program: Program, extras: tuple[View, ...], hardware: Hardware
    ) -> None:
        self.y, self.program, self.extras, self.hardware = y, program, extras, hardware
        self.memories: Sequence[Memory] = ()

    def bind(self, memories: Sequence[Memory]) -> None:
        """Sets the memories of the extras and of y."""
        self.memories = memories

    def write(self, value: Expr, index: Sequence[Expr], lanes: int, valid: int) -> None:
        """Stores at ``index``, of which the last entry is the vector's first channel."""
        arguments = [value]
        for view, memory in zip(self.extras, self.memories[:-1], strict=True):
            if view.strides[-1] == 0:
                arguments.append(memory.load(view.at(*index)))
            elif view.strides[-1] == 1 or lanes == 1:
                arguments.append(memory.load(view.at(*index), lanes))
            else:
                raise ValueError("an extra operand needs channels with stride 1 or 0")
        result = emit(self.program, arguments, lanes, self.hardware)
        self.memories[-1].store(self.y.at(*index), result, lanes, valid)


class _Pool:
    """The loops of one pooling kernel."""

    def __init__(
        self,
        kind: str,
        x: View,
        window: tuple[PoolAxis, PoolAxis],
        count_include_pad: bool,
        writer: _Writer,
    ) -> None:
        self.kind, self.x, self.window, self.writer = kind, x, window, writer
        self.include_pad = count_include_pad
        channels_last = x.strides[3] == writer.y.strides[3] == 1 and x.shape[3] > 1
        self.lanes = writer.hardware.lanes if channels_last else 1

    def emit(self, source: Memory, threads: int) -> None:
        """All output elements."""
        n, height, width, _ = self.writer.y.shape
        rows = _segments(self.window[0], self.x.shape[1], height)
        columns = _segments(self.window[1], self.x.shape[2], width)
        taps = self.window[0].size * self.window[1].size
        if taps > _UNROLLED_TAPS or max(len(rows), len(columns)) > _MAX_SEGMENTS:
            with nest([n, height, width], threads) as (i, row, column):
                self._looped(source, i, row, column)
            return
        for band in rows:
            with nest([n, band.count], threads) as (i, r):
                for span in columns:
                    self._span(source, i, r + band.start, band, span)

    def _span(self, source: Memory, i: Expr, row: Expr, band: _Segment, span: _Segment) -> None:
        """One row of outputs of one column segment, in blocks of columns."""
        blocks, rest = divmod(span.count, _COLUMNS)
        if blocks:
            with loop(blocks) as b:
                self._channels(source, i, row, b * _COLUMNS + span.start, _COLUMNS, band, span)
        if rest:
            self._channels(source, i, row, span.start + blocks * _COLUMNS, rest, band, span)

    def _channels(
        self,
        source: Memory,
        i: Expr,
        row: Expr,
        column: Expr,
        width: int,
        band: _Segment,
        span: _Segment,
    ) -> None:
        lanes, channels = self.lanes, self.x.shape[3]
        top = row * self.window[0].stride - self.window[0].begin
        left = column * self.window[1].stride - self.window[1].begin
        base = let(self.x.at(i, top, left, 0))

        def vector(channel: Expr, valid: int) -> None:
            sums = self._block(source, base + channel * self.x.strides[3], width, band, span)
            divisor = self._divisor(band, span)
            for j, value in enumerate(sums):
                self._finish(value, divisor, [i, row, column + j, channel], lanes, valid)

        if channels // lanes:
            with loop(channels // lanes) as c:
                vector(c * lanes, lanes)
        if channels % lanes:
            vector(channels - channels % lanes, channels % lanes)

    def _block(
        self, source: Memory, base: Expr, width: int, band: _Segment, span: _Segment
    ) -> list[Expr]:
        """The reductions of ``width`` adjacent windows."""
        vertical, horizontal = self.window
        _, row_step, column_step, _ = self.x.strides
        reduced: dict[int, Expr] = {}

        def column(at: int) -> Expr:
            if at not in reduced:
                values = [
                    self._load(source, base + (k * vertical.dilation * row_step + at * column_step))
                    for k in range(band.first, band.end)
                ]
                reduced[at] = let(self._join(values))
            return reduced[at]

        return [
            self._join(
                [
                    column(j * horizontal.stride + k * horizontal.dilation)
                    for k in range(span.first, span.end)
                ]
            )
            for j in range(width)
        ]

    def _looped(self, source: Memory, i: Expr, row: Expr, column: Expr) -> None:
        """One output pixel of a window with many taps or many kinds of cuts."""
        lanes, channels = self.lanes, self.x.shape[3]
        bounds = [
            _bounds(w, p, e)
            for w, p, e in zip(self.window, (row, column), self.x.shape[1:3], strict=True)
        ]
        (top, first_row, rows, all_rows), (left, first, columns, all_columns) = bounds
        origin = [
            top + first_row * self.window[0].dilation,
            left + first * self.window[1].dilation,
        ]
        base = let(self.x.at(i, *origin, 0))
        steps = [s * w.dilation for s, w in zip(self.x.strides[1:3], self.window, strict=True)]
        taps = all_rows * all_columns if self.include_pad else rows * columns
        divisor = let(T.cast(taps, "float32"))

        def vector(channel: Expr, valid: int) -> None:
            identity = _LOWEST if self.kind == "max" else 0.0
            total = Register(lanes, broadcast(identity, lanes))
            with T.serial(0, rows) as r, T.serial(0, columns) as c:
                at = offset_of(base + channel * self.x.strides[3], [r, c], steps)
                total.set(self._join([total.get(), self._load(source, at)]))
            self._finish(total.get(), divisor, [i, row, column, channel], lanes, valid)

        if channels // lanes:
            with loop(channels // lanes) as c:
                vector(c * lanes, lanes)
        if channels % lanes:
            vector(channels - channels % lanes, channels % lanes)

    def _load(self, source: Memory, at: Expr) -> Expr:
        value = source.load(at, self.lanes)
        if self.kind == "l2":
            value = let(value)
            return value * value
        return value

    def _join(self, values: Sequence[Expr]) -> Expr:
        if not values:
            return broadcast(_LOWEST if self.kind == "max" else 0.0, self.lanes)
        result = values[0]
        for value in values[1:]:
            result = T.max(result, value) if self.kind == "max" else result + value
        return result

    def _divisor(self, band: _Segment, span: _Segment) -> int:
        if self.include_pad:
            return band.counted * span.counted
        return max(1, (band.end - band.first) * (span.end - span.first))

    def _finish(
        self, value: Expr, divisor: Expr, index: Sequence[Expr], lanes: int, valid: int
    ) -> None:
        if self.kind == "average":
            if isinstance(divisor, int):
                value = value * broadcast(1.0 / divisor, lanes)
            else:
                value = value / broadcast(divisor, lanes)
        elif self.kind == "l2":
            value = T.sqrt(value)
        self.writer.write(value, index, lanes, valid)


def _segments(window: PoolAxis, extent: int, outputs: int) -> list[_Segment]:
    keys = [
        (*window.taps(position, extent), window.counted(position, extent))
        for position in range(outputs)
    ]
    segments, start = [], 0
    for key, group in groupby(keys):
        count = len(list(group))
        segments.append(_Segment(start, count, *key))
        start += count
    return segments


def _bounds(window: PoolAxis, position: Expr, extent: int) -> tuple[Expr, Expr, Expr, Expr]:
    """PoolAxis at run time: (origin, first tap, taps inside, taps counted)."""
    d = window.dilation
    # Kept nonnegative before each division, which rounds towards zero.
    start = position * window.stride - window.begin
    first = let(T.max(T.int32(0), (d - 1) - start) // d if window.begin else T.int32(0))
    end = T.min(T.int32(window.size), T.max(T.int32(0), (extent + d - 1) - start) // d)
    last = T.min(start + window.size * d, T.int32(extent + window.end))
    return start, first, let(T.max(T.int32(0), end - first)), 1 + (last - start - 1) // d
