"""How the memory-bound kernels divide their work: threads over outputs, vectors within a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pwopt.targets.cuda.codegen import (
    WIDEST,
    Array,
    Block,
    Expr,
    Memory,
    branch,
    copy,
    kernel,
    let,
    pieces,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.views import View, itemsize

THREADS = 128  # of a block
ENOUGH = 108 * 256  # threads that keep a GPU busy; below, a thread takes less


@dataclass(frozen=True)
class Access:
    """How a thread walks neighbours along the innermost axis of an operand.

    Attributes:
        step: elements between neighbours; 0 repeats one.
        align: bytes that the address of a vector's first element is a multiple of.
    """

    step: int
    align: int

    @staticmethod
    def of(offset: int, strides: Sequence[int], dtype: str, lanes: int) -> Access:
        """The access of vectors of ``lanes``; the last stride is the innermost."""
        jumps = [offset, *strides[:-1], lanes * strides[-1]]
        return Access(strides[-1], math.gcd(WIDEST, *(j * itemsize(dtype) for j in jumps)))

    def load(self, memory: Memory, at: Expr, lanes: int) -> list[Expr]:
        """``lanes`` elements from ``at`` on, as float32."""
        if self.step == 1:
            return memory.load(at, lanes, self.align)
        if self.step == 0:
            return memory.load(at) * lanes
        return [memory.load(at + i * self.step)[0] for i in range(lanes)]

    def store(self, memory: Memory, at: Expr, values: Sequence[Expr]) -> None:
        """Stores float32 values from ``at`` on."""
        if self.step == 1:
            memory.store(at, values, self.align)
            return
        for i, value in enumerate(values):
            memory.store(at + i * self.step, [value])


def channel_access(view: View, lanes: int) -> Access:
    """The access of vectors of channels of an (N, H, W, C) view."""
    strides = [s for s, e in zip(view.strides[:3], view.shape[:3], strict=True) if e > 1]
    return Access.of(view.offset, [*strides, view.strides[3]], view.dtype, lanes)


def lanes_for(views: Sequence[View], steps: Sequence[int], extent: int) -> int:
    """Elements of a thread: 16 bytes of the narrowest operand whose neighbours are neighbours."""
    sizes = [itemsize(v.dtype) for v, s in zip(views, steps, strict=True) if s == 1]
    return max(1, min(WIDEST // min(sizes), extent)) if sizes and steps[-1] == 1 else 1


def blocks_for(work: int, threads: int = THREADS) -> int:
    """Blocks of a launch with one thread for each piece of work."""
    return max(1, -(-work // threads))


def each(block: Block, work: int, body: Callable[[Expr], None], threads: int = THREADS) -> None:
    """Calls ``body`` with the number of the thread's piece of work, where there is one."""
    index = let(block.x * threads + block.thread)
    with when(index < work if work % threads else True):
        body(index)


def unravel(index: Expr, extents: Sequence[int]) -> list[Expr]:
    """The position that a flat index stands for; the last extent runs fastest."""
    position: list[Expr] = []
    for extent in reversed(extents[1:]):
        position.insert(0, 0 if extent == 1 else let(index % extent))
        index = index if extent == 1 else let(index // extent)
    return [index, *position] if extents else []


def offset_of(base: Expr, index: Sequence[Expr], strides: Sequence[int]) -> Expr:
    """``base`` plus the dot product of an index and strides."""
    for i, stride in zip(index, strides, strict=True):
        if stride and not (isinstance(i, int) and i == 0):
            base = base + i * stride
    return base


def by_vectors(vector: Expr, extent: int, lanes: int, body: Callable[[int], None]) -> None:
    """Calls ``body`` with the elements that a vector has; the last one may have fewer."""
    full, rest = divmod(extent, lanes)
    if not rest:
        body(lanes)
    elif not full:
        body(rest)
    else:
        branch(vector < full, lambda: body(lanes), lambda: body(rest))


def loaded(memory: Memory, at: Expr, lanes: int, align: int) -> Array:
    """Neighbouring elements as they are stored."""
    registers = Array(lanes, memory.dtype, "loaded")
    for start, width in pieces(lanes, itemsize(memory.dtype), align):
        copy(registers.address(start), memory.address(at + start), width)
    return registers


def filled(lanes: int, value: Expr, name: str = "sums") -> Array:
    """Registers that all hold one float32 value."""
    registers = Array(lanes, "float32", name)
    with unrolled(lanes) as e:
        registers[e] = value
    return registers


def per_output(
    pointers: Sequence[str], work: int, body: Callable[..., None], threads: int = THREADS
) -> Kernel:
    """A kernel with one thread for each piece of work; ``body`` gets its number and memories."""

    def whole(block: Block, *memories: Memory) -> None:
        each(block, work, lambda index: body(index, *memories), threads)

    return kernel(pointers, whole, grid=(blocks_for(work, threads), 1, 1), threads=threads)
