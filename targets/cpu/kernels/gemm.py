"""Matrix products: with a constant right factor (fully connected layers), and of two operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.conv import conv, pack_conv
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.microkernel import (
    Operands,
    Reduction,
    Span,
    accumulate,
    blocks_of,
    each_block,
    merged,
    unravel,
)
from pwopt.targets.cpu.kernels.tiling import Tile
from pwopt.targets.windows import Window


def _as_image(matrix: View) -> View:
    """A matrix (rows, columns) as one image row of pixels; a lone column with stride 1."""
    rows, columns = matrix.strides
    strides = (0, 0, rows, 1 if matrix.shape[1] == 1 else columns)
    return replace(matrix, shape=(1, 1, *matrix.shape), strides=strides)


def gemm_geometry(x: View, y: View, extras: tuple[View, ...], lanes: int) -> Geometry:
    """Sizes of Y (M, N) = X (M, K) @ W for the choice of a tile."""
    images = tuple(_as_image(e) for e in extras)
    return Geometry(_as_image(x), _as_image(y), images, Window(), 1, lanes)


def pack_gemm(
    weight: np.ndarray, bias: np.ndarray | None, tile: Tile, lanes: int, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, N) and bias (N) as :func:`gemm` walks them, as :func:`pack_conv` has them."""
    return pack_conv(weight.T[:, :, None, None], bias, 1, tile, lanes, dtype)


def gemm(
    x: View,
    y: View,
    program: Program,
    extras: tuple[View, ...],
    hardware: Hardware,
    tile: Tile,
    threads: int = 1,
    *,
    weights: str = "float32",
) -> tirx.PrimFunc:
    """Y (M, N) = X (M, K) @ W + bias with an epilogue; pointers x, weights, bias, *extras, y.

    Weights and bias are those of :func:`pack_gemm` for the same tile; the other arguments are as
    in :func:`~pwopt.targets.cpu.kernels.conv.conv` with M for the pixels.
    """
    images = tuple(_as_image(e) for e in extras)
    operands = (_as_image(x), _as_image(y), Window(), 1, program, images)
    return conv(*operands, hardware, tile, threads, weights=weights)


def matmul_geometry(a: View, b: View, y: View, extras: tuple[View, ...], lanes: int) -> Geometry:
    """Sizes of one product of a batch for the choice of a tile."""
    del b  # its strides do not matter for the tile

    def last(view: View) -> View:
        return replace(view, shape=view.shape[-2:], strides=view.strides[-2:])

    return gemm_geometry(last(a), last(y), tuple(last(e) for e in extras), lanes)


class _MatMul:
    """Emits one batched product; holds what its parts share."""

    def __init__(
        self,
        views: tuple[View, View, View, tuple[View, ...]],
        program: Program,
        hardware: Hardware,
        tile: Tile,
    ) -> None:
        self.a, self.b, self.y, self.extras = views
        self.program, self.hardware, self.lanes = program, hardware, hardware.lanes
        self.batch = self.y.shape[:-2]
        self.depth, self.columns = self.b.shape[-2:]
        geometry = matmul_geometry(self.a, self.b, self.y, self.extras, self.lanes)
        self.row_spans = geometry.pixel_tiling(tile.mr).spans
        self.panels = geometry.panels(tile.nrv)

    def emit(self, memories: Sequence[Memory], threads: int) -> None:
        """Loops over batch, panels and rows; a panel is the unit of parallel work."""
        extents = [*self.batch, blocks_of(self.panels)]
        if threads > 1:
            with loop(math.prod(extents), parallel=True) as index:
                *at, p = unravel(index, extents)
                for panel, vector in each_block(self.panels, p):
                    self._panel(memories, at, panel, vector)
            return
        with loop(math.prod(self.batch)) as index:
            at = unravel(index, self.batch)
            for panel, vector in each_block(self.panels):
                self._panel(memories, at, panel, vector)

    def _panel(
        self, memories: Sequence[Memory], at: Sequence[Expr], panel: Span, vector: Expr
    ) -> None:
        """All rows of one panel of columns."""
        b, lanes, width = memories[1], self.lanes, panel.size * self.lanes
        partial = self.columns % lanes if panel is self.panels[-1] else 0
        base = let(self.b.at(*at, 0, vector * lanes))
        step_k, step_n = self.b.strides[-2:]
        if step_n == 1:

            def column(step: Expr, v: int) -> Expr:
                return b.load(base + step * step_k + v * lanes, lanes)
        else:
            # Columns apart in memory: the panel is copied once, for all rows.
            scratch = Memory(T.alloc_buffer((self.depth * width,), "float32"), "float32")
            used = width - lanes + (partial or lanes)
            with loop(self.depth) as k, loop(used) as n:
                scratch.store(k * width + n, b.load(base + k * step_k + n * step_n))

            def column(step: Expr, v: int) -> Expr:
                return scratch.load(step * width + v * lanes, lanes)

        for span, row in each_block(self.row_spans):
            self._tile(memories, (at, row, vector), span.size, panel.size, column, partial)

    def _tile(
        self,
        memories: Sequence[Memory],
        place: tuple[Sequence[Expr], Expr, Expr],
        rows: int,
        vectors: int,
        column: Callable[[Expr, int], Expr],
        partial: int,
    ) -> None:
        """One register tile at (batch index, row, vector)."""
        a, _, *extras, y = memories
        lanes, (at, row, vector) = self.lanes, place
        zero = broadcast(0.0, lanes)
        registers = [[Register(lanes, zero) for _ in range(vectors)] for _ in range(rows)]
        step_m, step_k = self.a.strides[-2:]
        operands = Operands(a, tuple(i * step_m for i in range(rows)), column)
        origin = let(self.a.at(*at, row, 0))
        accumulate(registers, operands, merged(Reduction(self.depth, step_k)), origin, lanes)
        for i, registers_row in enumerate(registers):
            for v, register in enumerate(registers_row):
                index = (*at, row + i, (vector + v) * lanes)
                arguments = [register.get()]
                for view, memory in zip(self.extras, extras, strict=True):
                    arguments.append(memory.load(view.at(*index), lanes if view.strides[-1] else 1))
                value = emit(self.program, arguments, lanes, self.hardware)
                valid = partial if partial and v == vectors - 1 else None
                y.store(self.y.at(*index), value, lanes, valid)


def matmul(
    a: View,
    b: View,
    y: View,
    program: Program,
    extras: tuple[View, ...],
    hardware: Hardware,
    tile: Tile,
    threads: int = 1,
) -> tirx.PrimFunc:
    """Y (*B, M, N) = A (*B, M, K) @ B (*B, K, N), both at run time; pointers a, b, *extras, y.

    Args:
        a: left factor, any strides; 0 in a batch dimension broadcasts.
        b: right factor likewise; fastest where its columns are contiguous, otherwise panels of
            it are copied first.
        y: product, columns contiguous.
        program: epilogue; argument 0 is the product, argument i extra i - 1.
        extras: further operands of the epilogue in the product's shape, column stride 1 or 0.
        hardware: the processor.
        tile: register tile; only its sizes count here.
        threads: split batch and panels among this many threads.
    """
    if y.strides[-1] != 1 or any(e.strides[-1] not in (0, 1) for e in extras):
        raise ValueError(f"columns must be contiguous in the product {y} and extras {extras}")
    emitter = _MatMul((a, b, y, extras), program, hardware, tile)
    dtypes = [a.dtype, b.dtype, *(view.dtype for view in extras), y.dtype]
    return kernel(dtypes, lambda *memories: emitter.emit(memories, threads))
