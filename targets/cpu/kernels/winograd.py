"""Stride-1 convolutions by Winograd's algorithm, channels last: transforms around matrix products.

Output tiles are taken a block at a time. The block's input is transformed into planes, one per
point of the transform; for a panel of output channels, each plane is multiplied with its matrix of
transformed weights, and the products are transformed back and run through the epilogue. Planes lie
in a workspace that the caller provides. A tile that would reach beyond the output overlaps its
neighbour instead and stores only what is new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.microkernel import (
    LINE,
    Operands,
    Reduction,
    Span,
    accumulate,
    balanced,
    blocks_of,
    each_block,
    merged,
    unravel,
)
from pwopt.targets.cpu.kernels.winograd_tiling import WinogradTile, planes
from pwopt.targets.cpu.kernels.winograd_transforms import input_tile, output_tile, transform_filter
from pwopt.targets.windows import Window


def pack_winograd(
    weight: np.ndarray, bias: np.ndarray | None, groups: int, tile: WinogradTile, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (OC, IC/G, R, R) and bias (OC) as :func:`winograd` walks them, both flat.

    Weights become [G][panel][P*P][IC/G][NR] with P = m + R - 1; channels are padded with zeros to
    whole vectors.
    """
    out_channels, in_channels = weight.shape[:2]
    per_group = out_channels // groups
    vectors = -(-per_group // lanes)
    transformed = transform_filter(weight, tile.m)  # P, P, OC, IC/G
    split = (transformed.shape[0] ** 2, groups, per_group, in_channels)
    walked = np.zeros((groups, split[0], in_channels, vectors * lanes), np.float32)
    walked[..., :per_group] = transformed.reshape(split).transpose(1, 0, 3, 2)
    panels = [
        walked[..., first * lanes : (first + span.size) * lanes].reshape(groups, -1)
        for span in balanced(vectors, tile.nrv)
        for first in range(span.start, span.end, span.size)
    ]
    packed_bias = np.zeros((groups, vectors * lanes), np.float32)
    if bias is not None:
        packed_bias[:, :per_group] = bias.reshape(groups, per_group)
    return np.concatenate(panels, axis=1).reshape(-1), packed_bias.reshape(-1)


@contextmanager
def _when(condition: Expr | None) -> Iterator[None]:
    """Emits what stands inside under a condition, if there is one."""
    if condition is None:
        yield
    else:
        with T.If(condition), T.Then():
            yield


class _Winograd:
    """Emits one convolution; holds what its parts share.

    Tiles bring what the next one reads and writes into L1: 5-9 % of the time of a layer with 64 or
    128 channels, where weights and planes fill L2.
    """

    def __init__(
        self, geometry: Geometry, program: Program, hardware: Hardware, tile: WinogradTile
    ) -> None:
        self.geometry, self.program = geometry, program
        self.hardware, self.tile, self.lanes = hardware, tile, geometry.lanes
        self.sizes = planes(geometry, tile)
        self.tiles = math.prod(self.sizes.counts)

    def emit(self, memories: Sequence[Memory], threads: int) -> None:
        """The loops around the blocks."""
        sizes = self.sizes
        if threads == 1 or self.tile.shared:
            with loop(sizes.blocks) as block:
                self._block(memories, block, 0, parallel=threads > 1)
            return
        share = -(-sizes.blocks // threads)
        with loop(threads, parallel=True) as thread, loop(share) as i:
            block = let(thread * share + i)
            planes_at = let(thread * (sizes.v_size + sizes.m_size))
            with _when(block < sizes.blocks if sizes.blocks % threads else None):
                self._block(memories, block, planes_at, parallel=False)

    def _block(self, memories: Sequence[Memory], block: Expr, v: Expr, *, parallel: bool) -> None:
        """Some output tiles, all channels; ``v``: where the planes of the input begin."""
        sizes = self.sizes
        with loop(self.geometry.groups) as group:
            with loop(self.tile.tiles, parallel=parallel) as t, self._tile(block, t) as at:
                self._input(memories, group, t, at, v)
            m = let(v + sizes.v_size)
            if parallel:
                with loop(blocks_of(sizes.panels), parallel=True) as index:
                    own = let(m + index * sizes.m_size)
                    for panel, vector in each_block(sizes.panels, index):
                        self._panel(memories, (group, panel, vector), block, (v, own))
            else:
                for panel, vector in each_block(sizes.panels):
                    self._panel(memories, (group, panel, vector), block, (v, m))

    def _panel(
        self,
        memories: Sequence[Memory],
        channels: tuple[Expr, Span, Expr],
        block: Expr,
        places: tuple[Expr, Expr],
    ) -> None:
        """Products of a panel of output channels, and their way to the output."""
        group, panel, vector = channels
        v, m = places
        sizes, rows, lanes = self.sizes, self.tile.rows, self.lanes
        depth = self.geometry.in_channels * lanes
        weights = let((group * self.geometry.vectors + vector) * (sizes.points * depth))
        with loop(sizes.points) as point, loop(self.tile.block) as turn:
            source = let(v + point * sizes.v_plane + turn * (rows * sizes.depth * lanes))
            target = let(m + point * sizes.m_plane + turn * (rows * panel.size * lanes))
            factors = let(weights + point * (panel.size * depth))
            self._products(memories, panel.size, (source, factors, target), turn)
        with loop(self.tile.tiles) as t, self._tile(block, t) as at:
            self._output(memories, channels, at, let(m + t * (panel.size * lanes)))

    @contextmanager
    def _tile(self, block: Expr, t: Expr) -> Iterator[list[Expr]]:
        """Coordinates (batch, row, column) of tile ``t`` of a block, if there is one."""
        tile = let(block * self.tile.tiles + t)
        with _when(tile < self.tiles if self.tiles % self.tile.tiles else None):
            yield unravel(tile, self.sizes.counts)

    def _origin(self, view: View, at: Sequence[Expr]) -> Expr:
        """Offset in a view of the first element of a tile's outputs."""
        start, m = view.offset + at[0] * view.strides[0], self.tile.m
        for axis in (1, 2):
            size = self.geometry.y.shape[axis]
            first = T.min(at[axis] * m, size - m) if size % m else at[axis] * m
            start = start + first * view.strides[axis]
        return start

    # --- input ----------------------------------------------------------------------------------

    def _input(
        self, memories: Sequence[Memory], group: Expr, t: Expr, at: Sequence[Expr], v: Expr
    ) -> None:
        """Transforms the input of one tile into line ``t`` of every plane."""
        x, space, view = memories[0], memories[-2], self.geometry.x
        (top, left), lanes, side = self.geometry.window.pads, self.lanes, self.sizes.side
        _, down, right, _ = view.strides
        start = self._origin(view, at) - top * down - left * right
        start = let(start + group * self.geometry.in_channels)
        # Lines of a register tile lie side by side: [point][turn][IC/lanes][rows][lanes].
        rows, depth = self.tile.rows, self.sizes.depth
        to = let(v + t // rows * (rows * depth * lanes) + t % rows * lanes)
        with loop(depth) as c:
            source, target = let(start + c * lanes), let(to + c * (rows * lanes))
            tile = [
                [let(x.load(source + i * down + j * right, lanes)) for j in range(side)]
                for i in range(side)
            ]
            for i in range(side):  # what the next tile reads beyond this one
                for j in range(side, side + self.tile.m):
                    x.prefetch(source + i * down + j * right)
            for i, line in enumerate(input_tile(tile, lanes)):
                for j, value in enumerate(line):
                    space.store(target + (i * side + j) * self.sizes.v_plane, value, lanes)

    # --- products -------------------------------------------------------------------------------

    def _products(
        self, memories: Sequence[Memory], vectors: int, places: tuple[Expr, Expr, Expr], turn: Expr
    ) -> None:
        """One register tile: a few lines of a plane times one panel of weights."""
        space, weights = memories[-2], memories[1]
        source, panel, target = places
        lanes, width, rows = self.lanes, vectors * self.lanes, self.tile.rows
        steps = self.geometry.in_channels
        zero = broadcast(0.0, lanes)
        registers = [[Register(lanes, zero) for _ in range(vectors)] for _ in range(rows)]
        share = -(-width // self.tile.block)

        def column(step: Expr, v: int) -> Expr:
            return weights.load(panel + step * width + v * lanes, lanes)

        def prefetch(step: Expr) -> None:
            for v in range(vectors):
                weights.prefetch(panel + (step + self.tile.prefetch) * width + v * lanes)

        def prefetch_next(at: Expr, step: Expr) -> None:
            del at
            ahead = let(panel + steps * width + (turn * steps + step) * share)
            for line in range(share):
                weights.prefetch(ahead + line * LINE, locality=2)

        operands = Operands(
            space,
            tuple(i * lanes for i in range(rows)),
            column,
            prefetch if self.tile.prefetch else None,
            prefetch_next if self.tile.prefetch else None,
        )
        whole, rest = divmod(steps, lanes)
        if whole:
            dims = merged(Reduction(whole, rows * lanes), Reduction(lanes, 1))
            accumulate(registers, operands, dims, source, lanes)
        if rest:
            after = let(source + whole * rows * lanes)
            accumulate(registers, operands, [Reduction(rest, 1)], after, lanes, whole * lanes)
        for i, row in enumerate(registers):
            for v, register in enumerate(row):
                space.store(target + (i * vectors + v) * lanes, register.get(), lanes)

    # --- output ---------------------------------------------------------------------------------

    def _output(
        self,
        memories: Sequence[Memory],
        channels: tuple[Expr, Span, Expr],
        at: Sequence[Expr],
        source: Expr,
    ) -> None:
        """Transforms the products of one tile back."""
        group, panel, vector = channels
        views = (self.geometry.y, *self.geometry.extras)
        bases = [let(self._origin(view, at)) for view in views]
        partial = self.geometry.out_channels % self.lanes if panel is self.sizes.panels[-1] else 0
        fresh = self._fresh(at)

        def one(v: Expr, valid: int | None) -> None:
            first = let((vector + v) * self.lanes)
            bias = let(group * (self.geometry.vectors * self.lanes) + first)
            channel = let(group * self.geometry.out_channels + first)
            starts = [b + channel * o.strides[3] for b, o in zip(bases, views, strict=True)]
            places = [let(bias), let(source + v * self.lanes), *(let(s) for s in starts)]
            self._vector(memories, places, fresh, valid)

        whole = panel.size - 1 if partial else panel.size
        if whole:
            with loop(whole) as v:
                one(v, None)
        if partial:
            one(whole, partial)

    def _vector(
        self,
        memories: Sequence[Memory],
        places: Sequence[Expr],
        fresh: Callable[[int, int], Expr | None],
        valid: int | None,
    ) -> None:
        """A vector of channels of one tile; ``places`` in bias, products, output and extras."""
        _, _, bias, *extras, space, y = memories
        lanes, side, m = self.lanes, self.sizes.side, self.tile.m
        views = (self.geometry.y, *self.geometry.extras)
        start = let(bias.load(places[0], lanes))
        products = [
            [
                let(space.load(places[1] + (i * side + j) * self.sizes.m_plane, lanes))
                for j in range(side)
            ]
            for i in range(side)
        ]
        _, down, right, _ = self.geometry.y.strides
        for i in range(m):  # what the next tile writes
            for j in range(m, 2 * m):
                y.prefetch(places[2] + i * down + j * right, write=True)
        for i, line in enumerate(output_tile(products, m, lanes)):
            for j, value in enumerate(line):
                to, *others = (
                    place + i * view.strides[1] + j * view.strides[2]
                    for place, view in zip(places[2:], views, strict=True)
                )
                with _when(fresh(i, j)):
                    arguments = [value + start]
                    for view, memory, other in zip(views[1:], extras, others, strict=True):
                        arguments.append(memory.load(other, lanes if view.strides[3] else 1))
                    result = emit(self.program, arguments, lanes, self.hardware)
                    y.store(to, result, lanes, valid)

    def _fresh(self, at: Sequence[Expr]) -> Callable[[int, int], Expr | None]:
        """Tells when a tile's output (row, column) is in no earlier tile; None: always."""
        m, first, overlap = self.tile.m, [], []
        for axis in (1, 2):
            size = self.geometry.y.shape[axis]
            overlap.append(-size % m)
            first.append(let(at[axis] * m <= size - m) if size % m else None)

        def condition(*index: int) -> Expr | None:
            needed = [f for f, o, i in zip(first, overlap, index, strict=True) if i < o]
            return tirx.all(*needed) if needed else None

        return condition


def winograd(
    x: View,
    y: View,
    window: Window,
    groups: int,
    program: Program,
    extras: tuple[View, ...],
    hardware: Hardware,
    tile: WinogradTile,
    threads: int = 1,
) -> tirx.PrimFunc:
    """A stride-1 convolution with pointers x, weights, bias, *extras, workspace, y.

    Weights and bias are those of :func:`pack_winograd`, the workspace has
    :func:`~pwopt.targets.cpu.kernels.winograd_tiling.workspace_bytes`, all for the same tile; the
    other arguments are as in :func:`~pwopt.targets.cpu.kernels.conv.conv`, with channel stride 1 in
    ``x``, too. Each element of ``y`` is written once, so that an extra may be y itself.
    """
    if any(view.strides[3] != 1 for view in (x, y)) or any(
        e.strides[3] not in (0, 1) for e in extras
    ):
        raise ValueError(f"channels must be contiguous in {x}, {y} and extras {extras}")
    if min(y.shape[1:3]) < tile.m:
        raise ValueError(f"tiles of {tile.m} rows and columns do not fit the output {y.shape}")
    geometry = Geometry(x, y, extras, window, groups, hardware.lanes)
    emitter = _Winograd(geometry, program, hardware, tile)
    dtypes = [x.dtype, "float32", "float32", *(view.dtype for view in extras), "float32", y.dtype]
    return kernel(dtypes, lambda *memories: emitter.emit(memories, threads))
