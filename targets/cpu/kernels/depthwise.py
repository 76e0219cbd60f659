"""Depthwise convolution, channels last: one filter per channel, vectors of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, kernel, let, loop
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.microkernel import Span, balanced, blocks_of, each_block, unravel
from pwopt.targets.windows import Window

# Multiply-adds of one unrolled tile; beyond, the kernel's rows become a loop.
_UNROLLED_PRODUCTS = 256


def pack_depthwise(
    weight: np.ndarray, bias: np.ndarray | None, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, 1, KH, KW) and bias (C) as :func:`depthwise` walks them, both flat.

    Weights become [vector of channels][KH][KW][lanes], padded with zeros to whole vectors.
    """
    channels, _, height, width = weight.shape
    vectors = -(-channels // lanes)
    padded = np.zeros((vectors * lanes, height * width), np.float32)
    padded[:channels] = weight.reshape(channels, -1)
    packed_bias = np.zeros(vectors * lanes, np.float32)
    if bias is not None:
        packed_bias[:channels] = bias
    packed = padded.reshape(vectors, lanes, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(packed).reshape(-1), packed_bias


class _Depthwise:
    """Emits one depthwise convolution; holds what its parts share."""

    def __init__(
        self,
        views: tuple[View, View, tuple[View, ...]],
        window: Window,
        program: Program,
        hardware: Hardware,
    ) -> None:
        self.x, self.y, self.extras = views
        self.window, self.program, self.hardware = window, program, hardware
        self.lanes, self.channels = hardware.lanes, self.y.shape[3]
        self.vectors = -(-self.channels // self.lanes)
        # A tile holds an accumulator per pixel, one kernel row and one input column.
        limit = max(1, min(8, hardware.registers - window.kernel[1] - 2))
        self.columns = balanced(self.y.shape[2], limit)
        partial = int(self.channels % self.lanes > 0)
        whole = Span(0, self.vectors - partial, 1)
        self.channel_spans = [span for span in (whole, Span(whole.count, partial, 1)) if span.count]

    def emit(self, memories: Sequence[Memory], threads: int) -> None:
        """Loops over rows, column tiles and, innermost for contiguous access, channels."""
        rows = [self.y.shape[0], self.y.shape[1]]
        if threads == 1:
            with loop(math.prod(rows)) as row:
                at = unravel(row, rows)
                for span, column in each_block(self.columns):
                    self._channels(memories, at, span, column)
            return
        extents = [*rows, blocks_of(self.columns)]
        with loop(math.prod(extents), parallel=True) as index:
            *at, tile = unravel(index, extents)
            for span, column in each_block(self.columns, tile):
                self._channels(memories, at, span, column)

    def _channels(
        self, memories: Sequence[Memory], at: Sequence[Expr], span: Span, column: Expr
    ) -> None:
        for channels, vector in each_block(self.channel_spans):
            last = channels is self.channel_spans[-1]
            valid = self.channels % self.lanes if last else 0
            self._tile(memories, (at[0], at[1], column), vector, span.size, valid or self.lanes)

    def _tile(
        self,
        memories: Sequence[Memory],
        at: tuple[Expr, Expr, Expr],
        vector: Expr,
        pixels: int,
        valid: int,
    ) -> None:
        """One vector of channels for ``pixels`` neighbours of a row."""
        x, weights, bias, *extras, y = memories
        lanes, (height, width) = self.lanes, self.window.kernel
        image, row, column = at
        (down, right), (top, left) = self.window.strides, self.window.pads
        origin = let(self.x.at(image, row * down - top, column * right - left, vector * lanes))
        taps = let(vector * (lanes * height * width))
        start = let(bias.load(vector * lanes, lanes))
        into = [Register(lanes, start) for _ in range(pixels)]
        step = self.x.strides[1] * self.window.dilations[0]
        if height * width * pixels <= _UNROLLED_PRODUCTS:
            for k in range(height):
                self._kernel_row(into, x, weights, origin + k * step, taps + k * width * lanes)
        else:
            with loop(height) as k:
                line, row_taps = let(origin + k * step), let(taps + k * (width * lanes))
                self._kernel_row(into, x, weights, line, row_taps)
        for p, register in enumerate(into):
            arguments = [register.get()]
            for view, memory in zip(self.extras, extras, strict=True):
                place = view.at(image, row, column + p, vector * lanes)
                arguments.append(memory.load(place, lanes if view.strides[3] else 1))
            value = emit(self.program, arguments, lanes, self.hardware)
            y.store(self.y.at(image, row, column + p, vector * lanes), value, lanes, valid)

    def _kernel_row(
        self, into: Sequence[Register], x: Memory, weights: Memory, line: Expr, taps: Expr
    ) -> None:
        """Adds one kernel row; an input column is loaded once for all pixels that see it."""
        width, lanes = self.window.kernel[1], self.lanes
        stride, dilation = self.window.strides[1], self.window.dilations[1]
        row = [let(weights.load(taps + k * lanes, lanes)) for k in range(width)]
        users: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(len(into)):
            for k in range(width):
                users.setdefault(pixel * stride + k * dilation, []).append((pixel, k))
        for column, uses in sorted(users.items()):
            value = let(x.load(line + column * self.x.strides[2], lanes))
            for pixel, k in uses:
                into[pixel].set(into[pixel].get() + value * row[k])


def depthwise(
    x: View,
    y: View,
    window: Window,
    program: Program,
    extras: tuple[View, ...],
    hardware: Hardware,
    threads: int = 1,
) -> tirx.PrimFunc:
    """A depthwise convolution kernel with pointers x, weights, bias, *extras, y.

    Weights and bias are those of :func:`pack_depthwise`. Rows and columns that the window reads
    outside of ``x`` must be memory that holds zeros.

    Args:
        x: input (N, H, W, C) with channel stride 1.
        y: output (N, OH, OW, C) with channel stride 1.
        window: kernel size, strides, dilations, padding.
        program: epilogue; argument 0 is the accumulator with the bias, argument i extra i - 1.
        extras: further operands of the epilogue in the output's shape, channel stride 1 or 0; one
            of them may be y itself.
        hardware: the processor.
        threads: split the tiles among this many threads.
    """
    if x.strides[3] != 1 or y.strides[3] != 1 or any(e.strides[3] not in (0, 1) for e in extras):
        raise ValueError(f"channels must be contiguous in {x}, {y} and {extras}")
    emitter = _Depthwise((x, y, extras), window, program, hardware)
    dtypes = [x.dtype, "float32", "float32", *(view.dtype for view in extras), y.dtype]
    return kernel(dtypes, lambda *memories: emitter.emit(memories, threads))
