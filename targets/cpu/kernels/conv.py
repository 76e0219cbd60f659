"""Convolution as an implicit matrix product, channels last; pointwise is its simplest case."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, kernel, let, loop
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.geometry import Geometry, Window
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


def pack_conv(
    weight: np.ndarray, bias: np.ndarray | None, groups: int, tile: Tile, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (OC, IC/G, KH, KW) and bias (OC) as :func:`conv` walks them, both flat.

    Weights become [G][panel][KH][KW][IC/G][NR]; channels are padded with zeros to whole vectors.
    """
    out_channels, in_channels, height, width = weight.shape
    per_group = out_channels // groups
    vectors = -(-per_group // lanes)
    padded = np.zeros((groups, vectors * lanes, in_channels, height, width), np.float32)
    padded[:, :per_group] = weight.reshape(groups, per_group, in_channels, height, width)
    walked = padded.transpose(0, 3, 4, 2, 1)  # G, KH, KW, IC, OC
    panels = [
        walked[..., first * lanes : (first + span.size) * lanes].reshape(groups, -1)
        for span in balanced(vectors, tile.nrv)
        for first in range(span.start, span.end, span.size)
    ]
    packed_bias = np.zeros((groups, vectors * lanes), np.float32)
    if bias is not None:
        packed_bias[:, :per_group] = bias.reshape(groups, per_group)
    return np.concatenate(panels, axis=1).reshape(-1), packed_bias.reshape(-1)


class _Conv:
    """Emits one convolution; holds what its parts share."""

    def __init__(
        self, geometry: Geometry, program: Program, hardware: Hardware, tile: Tile
    ) -> None:
        self.geometry, self.program = geometry, program
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
        registers = [[Register(lanes, value) for value in start] for _ in offsets]
        turn = let(row * blocks_of(self.pixels.spans) + pixel // span.size)
        operands = self._operands(x, weights, panel, channel, offsets, turn)
        accumulate(registers, operands, self.geometry.reduction, bases[0], lanes)
        partial = self.geometry.out_channels % lanes if panel is self.panels[-1] else 0
        for offset, registers_row in zip(offsets, registers, strict=True):
            for v, register in enumerate(registers_row):
                places = [base + o + v * lanes for base, o in zip(bases, offset, strict=True)]
                value = self._epilogue(register.get(), extras, places[2:], v)
                valid = partial if partial and v == panel.size - 1 else None
                y.store(places[1], value, lanes, valid)

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
            return weights.load(base + step * width + v * lanes, lanes)

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
) -> tirx.PrimFunc:
    """A convolution kernel with pointers x, weights, bias, *extras, y.

    Weights and bias are those of :func:`pack_conv` for the same tile. Rows and columns that the
    window reads outside of ``x`` must be memory that holds zeros.

    Args:
        x: input (N, H, W, C), any strides.
        y: output (N, OH, OW, OC) with channel stride 1.
        window: kernel size, strides, dilations, padding.
        groups: number of channel groups.
        program: epilogue; argument 0 is the accumulator with the bias, argument i extra i - 1.
        extras: further operands of the epilogue in the output's shape, channel stride 1 or 0; one
            of them may be y itself.
        hardware: the processor.
        tile: register tile and loop order.
        threads: split the tiles among this many threads.
    """
    if y.strides[3] != 1 or any(e.strides[3] not in (0, 1) for e in extras):
        raise ValueError(f"channels must be contiguous in the output {y} and extras {extras}")
    geometry = Geometry(x, y, extras, window, groups, hardware.lanes)
    emitter = _Conv(geometry, program, hardware, tile)
    dtypes = [x.dtype, "float32", "float32", *(view.dtype for view in extras), y.dtype]
    return kernel(dtypes, lambda *memories: emitter.emit(memories, threads))
