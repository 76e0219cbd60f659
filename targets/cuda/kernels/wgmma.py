"""Convolutions on Hopper's warpgroup products (sm_90a), fed by the tensor memory accelerator.

One thread copies boxes of the input and of the weights into a ring of stages in shared memory;
padding, strides and the channels' tail come from the box: what lies outside of the tensor is zero.
Two warpgroups multiply. Blocks are persistent: while the last ones of a tile are written, the
copies of the next tile are on their way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import (
    Array,
    Block,
    Expr,
    Memory,
    all_of,
    barrier,
    branch,
    call,
    cluster_barrier,
    kernel,
    let,
    ptx,
    serial,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.epilogue import Epilogue
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.splits import Splits
from pwopt.targets.cuda.kernels.wgmma_tiling import (
    ROW_BYTES,
    STAGED,
    TYPES,
    Shape,
    WgmmaTile,
)

_GROUP = 128  # threads
_PRODUCER_REGISTERS, _CONSUMER_REGISTERS = 40, 232

# Arrives at the barrier of another block of the cluster.
_FREE = """
__forceinline__ __device__ void pw_free(uint barrier, int rank) {
  asm volatile(
      "{\\n.reg .b32 other;\\n"
      "mapa.shared::cluster.u32 other, %0, %1;\\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [other];\\n}"
      : : "r"(barrier), "r"(rank) : "memory");
}
"""
# The accumulators are written behind the compiler's back: no read may move before the wait.
_KEEP = """
__forceinline__ __device__ void pw_keep(float& x) {
  asm volatile("" : "+f"(x) : : "memory");
}
"""
# Barrier 0 is that of the whole block.
_CONSUMERS = 1
_MEET = """
__forceinline__ __device__ void pw_meet(int name, int threads) {
  asm volatile("bar.sync %0, %1;" : : "r"(name), "r"(threads) : "memory");
}
"""


def wgmma(geometry: Geometry, program: Program, tile: WgmmaTile) -> Kernel:
    """A convolution of one group, bias and epilogue.

    Pointers: input, weights and bias as :func:`~.wgmma_tiling.pack_wgmma` makes them, extras,
    output; with a split reduction then the workspace (float32) and the counters (int32).

    Args:
        geometry: sizes and layouts.
        program: argument 0 is the sum plus bias, the others are the extras.
        tile: how to divide the work.
    """
    shape = Shape(geometry, tile)
    if (tile.splits - 1) * shape.steps_of_split >= shape.steps:
        raise ValueError(f"{shape.steps} steps in {tile.splits} parts")
    dtypes = [geometry.x.dtype, geometry.x.dtype, "float32"]
    dtypes += [view.dtype for view in (*geometry.extras, geometry.y)]
    dtypes += ["float32", "int32"] if tile.splits > 1 else []

    def body(block: Block, *memories: Memory) -> None:
        _Body(shape, program, block, memories).emit()

    return kernel(
        dtypes,
        body,
        grid=(shape.blocks, 1, 1),
        threads=_GROUP * (tile.pixels // 64 + 1),
        shared_bytes=shape.shared_bytes,
        maps=shape.maps(),
        blocks_per_multiprocessor=1,
        cluster=tile.cluster,
    )


class _Body:
    """Emits the statements of one kernel."""

    def __init__(
        self, shape: Shape, program: Program, block: Block, memories: tuple[Memory, ...]
    ) -> None:
        self.shape, self.tile, self.block = shape, shape.tile, block
        self.epilogue = Epilogue(shape.geometry, program, 32)
        count = 2 + len(shape.geometry.extras)
        self.operands = memories[2 : 2 + count]
        self.consumers = self.tile.pixels // 64
        self.pixels = block.shared(shape.x.dtype)
        self.weights = block.shared(shape.x.dtype, self.tile.stages * shape.ring[0] * shape.size)
        self.staged = block.shared("float32", shape.ring_bytes)
        self.barriers = block.static(2 * self.tile.stages, "uint64", "barriers", align=8)
        self.splits: Splits | None = None
        if self.tile.splits > 1:
            last, threads = block.static(1, "int32", "last"), _GROUP * self.consumers
            partials, counters = memories[2 + count :]
            meet, parts = self._meet_consumers, self.tile.splits
            self.splits = Splits(block, parts, threads, meet, partials, counters, last)
        self.rank = block.x % self.tile.cluster if self.tile.cluster > 1 else 0
        self.ring = Array(2, "int32", "ring")  # stage, and the parity of its turn

    def emit(self) -> None:
        stages = self.tile.stages
        group = let(
            T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), self.block.thread // _GROUP, 0, 32, 32)
        )
        releases = self.consumers * self.tile.cluster
        with when(self.block.thread == 0):
            for stage in range(stages):
                for at, arrivals in ((stage, 1), (stages + stage, releases)):
                    ptx("mbarrier.init.shared.b64", self._barrier(at), T.uint32(arrivals))
        ptx("fence.mbarrier_init.release.cluster")
        ptx("fence.proxy.async.shared::cta")
        self._meet()
        self.ring[0] = 0
        self.ring[1] = 0
        many = self.consumers == 2 and self.tile.columns >= 128

        def produce() -> None:
            if many:
                ptx("setmaxnreg.dec.sync.aligned.u32", _PRODUCER_REGISTERS)
            with when(self.block.thread == self.consumers * _GROUP), self._each_tile() as position:
                self._produce(position)

        def consume() -> None:
            if many:
                ptx("setmaxnreg.inc.sync.aligned.u32", _CONSUMER_REGISTERS)
            self._consume(group)

        branch(group == self.consumers, produce, consume)
        if self.tile.cluster > 1:  # nobody leaves while others write to its shared memory
            self._meet()

    def _meet(self) -> None:
        if self.tile.cluster > 1:
            cluster_barrier()
        else:
            barrier()

    def _barrier(self, index: Expr) -> Expr:
        return self.barriers.address(index)

    def _advance(self) -> None:
        self.ring[0] = self.ring[0] + 1
        with when(self.ring[0] == self.tile.stages):
            self.ring[0] = 0
            self.ring[1] = self.ring[1] ^ 1

    @contextmanager
    def _each_tile(self) -> Iterator[_Position]:
        """The loop over the tiles of this block."""
        shape, tile = self.shape, self.tile
        clusters = shape.blocks // tile.cluster
        with serial(-(-shape.tiles // clusters)) as turn:
            index = let(self.block.x // tile.cluster + turn * clusters)
            with when(True if shape.tiles % clusters == 0 else index < shape.tiles):
                (w, h, n), (across, down, _) = shape.boxes.sizes, shape.boxes.counts
                rest = index // shape.panels
                box = rest // tile.splits * tile.cluster + self.rank
                panel = let(index % shape.panels)
                yield _Position(
                    number=let(box * shape.panels + panel),
                    panel=panel,
                    split=let(rest % tile.splits),
                    column=let(box % across * w),
                    row=let(box // across % down * h),
                    image=let(box // (across * down) * n),
                )

    def _steps(self, split: Expr) -> Expr:
        shape = self.shape
        each = shape.steps_of_split
        if each * self.tile.splits == shape.steps:
            return each
        return T.max(T.min(each, shape.steps - split * each), 0)

    def _produce(self, at: _Position) -> None:
        shape, tile, ring = self.shape, self.tile, self.ring
        copied = (shape.boxes.pixels * shape.depth + shape.ring[1]) * shape.size
        (_, right), (down, across) = shape.window.kernel, shape.window.dilations
        top, left = shape.window.pads
        with serial(self._steps(at.split)) as k:
            step = let(at.split * shape.steps_of_split + k)
            tap = let(step // shape.chunks)
            full = self._barrier(ring[0])
            T.evaluate(T.cuda.mbarrier_wait(self._barrier(tile.stages + ring[0]), ring[1] ^ 1))
            ptx("mbarrier.arrive.expect_tx.shared.b64", full, T.uint32(copied))
            ptx(
                _copy_of_box(4),
                self.pixels.address(ring[0] * shape.ring[0]),
                self.block.maps[0],
                step % shape.chunks * shape.depth,
                at.column * shape.window.strides[1] + tap % right * across - left,
                at.row * shape.window.strides[0] + tap // right * down - top,
                at.image,
                full,
            )
            self._copy_weights(step * shape.depth, at.panel * tile.columns, full)
            self._advance()

    def _copy_weights(self, step: Expr, column: Expr, full: Expr) -> None:
        """A stage's weights; in a cluster, this block's share of them for all blocks."""
        shape, cluster = self.shape, self.tile.cluster
        start = self.ring[0] * shape.ring[1]
        if cluster == 1:
            to = self.weights.address(start)
            ptx(_copy_of_box(2), to, self.block.maps[1], step, column, full)
            return
        to = self.weights.address(start + self.rank * (shape.ring[1] // cluster))
        place = (step, column + self.rank * (self.tile.columns // cluster))
        everybody = T.uint16((1 << cluster) - 1)
        copy = f"{_copy_of_box(2)}.multicast::cluster"
        ptx(copy, to, self.block.maps[1], *place, full, everybody)

    def _consume(self, group: Expr) -> None:
        shape, tile, ring = self.shape, self.tile, self.ring
        sums = Array(tile.columns // 2, name="sums")
        rows = (  # of the operands in stage 0
            let(_descriptor(self.pixels.address(group * 64 * shape.depth))),
            let(_descriptor(self.weights.address())),
        )
        with self._each_tile() as at:
            with serial(self._steps(at.split)) as k:
                T.evaluate(T.cuda.mbarrier_wait(self._barrier(ring[0]), ring[1]))
                ptx("wgmma.fence.sync.aligned")
                self._multiply(sums, rows, k)
                ptx("wgmma.commit_group.sync.aligned")
                # One group stays in flight: the stage before this one is free.
                ptx("wgmma.wait_group.sync.aligned", 1)
                with when(T.And(k > 0, self.block.thread % _GROUP == 0)):
                    self._free_last()
                self._advance()
            ptx("wgmma.wait_group.sync.aligned", 0)
            with when(self.block.thread % _GROUP == 0):
                self._free_last()
            for i in range(sums.size):
                call("pw_keep", sums[i], source=_KEEP)
            if self.splits is None:
                self._write(sums, at)
            else:
                with when(self.splits.is_last(sums, at.number, at.split)):
                    self.splits.add_up(sums, at.number)
                    self._write(sums, at)

    def _meet_consumers(self) -> None:
        call("pw_meet", _CONSUMERS, _GROUP * self.consumers, source=_MEET)

    def _free_last(self) -> None:
        """Gives the stage before the present one back to those who copy into it."""
        stages = self.tile.stages
        last = T.if_then_else(self.ring[0] == 0, stages - 1, self.ring[0] - 1)
        if self.tile.cluster == 1:
            ptx("mbarrier.arrive.shared.b64", self._barrier(stages + last))
            return
        free = let(T.cuda.cvta_generic_to_shared(self._barrier(stages + last)))
        for rank in range(self.tile.cluster):
            call("pw_free", free, rank, source=_FREE)

    def _multiply(self, sums: Array, rows: tuple[Expr, Expr], k: Expr) -> None:
        shape = self.shape
        kind, depth = TYPES[shape.x.dtype], 32 // shape.size
        product = f"wgmma.mma_async.sync.aligned.m64n{self.tile.columns}k{depth}.f32.{kind}.{kind}"
        flags = (1, 1, 0, 0) if shape.size == 2 else (1, 1)  # signs; row-major operands
        for part in range(ROW_BYTES // 32):
            operands = (
                rows[i]
                + T.cast(self.ring[0] * (shape.ring[i] * shape.size // 16) + part * 2, "uint64")
                for i in (0, 1)
            )
            adds = T.bool(True) if part else k > 0
            ptx(product, *(sums[i] for i in range(sums.size)), *operands, adds, *flags)

    def _write(self, sums: Array, at: _Position) -> None:
        """Turns rows of 16 pixels through shared memory, so that stores are 16 bytes wide."""
        lane, row = self.block.lane, self.shape.staged_row
        start = let(self.block.warp * (16 * row))
        for first in range(0, self.tile.columns, STAGED):
            width = min(STAGED, self.tile.columns - first)
            T.evaluate(T.cuda.warp_sync())
            for j in range(width // 8):
                for half in range(2):
                    to = start + (lane // 4 + half * 8) * row + j * 8 + lane % 4 * 2
                    source = ((first // 8 + j) * 2 + half) * 2
                    self.staged.store(to, [sums[source], sums[source + 1]], align=8)
            T.evaluate(T.cuda.warp_sync())
            lanes = self.epilogue.lanes
            per_row = width // lanes
            with serial(-(-16 * per_row // 32)) as turn:
                item = let(turn * 32 + lane)
                with when(True if per_row % 2 == 0 else item < 16 * per_row):
                    column = let(item % per_row * lanes)
                    staged = start + item // per_row * row + column
                    self._write_vector(at, item // per_row, first + column, staged)

    def _write_vector(self, at: _Position, row: Expr, column: Expr, staged: Expr) -> None:
        """A few output channels of one pixel; ``staged`` is where their sums lie."""
        shape, geometry = self.shape, self.shape.geometry
        (w, h, _), (images, height, width) = shape.boxes.sizes, shape.sizes
        inner = let(self.block.warp * 16 + row)
        place = [at.column + inner % w, at.row + inner // w % h, at.image + inner // (w * h)]
        limits = [
            p < extent
            for p, extent in zip(place, (width, height, images), strict=True)
            if extent > 1 or self.tile.cluster > 1
        ]
        channel = let(at.panel * self.tile.columns + column)
        inside = all_of(inner < shape.boxes.pixels, channel < geometry.y.shape[3], *limits)
        with when(inside):
            pixel = let((place[2] * height + place[1]) * width + place[0])
            values = self.staged.load(staged, self.epilogue.lanes)
            self.epilogue.vector(values, self.tile.columns, pixel, channel, 0, self.operands)


@dataclass(frozen=True)
class _Position:
    """A tile: its number and panel of output channels, part of the reduction, first pixel."""

    number: Expr
    panel: Expr
    split: Expr
    column: Expr
    row: Expr
    image: Expr


def _descriptor(address: Expr) -> Expr:
    """Rows of 128 bytes in shared memory, swizzled, as the operand of a warpgroup's product.

    The matrix descriptor of PTX: address, distance of 8 rows and mode of the swizzle.
    """
    start = T.cast(T.cuda.cvta_generic_to_shared(address), "uint64")
    eight_rows, swizzled = 8 * ROW_BYTES >> 4, 1
    return (start >> T.uint64(4)) | T.uint64(1 << 16 | eight_rows << 32 | swizzled << 62)


def _copy_of_box(rank: int) -> str:
    return f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
