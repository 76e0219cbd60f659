"""Blocking of Winograd convolutions: what there is to choose, and a choice by predicted time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pwopt.hardware import Hardware
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.microkernel import LINE, Span, blocks_of
from pwopt.targets.cpu.kernels.tiling import TILE_CYCLES, choose_tile, conv_cycles, step_cycles
from pwopt.targets.windows import Window

# Measured on an EPYC (Zen 4), weights from L3 and memory: all in all, the times of layers with 16
# to 512 channels are predicted within 12 %. Cycles to transform the input or the products of a
# tile, a vector of channels, by tile side:
_TRANSFORM_CYCLES = {4: 15, 6: 80}
_PREFETCH_STEPS = 16
_MAX_ROWS, _MAX_VECTORS = 14, 4
_MIN_BLOCK = 16  # tiles that use each weight of those that come from L3 or memory
_L3_BYTES_PER_CYCLE = 64  # what streaming weights costs beside the products, measured
_BARRIER_CYCLES = 5000
_EXPOSED = 0.35  # share of the weights' way from memory that the products do not hide, measured
_RANKED = 8  # tiles of each size worth trying
_GAIN = 0.9  # what a choice with larger weights must be better by


@dataclass(frozen=True)
class WinogradTile:
    """How a Winograd convolution is blocked.

    Attributes:
        m: side of an output tile: 2, or for 3x3 kernels 4.
        rows: output tiles of a register tile.
        nrv: vectors of output channels of a register tile, at most.
        block: register tiles in a block: ``rows * block`` output tiles.
        prefetch: reduction steps between a weight's prefetch into L1 and its use; 0 for none.
            Then the next panel of weights is brought into L2, too.
        shared: threads share the blocks and split their channels; otherwise they split the blocks.
    """

    m: int
    rows: int
    nrv: int
    block: int
    prefetch: int = 0
    shared: bool = False

    @property
    def tiles(self) -> int:
        """Output tiles of a block."""
        return self.rows * self.block

    def __str__(self) -> str:
        extras = [f"prefetch {self.prefetch}"] * (self.prefetch > 0) + ["shared"] * self.shared
        return " ".join([f"F{self.m} {self.rows}x{self.nrv}", f"block {self.block}", *extras])

    def variant(self, window: Window) -> str:
        """The algorithm's name, e.g. "4x4_3x3" for F(4x4, 3x3)."""
        size = window.kernel[0]
        return f"{self.m}x{self.m}_{size}x{size}"


@dataclass(frozen=True)
class Planes:
    """Sizes that kernel, weights and workspace share; lengths in elements.

    Attributes:
        side: of a transformed tile.
        counts: output tiles: (batch, rows, columns).
        blocks: number of blocks.
        depth: vectors of input channels of a group.
        panels: the vectors of output channels of a group.
        v_plane, m_plane: distance of planes of transformed input and of products. The line beside
            the data keeps planes from sharing the sets of L1 (11-18 % where it matters).
    """

    side: int
    counts: tuple[int, int, int]
    blocks: int
    depth: int
    panels: tuple[Span, ...]
    v_plane: int
    m_plane: int

    @property
    def points(self) -> int:
        """Number of planes."""
        return self.side**2

    @property
    def v_size(self) -> int:
        """Elements of all planes of transformed input."""
        return self.points * self.v_plane

    @property
    def m_size(self) -> int:
        """Elements of all planes of a panel's products."""
        return self.points * self.m_plane


def planes(geometry: Geometry, tile: WinogradTile) -> Planes:
    """The sizes for a convolution and its tile."""
    batch, height, width, _ = geometry.y.shape
    counts = (batch, -(-height // tile.m), -(-width // tile.m))
    depth = -(-geometry.in_channels // geometry.lanes)
    panels = geometry.panels(tile.nrv)
    columns = max(panel.size for panel in panels)
    return Planes(
        side=tile.m + geometry.window.kernel[0] - 1,
        counts=counts,
        blocks=-(-math.prod(counts) // tile.tiles),
        depth=depth,
        panels=panels,
        v_plane=tile.tiles * depth * geometry.lanes + LINE,
        m_plane=tile.tiles * columns * geometry.lanes + LINE,
    )


def workspace_bytes(geometry: Geometry, tile: WinogradTile, threads: int) -> int:
    """Bytes of the workspace of :func:`~pwopt.targets.cpu.kernels.winograd.winograd`."""
    sizes = planes(geometry, tile)
    if tile.shared and threads > 1:
        return 4 * (sizes.v_size + blocks_of(sizes.panels) * sizes.m_size)
    return 4 * threads * (sizes.v_size + sizes.m_size)


def weight_bytes(geometry: Geometry, m: int) -> int:
    """Bytes of the transformed weights."""
    points = (m + geometry.window.kernel[0] - 1) ** 2
    columns = geometry.groups * geometry.vectors * geometry.lanes
    return 4 * points * geometry.in_channels * columns


def choose_winograd(
    geometry: Geometry,
    sides: Sequence[int],
    hardware: Hardware,
    threads: int = 1,
    *,
    streamed: bool = False,
    otherwise: Geometry | None = None,
) -> WinogradTile | None:
    """The tile of a convolution that is expected to be faster than the direct kernel, or None.

    Args:
        geometry: the convolution.
        sides: of output tiles that may be used.
        hardware: the processor.
        threads: of the kernel.
        streamed: whether weights come from memory in every run.
        otherwise: what the direct kernel would compute, if that is not ``geometry``: pairs.
    """
    sides = [m for m in sides if _fits(geometry, m)]
    if not sides:
        return None
    size = geometry.window.kernel[0]
    plain = otherwise or geometry
    direct = choose_tile(plain, hardware)
    cycles = plain.groups * conv_cycles(plain, hardware, direct.mr, direct.nrv)
    best, limit = None, _GAIN * cycles / threads
    if streamed:
        limit += _GAIN * _memory_cycles(
            4 * size * size * plain.in_channels * plain.y.shape[3], hardware
        )
    for m in sides:
        tile = choose_winograd_tile(geometry, m, hardware, threads)
        cycles = winograd_cycles(geometry, tile, hardware, threads)
        if streamed:
            cycles += _memory_cycles(weight_bytes(geometry, m), hardware)
        if cycles < limit:
            best, limit = tile, _GAIN * cycles
    return best


def winograd_candidates(
    geometry: Geometry, sides: Sequence[int], hardware: Hardware, threads: int = 1
) -> Iterator[WinogradTile]:
    """The tiles that a convolution could use, the most promising first; none if it is no such."""

    def cycles(tile: WinogradTile) -> float:
        return winograd_cycles(geometry, tile, hardware, threads)

    found = [
        tile
        for m in sides
        if _fits(geometry, m)
        for tile in sorted(_candidates(geometry, m, hardware, threads), key=cycles)[:_RANKED]
    ]
    yield from sorted(found, key=cycles)


def _fits(geometry: Geometry, m: int) -> bool:
    """Whether a convolution can be computed in tiles of m x m outputs."""
    window, size = geometry.window, geometry.window.kernel[0]
    plain = window.strides == window.dilations == (1, 1) and geometry.x.strides[3] == 1
    square = window.kernel == (size, size) and size in (3, 5)
    return plain and square and m + size <= 7 and min(geometry.y.shape[1:3]) >= m


def _memory_cycles(size: int, hardware: Hardware) -> float:
    """What remains to be waited for of ``size`` bytes from memory."""
    clock = hardware.peak_gflops / (4 * hardware.lanes)  # GHz of two multiply-adds in each cycle
    return _EXPOSED * clock * size / hardware.bandwidth_gbps


@lru_cache(maxsize=256)
def choose_winograd_tile(
    geometry: Geometry, m: int, hardware: Hardware, threads: int = 1
) -> WinogradTile:
    """The tile with the shortest predicted time; the first of equals."""
    return min(
        _candidates(geometry, m, hardware, threads),
        key=lambda tile: winograd_cycles(geometry, tile, hardware, threads),
    )


def _candidates(
    geometry: Geometry, m: int, hardware: Hardware, threads: int
) -> Iterator[WinogradTile]:
    """Tiles that fit the registers, in blocks that fit L2."""
    batch, height, width, _ = geometry.y.shape
    tiles = batch * -(-height // m) * -(-width // m)
    weights = weight_bytes(geometry, m) // geometry.groups
    points = (m + geometry.window.kernel[0] - 1) ** 2
    resident = weights <= 0.6 * hardware.l2_bytes
    room = hardware.l2_bytes - weights if resident else hardware.l2_bytes // 2
    depth = -(-geometry.in_channels // geometry.lanes)
    for nrv in range(1, min(geometry.vectors, _MAX_VECTORS) + 1):
        rows_limit = min((hardware.registers - 1 - nrv) // nrv, _MAX_ROWS, tiles)
        limit = max(_MIN_BLOCK, room // (4 * points * (depth + nrv) * geometry.lanes))
        for rows in range(1, rows_limit + 1):
            total = -(-tiles // rows)
            for block in {-(-total // n) for n in range(1, total + 1)}:
                if rows * block > max(limit, rows):
                    continue
                prefetch = 0 if resident else _PREFETCH_STEPS
                yield WinogradTile(m, rows, nrv, block, prefetch)
                if threads > 1:
                    yield WinogradTile(m, rows, nrv, block, prefetch, shared=True)


def winograd_cycles(
    geometry: Geometry, tile: WinogradTile, hardware: Hardware, threads: int = 1
) -> float:
    """Predicted cycles of a core that starts two multiply-adds in each; weights come from L3."""
    sizes = planes(geometry, tile)
    inputs = float(sizes.depth * tile.tiles * _TRANSFORM_CYCLES[sizes.side])
    outputs = widest = 0.0
    for panel in sizes.panels:
        work = geometry.in_channels * step_cycles(tile.rows, panel.size)
        work += TILE_CYCLES + 1.5 * tile.rows * panel.size
        back = panel.size * tile.tiles * _TRANSFORM_CYCLES[sizes.side]
        one = sizes.points * tile.block * work + back
        outputs, widest = outputs + panel.count * one, max(widest, one)
    weights = weight_bytes(geometry, tile.m) // geometry.groups
    stream = weights / _L3_BYTES_PER_CYCLE if weights > 0.6 * hardware.l2_bytes else 0.0
    if not tile.shared:
        return geometry.groups * -(-sizes.blocks // threads) * (inputs + outputs + stream)
    outputs = -(-blocks_of(sizes.panels) // threads) * widest + stream / threads
    inputs *= -(-tile.tiles // threads) / tile.tiles
    return geometry.groups * sizes.blocks * (inputs + outputs + 2 * _BARRIER_CYCLES)
