"""Launch lists: the kernels of a segment on a GPU, what each touches, and which wait for which.

This is a part of an executable's manifest; it needs neither a compiler nor a driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Address(NamedTuple):
    """A place in the memory of a run.

    Attributes:
        kind: ``workspace``, ``constant``, ``input`` or ``output``.
        position: among the inputs or outputs.
        offset: bytes.
    """

    kind: str
    position: int
    offset: int

    @property
    def memory(self) -> tuple[str, int]:
        """Which of the pieces of memory it lies in."""
        return self.kind, self.position


class Access(NamedTuple):
    """Memory that a kernel reads or writes: runs of bytes at equal distances.

    Attributes:
        start: where it begins.
        extent: bytes from there to the end of the last run.
        run: bytes of a run, e.g. the channels of a pixel.
        period: bytes from one run to the next, e.g. the pixels of an image of more channels.
    """

    start: Address
    extent: int
    run: int
    period: int

    def overlaps(self, other: Access) -> bool:
        """Whether both may touch one byte; true where that is not easily told."""
        if self.start.memory != other.start.memory:
            return False
        a, b = self.start.offset, other.start.offset
        if a + self.extent <= b or b + other.extent <= a:
            return False
        if self.period != other.period:
            return True
        apart = (b - a) % self.period
        return apart < self.run or self.period - apart < other.run


class Window(NamedTuple):
    """A kernel argument that describes a tensor to the tensor memory accelerator.

    Attributes:
        base: its first element.
        dtype, dims, strides, box, steps, swizzle: see :class:`pwopt.targets.cuda.kernel.TensorMap`.
    """

    base: Address
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: int


class Launch(NamedTuple):
    """One kernel launch.

    Attributes:
        kernel: its symbol.
        grid: thread blocks along x, y and z.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        arguments: in the kernel's order.
        reads, writes: memory; what is written may be read, too.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    arguments: tuple[Address | Window, ...]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


@dataclass(frozen=True)
class LaunchList:
    """The launches of a segment for one architecture.

    Attributes:
        launches: in an order in which they may run one after the other.
        workspace_bytes: memory that the launches share.
        cleared_bytes: at its beginning, zero before the first run.
    """

    launches: tuple[Launch, ...]
    workspace_bytes: int
    cleared_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON's types."""
        rows = [
            [*each[:4], [_argument_json(a) for a in each.arguments], each.reads, each.writes]
            for each in self.launches
        ]
        sizes = {"workspace_bytes": self.workspace_bytes, "cleared_bytes": self.cleared_bytes}
        return {**sizes, "launches": rows}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> LaunchList:
        """The list from JSON's types."""
        launches = tuple(
            Launch(
                kernel,
                tuple(grid),
                threads,
                shared,
                tuple(_argument(a) for a in arguments),
                tuple(_access(a) for a in reads),
                tuple(_access(a) for a in writes),
            )
            for kernel, grid, threads, shared, arguments, reads, writes in fields["launches"]
        )
        return LaunchList(launches, fields["workspace_bytes"], fields["cleared_bytes"])


def dependencies(launches: Sequence[Launch]) -> list[tuple[int, ...]]:
    """For each launch the earlier ones that it must wait for; what follows from others is left out.

    A launch waits for those that wrote what it reads, and for those that read or wrote what it
    writes.
    """
    found: list[tuple[int, ...]] = []
    before: list[int] = []  # a set of bits: everything that is over when a launch begins
    for index, launch in enumerate(launches):
        chosen, covered = [], 0
        for earlier in range(index - 1, -1, -1):
            if not covered >> earlier & 1 and _conflict(launches[earlier], launch):
                chosen.append(earlier)
                covered |= before[earlier] | 1 << earlier
        found.append(tuple(reversed(chosen)))
        before.append(covered)
    return found


def _conflict(first: Launch, second: Launch) -> bool:
    return any(
        a.overlaps(b)
        for written, touched in (
            (first.writes, (*second.reads, *second.writes)),
            (second.writes, first.reads),
        )
        for a in written
        for b in touched
    )


def _argument_json(argument: Address | Window) -> list[Any]:
    return list(argument)


def _argument(fields: Sequence[Any]) -> Address | Window:
    if len(fields) == len(Address._fields):
        return Address(*fields)
    base, dtype, dims, strides, box, steps, swizzle = fields
    place = Address(*base)
    return Window(place, dtype, tuple(dims), tuple(strides), tuple(box), tuple(steps), swizzle)


def _access(fields: Sequence[Any]) -> Access:
    start, extent, run, period = fields
    return Access(Address(*start), extent, run, period)
