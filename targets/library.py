"""Executables as shared libraries: kernels, constants and manifest in one file."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pwopt import hardware
from pwopt.errors import CodegenError
from pwopt.targets.executable import Executable, runs_here
from pwopt.targets.manifest import Manifest

_BLOBS = ("manifest", "constants", "models", "cubins")
_ASSEMBLY = """\
    .section .rodata
    .balign 64
    .global pwopt_{name}
    .global pwopt_{name}_end
pwopt_{name}:
    .incbin "{path}"
pwopt_{name}_end:
    .byte 0
    .section .note.GNU-stack,"",%progbits
"""
_MACHINES = {62: "x86_64", 183: "aarch64"}  # by ELF's e_machine


def write_library(executable: Executable, path: Path) -> None:
    """Links an executable into one shared library, replacing ``path`` at the end.

    Raises:
        CodegenError: no compiler, or it failed; the message says what to do.
    """
    from pwopt.targets import native

    if executable.path is not None:
        raise CodegenError(f"this executable was loaded from {executable.path}; copy that file")
    compiler = _compiler(executable.manifest.triple)
    if not path.parent.is_dir():
        raise CodegenError(f"cannot write {path}: the folder {path.parent} does not exist")
    # Beside the target, so that the final rename is atomic.
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
            parts = _parts(executable, Path(folder))
            command = [compiler, "-shared", "-fPIC", "-o", str(partial), *map(str, parts)]
            _run([*command, *native.arguments(executable.manifest, Path(folder))], path)
        os.replace(partial, path)
    except OSError as error:
        raise CodegenError(f"cannot write {path}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_library(path: Path) -> Executable:
    """Loads what :func:`write_library` wrote; the constants are mapped, not copied."""
    if not path.is_file():
        raise CodegenError(f"{path}: no such file")
    machine = _machine(path)
    if not runs_here(machine):
        raise CodegenError(f"{path} was built for {machine}, this machine is {os.uname().machine}")
    try:
        # Under a name of its own: the loader takes a name that it knows for the same file, even
        # after the file was replaced.
        with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
            link = Path(folder) / path.name
            link.symlink_to(path.resolve())
            library = ctypes.CDLL(str(link))
            manifest = Manifest.from_json(_blob(library, "manifest").tobytes().decode())
            _check_processor(path, manifest)
            module: Any = None
            if any(s.entry for s in manifest.segments):
                module = _load(link, library, manifest, path.parent)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CodegenError(f"{path} is no executable of pwopt ({error})") from None
    models = _blob(library, "models").tobytes()
    constants, cubins = _blob(library, "constants"), _blob(library, "cubins")
    return Executable(manifest, module, constants, models, path, cubins=cubins)


def _load(link: Path, library: ctypes.CDLL, manifest: Manifest, folder: Path) -> Any:
    """The module of the machine code, once what it needs of TVM's runtime is there."""
    from pwopt.targets import runtime

    if manifest.threads > 1 or any(hasattr(library, f"__{n}") for n in runtime.FUNCTIONS):
        runtime.ensure_loaded(folder)
    return runtime.load_module(link)


def _parts(executable: Executable, folder: Path) -> list[Path]:
    """The files to link."""
    parts = []
    if executable.module is not None:
        parts.append(folder / "kernels.o")
        executable.module.write_to_file(str(parts[0]), "o")
    contents: dict[str, bytes | memoryview] = {
        "manifest": executable.manifest.to_json().encode(),
        "constants": executable.constants.data,
        "models": executable.models,
        "cubins": executable.cubins.data,
    }
    for blob in _BLOBS:
        data, source = folder / f"{blob}.bin", folder / f"{blob}.s"
        data.write_bytes(contents[blob])
        source.write_text(_ASSEMBLY.format(name=blob, path=data))
        parts.append(source)
    return parts


def _compiler(triple: str) -> str:
    """The program that links for a machine."""
    named = os.environ.get("CXX")
    if named and shutil.which(named):
        return named
    if not runs_here(triple.partition("-")[0]):
        names = [f"{triple}-{tool}" for tool in ("g++", "gcc")]
    else:
        names = ["c++", "g++", "clang++", "gcc", "cc", "clang"]
    for name in names:
        if shutil.which(name):
            return name
    if len(names) == 2:
        raise CodegenError(
            f"saving an executable for {triple} needs a cross compiler and {' and '.join(names)} "
            "were not found; install one or set CXX to it"
        )
    raise CodegenError(
        "saving an executable needs a C++ compiler and none was found; install g++ or clang, or "
        "set CXX (run() works without one)"
    )


def _run(command: list[str], path: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        # The linker's own words come before the compiler driver's "ld returned 1".
        tail = lines[-2] if len(lines) > 1 and "exit status" in lines[-1] else lines[-1]
        raise CodegenError(f"linking {path} failed: {command[0]}: {tail}")


def _machine(path: Path) -> str:
    """The processor family of a shared library, after a check that none of it is missing."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
        size = path.stat().st_size
    except OSError as error:
        raise CodegenError(f"cannot read {path}: {error.strerror}") from error
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
        raise CodegenError(f"{path} is no executable of pwopt (it is no shared library)")
    (machine,) = struct.unpack_from("<H", header, 18)
    (sections,) = struct.unpack_from("<Q", header, 40)  # the table of sections comes last
    each, count = struct.unpack_from("<HH", header, 58)
    if sections + each * count > size:
        raise CodegenError(f"{path} is incomplete: {size} bytes; write or copy it again")
    return _MACHINES.get(machine, f"machine {machine}")


def _check_processor(path: Path, manifest: Manifest) -> None:
    lanes = hardware.host().lanes
    if manifest.lanes > lanes:
        raise CodegenError(
            f"{path} was built for {manifest.metadata.get('mcpu')} with vectors of "
            f"{manifest.lanes} floats, this machine has {lanes}; rebuild it with --mcpu for it"
        )
    if manifest.bf16 and not hardware.host().bf16:
        raise CodegenError(
            f"{path} was built with --precision bf16 and this machine has no AVX512-BF16; rebuild "
            "it with --precision fp32"
        )


def _blob(library: ctypes.CDLL, name: str) -> np.ndarray:
    start = ctypes.addressof(ctypes.c_char.in_dll(library, f"pwopt_{name}"))
    end = ctypes.addressof(ctypes.c_char.in_dll(library, f"pwopt_{name}_end"))
    memory = (ctypes.c_uint8 * (end - start)).from_address(start)
    return np.ctypeslib.as_array(memory)
