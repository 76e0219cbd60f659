"""Bounds on memory: a model file is untrusted, and a kilobyte of it can ask for terabytes."""

from __future__ import annotations

import os
from pathlib import Path

from pwopt.errors import FrontendError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType


def memory_bytes() -> int:
    """Memory that this process may hope for: the machine's, or less in a container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total


def confine(limit: int | None = None) -> None:
    """Lets this process's allocations fail, instead of the machine, beyond its memory.

    Counts private writable memory, so mapped libraries and reserved address space are free.
    """
    import resource

    limit = memory_bytes() if limit is None else limit
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def check_sizes(graph: Graph, limit: int | None = None) -> None:
    """Makes sure that every tensor of known size fits the memory.

    Raises:
        FrontendError: one does not; the message names the node.
    """
    limit = memory_bytes() if limit is None else limit
    for node in graph.nodes():
        for t in node.types:
            size = t.bytes if isinstance(t, TensorType) else None
            if size is not None and size > limit:
                raise FrontendError(
                    f"{node.label} makes a tensor of {_human(size)}, {t}; this machine has "
                    f"{_human(limit)}"
                )


def _human(size: int) -> str:
    value, units = float(size), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while value >= 1024 and unit != "PiB":
        value, unit = value / 1024, next(units)
    return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
