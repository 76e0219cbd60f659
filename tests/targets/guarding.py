"""Runs executables in memory with guard values around and poison inside everything they touch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np

import pwopt
from pwopt.targets import machine_code
from pwopt.targets import plan as planning
from pwopt.targets.cpu import compile as compiler
from pwopt.targets.plan import ALIGNMENT, Plan

GUARD_BYTES = 256  # on either side of an allocation, and between buffers that lie apart
POISONS = (0xFF, 0x7B)  # of a run each: NaN, and 1.3e36, in every element


class OverrunError(AssertionError):
    """Something was written outside the memory meant for it, or read before it was written."""


@dataclass
class Allocation:
    """Memory with guards on both sides."""

    raw: np.ndarray
    start: int
    size: int
    poison: int

    @property
    def inside(self) -> np.ndarray:
        """The memory itself, bytes."""
        return self.raw[self.start : self.start + self.size]

    def check(self, what: str) -> None:
        """Raises OverrunError where a guard has another value."""
        outside = np.concatenate([self.raw[: self.start], self.raw[self.start + self.size :]])
        if (outside != self.poison).any():
            raise OverrunError(f"{what}: written outside of {self.size} bytes")


@dataclass
class Guard:
    """The allocations of one executable.

    Attributes:
        gaps: (start, end) of what no kernel may write in the workspace, one list per segment.
    """

    gaps: list[list[tuple[int, int]]] = field(default_factory=list)
    _made: list[Allocation] = field(default_factory=list)
    _poison: int = POISONS[0]

    def aligned(self, size: int) -> np.ndarray:
        """In place of the executable's own allocation."""
        raw = np.full(size + 2 * GUARD_BYTES + ALIGNMENT, self._poison, np.uint8)
        start = GUARD_BYTES + -(raw.ctypes.data + GUARD_BYTES) % ALIGNMENT
        self._made.append(Allocation(raw, start, size, self._poison))
        return self._made[-1].inside

    def run(self, made: pwopt.Executable, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Runs twice on differently poisoned memory.

        Raises:
            OverrunError: the runs differ, a guard is gone, or inputs or constants have changed.
        """
        constants = made.constants.copy()
        first = self._run(made, feeds, POISONS[0])
        second = self._run(made, feeds, POISONS[1])
        for name, value in first.items():
            if not _equal(value, second[name]):
                raise OverrunError(f"{name}: depends on what the memory held before the run")
        if not np.array_equal(constants, made.constants):
            raise OverrunError("the constants were written to")
        return first

    def _run(self, made: pwopt.Executable, feeds: Mapping[str, Any], poison: int) -> dict[str, Any]:
        self._poison, self._made = poison, []
        for segment in made._segments:
            getattr(segment, "_pool", []).clear()  # a workspace of the last run's
        own = {name: self._copied(value) for name, value in feeds.items()}
        with patch.object(machine_code, "aligned", self.aligned):
            outputs = made.run(own)
        self._check_gaps(made)
        for allocation in self._made:
            allocation.check("an input, an output or the workspace")
        for name, value in feeds.items():
            if not _equal(value, own[name]):
                raise OverrunError(f"input {name!r} was written to")
        return outputs

    def _copied(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OUS" or not value.size:
            return value
        inside = self.aligned(value.nbytes).view(value.dtype).reshape(value.shape)
        inside[...] = value
        return inside

    def _check_gaps(self, made: pwopt.Executable) -> None:
        pools = [s._pool for s in made._segments if hasattr(s, "_pool")]
        for pool, gaps in zip(pools, self.gaps, strict=True) if self.gaps else ():
            address = np.from_dlpack(pool[0][0]).ctypes.data
            workspace = next(a for a in self._made if a.inside.ctypes.data == address)
            if any((workspace.inside[a:b] != workspace.poison).any() for a, b in gaps):
                raise OverrunError("written between the buffers of the workspace")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype.kind not in "fc":
            return bool(np.array_equal(a, b))
        return bool(np.array_equal(a, b, equal_nan=True))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a is b or bool(a == b)


@contextmanager
def apart(guard: Guard) -> Iterator[None]:
    """Executables compiled inside keep the buffers of their workspaces apart, with guards."""

    def assign_offsets(plan: Plan) -> None:
        planning._share_in_place(plan.steps)
        gaps, offset = [], 0
        for buffer in planning._lifetimes(plan.steps):
            buffer.offset = offset
            end = planning._rounded(offset + buffer.bytes + GUARD_BYTES)
            gaps.append((offset + buffer.bytes, end))
            offset = end
        plan.workspace_bytes = offset
        guard.gaps.append(gaps)

    with patch.object(compiler, "assign_offsets", assign_offsets):
        yield


def compile_guarded(
    graph: Any, *, separate: bool, **options: Any
) -> tuple[pwopt.Executable, Guard]:
    """An executable and the guard to run it with; ``separate``: its buffers share no memory."""
    guard = Guard()
    if not separate:
        return pwopt.compile(graph, **options), guard
    with apart(guard):
        return pwopt.compile(graph, **options), guard
