"""Convolution as an implicit matrix product, channels last; pointwise is its simplest case."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu import bfloat16
from pwopt.targets.cpu.bfloat16 import PAIRS
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.loops import lane, part
from pwopt.targets.cpu.kernels.microkernel import (
    LINE,
    Operands,
    Span,
    accumulate,
    balanced,
    blocks_of,
    each_block,
    unravel,
)
from pwopt.targets.cpu.kernels.tiling import Tile
from pwopt.targets.windows import Window


def pack_conv(
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    tile: Tile,
    lanes: int,
    dtype: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (OC, IC/G, KH, KW) and bias (OC) as :func:`conv` walks them, both flat.

    Weights become [G][panel][KH][KW][IC/G][NR]; channels are padded with zeros to whole vectors.
    As ``dtype`` they are float32, bfloat16, pairs of bfloat16 (neighbouring input channels, with
    zero beside a last odd one), or int8. The bias is float32; behind it come the scales of int8.
    """
    weight, scale = _FORMATS[dtype](weight)
    out_channels, in_channels, height, width = weight.shape
    per_group = out_channels // groups
    vectors = -(-per_group // lanes)
    padded = np.zeros((groups, vectors * lanes, in_channels, height, width), weight.dtype)
    padded[:, :per_group] = weight.reshape(groups, per_group, in_channels, height, width)
    walked = padded.transpose(0, 3, 4, 2, 1)  # G, KH, KW, IC, OC
    panels = [
        walked[..., first * lanes : (first + span.size) * lanes].reshape(groups, -1)
        for span in balanced(vectors, tile.nrv)
        for first in range(span.start, span.end, span.size)
    ]
    rows = [bias, scale] if scale is not None else [bias]
    per_channel = np.zeros((len(rows), groups, vectors * lanes), np.float32)
    for row, values in zip(per_channel, rows, strict=True):
        if values is not None:
            row[:, :per_group] = values.reshape(groups, per_group)
    return np.concatenate(panels, axis=1).reshape(-1), per_channel.reshape(-1)


def _paired(weight: np.ndarray) -> np.ndarray:
    odd = weight.shape[1] % 2
    even = np.pad(weight, ((0, 0), (0, odd), (0, 0), (0, 0)))
    return bfloat16.paired(even.swapaxes(0, 1)).swapaxes(0, 1)


def _quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights, and the scale of each output channel."""
    scale = np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127)
    scale[scale == 0] = 1
    return np.rint(weight / scale[:, None, None, None]).astype(np.int8), scale


_FORMATS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]] = {
    "float32": lambda w: (w.astype(np.float32, copy=False), None),
    bfloat16.DTYPE: lambda w: (bfloat16.rounded(w), None),
    bfloat16.PAIR: lambda w: (_paired(w), None),
    "int8": _quantized,
}


class _Conv:
    """Emits one convolution; holds what its parts share."""

    def __init__(
        self,
        geometry: Geometry,
        program: Program,
        hardware: Hardware,
        tile: Tile,
        folded: tuple[int, int] | None = None,
    ) -> None:
        self.geometry, self.program, self.folded = geometry, program, folded
        self.hardware, self.tile, self.lanes = hardware, tile, geometry.lanes
        self.pixels = geometry.pixel_tiling(tile.mr)
        self.panels = geometry.panels(tile.nrv)
        self.rows = [dim.extent for dim in self.pixels.outer]

    def emit(self, memories: Sequence[Memory], threads: int) -> None:
        """The loops around the tiles."""
        if threads > 1:
            self._in_parallel(memories)
        elif self.tile.order == "pixels":
            with loop(math.prod(self.rows)) as row:
                for span, pixel in each_block(self.pixels.spans):
                    with loop(self.geometry.groups) as group:
                        for panel, vector in each_block(self.panels):
                            self._tile(memories, group, panel, vector, row, span, pixel)
        else:
            with loop(self.geometry.groups) as group:
                for panel, vector in each_block(self.panels):
                    with loop(math.prod(self.rows)) as row:
                        for span, pixel in each_block(self.pixels.spans):
                            self._tile(memories, group, panel, vector, row, span, pixel)

    def _in_parallel(self, memories: Sequence[Memory]) -> None:
        """One loop over all tiles, so that any number of threads gets even shares."""
        panels = [self.geometry.groups, blocks_of(self.panels)]
        pixels = [math.prod(self.rows), blocks_of(self.pixels.spans)]
        swap = self.tile.order == "pixels"
        extents = [*pixels, *panels] if swap else [*panels, *pixels]
        with loop(math.prod(extents), parallel=True) as index:
            parts = unravel(index, extents)
            group, p, row, t = [*parts[2:], *parts[:2]] if swap else parts
            for panel, vector in each_block(self.panels, p):
                for span, pixel in each_block(self.pixels.spans, t):
                    self._tile(memories, group, panel, vector, row, span, pixel)

    def _tile(
        self,
        memories: Sequence[Memory],
        group: Expr,
        panel: Span,
        vector: Expr,
        row: Expr,
        span: Span,
        pixel: Expr,
    ) -> None:
        """One register tile: bias, reduction, epilogue, stores."""
        x, weights, bias, *extras, y = memories
        split, inner, lanes = self.pixels.split, self.pixels.row, self.lanes
        bases = self._bases(group, vector, row, pixel)
        offsets = [
            tuple(i * s + j * t for s, t in zip(split.strides, inner.strides, strict=True))
            for i in range(span.size)
            for j in range(inner.extent)
        ]
        channel = let((group * self.geometry.vectors + vector) * lanes)
        start = [let(bias.load(channel + v * lanes, lanes)) for v in range(panel.size)]
        scales = self._scales(weights, bias, channel, panel)
        zero = broadcast(0.0, lanes)
        registers = [[Register(lanes, zero if scales else b) for b in start] for _ in offsets]
        turn = let(row * blocks_of(self.pixels.spans) + pixel // span.size)
        operands = self._operands(x, weights, panel, channel, offsets, turn)
        accumulate(registers, operands, self.geometry.reduction, bases[0], lanes)
        partial = self.geometry.out_channels % lanes if panel is self.panels[-1] else 0
        for offset, registers_row in zip(offsets, registers, strict=True):
            for v, register in enumerate(registers_row):
                places = [base + o + v * lanes for base, o in zip(bases, offset, strict=True)]
                total = register.get() * scales[v] + start[v] if scales else register.get()
                value = self._epilogue(total, extras, places[2:], v)
                valid = partial if partial and v == panel.size - 1 else None
                if self.folded:
                    self._store_folded(y, places[1], value, *self.folded)
                else:
                    y.store(places[1], value, lanes, valid)

    def _store_folded(self, y: Memory, place: Expr, value: Expr, count: int, stride: int) -> None:
        """Stores each ``count`` channels of the only vector ``stride`` elements further on."""
        value = let(value)
        for i in range(self.geometry.out_channels // count):
            piece = part(value, i * count, count) if count > 1 else lane(value, i)
            y.store(place + i * stride, piece, count)

    def _scales(self, weights: Memory, bias: Memory, channel: Expr, panel: Span) -> list[Expr]:
        """Of a panel's weights, if they are integers: they lie behind the bias."""
        if weights.dtype != "int8":
            return []
        behind = self.geometry.groups * self.geometry.vectors * self.lanes
        at = channel + behind
        return [let(bias.load(at + v * self.lanes, self.lanes)) for v in range(panel.size)]

    def _operands(
        self,
        x: Memory,
        weights: Memory,
        panel: Span,
        channel: Expr,
        offsets: Sequence[tuple[int, ...]],
        turn: Expr,
    ) -> Operands:
        """The factors of the ``turn``-th tile of a panel that starts at ``channel``."""
        lanes, width, steps = self.lanes, panel.size * self.lanes, self.geometry.steps
        base = let(channel * steps)
        pixels = tuple(offset[0] for offset in offsets)

        def column(step: Expr, v: int) -> Expr:
            vector = weights.load(base + step * width + v * lanes, lanes)
            return T.cast(vector, f"float32x{lanes}") if weights.dtype == "int8" else vector

        def prefetch(step: Expr) -> None:
            for v in range(panel.size):
                weights.prefetch(base + (step + self.tile.prefetch) * width + v * lanes)

        # Each tile of a panel brings its share of the next panel into L2, if both fit there.
        tiles = math.prod(self.rows) * blocks_of(self.pixels.spans)
        fits = 2 * 4 * steps * width <= self.hardware.l2_bytes
        share = -(-width // tiles) if fits and tiles <= width else 0

        # Each panel of a tile brings its share of the next tile's input into L1.
        stride = self.pixels.split.strides[0]
        some = -(-len(pixels) // blocks_of(self.panels))
        after = len(pixels) + channel // width * some

        def prefetch_next(at: Expr, step: Expr) -> None:
            del step
            for i in range(some):
                x.prefetch(at + (after + i) * stride)

        def prefetch_line(at: Expr, step: Expr) -> None:
            for pixel in pixels:
                x.prefetch(at + pixel + LINE)
            ahead = let(base + steps * width + (turn * steps + step) * share)
            for line in range(share):
                weights.prefetch(ahead + line * LINE, locality=2)

        line = prefetch_next if self.tile.order == "pixels" else prefetch_line
        return Operands(
            x,
            pixels,
            column,
            prefetch if self.tile.prefetch else None,
            line if self.tile.stream else None,
            pairs=x.dtype in PAIRS,
        )

    def _epilogue(
        self, value: Expr, extras: Sequence[Memory], places: Sequence[Expr], vector: int
    ) -> Expr:
        """The program's result for vector ``vector`` of a panel; ``places`` of its elements."""
        arguments = [value]
        for view, memory, place in zip(self.geometry.extras, extras, places, strict=True):
            if view.strides[3]:
                arguments.append(memory.load(place, self.lanes))
            else:
                arguments.append(memory.load(place - vector * self.lanes))
        return emit(self.program, arguments, self.lanes, self.hardware)

    def _bases(self, group: Expr, vector: Expr, row: Expr, pixel: Expr) -> list[Expr]:
        """Element offset of the tile's first element in x, y and the extras."""
        g = self.geometry
        top, left = g.window.pads
        channel = group * g.out_channels + vector * self.lanes
        outer = unravel(row, self.rows)
        bases = []
        for o, view in enumerate((g.x, g.y, *g.extras)):
            offset: Expr = view.offset + pixel * self.pixels.split.strides[o]
            for dim, index in zip(self.pixels.outer, outer, strict=True):
                offset = offset + index * dim.strides[o]
            if o == 0:
                offset = offset - top * view.strides[1] - left * view.strides[2]
                offset = offset + group * (g.in_channels * view.strides[3])
            else:
                offset = offset + channel * view.strides[3]
            bases.append(let(offset))
        return bases


def conv(
    x: View,
    y: View,
    window: Window,
    groups: int,
    program: Program,
    extras: tuple[View, ...],
    hardware: Hardware,
    tile: Tile,
    threads: int = 1,
    *,
    weights: str = "float32",
    folded: tuple[int, int] | None = None,
) -> tirx.PrimFunc:
    """A convolution kernel with pointers x, weights, bias, *extras, y.

    Weights and bias are those of :func:`pack_conv` for the same tile. Rows and columns that the
    window reads outside of ``x`` must be memory that holds zeros.

    Args:
        x: input (N, H, W, C), any strides; C counts pairs where the elements are pairs of bfloat16.
        y: output (N, OH, OW, OC) with channel stride 1.
        window: kernel size, strides, dilations, padding.
        groups: number of channel groups.
        program: epilogue; argument 0 is the accumulator with the bias, argument i extra i - 1.
        extras: further operands of the epilogue in the output's shape, channel stride 1 or 0; one
            of them may be y itself.
        hardware: the processor.
        tile: register tile and loop order.
        threads: split the tiles among this many threads.
        weights: their dtype: float32, bfloat16 or int8, which are widened, or pairs like ``x``.
        folded: (count, stride): of at most a vector of channels, each ``count`` lie ``stride``
            elements after the ones before.
    """
    if folded and (groups > 1 or y.shape[3] > hardware.lanes or y.shape[3] % folded[0]):
        raise ValueError(f"{y.shape[3]} channels cannot be folded by {folded[0]}")
    if y.strides[3] != 1 or any(e.strides[3] not in (0, 1) for e in extras):
        raise ValueError(f"channels must be contiguous in the output {y} and extras {extras}")
    geometry = Geometry(x, y, extras, window, groups, hardware.lanes)
    emitter = _Conv(geometry, program, hardware, tile, folded)
    dtypes = [x.dtype, weights, "float32", *(view.dtype for view in extras), y.dtype]
    return kernel(dtypes, lambda *memories: emitter.emit(memories, threads))
