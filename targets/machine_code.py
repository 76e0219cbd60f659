"""Segments of machine code: entry functions on NumPy memory, through TVM's FFI library."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from pwopt.errors import CodegenError
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets import runtime
from pwopt.targets.executable import Executable, runs_here
from pwopt.targets.manifest import SegmentSpec

ALIGNMENT = 64
SLACK = 64  # bytes that kernels may read past the end of any array
_PAGE = 4096
TIMED = "_timed"  # ends the name of the entry that notes the time before and after every kernel
TIMESPEC_BYTES = 16  # of a note: seconds and nanoseconds


class MachineCode:
    """Runs one entry function; what runs need is pooled, so that threads do not wait."""

    def __init__(self, executable: Executable, spec: SegmentSpec) -> None:
        self._executable, self._spec = executable, spec
        self._function: Any = None  # looked up on first use, which is when code is made in memory
        self._constants = runtime.tensor(executable.constants)
        self._pool: list[tuple[Any, dict[str, np.ndarray]]] = []
        self._outputs = []
        for port in spec.outputs:
            dtype, shape = np.dtype(NUMPY_DTYPES[str(port.dtype)]), tuple(port.shape or ())
            sizes = [size for size in shape if isinstance(size, int)]
            self._outputs.append((port.key, dtype, shape, math.prod(sizes) * dtype.itemsize))

    def run(self, values: dict[str, Any]) -> None:
        if self._function is None:
            self._function = self._entry(self._spec.entry)
        self._call(self._function, values)

    def timed(self, values: dict[str, Any], kernels: int) -> list[float]:
        """Runs; returns the microseconds of each of so many kernels."""
        times = aligned(TIMESPEC_BYTES * (kernels + 1))
        self._call(self._entry(self._spec.entry + TIMED), values, runtime.tensor(times))
        seconds, nanoseconds = times.view(np.int64).reshape(-1, 2).T
        return (1e6 * np.diff(seconds) + 1e-3 * np.diff(nanoseconds)).tolist()  # type: ignore[no-any-return]

    def _entry(self, name: str) -> Any:
        triple = self._executable.manifest.triple
        if not runs_here(triple.partition("-")[0]):
            raise CodegenError(f"built for {triple}, this machine is {os.uname().machine}")
        return self._executable.module[name]

    def _call(self, function: Any, values: dict[str, Any], *more: Any) -> None:
        try:
            workspace, copies = self._pool.pop()
        except IndexError:
            workspace = runtime.tensor(aligned(max(self._spec.workspace_bytes, ALIGNMENT)))
            copies = {}
        inputs = [_bytes_of(values[p.key], copies, p.key) for p in self._spec.inputs]
        outputs = []
        for key, dtype, shape, size in self._outputs:
            raw = aligned(max(size, 1))
            values[key] = np.ndarray(shape, dtype, raw)
            outputs.append(runtime.tensor(raw))
        runtime.set_threads(self._executable.manifest.threads)
        function(workspace, self._constants, *inputs, *outputs, *more)
        self._pool.append((workspace, copies))


def aligned(size: int) -> np.ndarray:
    """Fresh bytes that start on a cache line, with readable slack behind them."""
    raw = np.empty(size + ALIGNMENT + SLACK, np.uint8)
    start = -runtime.address(raw) % ALIGNMENT
    return raw[start : start + size]


def _bytes_of(array: np.ndarray, copies: dict[str, np.ndarray], key: str) -> Any:
    """An array as the flat, aligned bytes that entry functions take.

    A copy goes where ``copies`` has one: fresh memory costs more than the copy (600 KB: 105 us, of
    which 40 are page faults).
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.size and flat.flags.writeable and _fits(runtime.address(flat), flat.size):
        return runtime.tensor(flat)
    if key not in copies or copies[key].size < flat.size:
        copies[key] = aligned(max(flat.size, 1))
    copies[key][: flat.size] = flat
    return runtime.tensor(copies[key][: max(flat.size, 1)])


def _fits(address: int, size: int) -> bool:
    """Whether kernels can read foreign memory as it lies: aligned, the slack on its last page."""
    end = address + size
    return address % ALIGNMENT == 0 and (end - 1) // _PAGE == (end + SLACK - 1) // _PAGE
