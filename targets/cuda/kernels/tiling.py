"""Tiles of the matrix kernels, and which one a convolution gets.

The estimate counts cycles of one multiprocessor. Its constants are those of the A100 in NVIDIA's
documents and published microbenchmarks; what it has to get right is the order of the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pwopt.targets.cuda.arch import Arch, Gpu, usual_gpu
from pwopt.targets.cuda.codegen import WIDEST
from pwopt.targets.cuda.kernels.geometry import Geometry

_STAGES = 4
_SPLITS = (2, 3, 4, 6, 8, 12, 16)
_STAGED_PADDING = 8  # floats behind a staged row: eight rows of a store hit different banks

_LAUNCH = 1500  # cycles until the first tile is in shared memory
_STEP = 90  # of a step's barrier, waits and index arithmetic
_LATENCY = 700  # of a copy from the level-2 cache
_L2_BYTES = 40  # per cycle and multiprocessor
_HALF_MACS = 1024  # per cycle and multiprocessor with all four tensor cores; TF32 half of it
_FLOAT_MACS = 64  # likewise without them; 128 on sm_86 and later, at half the share of the peak
_MEETING = 1200  # cycles until the last block of a split tile knows that it is


@dataclass(frozen=True)
class Tile:
    """How a block computes its part of the output.

    Attributes:
        bm, bn: pixels and output channels of a block.
        warps_m, warps_n: how they are divided among its warps.
        row_bytes: of the reduction per step: 128 or 64.
        stages: steps of the ring in shared memory.
        split: blocks that share the reduction of one tile.
        tensor_cores: whether the products are theirs.
    """

    bm: int
    bn: int
    warps_m: int
    warps_n: int
    row_bytes: int = 128
    stages: int = _STAGES
    split: int = 1
    tensor_cores: bool = True

    def __str__(self) -> str:
        """Names it in the tuning database."""
        units = "" if self.tensor_cores else ", no tensor cores"
        return (
            f"{self.bm}x{self.bn} in {self.warps_m}x{self.warps_n} warps, {self.row_bytes} bytes, "
            f"{self.stages} stages, split {self.split}{units}"
        )

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps_m * self.warps_n

    @property
    def accumulators(self) -> int:
        """Of a thread."""
        return self.bm * self.bn // self.threads

    def depth(self, size: int) -> int:
        """Elements of ``size`` bytes of the reduction per step."""
        return self.row_bytes // size

    @property
    def staged_row(self) -> int:
        """Floats of a row of accumulators in shared memory."""
        return self.bn + _STAGED_PADDING

    @property
    def shared_bytes(self) -> int:
        """The ring, and in its place the accumulators for the epilogue."""
        ring = self.stages * (self.bm + self.bn) * self.row_bytes
        return max(ring, self.bm * self.staged_row * 4)

    @property
    def registers(self) -> int:
        """About how many a thread needs."""
        return min(255, self.accumulators + 60 + self.accumulators // 3)


# (bm, bn, warps along m, along n); every warp has at least 16 x 16.
SHAPES = (
    *((128, 128, 2, 2), (128, 64, 2, 2), (64, 128, 2, 2), (64, 64, 2, 2), (128, 32, 4, 1)),
    *((32, 128, 1, 4), (64, 32, 2, 2), (32, 64, 2, 2), (32, 32, 2, 1), (256, 64, 4, 1)),
    *((256, 128, 4, 2), (128, 256, 2, 4), (16, 64, 1, 4), (16, 128, 1, 4), (128, 16, 4, 1)),
    (64, 16, 4, 1),
)
# Without tensor cores: every warp has at least 16 x 16, a thread at most 8 x 8 sums.
FLOAT_SHAPES = (
    *((128, 128, 2, 4), (128, 64, 2, 2), (64, 128, 1, 4), (64, 64, 2, 2), (128, 32, 2, 2)),
    *((32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2), (128, 16, 4, 1), (16, 64, 1, 4)),
)


def grid(geometry: Geometry, tile: Tile) -> tuple[int, int, int]:
    """Blocks: tiles, row by row, and parts times splits.

    Rows of tiles are no axis of the grid, which has at most 65,535 of them there.
    """
    columns = math.ceil(geometry.out_channels / tile.bn)
    return columns * math.ceil(geometry.pixels / tile.bm), 1, geometry.parts * tile.split


def steps(geometry: Geometry, tile: Tile) -> int:
    """Steps of the whole reduction."""
    return math.ceil(geometry.chunks * WIDEST / tile.row_bytes)


def workspace_bytes(geometry: Geometry, tile: Tile) -> int:
    """Of the partial sums of a split reduction; 0 if it is not."""
    if tile.split == 1:
        return 0
    return math.prod(grid(geometry, tile)) * tile.bm * tile.bn * 4


def counters(geometry: Geometry, tile: Tile) -> int:
    """Number of int32 counters of a split reduction, zero before and after each run."""
    return math.prod(grid(geometry, tile)) // tile.split if tile.split > 1 else 0


def candidates(geometry: Geometry, arch: Arch, *, tensor_cores: bool = True) -> Iterator[Tile]:
    """Tiles that fit the architecture and are not far too large for the work."""
    for shape in SHAPES if tensor_cores else FLOAT_SHAPES:
        bm, bn, _, _ = shape
        if bm >= 2 * max(geometry.pixels, 32) or bn >= 2 * max(geometry.out_channels, 32):
            continue
        for row_bytes in (128, 64):
            tile = Tile(*shape, row_bytes, tensor_cores=tensor_cores)
            total = steps(geometry, tile)
            if row_bytes == 128 and geometry.chunks * WIDEST <= 64:
                continue
            tile = replace(tile, stages=max(2, min(_STAGES, total)))
            while tile.shared_bytes > arch.shared_per_block and tile.stages > 2:
                tile = replace(tile, stages=tile.stages - 1)
            if tile.shared_bytes <= arch.shared_per_block:
                yield from (replace(tile, split=split) for split in _splits(total))


def _splits(steps: int) -> Iterator[int]:
    """Parts of a reduction, each of several steps."""
    yield 1
    for split in _SPLITS:
        if steps >= 4 * split and math.ceil(steps / split) * (split - 1) < steps:
            yield split


def choose_tile(
    geometry: Geometry, arch: Arch, gpu: Gpu | None = None, *, tensor_cores: bool = True
) -> Tile:
    """The tile with the least estimated time.

    Args:
        geometry: the convolution.
        arch: to fit.
        gpu: to fill; the usual one of the architecture if left out.
        tensor_cores: whether its products are theirs; always so but for float32.
    """
    return ranked(geometry, arch, gpu, tensor_cores=tensor_cores)[0]


def ranked(
    geometry: Geometry, arch: Arch, gpu: Gpu | None = None, *, tensor_cores: bool = True
) -> list[Tile]:
    """The candidates, those of the least estimated time first; arguments as :func:`choose_tile`."""
    gpu = gpu or usual_gpu(arch)
    tiles = candidates(geometry, arch, tensor_cores=tensor_cores)
    return sorted(tiles, key=lambda tile: (cycles(geometry, tile, arch, gpu), tile.split))


def cycles(geometry: Geometry, tile: Tile, arch: Arch, gpu: Gpu) -> float:
    """Estimated time of a convolution, cycles."""
    size = geometry.x.itemsize
    blocks = math.prod(grid(geometry, tile))
    resident = max(1, arch.blocks(tile.threads, tile.registers, tile.shared_bytes))
    waves = math.ceil(blocks / (gpu.multiprocessors * resident))
    together = min(resident, math.ceil(blocks / gpu.multiprocessors))
    own = math.ceil(steps(geometry, tile) / tile.split)

    rate = _HALF_MACS * 2 // size if tile.tensor_cores else _FLOAT_MACS
    cores = min(4, together * tile.threads // 32)
    macs = tile.bm * tile.bn * tile.depth(size)
    read = _reads(tile)
    exposed = 0 if tile.tensor_cores else 0.5  # loads and products share the warps' issue slots
    copied = (tile.bm + tile.bn) * tile.row_bytes / _L2_BYTES
    alone = macs / (rate * min(4, tile.threads // 32) / 4) + _STEP
    step = max(
        together * max(macs / (rate * cores / 4) + exposed * read, read, copied),
        alone,
        _LATENCY / (tile.stages - 1),
    )
    written = tile.bm * tile.bn * (geometry.y.itemsize + sum(e.itemsize for e in geometry.extras))
    epilogue = together * written / _L2_BYTES + 300
    if tile.split > 1:
        partial = tile.bm * tile.bn * 4 / _L2_BYTES
        epilogue += together * partial + tile.split * partial + _MEETING
    return _LAUNCH + waves * (own * step + epilogue)


def _reads(tile: Tile) -> float:
    """Cycles in which shared memory is read for one step of a block, each warp for itself."""
    if tile.tensor_cores:
        rows = tile.bm * tile.warps_n + tile.bn * tile.warps_m
        return rows * tile.row_bytes / 128
    # A thread reads 16 bytes of each of its rows and columns; a quarter of a warp takes a cycle.
    loads = tile.bm // tile.warps_m // 8 + tile.bn // tile.warps_n // 4
    return loads * 4 * tile.row_bytes / WIDEST * tile.threads / 32
