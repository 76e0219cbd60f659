"""Convolution as an implicit matrix product, channels last; pointwise is its simplest case.

A block computes ``bm`` output pixels times ``bn`` output channels. Tiles of input and weights pass
through a ring of stages in shared memory, copied asynchronously; what lies outside of the image is
zero by the copy's source size. Rows of a tile are 128 or 64 bytes of the reduction, their 16-byte
chunks permuted by the row's number so that neither copies nor reads meet in a bank. Products are
those of the tensor cores (mma.sync), or float32 ones.

With a split reduction, several blocks share one tile: see :mod:`~.splits`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import (
    WIDEST,
    Array,
    Block,
    Expr,
    Memory,
    all_of,
    barrier,
    call,
    copy,
    kernel,
    let,
    ptx,
    rolled,
    serial,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.epilogue import Epilogue
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.splits import Splits
from pwopt.targets.cuda.kernels.tiling import Tile, grid, steps

_MMA = {
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "float32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
}
_LDMATRIX = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
_OUTSIDE = -(1 << 20)  # a row that no window reaches

# Tensor cores drop the last bits of float32; rounding them keeps sums unbiased.
_ROUND = """
__forceinline__ __device__ void pw_round_tf32(void* x) {
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(*(uint*)x) : "f"(*(float*)x));
}
"""


def conv(geometry: Geometry, program: Program, tile: Tile) -> Kernel:
    """A convolution with its epilogue.

    Pointers: input, weights and bias as :func:`~.packing.pack_conv` makes them, extras, output;
    with a split reduction then the workspace (float32) and the counters (int32).

    Args:
        geometry: sizes and layouts.
        program: argument 0 is the sum plus bias, the others are the extras.
        tile: how to divide the work.
    """
    emitter = _Conv(geometry, program, tile)
    dtypes = [geometry.x.dtype, geometry.x.dtype, "float32"]
    dtypes += [view.dtype for view in (*geometry.extras, geometry.y)]
    dtypes += ["float32", "int32"] if tile.split > 1 else []
    return kernel(
        dtypes,
        emitter.emit,
        grid=grid(geometry, tile),
        threads=tile.threads,
        shared_bytes=tile.shared_bytes,
    )


class _Conv:
    """Emits one convolution; holds what its parts share."""

    def __init__(self, geometry: Geometry, program: Program, tile: Tile) -> None:
        self.geometry, self.program, self.tile = geometry, program, tile
        self.chunks = tile.row_bytes // WIDEST  # of a row
        self.depth = tile.depth(geometry.x.itemsize)
        self.steps = steps(geometry, tile)
        self.per_split = -(-self.steps // tile.split)
        self.stage = (tile.bm + tile.bn) * self.depth  # elements
        self.rows_per_pass = tile.threads // self.chunks
        self.warp_m, self.warp_n = tile.bm // tile.warps_m, tile.bn // tile.warps_n
        ragged = geometry.pixels % tile.bm != 0
        vertical, self.horizontal = geometry.bounded
        self.vertical = vertical or ragged

    def emit(self, block: Block, x: Memory, weights: Memory, *others: Memory) -> None:
        """The kernel's body."""
        tile, geometry = self.tile, self.geometry
        self.block, self.x, self.weights = block, x, weights
        self.ring = block.shared(geometry.x.dtype)
        # Side by side run blocks that read the same pixels.
        self.row_of_blocks = let(block.x // self.block_columns, "row_of_blocks")
        self.column_of_blocks = let(block.x % self.block_columns, "column_of_blocks")
        self.part = block.z // tile.split if tile.split > 1 else block.z
        self.first = block.z % tile.split * self.per_split if tile.split > 1 else 0
        self.count: Expr = self.per_split
        if self.steps % tile.split:
            self.count = let(T.min(self.per_split, self.steps - self.first), "count")
        self.sums = Array(tile.accumulators, name="sums")
        with unrolled(tile.accumulators) as i:
            self.sums[i] = 0.0
        self._start_rows()
        self._pipeline()
        if tile.split == 1:
            self._finish(others)
        else:
            *operands, partials, counters = others
            tiles = grid(geometry, tile)[0]
            index = let(self.part * tiles + block.x, "tile_index")
            splits = self._splits(partials, counters)
            with when(splits.is_last(self.sums, index, block.z % tile.split)):
                splits.add_up(self.sums, index)
                self._finish(operands)

    # -- from global to shared memory -----------------------------------------------------------

    def _start_rows(self) -> None:
        """Where the window of each of the thread's output pixels begins."""
        geometry, tile = self.geometry, self.tile
        self.row = let(self.block.thread // self.chunks, "row")
        self.column = let(self.block.thread % self.chunks, "column")
        passes = -(-tile.bm // self.rows_per_pass)
        self.starts = Array(passes, "int32", "starts")
        self.tops = Array(passes, "int32", "tops") if self.vertical else None
        self.lefts = Array(passes, "int32", "lefts") if self.horizontal else None
        (down, right), (above, left) = geometry.window.strides, geometry.window.pads
        _, height, width, _ = geometry.y.shape
        image, line, pixel, _ = geometry.x.strides
        with unrolled(passes) as i:
            m = let(self.row_of_blocks * tile.bm + self.row + i * self.rows_per_pass, "m")
            top = let(m // width % height * down - above, "top")
            start = let(m % width * right - left - geometry.lead, "start")
            offset = m // (width * height) * image + top * line + start * pixel
            self.starts[i] = offset + geometry.x.offset + self.part * geometry.in_channels
            if self.tops is not None:
                inside: Expr = geometry.pixels % tile.bm == 0 or m < geometry.pixels
                self.tops[i] = top if inside is True else T.if_then_else(inside, top, _OUTSIDE)
            if self.lefts is not None:
                self.lefts[i] = start

    def _fetch(self, step: Expr, stage: Expr) -> None:
        """Copies the tiles of one step of the reduction into a stage."""
        geometry, tile = self.geometry, self.tile
        swizzled = (self.column ^ self._swizzle(self.row)) * geometry.chunk
        to = let(stage * self.stage + self.row * self.depth + swizzled, "to")
        index = let(step * self.chunks + self.column, "index")
        tap, inner = let(index // geometry.tap_chunks), let(index % geometry.tap_chunks)
        down, right = let(tap // geometry.taps[1]), let(tap % geometry.taps[1])
        (spread_down, spread_right), strides = geometry.window.dilations, geometry.x.strides
        shift = let(
            down * (spread_down * strides[1])
            + right * (spread_right * strides[2])
            + inner * geometry.chunk,
            "shift",
        )
        known = True if geometry.chunks % self.chunks == 0 else index < geometry.chunks
        with unrolled(-(-tile.bm // self.rows_per_pass)) as i, when(self._fits(i, tile.bm)):
            inside: Expr = known
            if self.tops is not None:
                row = self.tops[i] + down * spread_down
                inside = all_of(inside, _below(row, geometry.x.shape[1]))
            left = None
            if self.lefts is not None:
                left = self.lefts[i] + right * spread_right
                if not geometry.by_rows:
                    inside = all_of(inside, _below(left, geometry.x.shape[2]))
            target = to + i * (self.rows_per_pass * self.depth)
            self._copy_chunk(target, self.starts[i] + shift, inside, inner, left)
        at = (
            (self.part * self.block_columns + self.column_of_blocks) * self.steps + step
        ) * tile.bn
        source = let((at + self.row) * self.depth + self.column * geometry.chunk, "source")
        with unrolled(-(-tile.bn // self.rows_per_pass)) as i, when(self._fits(i, tile.bn)):
            moved = i * (self.rows_per_pass * self.depth)
            target = to + tile.bm * self.depth + moved
            self._copy(self.ring.address(target), self.weights.address(source + moved), WIDEST)

    @property
    def block_columns(self) -> int:
        """Blocks along the output channels."""
        return -(-self.geometry.out_channels // self.tile.bn)

    def _fits(self, i: Expr, rows: int) -> Expr:
        if rows % self.rows_per_pass == 0:
            return True
        return self.row + i * self.rows_per_pass < rows

    def _copy_chunk(
        self, to: Expr, source: Expr, inside: Expr, inner: Expr, left: Expr | None
    ) -> None:
        """One chunk of the input, zero where it is outside, in as wide pieces as are aligned."""
        geometry, size = self.geometry, self.geometry.x.itemsize
        width = geometry.align
        for start in range(0, WIDEST, width):
            valid: Expr = width
            condition = inside
            if geometry.by_rows:
                assert left is not None
                pixel_bytes = geometry.x.shape[3] * size
                place = left + inner * (WIDEST // pixel_bytes) + start // pixel_bytes
                condition = all_of(condition, _below(place, geometry.x.shape[2]))
                if width > pixel_bytes:
                    rest = (geometry.x.shape[2] - place) * pixel_bytes
                    valid = T.min(rest, width)
            elif geometry.in_channels * size % WIDEST:
                rest = geometry.in_channels * size - inner * WIDEST - start
                valid = T.max(T.min(rest, width), 0)
            if condition is not True:
                valid = T.if_then_else(condition, valid, 0)
            element = start // size
            addresses = self.ring.address(to + element), self.x.address(source + element)
            self._copy(*addresses, width, None if isinstance(valid, int) else valid)

    @staticmethod
    def _copy(to: Expr, source: Expr, width: int, valid: Expr | None = None) -> None:
        form = (
            "cp.async.cg.shared.global.L2::128B" if width == WIDEST else "cp.async.ca.shared.global"
        )
        sizes = (width,) if valid is None else (width, T.cast(valid, "uint32"))
        ptx(form, to, source, *sizes)

    def _swizzle(self, row: Expr) -> Expr:
        """What a row's chunk numbers are permuted by."""
        return row % 8 if self.chunks == 8 else row // 2 % 4

    # -- products -------------------------------------------------------------------------------

    def _pipeline(self) -> None:
        stages = self.tile.stages
        for step in range(stages - 1):
            if step < self.per_split:
                with when(True if isinstance(self.count, int) else step < self.count):
                    self._fetch(self.first + step, step)
            ptx("cp.async.commit_group")
        read, write = Array(1, "int32", "read"), Array(1, "int32", "write")
        read[0], write[0] = 0, stages - 1
        lane = self.block.lane
        self.tile_row = let(self.block.warp // self.tile.warps_n * self.warp_m, "tile_row")
        self.tile_column = let(self.block.warp % self.tile.warps_n * self.warp_n, "tile_column")
        self.lane = let(lane, "lane")
        with rolled(self.count) as step:
            ptx("cp.async.wait_group", stages - 2)
            barrier()
            with when(step + (stages - 1) < self.count):
                self._fetch(self.first + step + (stages - 1), write[0])
            ptx("cp.async.commit_group")
            base = let(read[0] * self.stage, "base")
            (self._tensor_products if self.tile.tensor_cores else self._products)(base)
            for position in (read, write):
                position[0] = T.if_then_else(position[0] == stages - 1, 0, position[0] + 1)
        ptx("cp.async.wait_group", 0)
        barrier()

    def _tensor_products(self, base: Expr) -> None:
        """mma.sync on fragments that ldmatrix brings."""
        rows, columns = self.warp_m // 16, self.warp_n // 8
        a, b = Array(rows * 4, "uint32", "a"), Array(columns * 2, "uint32", "b")
        weights = base + self.tile.bm * self.depth
        with unrolled(self.chunks // 2) as k:
            with unrolled(rows) as i:
                row = self.tile_row + i * 16 + self.lane % 16
                self._load_fragments(a, i * 4, base, row, k * 2 + self.lane // 16)
            if self.geometry.x.dtype == "float32":
                with unrolled(rows * 4) as i:
                    call("pw_round_tf32", a.address(i), source=_ROUND)
            with unrolled(columns // 2) as j:
                row = self.tile_column + j * 16 + self.lane % 8 + self.lane // 16 * 8
                self._load_fragments(b, j * 4, weights, row, k * 2 + self.lane // 8 % 2)
            with unrolled(rows) as i, unrolled(columns) as j:
                sums = [self.sums[(i * columns + j) * 4 + e] for e in range(4)]
                fragments = [*(a[i * 4 + e] for e in range(4)), *(b[j * 2 + e] for e in range(2))]
                ptx(_MMA[self.geometry.x.dtype], *sums, *fragments, *sums)

    def _load_fragments(self, to: Array, first: Expr, base: Expr, row: Expr, chunk: Expr) -> None:
        place = (chunk ^ self._swizzle(row)) * self.geometry.chunk
        registers = [to[first + e] for e in range(4)]
        ptx(_LDMATRIX, *registers, self.ring.address(base + row * self.depth + place))

    def _products(self, base: Expr) -> None:
        """float32 products: a thread has every 8th row and every 4th column of its warp's tile."""
        rows, columns = self.warp_m // 8, self.warp_n // 4
        a, b = Array(rows * 4, name="a"), Array(columns * 4, name="b")
        weights = base + self.tile.bm * self.depth
        with serial(self.chunks // 2) as pair, unrolled(2) as half:
            chunk = pair * 2 + half
            with unrolled(rows) as i:
                self._load_floats(a, i * 4, base, self.tile_row + i * 8 + self.lane % 8, chunk)
            with unrolled(columns) as j:
                row = self.tile_column + j * 4 + self.lane // 8
                self._load_floats(b, j * 4, weights, row, chunk)
            with unrolled(4) as k, unrolled(rows) as i, unrolled(columns) as j:
                place = i * columns + j
                self.sums[place] = self.sums[place] + a[i * 4 + k] * b[j * 4 + k]

    def _load_floats(self, to: Array, first: Expr, base: Expr, row: Expr, chunk: Expr) -> None:
        place = base + row * self.depth + (chunk ^ self._swizzle(row)) * 4
        copy(to.address(first), self.ring.address(place), WIDEST)

    # -- to the output --------------------------------------------------------------------------

    def _splits(self, partials: Memory, counters: Memory) -> Splits:
        """With the other blocks of the tile."""
        block, tile = self.block, self.tile
        last = block.static(1, "int32", "last")
        return Splits(block, tile.split, tile.threads, barrier, partials, counters, last)

    def _finish(self, operands: Sequence[Memory]) -> None:
        """Sums through shared memory, where rows are whole, to the output."""
        tile = self.tile
        staged = self.block.shared("float32")
        rows = self.warp_m // (16 if tile.tensor_cores else 8)
        columns = self.warp_n // (8 if tile.tensor_cores else 4)
        with unrolled(rows) as i, unrolled(columns) as j:
            if tile.tensor_cores:
                with unrolled(2) as half:
                    row = self.tile_row + i * 16 + half * 8 + self.lane // 4
                    column = self.tile_column + j * 8 + self.lane % 4 * 2
                    place = (i * columns + j) * 4 + half * 2
                    to = staged.address(row * tile.staged_row + column)
                    copy(to, self.sums.address(place), 8)
            else:
                row = self.tile_row + i * 8 + self.lane % 8
                column = self.tile_column + j * 4 + self.lane // 8
                staged[row * tile.staged_row + column] = self.sums[i * columns + j]
        barrier()
        Epilogue(self.geometry, self.program, tile.threads).emit(
            staged,
            tile.staged_row,
            (tile.bm, tile.bn),
            (self.row_of_blocks * tile.bm, self.column_of_blocks * tile.bn),
            self.part,
            self.block.thread,
            operands,
        )


def _below(index: Expr, extent: int) -> Expr:
    """Whether 0 <= index < extent, in one comparison."""
    return T.cast(index, "uint32") < T.uint32(extent)
