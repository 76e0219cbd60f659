"""Loops for operations that pass several times over each slice: softmax and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cpu.codegen import Expr, Memory, View, broadcast, let, loop
from pwopt.targets.cpu.kernels.loops import lane_mask, nest, offset_of
from pwopt.targets.cpu.kernels.reduce import across_lanes
from pwopt.targets.views import merge

Offsets = list[Expr]  # one element offset per view


class Rows:
    """Slices of some views of one shape, reduced along ``axes``.

    Vectors run either over independent slices (*across*) or along one slice, whichever is
    contiguous in the first view (input) and the last one (output); otherwise a vector is one lane.

    Attributes:
        lanes: of a vector.
        count: elements of a slice.
    """

    def __init__(self, views: Sequence[View], axes: Sequence[int], lanes: int) -> None:
        shape = views[0].shape
        self.views = views
        self.count = math.prod(shape[a] for a in axes)

        def loops(dimensions: Sequence[int]) -> tuple[list[int], list[list[int]]]:
            order = [d for d in dimensions if shape[d] != 1]
            order.sort(key=lambda d: -abs(views[0].strides[d]))
            return merge([shape[d] for d in order], [[v.strides[d] for d in order] for v in views])

        self.kept, self.kept_steps = loops([d for d in range(len(shape)) if d not in axes])
        self.slice, self.slice_steps = loops(list(axes))
        self.across = _contiguous(self.kept_steps)
        self.along = not self.across and _contiguous(self.slice_steps)
        self.lanes = lanes if self.across or self.along else 1

    def each(self, body: Callable[[Offsets, int], None], threads: int) -> None:
        """Calls ``body(offsets of the slice, valid lanes)`` inside the loops over slices."""
        bases = [v.offset for v in self.views]
        if not self.across:
            with nest(self.kept, threads) as index:
                body(self._at(bases, index, self.kept_steps), self.lanes)
            return
        full, tail = divmod(self.kept[-1], self.lanes)
        if full:
            with nest([*self.kept[:-1], full], threads) as (*index, i):
                body(self._at(bases, [*index, i * self.lanes], self.kept_steps), self.lanes)
        if tail:
            with nest(self.kept[:-1], threads) as index:
                start = [*index, full * self.lanes]
                body(self._at(bases, start, self.kept_steps), tail)

    def walk(self, bases: Offsets, body: Callable[[Offsets, int], None], valid: int) -> None:
        """Calls ``body(offsets, valid lanes)`` for each vector of one slice."""
        if not self.along:
            with nest(self.slice) as index:
                body(self._at(bases, index, self.slice_steps), valid)
            return
        with nest(self.slice[:-1]) as index:
            row = self._at(bases, index, [s[:-1] for s in self.slice_steps])
            full, tail = divmod(self.slice[-1], self.lanes)
            steps = [[s[-1]] for s in self.slice_steps]
            if full:
                with loop(full) as i:
                    body(self._at(row, [i * self.lanes], steps), self.lanes)
            if tail:
                body(self._at(row, [full * self.lanes], steps), tail)

    def _at(self, bases: Offsets, index: Sequence[Expr], steps: list[list[int]]) -> Offsets:
        return [
            let(offset_of(b, index, s[: len(index)])) for b, s in zip(bases, steps, strict=True)
        ]

    def load(self, memory: Memory, view: int, offsets: Offsets) -> Expr:
        """The vector of one view at ``offsets``."""
        steps = self.kept_steps[view] if self.across else self.slice_steps[view]
        if self.lanes == 1 or steps[-1] == 1:
            return memory.load(offsets[view], self.lanes)
        return T.broadcast(memory.load(offsets[view]), self.lanes)

    def masked(self, value: Expr, valid: int, identity: float) -> Expr:
        """``value`` with ``identity`` in the lanes that are past the end of the slice."""
        if not self.along or valid >= self.lanes:
            return value
        return T.Select(lane_mask(valid, self.lanes), value, broadcast(identity, self.lanes))

    def total(self, join: Callable[[Expr, Expr], Expr], value: Expr) -> Expr:
        """The result of the whole slice, in every lane that belongs to it."""
        if not self.along:
            return let(value)
        return let(broadcast(across_lanes(join, [value], self.lanes), self.lanes))


def _contiguous(steps: list[list[int]]) -> bool:
    return (
        bool(steps[0])
        and steps[0][-1] == steps[-1][-1] == 1
        and all(s[-1] in (0, 1) for s in steps)
    )
