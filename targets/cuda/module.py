"""From plans to launch lists, and the CUDA text of each distinct kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pwopt.targets.cuda import codegen
from pwopt.targets.cuda.kernel import Kernel, TensorMap
from pwopt.targets.launches import Access, Address, Launch, LaunchList, Window
from pwopt.targets.plan import Plan, Pointer, Step
from pwopt.targets.views import View, itemsize

_CHUNK = 16  # bytes; kernels may write the padding of a pixel up to a multiple of this


@dataclass
class Code:
    """The kernels of an executable for one architecture.

    Attributes:
        arch: its name.
        launches: one list per plan.
        sources: CUDA text by kernel, each a translation unit.
    """

    arch: str
    launches: list[LaunchList] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


def generate(plans: Sequence[Plan], arch: str) -> Code:
    """Launch lists of plans whose offsets are assigned and whose constants are packed.

    Args:
        plans: one per segment.
        arch: to generate code for.
    """
    code = Code(arch)
    known: dict[Any, tuple[str, Kernel]] = {}
    for plan in plans:
        launches = []
        for step in plan.steps:
            if step.key not in known:
                name, kernel = f"k{len(known)}_{step.kernel_name}", _kernel(step)
                known[step.key] = (name, kernel)
                code.sources[name] = codegen.source({name: kernel}, arch)
            launches.append(_launch(step, *known[step.key]))
        code.launches.append(LaunchList(tuple(launches), plan.workspace_bytes, plan.cleared_bytes))
    return code


def _kernel(step: Step) -> Kernel:
    made = step.make()
    assert isinstance(made, Kernel)
    return made


def _launch(step: Step, name: str, kernel: Kernel) -> Launch:
    pointers = step.pointers
    windows = (_window(m, pointers[m.pointer]) for m in kernel.maps)
    return Launch(
        name,
        kernel.grid,
        kernel.threads,
        kernel.shared_bytes,
        (*(_address(p) for p in pointers), *windows),
        tuple(_access(p, writes=False) for i, p in enumerate(pointers) if i not in step.writes),
        tuple(_access(pointers[i], writes=True) for i in step.writes),
    )


def _address(pointer: Pointer) -> Address:
    buffer = pointer.buffer
    outside = buffer.kind in ("input", "output")
    base = 0 if outside else buffer.offset
    return Address(buffer.kind, buffer.index if outside else 0, base + pointer.offset)


def _window(described: TensorMap, pointer: Pointer) -> Window:
    place = _address(pointer)
    base = place._replace(offset=place.offset + described.offset * itemsize(described.dtype))
    return Window(
        base,
        described.dtype,
        described.dims,
        described.strides,
        described.box,
        described.steps,
        described.swizzle,
    )


def _access(pointer: Pointer, *, writes: bool) -> Access:
    """What a kernel touches behind a pointer: what its view names, else the whole buffer."""
    place, view = _address(pointer), pointer.view
    if view is None or pointer.buffer.kind == "constant" or any(s < 0 for s in view.strides):
        size = pointer.buffer.bytes
        start = place._replace(offset=place.offset - pointer.offset)
        return Access(start, size, max(size, 1), max(size, 1))
    run, period, extent = _runs(view)
    start = place._replace(offset=place.offset + view.offset * view.itemsize)
    if writes:
        padded = run + -(start.offset + run) % _CHUNK
        extent += min(padded, period) - run
        run = min(padded, period)
    return Access(start, extent, run, period)


def _runs(view: View) -> tuple[int, int, int]:
    """(bytes of a run, from one run to the next, from the first byte to the last one)."""
    axes = sorted((s, e) for s, e in zip(view.strides, view.shape, strict=True) if e > 1 and s)
    extent = (1 + sum(s * (e - 1) for s, e in axes)) * view.itemsize
    run = 1
    for i, (stride, size) in enumerate(axes):
        if stride > run:
            if all(s % stride == 0 for s, _ in axes[i:]):
                return run * view.itemsize, stride * view.itemsize, extent
            break
        run = max(run, stride * (size - 1) + run)
    return extent, extent, extent
