"""Squeeze-excite gates: a map's mean through two small layers, one kernel.

Between the parts there are a few values per channel, which stay in L1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.gemm import gemm_geometry, pack_gemm
from pwopt.targets.cpu.kernels.loops import threads_for
from pwopt.targets.cpu.kernels.microkernel import Span, blocks_of, each_block, unravel
from pwopt.targets.cpu.kernels.reduce import REDUCTIONS, Reducer
from pwopt.targets.cpu.kernels.tiling import Tile

_VECTORS = 4  # of a panel of weights
_CHAINS = 8  # sums that hide the latency of multiply-adds: two units, four cycles


@dataclass(frozen=True)
class Layer:
    """A layer of one pixel.

    Attributes:
        inputs, outputs: channels.
        program: epilogue of one argument, the sum with the bias.
        weights: their dtype, float32 or bfloat16, which is widened.
    """

    inputs: int
    outputs: int
    program: Program
    weights: str = "float32"


def pack_layer(
    weight: np.ndarray, bias: np.ndarray | None, lanes: int, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (outputs, inputs) and bias (outputs) of a layer as :func:`gates` walks them."""
    return pack_gemm(weight.T, bias, Tile(1, _VECTORS), lanes, dtype)


def scratch_bytes(x: View, layers: Sequence[Layer]) -> int:
    """Size of the workspace of :func:`gates`."""
    return 4 * x.shape[0] * sum(layer.inputs for layer in layers)


def gates(
    x: View, y: View, layers: tuple[Layer, ...], hardware: Hardware, threads: int = 1
) -> tirx.PrimFunc:
    """Layers on the mean of a map; pointers x, then weights and bias of each, workspace, y.

    Weights and bias are those of :func:`pack_layer`, the workspace is of :func:`scratch_bytes`.

    Args:
        x: map (N, H, W, C), any strides.
        y: result of the last layer (N, 1, 1, K), channel stride 1.
        layers: in their order; the first one takes C channels, the last one gives K.
        hardware: the processor.
        threads: split what is large among this many threads.
    """
    widths = [x.shape[3], *(layer.outputs for layer in layers)]
    chained = all(a.outputs == b.inputs for a, b in pairwise(layers))
    if not chained or layers[0].inputs != widths[0] or widths[-1] != y.shape[3]:
        raise ValueError(f"layers of {widths} channels between {x} and {y}")
    if y.strides[3] != 1:
        raise ValueError(f"channels must be contiguous in the result {y}")
    dtypes = [x.dtype, *(t for layer in layers for t in (layer.weights, "float32"))]
    emitter = _Gates(x, y, layers, hardware, threads)
    return kernel([*dtypes, "float32", y.dtype], lambda *memories: emitter.emit(memories))


class _Gates:
    """Emits the kernel; holds what its parts share."""

    def __init__(
        self, x: View, y: View, layers: Sequence[Layer], hardware: Hardware, threads: int
    ) -> None:
        self.x, self.y, self.layers = x, y, layers
        self.hardware, self.lanes, self.threads = hardware, hardware.lanes, threads
        self.batch = x.shape[0]

    def emit(self, memories: Sequence[Memory]) -> None:
        """The mean, then the layers; all but the last result are in the workspace."""
        source, *weights, scratch, result = memories
        mean, at = View.dense((self.batch, 1, 1, self.x.shape[3])), 0
        reducer = Reducer(REDUCTIONS["Mean"], self.x, (1, 2), mean, Program(), (), self.hardware)
        reducer.emit(source, [scratch], threads_for(self.x.elements, self.threads))
        views = [mean]
        for layer in self.layers[:-1]:
            at += self.batch * layer.inputs
            shape = (self.batch, 1, 1, layer.outputs)
            views.append(View(shape, View.dense(shape).strides, at))
        views.append(self.y)
        for i, (layer, (inner, outer)) in enumerate(zip(self.layers, pairwise(views), strict=True)):
            target = result if outer is self.y else scratch
            operands = (scratch, weights[2 * i], weights[2 * i + 1], target)
            self._layer(layer, operands, inner, outer)

    def _layer(self, layer: Layer, memories: Sequence[Memory], x: View, y: View) -> None:
        """One layer: panels outside, so that all images use a panel while it is in cache."""
        rows, columns = (replace(v, shape=v.shape[2:], strides=v.strides[2:]) for v in (x, y))
        panels = gemm_geometry(rows, columns, (), self.lanes).panels(_VECTORS)

        def panel_of(image: Expr, panel: Span, vector: Expr) -> None:
            partial = layer.outputs % self.lanes if panel is panels[-1] else 0
            places = let(x.at(image, 0, 0, 0)), let(y.at(image, 0, 0, vector * self.lanes))
            self._panel(layer, memories, panel, vector, places, partial)

        work = layer.inputs * layer.outputs * self.batch
        if threads_for(work, self.threads) > 1:
            extents = [blocks_of(panels), self.batch]
            with loop(math.prod(extents), parallel=True) as index:
                block, image = unravel(index, extents)
                for panel, vector in each_block(panels, block):
                    panel_of(image, panel, vector)
            return
        for panel, vector in each_block(panels):
            with loop(self.batch) as image:
                panel_of(image, panel, vector)

    def _panel(
        self,
        layer: Layer,
        memories: Sequence[Memory],
        panel: Span,
        vector: Expr,
        places: tuple[Expr, Expr],
        partial: int,
    ) -> None:
        """Some vectors of results, as several sums each that are added up in the end."""
        x, weights, bias, y = memories
        lanes, count, (at, out) = self.lanes, panel.size, places
        channel = let(vector * lanes)
        base = let(channel * layer.inputs)
        splits = max(1, min(_CHAINS // count, layer.inputs))
        zero = broadcast(0.0, lanes)
        start = [bias.load(channel + v * lanes, lanes) for v in range(count)]
        sums = [
            [Register(lanes, start[v] if s == 0 else zero) for v in range(count)]
            for s in range(splits)
        ]

        def step(k: Expr, into: Sequence[Register]) -> None:
            factor = broadcast(let(x.load(at + k)), lanes)
            for v, register in enumerate(into):
                column = weights.load(base + k * (count * lanes) + v * lanes, lanes)
                register.set(register.get() + factor * column)

        rounds, rest = divmod(layer.inputs, splits)
        with loop(rounds) as k:
            for s, into in enumerate(sums):
                step(k * splits + s, into)
        for s in range(rest):
            step(rounds * splits + s, sums[s])
        for v in range(count):
            total = sums[0][v].get()
            for other in sums[1:]:
                total = total + other[v].get()
            value = emit(layer.program, [total], lanes, self.hardware)
            y.store(out + v * lanes, value, lanes, partial if partial and v == count - 1 else None)
