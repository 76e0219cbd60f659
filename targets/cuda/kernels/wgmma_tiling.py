"""How convolutions on Hopper's warpgroup products are cut: tiles, boxes, stages, parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pwopt.targets.cuda.arch import Arch, Gpu
from pwopt.targets.cuda.kernel import TensorMap
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.packing import as_operand
from pwopt.targets.views import View, itemsize
from pwopt.targets.windows import Window

ROW_BYTES = 128  # of a stage: one swizzled row of 16-byte chunks
STAGED = 128  # columns that a warp stages at a time
TYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32"}
_BOX = 256  # largest extent of a copied box
_MOST_STEPS = 8  # that a box can take between elements


@dataclass(frozen=True)
class WgmmaTile:
    """How the work is cut.

    Attributes:
        pixels: of a tile, 64 for each warpgroup that multiplies; 64, 128 or 192.
        columns: output channels of a tile, a multiple of 8 up to 256.
        stages: of the ring.
        splits: parts of the reduction, each a block's; see :mod:`~.splits`.
        blocks: of the grid at most, those that the GPU runs at once.
        cluster: blocks that take tiles of the same output channels at a time, and of whose weights
            each copies its share to all of them.
    """

    pixels: int = 128
    columns: int = 128
    stages: int = 4
    splits: int = 1
    blocks: int = 132
    cluster: int = 1

    def __str__(self) -> str:
        """Names it in the tuning database."""
        return (
            f"wgmma {self.pixels}x{self.columns}, {self.stages} stages, split {self.splits}, "
            f"{self.blocks} blocks in clusters of {self.cluster}"
        )


@dataclass(frozen=True)
class Boxes:
    """Tiles of output pixels as boxes of the input: (width, height, images) and their numbers."""

    sizes: tuple[int, int, int]
    counts: tuple[int, int, int]

    @property
    def pixels(self) -> int:
        """Of a tile that count, of a box that lies inside."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Shape:
    """A convolution as the kernel sees it, and what follows from its tile.

    Attributes:
        geometry: the convolution.
        tile: how it is cut.
    """

    geometry: Geometry
    tile: WgmmaTile

    @cached_property
    def x(self) -> View:
        """The input, that of a pointwise convolution as one row of pixels where it lies so."""
        x = self.geometry.x
        if self.geometry.window != Window():
            return x
        row = View(x.shape[:3], x.strides[:3], x.offset, x.dtype).reshape(
            (1, 1, math.prod(x.shape[:3]))
        )
        if row is None:
            return x
        return replace(row, shape=(*row.shape, x.shape[3]), strides=(*row.strides, x.strides[3]))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Output images, rows and columns, as the input is seen."""
        images, height, width, _ = self.geometry.y.shape
        flat = self.x.shape != self.geometry.x.shape
        return (1, 1, images * height * width) if flat else (images, height, width)

    @property
    def window(self) -> Window:
        """Of the convolution."""
        return self.geometry.window

    @property
    def size(self) -> int:
        """Bytes of an element of the operands."""
        return itemsize(self.x.dtype)

    @property
    def depth(self) -> int:
        """Input channels of a step."""
        return ROW_BYTES // self.size

    @property
    def chunks(self) -> int:
        """Steps of one tap."""
        return -(-self.x.shape[3] // self.depth)

    @property
    def steps(self) -> int:
        """Of the whole reduction."""
        return math.prod(self.window.kernel) * self.chunks

    @property
    def steps_of_split(self) -> int:
        """Of all parts of the reduction but the last."""
        return -(-self.steps // self.tile.splits)

    @property
    def panels(self) -> int:
        """Tiles of output channels."""
        return -(-self.geometry.y.shape[3] // self.tile.columns)

    @cached_property
    def boxes(self) -> Boxes:
        """Tiles of output pixels."""
        images, height, width = self.sizes
        down, right = self.window.strides
        best: tuple[tuple[int, int], Boxes] | None = None
        for w in range(1, min(width, self.tile.pixels) + 1):
            for h in range(1, min(height, self.tile.pixels // w) + 1):
                if max(w * right, h * down) > _BOX:
                    break
                whole = (w, h) == (width, height)
                n = min(images, self.tile.pixels // (w * h)) if whole else 1
                counts = (-(-width // w), -(-height // h), -(-images // n))
                key = (math.prod(counts), -w)
                if best is None or key < best[0]:
                    best = (key, Boxes((w, h, n), counts))
        assert best is not None
        return best[1]

    @property
    def tiles(self) -> int:
        """Of all blocks together; a cluster's count as one."""
        boxes = -(-math.prod(self.boxes.counts) // self.tile.cluster)
        return boxes * self.panels * self.tile.splits

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return min(self.tiles, self.tile.blocks // self.tile.cluster) * self.tile.cluster

    @property
    def workspace_bytes(self) -> int:
        """Of the partial sums of a split reduction; 0 if it is not."""
        if self.tile.splits == 1:
            return 0
        return self.tiles * self.tile.cluster * self.tile.pixels * self.tile.columns * 4

    @property
    def counters(self) -> int:
        """Number of int32 counters of a split reduction, zero before and after each run."""
        return self.tiles * self.tile.cluster // self.tile.splits if self.tile.splits > 1 else 0

    @property
    def ring(self) -> tuple[int, int]:
        """Elements of a stage: of pixels, of weights."""
        return self.tile.pixels * self.depth, self.tile.columns * self.depth

    @property
    def ring_bytes(self) -> int:
        """Of all stages."""
        return self.tile.stages * sum(self.ring) * self.size

    @property
    def staged_row(self) -> int:
        """Floats of a row that a warp stages; off by 16 bytes, for the banks' sake."""
        return min(self.tile.columns, STAGED) + 4

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        warps = self.tile.pixels // 16
        return self.ring_bytes + warps * 16 * self.staged_row * 4

    def maps(self) -> tuple[TensorMap, TensorMap]:
        """Windows on the input, innermost axis first, and on the packed weights."""
        images, height, width, channels = self.x.shape
        strides = [s * self.size for s in reversed(self.x.strides[:3])]
        outer = 0
        for i, extent in reversed(list(enumerate((width, height, images)))):
            if extent == 1:  # whatever its stride is, the driver wants one that could be
                inner = (s * e for s, e in zip(strides[:i], (width, height), strict=False) if e > 1)
                strides[i] = outer or max(-(-channels * self.size // 16) * 16, *inner)
            outer = strides[i]
        w, h, n = self.boxes.sizes
        down, right = self.window.strides
        copied = f"t{self.x.dtype}" if self.size == 4 else self.x.dtype  # products would truncate
        pixels = TensorMap(
            pointer=0,
            dtype=copied,
            offset=self.x.offset,
            dims=(channels, width, height, images),
            strides=tuple(strides),
            box=(self.depth, w * right, h * down, n),
            steps=(1, right, down, 1),
        )
        row = self.steps * self.depth
        weights = TensorMap(
            pointer=1,
            dtype=copied,
            offset=0,
            dims=(row, self.panels * self.tile.columns),
            strides=(row * self.size,),
            box=(self.depth, self.tile.columns // self.tile.cluster),
            steps=(1, 1),
        )
        return pixels, weights


def takes(geometry: Geometry) -> bool:
    """Whether :func:`~.wgmma.wgmma` can compute a convolution."""
    x = geometry.x
    strides = [s for s, e in zip(x.strides[:3], x.shape[:3], strict=True) if e > 1]
    aligned = all(j * x.itemsize % 16 == 0 for j in (x.offset, *strides))
    known = x.dtype in TYPES and max(geometry.window.strides) <= _MOST_STEPS
    return geometry.groups == 1 and aligned and known


def pack_wgmma(
    weight: np.ndarray, bias: np.ndarray | None, columns: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Weights, in the type of the maps, and bias as :func:`wgmma` reads them, zeros behind them.

    Args:
        weight: (OC, IC, KH, KW).
        bias: (OC,), or none.
        columns: of a tile.
        dtype: of the maps; float32 weights are rounded to TF32.

    Returns:
        (OC rounded up to tiles, taps * IC rounded up to steps), and as many biases.
    """
    out, channels, *taps = weight.shape
    depth = ROW_BYTES // itemsize(dtype)
    rows = -(-out // columns) * columns
    matrix = as_operand(weight, dtype).transpose(0, 2, 3, 1)
    packed = np.zeros((rows, *taps, -(-channels // depth) * depth), matrix.dtype)
    packed[:out, ..., :channels] = matrix
    biases = np.zeros(rows, np.float32)
    if bias is not None:
        biases[:out] = bias
    return packed.reshape(rows, -1), biases


def choose_wgmma(geometry: Geometry, arch: Arch, gpu: Gpu) -> WgmmaTile:
    """The tile of the least predicted time, without clusters, which only measurement chooses.

    Args:
        geometry: the convolution.
        arch: whose shared memory the tile has to fit.
        gpu: to fill.
    """
    return next(t for t in ranked_wgmma(geometry, arch, gpu) if t.cluster == 1)


def ranked_wgmma(geometry: Geometry, arch: Arch, gpu: Gpu) -> list[WgmmaTile]:
    """The candidates, those of the least predicted time first; arguments as there."""
    tiles = wgmma_candidates(geometry, arch, gpu)
    return sorted(tiles, key=lambda tile: predicted_cycles(Shape(geometry, tile)))


def wgmma_candidates(geometry: Geometry, arch: Arch, gpu: Gpu) -> Iterator[WgmmaTile]:
    """Tiles that fit the architecture and are not far too large for the work; see there."""
    shared_bytes = arch.shared_per_block - _STATIC_BYTES
    for pixels, columns, splits, cluster in itertools.product((64, 128), _COLUMNS, _SPLITS, (1, 2)):
        if columns > _COLUMNS[0] and columns - _COLUMNS[0] >= geometry.y.shape[3]:
            continue
        if cluster > 1 and (columns < _SHARED_COLUMNS or splits > 1):
            continue
        if splits > 1 and columns > _SPLIT_COLUMNS:
            continue
        tile = WgmmaTile(pixels, columns, 0, splits, gpu.multiprocessors, cluster)
        shape = _with_stages(geometry, tile, shared_bytes)
        if shape is not None:
            yield shape.tile


_COLUMNS = (16, 32, 48, 64, 96, 128, 192, 256)
_SHARED_COLUMNS = 128  # fewer are copied fast enough by one
_SPLIT_COLUMNS = 192  # more, and adding up parts takes more registers than there are
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_MOST_STAGES, _LEAST_STAGES = 6, 3
# Cycles of a multiprocessor. Products: multiply-adds a cycle of 16-bit numbers, of NVIDIA's data
# sheet. Copies: bytes a cycle from the level-2 cache, an estimate, as are the others.
_PRODUCTS, _COPIED, _LATENCY, _MEETING = 2048, 40, 1500, 1200


def _with_stages(geometry: Geometry, tile: WgmmaTile, shared_bytes: int) -> Shape | None:
    """The convolution cut so, with as many stages as there is memory for."""
    for stages in range(_MOST_STAGES, _LEAST_STAGES - 1, -1):
        shape = Shape(geometry, replace(tile, stages=stages))
        if (tile.splits - 1) * shape.steps_of_split >= shape.steps:
            return None
        if shape.shared_bytes <= shared_bytes:
            return shape
    return None


_STATIC_BYTES = 1024  # of barriers, as aligned as the ring


def predicted_cycles(shape: Shape) -> float:
    """Estimated time, cycles of the GPU.

    A block's step takes as long as its products, or as its copies if those take longer; a tile
    adds the latency of its first copies and of its stores; parts of a reduction add their way
    through memory, once by each block and all of them by the last one. Not measured on a GPU yet.
    """
    tile = shape.tile
    products = tile.pixels * tile.columns * shape.depth / (_PRODUCTS * 2 / shape.size)
    step = max(products, (tile.pixels + tile.columns / tile.cluster) * ROW_BYTES / _COPIED)
    rounds = -(-shape.tiles * tile.cluster // shape.blocks)
    time = rounds * shape.steps_of_split * step + _LATENCY * (1 + rounds / 2)
    if tile.splits > 1:
        time += _MEETING + 4 * tile.pixels * tile.columns * (rounds + tile.splits) / _COPIED
    return time
