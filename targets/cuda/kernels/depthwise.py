"""Depthwise convolution, channels last: one filter per channel, no tensor cores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import (
    WIDEST,
    Array,
    Expr,
    Memory,
    all_of,
    let,
    serial,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import evaluate
from pwopt.targets.cuda.kernels.threads import (
    ENOUGH,
    by_vectors,
    channel_access,
    loaded,
    per_output,
    unravel,
)
from pwopt.targets.views import View, itemsize
from pwopt.targets.windows import Window

_PIXELS = (4, 2, 1)  # neighbours of a row that a thread computes, which share what they read
_UNROLLED_ROWS = 7


def pack_depthwise(
    weight: np.ndarray, bias: np.ndarray | None, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (M, 1, height, width) and bias (M,) as :func:`depthwise` walks them.

    Returns:
        float32 arrays (height * width, C) and (C,) where C is M rounded up to ``lanes``.
    """
    channels = weight.shape[0]
    padded = -(-channels // lanes) * lanes
    packed = np.zeros((math.prod(weight.shape[2:]), padded), np.float32)
    packed[:, :channels] = weight.reshape(channels, -1).T
    biases = np.zeros(padded, np.float32)
    if bias is not None:
        biases[:channels] = bias
    return packed, biases


def depthwise_lanes(x: View) -> int:
    """Channels of a thread."""
    return WIDEST // itemsize(x.dtype)


def depthwise(
    x: View, y: View, window: Window, program: Program, extras: tuple[View, ...]
) -> Kernel:
    """A depthwise convolution with its epilogue; pointers x, weights, bias, *extras, y.

    Weights, of x's dtype, and bias, float32, are those of :func:`pack_depthwise`. A thread computes
    16 bytes of channels of up to four neighbours of a row, and loads what several of them read
    once.

    Args:
        x: input (N, H, W, C) with channel stride 1.
        y: output (N, OH, OW, C) with channel stride 1.
        window: kernel size, strides, dilations, padding.
        program: epilogue; argument 0 is the accumulator with the bias, argument i extra i - 1.
        extras: further operands of the epilogue in the output's shape, channel stride 1 or 0.

    Raises:
        ValueError: channels are not neighbours.
    """
    if x.strides[3] != 1 or y.strides[3] != 1 or any(e.strides[3] not in (0, 1) for e in extras):
        raise ValueError(f"channels must be contiguous in {x}, {y} and {extras}")
    return _Depthwise(x, y, window, program, extras).kernel()


class _Depthwise:
    def __init__(
        self, x: View, y: View, window: Window, program: Program, extras: Sequence[View]
    ) -> None:
        self.x, self.y, self.window, self.program, self.extras = x, y, window, program, extras
        self.lanes = depthwise_lanes(x)
        self.channels = y.shape[3]
        self.vectors = -(-self.channels // self.lanes)
        per_pixel = math.prod(y.shape[:3]) * self.vectors
        widths = [p for p in _PIXELS if per_pixel // p >= ENOUGH and p <= y.shape[2]]
        self.pixels = widths[0] if widths else 1
        self.columns = -(-y.shape[2] // self.pixels)
        self.access = {v: channel_access(v, self.lanes) for v in (x, y, *extras)}
        # A last vector may read the channels that pad a pixel, not write them.
        self.readable = x.strides[2] >= self.vectors * self.lanes

    def kernel(self) -> Kernel:
        dtypes = [self.x.dtype, self.x.dtype, "float32", *(e.dtype for e in self.extras)]
        n, height, _, _ = self.y.shape
        work = n * height * self.columns * self.vectors
        return per_output([*dtypes, self.y.dtype], work, self._thread)

    def _thread(self, index: Expr, *memories: Memory) -> None:
        n, height, _, _ = self.y.shape
        image, row, tile, vector = unravel(index, [n, height, self.columns, self.vectors])
        place = (image, row, let(tile * self.pixels), vector)
        if self.readable:
            sums = self._sums(memories, place, self.lanes)
            by_vectors(
                vector, self.channels, self.lanes, lambda n: self._finish(memories, place, sums, n)
            )
            return

        def both(count: int) -> None:
            self._finish(memories, place, self._sums(memories, place, count), count)

        by_vectors(vector, self.channels, self.lanes, both)

    def _sums(self, memories: Sequence[Memory], place: tuple[Expr, ...], count: int) -> Array:
        """``pixels`` vectors of ``lanes``, of which ``count`` elements are computed."""
        _, _, bias, *_ = memories
        vector, lanes = place[3], self.lanes
        sums = Array(self.pixels * lanes, "float32", "sums")
        starts = loaded(bias, vector * lanes, lanes, WIDEST)
        with unrolled(self.pixels) as p, unrolled(lanes) as e:
            sums[p * lanes + e] = starts[e]
        height = self.window.kernel[0]
        with unrolled(height) if height <= _UNROLLED_ROWS else serial(height) as k:
            line = let(
                place[1] * self.window.strides[0]
                + (k * self.window.dilations[0] - self.window.pads[0])
            )
            with when(all_of(line >= 0, line < self.x.shape[1])):
                self._row(memories, place, sums, k, line, count)
        return sums

    def _row(
        self,
        memories: Sequence[Memory],
        place: tuple[Expr, ...],
        sums: Array,
        k: Expr,
        line: Expr,
        count: int,
    ) -> None:
        """Adds one kernel row; an input column is loaded once for all pixels that see it."""
        x, weights, *_ = memories
        image, _, first, vector = place
        lanes, width = self.lanes, self.window.kernel[1]
        stride, dilation = self.window.strides[1], self.window.dilations[1]
        padded = self.vectors * lanes
        taps = [
            loaded(weights, (k * width + j) * padded + vector * lanes, lanes, WIDEST)
            for j in range(width)
        ]
        start = let(first * stride - self.window.pads[1])
        base = let(self.x.at(image, line, start, vector * lanes))
        users: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(self.pixels):
            for j in range(width):
                users.setdefault(pixel * stride + j * dilation, []).append((pixel, j))
        align = self.access[self.x].align
        for column, uses in sorted(users.items()):
            inside = all_of(start + column >= 0, start + column < self.x.shape[2])
            with when(inside):
                values = loaded(x, base + column * self.x.strides[2], count, align)
                for pixel, j in uses:
                    with unrolled(count) as e:
                        product = T.cast(values[e], "float32") * T.cast(taps[j][e], "float32")
                        sums[pixel * lanes + e] = sums[pixel * lanes + e] + product

    def _finish(
        self, memories: Sequence[Memory], place: tuple[Expr, ...], sums: Array, count: int
    ) -> None:
        """Epilogue and stores of ``count`` channels of each pixel."""
        image, row, first, vector = place
        ragged = self.y.shape[2] % self.pixels != 0
        for p in range(self.pixels):
            with when(first + p < self.y.shape[2] if ragged and p else True):
                at = (image, row, first + p, vector * self.lanes)
                columns = [[let(sums[p * self.lanes + e]) for e in range(count)]]
                for view, memory in zip(self.extras, memories[3:-1], strict=True):
                    columns.append(self.access[view].load(memory, view.at(*at), count))
                results = [evaluate(self.program, [c[e] for c in columns]) for e in range(count)]
                self.access[self.y].store(memories[-1], self.y.at(*at), results)
