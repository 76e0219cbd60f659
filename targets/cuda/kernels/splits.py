"""Reductions that are split over blocks: the last one to come adds the parts up.

Each block leaves its sums of a tile in the workspace and counts itself; who finds that all others
have come adds up all parts, always in the same order, and resets the counter for the next run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pwopt.targets.cuda.codegen import (
    WIDEST,
    Array,
    Block,
    Expr,
    Memory,
    call,
    copy,
    serial,
    unrolled,
    when,
)

_PUBLISH = """
__forceinline__ __device__ void pw_publish() { __threadfence(); }
"""
_COUNT = """
__forceinline__ __device__ void pw_count(int* last, int* counter, int blocks) {
  *last = atomicAdd(counter, 1) == blocks - 1;
  if (*last) *counter = 0;
}
"""
_READ = """
__forceinline__ __device__ void pw_read_partial(void* to, const void* from) {
  *(float4*)to = __ldcg((const float4*)from);
}
"""


@dataclass(frozen=True)
class Splits:
    """The threads of a block that share a tile, and what they do with its sums.

    Attributes:
        block: theirs.
        parts: blocks that share the reduction of one tile.
        threads: the first ones of the block; others take no part.
        meet: emits a barrier of these threads.
        partials: the workspace, float32.
        counters: one for each tile, zero before and after.
        last: shared memory for a flag.
    """

    block: Block
    parts: int
    threads: int
    meet: Callable[[], None]
    partials: Memory
    counters: Memory
    last: Memory

    def is_last(self, sums: Array, tile: Expr, part: Expr) -> Expr:
        """Leaves the block's sums of a tile in the workspace; whether all parts of it are there."""
        with unrolled(sums.size // 4) as i:
            place = self.partials.address(self._place(sums, tile, part, i))
            copy(place, sums.address(i * 4), WIDEST)
        call("pw_publish", source=_PUBLISH)
        self.meet()
        with when(self.block.thread == 0):
            arguments = self.last.address(), self.counters.address(tile), self.parts
            call("pw_count", *arguments, source=_COUNT)
        self.meet()
        call("pw_publish", source=_PUBLISH)
        return self.last[0] != 0

    def add_up(self, sums: Array, tile: Expr) -> None:
        """Replaces the block's sums by those of all parts."""
        with unrolled(sums.size) as i:
            sums[i] = 0.0
        part = Array(4, name="part")
        with serial(self.parts) as number, unrolled(sums.size // 4) as i:
            source = self.partials.address(self._place(sums, tile, number, i))
            call("pw_read_partial", part.address(), source, source=_READ)
            with unrolled(4) as e:
                sums[i * 4 + e] = sums[i * 4 + e] + part[e]

    def _place(self, sums: Array, tile: Expr, part: Expr, i: Expr) -> Expr:
        index = (tile * self.parts + part) * (sums.size // 4) + i
        return (index * self.threads + self.block.thread) * 4
