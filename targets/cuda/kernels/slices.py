"""Loops over slices of a tensor that are reduced together: by a warp, or by a whole block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import (
    WIDEST,
    Array,
    Block,
    Expr,
    Memory,
    all_of,
    barrier,
    kernel,
    let,
    serial,
    unrolled,
    value_of,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.threads import Access, filled, offset_of, unravel
from pwopt.targets.views import View, itemsize, merge

WARP = 32
_BLOCK = 256
_LONG = 1024  # elements of a slice that a whole block reduces
_BLOCKS = 216  # that keep a GPU busy
_SECTOR = 4  # threads at least that read neighbours, 64 bytes of them

Join = Callable[[Expr, Expr], Expr]

_SHUFFLE = """
__forceinline__ __device__ float pw_shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask, 32);
}
"""


def exchanged(value: Expr, mask: int) -> Expr:
    """The value of the thread whose lane differs in the bits of ``mask``."""
    return let(value_of("pw_shuffle_xor", value, mask, source=_SHUFFLE))


def across_warp(join: Join, value: Expr, threads: int = WARP) -> Expr:
    """The joined values of neighbouring threads of a warp, in each of them."""
    value = let(value)
    mask = threads // 2
    while mask:
        value = let(join(value, exchanged(value, mask)))
        mask //= 2
    return value


class Slices:
    """Slices of some views of one shape, reduced along ``axes``.

    Where what is kept is contiguous (*across*), neighbouring threads have neighbouring slices, and
    the threads of a column share the elements of theirs; otherwise neighbouring threads share a
    slice. Values travel between threads by shuffles within a warp and through shared memory beyond.

    Attributes:
        count: elements of a slice.
        lanes: slices of a thread.
    """

    def __init__(self, views: Sequence[View], axes: Sequence[int]) -> None:
        shape = views[0].shape
        self.views, self.count = views, math.prod(shape[a] for a in axes)

        def loops(dimensions: Sequence[int]) -> tuple[list[int], list[list[int]]]:
            order = [d for d in dimensions if shape[d] != 1]
            order.sort(key=lambda d: -abs(views[0].strides[d]))
            return merge([shape[d] for d in order], [[v.strides[d] for d in order] for v in views])

        self.kept, self.kept_steps = loops([d for d in range(len(shape)) if d not in axes])
        self.reduced, self.reduced_steps = loops(list(axes))
        steps = [s[-1] for s in self.kept_steps if s]
        self.across = bool(steps) and steps[0] == 1 and steps[-1] == 1
        self.across &= all(s in (0, 1) for s in steps)
        self.lanes = self._lanes() if self.across else 1
        vectors = self.kept[-1] // self.lanes if self.across else math.prod(self.kept)
        outer = math.prod(self.kept[:-1]) if self.across else 1
        self.vectors, self.outer = vectors, outer
        if self.across:
            self.columns = min(WARP, _power_of_two(vectors))
            while self.columns > _SECTOR and outer * -(-vectors // self.columns) < _BLOCKS:
                self.columns //= 2
            self.rows = min(_BLOCK // self.columns, _power_of_two(self.count))
        else:
            self.rows = _BLOCK if self.count > _LONG else WARP
            self.columns = min(_BLOCK // self.rows, _power_of_two(vectors))
        self.strips = -(-vectors // self.columns)

    def _lanes(self) -> int:
        """Neighbouring slices that a thread can load at once."""
        lanes = math.gcd(self.kept[-1], WIDEST // min(itemsize(v.dtype) for v in self.views))
        return lanes

    def kernel(self, pointers: Sequence[str], body: Callable[[Place], None]) -> Kernel:
        """A kernel in which ``body`` handles the slices of one thread."""

        def whole(block: Block, *memories: Memory) -> None:
            body(Place(self, block, memories))

        grid = (self.outer * self.strips, 1, 1)
        return kernel(pointers, whole, grid=grid, threads=self.rows * self.columns)


class Place:
    """What one thread does: its slices, and its share of their elements.

    Attributes:
        memories: of the kernel's pointers.
        leads: whether the thread writes what a slice has only one of.
    """

    def __init__(self, slices: Slices, block: Block, memories: Sequence[Memory]) -> None:
        self.slices, self.memories = slices, memories
        s = slices
        outer, strip = unravel(block.x, [s.outer, s.strips])
        if s.across:
            column, row = block.thread % s.columns, block.thread // s.columns
        else:
            column, row = block.thread // s.rows, block.thread % s.rows
        self.column, self.row = let(column), let(row)
        vector = let(strip * s.columns + self.column)
        self.active = vector < s.vectors if s.vectors % s.columns else True
        kept = [*s.kept[:-1], s.vectors] if s.across else s.kept
        index = (
            [*unravel(outer, kept[:-1]), vector * s.lanes] if s.across else unravel(vector, kept)
        )
        self.bases = [
            let(offset_of(v.offset, index, steps))
            for v, steps in zip(s.views, s.kept_steps, strict=True)
        ]
        self.leads = all_of(self.active, self.row == 0)
        self._scratch: Memory | None = None
        self._block = block

    def walk(self, body: Callable[[list[Expr]], None]) -> None:
        """Calls ``body`` with the offsets in all views of each element of the thread's share."""
        s = self.slices
        rounds = -(-s.count // s.rows)
        with when(self.active), serial(rounds) as i:
            at = let(self.row + i * s.rows)
            with when(at < s.count if s.count % s.rows else True):
                index = unravel(at, s.reduced)
                body(
                    [
                        let(offset_of(b, index, steps))
                        for b, steps in zip(self.bases, s.reduced_steps, strict=True)
                    ]
                )

    def load(self, memory: int, view: int, offsets: Sequence[Expr]) -> list[Expr]:
        """The elements of the thread's slices at ``offsets``, of a pointer and its view."""
        return self._access(view).load(self.memories[memory], offsets[view], self.slices.lanes)

    def store(self, offsets: Sequence[Expr], values: Sequence[Expr]) -> None:
        """Stores to the last view at ``offsets``."""
        self._access(-1).store(self.memories[-1], offsets[-1], values)

    def _access(self, view: int) -> Access:
        s = self.slices
        v, kept, reduced = s.views[view], s.kept_steps[view], s.reduced_steps[view]
        if not s.across:
            return Access(1, itemsize(v.dtype))
        return Access.of(v.offset, [*reduced, *kept], v.dtype, s.lanes)

    def sums(self, value: float) -> Array:
        """A register for each slice."""
        return filled(self.slices.lanes, T.float32(value))

    def total(self, join: Join, parts: Array) -> list[Expr]:
        """What the threads of a slice have found, joined, in each of them.

        All threads of the block must come here.
        """
        s = self.slices
        if s.rows == 1:
            return [let(parts[e]) for e in range(s.lanes)]
        if s.across:
            return self._through_shared(join, parts)
        value = across_warp(join, parts[0], min(WARP, s.rows))
        if s.rows <= WARP:
            return [value]
        warps = s.rows // WARP
        scratch = self._shared(warps)
        with when(self._block.lane == 0):
            scratch[self._block.warp] = value
        barrier()
        total = let(scratch[0])
        for w in range(1, warps):
            total = let(join(total, scratch[w]))
        barrier()  # before it is written again
        return [total]

    def _through_shared(self, join: Join, parts: Array) -> list[Expr]:
        s = self.slices
        width = s.columns * s.lanes
        scratch = self._shared(s.rows * width)
        mine = let(self.row * width + self.column)
        with unrolled(s.lanes) as e:
            scratch[mine + e * s.columns] = parts[e]
        barrier()
        half = s.rows // 2
        while half:
            with when(self.row < half), unrolled(s.lanes) as e:
                at = mine + e * s.columns
                scratch[at] = join(scratch[at], scratch[at + half * width])
            barrier()
            half //= 2
        totals = [let(scratch[self.column + e * s.columns]) for e in range(s.lanes)]
        barrier()  # before it is written again
        return totals

    def _shared(self, size: int) -> Memory:
        if self._scratch is None:
            self._scratch = self._block.static(size, "float32", "scratch")
        return self._scratch


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()
