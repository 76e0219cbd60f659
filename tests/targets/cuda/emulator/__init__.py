"""Runs emitted CUDA kernels on the CPU, thread by thread, on NumPy memory.

``build`` compiles a CUDA text for the CPU, ``launch`` runs one of its kernels with the parameters
in the order of the text: per pointer an array or an address, per tensor map a :class:`MapData`.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.targets.cuda.codegen import source
from pwopt.targets.cuda.kernel import Kernel, TensorMap
from pwopt.targets.views import itemsize
from tests.targets.cuda.emulator.translate import Entry, translate

LATE, EARLY = 0, 1  # see emulator.h
TIMINGS = (LATE, EARLY)
_FOLDER = Path(__file__).parent


class EmulationError(AssertionError):
    """A kernel did what no device allows: a deadlock, a misaligned or impossible access."""


class MapData(ctypes.Structure):
    """A tensor map as the emulator knows it: ``emu::TensorMap``."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("dim", ctypes.c_int64 * 5),
        ("stride", ctypes.c_int64 * 5),
        ("rank", ctypes.c_int),
        ("size", ctypes.c_int),
        ("box", ctypes.c_int * 5),
        ("step", ctypes.c_int * 5),
        ("swizzle", ctypes.c_int),
        ("rounds", ctypes.c_int),
        ("_padding", ctypes.c_char * 64),
    )


def described(window: TensorMap, address: int) -> MapData:
    """The map of a window on the memory that its pointer points to."""
    size, rank = itemsize(window.dtype), len(window.dims)
    data = MapData(address + window.offset * size, rank=rank, size=size, swizzle=window.swizzle)
    data.rounds = window.dtype == "tfloat32"
    if window.box[0] * size % 16 or (window.swizzle and window.box[0] * size > window.swizzle):
        raise EmulationError(f"rows of {window.box[0] * size} bytes in a box")
    least = size
    for i, stride in enumerate((size, *window.strides)):
        # As cuda.h has it of cuTensorMapEncodeTiled.
        if i and (stride % 16 or stride < least or stride >> 40):
            raise EmulationError(f"stride of {stride} bytes in a tensor map")
        if not 0 < window.box[i] <= 256 or not 0 < window.steps[i] <= 8:
            raise EmulationError(f"a box of {window.box} in steps of {window.steps}")
        least = stride * window.dims[i]
        data.dim[i], data.stride[i] = window.dims[i], stride
        data.box[i], data.step[i] = window.box[i], window.steps[i]
    return data


@dataclass(frozen=True)
class Library:
    """Compiled kernels.

    Attributes:
        entries: what there is, by name.
    """

    entries: Mapping[str, Entry]
    _library: ctypes.CDLL

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        threads: int | Sequence[int],
        shared_bytes: int,
        arguments: Sequence[Any],
        timing: int = LATE,
    ) -> None:
        """Runs a kernel to its end.

        Args:
            name: of the kernel.
            grid: blocks along x, y and z.
            threads: of a block.
            shared_bytes: of dynamic shared memory.
            arguments: in the order of the text: arrays, addresses as numbers, or tensor maps.
            timing: ``LATE`` or ``EARLY``.

        Raises:
            EmulationError: see there.
        """
        entry = self.entries[name]
        if len(arguments) != len(entry.parameters):
            raise ValueError(f"{name} takes {entry.parameters}, not {len(arguments)} arguments")
        block = (threads,) if isinstance(threads, int) else tuple(threads)
        function = self._library[f"{name}_run"]
        function.restype = ctypes.c_char_p
        problem = function(
            (ctypes.c_void_p * len(arguments))(*(_address(a) for a in arguments)),
            (ctypes.c_int * 3)(*grid, *(1,) * (3 - len(grid))),
            (ctypes.c_int * 3)(*block, *(1,) * (3 - len(block))),
            ctypes.c_size_t(shared_bytes),
            timing,
        )
        if problem:
            raise EmulationError(f"{name}: {problem.decode()}")

    def run(self, name: str, kernel: Kernel, arrays: Sequence[Any], timing: int = LATE) -> None:
        """Runs a kernel on one array or address per pointer; describes its tensor maps."""
        maps = [described(m, _address(arrays[m.pointer])) for m in kernel.maps]
        arguments = [*arrays, *maps]
        self.launch(name, kernel.grid, kernel.threads, kernel.shared_bytes, arguments, timing)


def _address(value: Any) -> int:
    if isinstance(value, int):
        return value
    return value.ctypes.data if isinstance(value, np.ndarray) else ctypes.addressof(value)


_built: dict[str, Library] = {}


def build(text: str) -> Library:
    """Compiles the kernels of a CUDA text for this processor; the same text only once."""
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _built:
        translated, entries = translate(text)
        with tempfile.TemporaryDirectory() as folder:
            code, library = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
            code.write_text(translated)
            options = ("-O1", "-w", "-std=c++17", "-march=native", "-shared", "-fPIC")
            command = ["g++", *options, f"-I{_FOLDER}", "-o", str(library), str(code)]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                raise EmulationError(f"g++: {made.stderr[:3000]}")
            _built[key] = Library({e.name: e for e in entries}, ctypes.CDLL(str(library)))
    return _built[key]


def compiled(kernels: Mapping[str, Kernel], arch: str = "sm_80") -> Library:
    """The kernels, emitted and compiled in one library."""
    return build(source(kernels, arch))
