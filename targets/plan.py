"""What lowering produces: kernel calls on buffers, and where each buffer lives.

A plan is a list of steps; each calls one kernel on pointers into buffers. Buffers are the graph's
inputs and outputs, constants, and pieces of one workspace whose offsets :func:`assign_offsets`
chooses so that buffers share memory when their lifetimes allow.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pwopt.targets.in_place import in_place
from pwopt.targets.views import View

ALIGNMENT = 64  # bytes; every pointer that a kernel gets
SLACK_BYTES = 64  # that kernels may read past the end of any buffer


@dataclass(eq=False)
class Buffer:
    """A piece of memory.

    Attributes:
        kind: whose memory it is.
        bytes: size; 0 for a constant that is not packed yet.
        label: for reports.
        data: makes the array of a constant.
        offset: position in the workspace or the constants, bytes.
        index: position among the inputs or outputs.
        cleared: whether a piece of the workspace is zero before the first run; the kernels that
            write to it leave it so, and nobody else does.
    """

    kind: Literal["workspace", "input", "output", "constant"]
    bytes: int
    label: str = ""
    data: Callable[[], np.ndarray] | None = None
    offset: int = -1
    index: int = -1
    cleared: bool = False


@dataclass(frozen=True)
class Tensor:
    """A lowered value: a buffer and how the value lies in it, axes in ONNX order."""

    buffer: Buffer
    view: View

    def with_view(self, view: View) -> Tensor:
        """The same memory seen through another view."""
        return Tensor(self.buffer, view)


@dataclass(frozen=True)
class Pointer:
    """An address: a buffer and a byte offset, both aligned.

    Attributes:
        buffer: what it points into.
        offset: bytes.
        view: what a kernel touches from there on; None for the whole buffer.
    """

    buffer: Buffer
    offset: int = 0
    view: View | None = field(default=None, compare=False)


def place(tensor: Tensor) -> tuple[Pointer, View]:
    """An aligned pointer near a tensor's first element, and the view relative to it.

    Slices of one buffer differ only in the pointer where their offsets allow, so that they share
    kernels.
    """
    view = tensor.view
    step = ALIGNMENT // view.itemsize
    base = view.offset // step * step
    shifted = View(view.shape, view.strides, view.offset - base, view.dtype)
    return Pointer(tensor.buffer, base * view.itemsize, shifted), shifted


@dataclass
class Step:
    """One kernel call.

    Attributes:
        factory: makes the kernel's function from ``arguments`` and ``keywords``; together they
            identify the kernel.
        pointers: actual parameters.
        writes: positions in ``pointers`` of what the kernel writes.
        in_place: (position of an operand, position of the result) that may share memory.
        shares: whether they do.
        label: the node, by the user's names.
        origin: the ONNX nodes it computes.
        macs: multiply-accumulates of the node, all calls together.
        variant: the algorithm where the kernel has several.
        predicted_us: by the cost model, on the call that does a node's work; 0 on the others.
    """

    factory: Callable[..., Any]
    arguments: tuple[Any, ...]
    pointers: tuple[Pointer, ...]
    writes: tuple[int, ...]
    keywords: tuple[tuple[str, Any], ...] = ()
    in_place: tuple[int, int] | None = None
    shares: bool = False
    label: str = ""
    origin: tuple[str, ...] = ()
    macs: int = 0
    variant: str = ""
    predicted_us: float = 0.0

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for steps that call the same kernel."""
        shared = self.in_place if self.shares else None
        return (self.factory, self.arguments, self.keywords, shared)

    def make(self) -> Any:
        """What the factory makes of the arguments: the kernel that the step calls."""
        if self.shares and self.in_place is not None:
            with in_place(*self.in_place):
                return self.factory(*self.arguments, **dict(self.keywords))
        return self.factory(*self.arguments, **dict(self.keywords))

    @property
    def kernel_name(self) -> str:
        """The kernel's kind and variant, e.g. ``conv`` or ``winograd_4x4_3x3``."""
        return "_".join(filter(None, (self.factory.__name__, self.variant)))


@dataclass
class Plan:
    """A lowered graph.

    Attributes:
        steps: kernel calls in order.
        inputs, outputs: (name, buffer, row-major view) in the graph's order.
        workspace_bytes: size of the workspace, once offsets are assigned.
        cleared_bytes: at its beginning, zero before the first run.
    """

    steps: list[Step] = field(default_factory=list)
    inputs: list[tuple[str, Buffer, View]] = field(default_factory=list)
    outputs: list[tuple[str, Buffer, View]] = field(default_factory=list)
    workspace_bytes: int = 0
    cleared_bytes: int = 0

    @property
    def constants(self) -> list[Buffer]:
        """The constants in order of first use, each once."""
        found = dict.fromkeys(
            p.buffer for s in self.steps for p in s.pointers if p.buffer.kind == "constant"
        )
        return list(found)


def assign_offsets(plan: Plan) -> None:
    """Gives every workspace buffer its offset: first in-place pairs, then largest first.

    A buffer lives from its first write to its last use, a cleared one always. Each is put at the
    lowest offset that no buffer of an overlapping lifetime holds.
    """
    _share_in_place(plan.steps)
    life = _lifetimes(plan.steps)
    for buffer in [b for b in life if b.cleared]:
        buffer.offset = plan.cleared_bytes
        plan.cleared_bytes += _rounded(buffer.bytes + SLACK_BYTES)
        del life[buffer]
    plan.workspace_bytes = plan.cleared_bytes
    placed = [(0, plan.cleared_bytes, 0, len(plan.steps))]  # offset, end, first, last
    for buffer in sorted(life, key=lambda b: (-b.bytes, life[b][0])):
        first, last = life[buffer]
        size = _rounded(buffer.bytes + SLACK_BYTES)
        offset = 0
        for start, end, other_first, other_last in placed:
            if other_last < first or last < other_first:
                continue
            if start - offset >= size:
                break
            offset = max(offset, end)
        buffer.offset = offset
        bisect.insort(placed, (offset, offset + size, first, last))
        plan.workspace_bytes = max(plan.workspace_bytes, offset + size)


def pack_constants(plans: Sequence[Plan]) -> np.ndarray:
    """All constants as one array of bytes; sets their offsets. Equal ones are stored once."""
    chunks: list[np.ndarray] = []
    known: dict[bytes, int] = {}
    total = 0
    for buffer in dict.fromkeys(b for plan in plans for b in plan.constants):
        assert buffer.data is not None
        array = np.ascontiguousarray(buffer.data()).reshape(-1).view(np.uint8)
        buffer.bytes = array.nbytes
        key = hashlib.sha256(array.data).digest()
        if key in known:
            buffer.offset, buffer.data = known[key], None
            continue
        buffer.offset = known[key] = total
        total += _rounded(array.nbytes + SLACK_BYTES)
        chunks.append(array)
        buffer.data = None  # the packed copy replaces it
    blob = _aligned_zeros(max(total, ALIGNMENT))
    at = 0
    for i, array in enumerate(chunks):
        blob[at : at + array.nbytes] = array
        at += _rounded(array.nbytes + SLACK_BYTES)
        chunks[i] = blob[:0]
    return blob


def _aligned_zeros(size: int) -> np.ndarray:
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _lifetimes(steps: Sequence[Step]) -> dict[Buffer, tuple[int, int]]:
    life: dict[Buffer, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for pointer in step.pointers:
            if pointer.buffer.kind == "workspace":
                first, _ = life.get(pointer.buffer, (i, i))
                life[pointer.buffer] = (first, i)
    return life


def _share_in_place(steps: list[Step]) -> None:
    """Lets a result take over its operand's buffer where that operand dies in the same step."""
    life = _lifetimes(steps)
    for i, step in enumerate(steps):
        if step.in_place is None:
            continue
        operand, result = (step.pointers[p] for p in step.in_place)
        old, new = operand.buffer, result.buffer
        if (
            old is new
            or old.kind != "workspace"
            or new.kind != "workspace"
            or old.bytes != new.bytes
            or operand.offset != result.offset
            or sum(p.buffer is old for p in step.pointers) > 1  # also read elsewhere: y = f(x) + x
            or life[old][1] != i
            or life[new][0] != i
        ):
            continue
        for later in steps[i : life[new][1] + 1]:
            later.pointers = tuple(
                replace(p, buffer=old) if p.buffer is new else p for p in later.pointers
            )
        step.shares = True
        life[old] = (life[old][0], life[new][1])
        del life[new]
