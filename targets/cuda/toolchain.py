"""CUDA source to machine code: NVRTC or nvcc, what a kernel uses of a multiprocessor, a cache.

No GPU and no driver are needed. NVRTC comes first, because it takes a third of nvcc's time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from pwopt.errors import CodegenError
from pwopt.targets.cuda import nvrtc_headers

_OPTIONS = ("-std=c++17", "-w")
_MAX_CACHE_BYTES = 512 * 1024 * 1024
_CACHE_LAYOUT = 2


@dataclass(frozen=True)
class Usage:
    """What a kernel uses, as ptxas tells.

    Attributes:
        registers: of a thread.
        spill_bytes: that a thread stores to and loads from memory for want of registers.
        stack_bytes: of a thread; arrays that are indexed at run time lie there.
        shared_bytes: static shared memory of a block.
    """

    registers: int
    spill_bytes: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Cubin:
    """Machine code of one source.

    Attributes:
        image: the file.
        kernels: what each uses, by name.
        warnings: of ptxas, such as an instruction that it ignores.
    """

    image: bytes
    kernels: Mapping[str, Usage]
    warnings: tuple[str, ...] = ()


class Compiler(Protocol):
    """A program or library that makes machine code.

    Attributes:
        identity: what it is, with its version: equal ones make equal code.
    """

    identity: str

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        """The cubin and the log of ptxas.

        Raises:
            CodegenError: the source is refused.
        """


def compile_sources(
    sources: Sequence[str], arch: str, *, compiler: Compiler | None = None
) -> list[Cubin]:
    """Compiles sources side by side; what was compiled before comes from the user's cache.

    Args:
        sources: CUDA C++, each a translation unit.
        arch: e.g. ``sm_80``.
        compiler: the one that is found if left out.

    Raises:
        CodegenError: there is no compiler, or it refuses a source.
    """
    compiler = compiler or find_compiler()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda source: _cached(compiler, source, arch), sources))


def find_compiler() -> Compiler:
    """NVRTC of the extra ``cuda``, else nvcc.

    Raises:
        CodegenError: there is neither; the message says what to install.
    """
    if (headers := nvrtc_include_folders()) is not None:
        return Nvrtc(headers)
    if (nvcc := find_tool("nvcc")) is not None:
        return Nvcc(nvcc)
    raise CodegenError(
        "the CUDA target needs a compiler, and neither NVRTC nor nvcc was found: "
        "pip install 'pwopt[cuda]', or put a CUDA toolkit's nvcc on PATH (or set CUDA_HOME)"
    )


def find_tool(name: str) -> Path | None:
    """A program of the CUDA toolkit: from PATH, CUDA_HOME, CUDA_PATH or NVIDIA's pip packages."""
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(home) / "bin" for home in homes if home]
    folders += [folder / "bin" for folder in _pip_folders()]
    found = shutil.which(name)
    for folder in folders:
        found = found or shutil.which(name, path=str(folder))
    return Path(found) if found else None


def nvrtc_include_folders() -> tuple[Path, ...] | None:
    """Where NVRTC finds ``cuda_fp16.h`` and its like; None where it or they are missing."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return None
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [folder / "include" for folder in _pip_folders()]
    candidates += [Path(home) / "include" for home in homes if home]
    for folder in candidates:
        inner = folder / "cccl"
        targets = [f for f in (folder, inner) if (f / "nv" / "target").is_file()]
        if (folder / "cuda_fp16.h").is_file() and targets and _loads_nvrtc():
            return (folder, *targets)
    return None


def _loads_nvrtc() -> bool:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except Exception:  # the library is missing, under one of several names of that error
        return False
    return True


def _pip_folders() -> list[Path]:
    """The folders of NVIDIA's pip packages that hold ``bin``, ``include`` and ``lib``."""
    spec = find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    return [Path(f) for root in roots for f in sorted(Path(root).iterdir()) if f.is_dir()]


class Nvrtc:
    """NVIDIA's compiler as a library."""

    def __init__(self, include_folders: Sequence[Path]) -> None:
        from cuda.bindings import nvrtc

        self._nvrtc = nvrtc
        self._options = [*_OPTIONS, "--ptxas-options=-v", *(f"-I{f}" for f in include_folders)]
        _, major, minor = nvrtc.nvrtcVersion()
        self.identity = f"NVRTC {major}.{minor} {nvrtc_headers.VERSION}"

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        """See :class:`Compiler`."""
        nvrtc = self._nvrtc
        names, texts = zip(*nvrtc_headers.HEADERS.items(), strict=True)
        text = nvrtc_headers.with_headers(source)
        made, program = nvrtc.nvrtcCreateProgram(
            text.encode(), b"kernel.cu", len(names), list(texts), list(names)
        )
        if made != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CodegenError(f"NVRTC cannot be used: {made.name}")
        try:
            options = [o.encode() for o in (f"--gpu-architecture={arch}", *self._options)]
            (done,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            raw = bytearray(size)
            nvrtc.nvrtcGetProgramLog(program, raw)
            log = raw.decode(errors="replace").rstrip("\0")
            if done != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise _refused("NVRTC", arch, log or done.name)
            _, size = nvrtc.nvrtcGetCUBINSize(program)
            image = bytearray(size)
            nvrtc.nvrtcGetCUBIN(program, image)
            return bytes(image), log
        finally:
            nvrtc.nvrtcDestroyProgram(program)


class Nvcc:
    """NVIDIA's compiler as a program; it needs g++, too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        told = _called([str(path), "--version"])
        versions = re.findall(r"V(\d+\.\d+\.\d+)", told.stdout)
        if told.returncode or not versions:
            raise CodegenError(f"{path} --version failed: {_last_line(told.stderr)}")
        self.identity = f"nvcc {versions[0]}"

    def compile(self, source: str, arch: str) -> tuple[bytes, str]:
        """See :class:`Compiler`."""
        code = f"arch={arch.replace('sm_', 'compute_')},code={arch}"
        with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
            file, image = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
            file.write_text(source)
            options = [*_OPTIONS, "-O3", "-gencode", code, "-Xptxas", "-v"]
            done = _called([str(self._path), "-cubin", *options, "-o", str(image), str(file)])
            log = done.stderr + done.stdout
            if done.returncode:
                raise _refused("nvcc", arch, log)
            return image.read_bytes(), log


def _called(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CodegenError(f"{command[0]} cannot be run: {error.strerror}") from error


def _refused(compiler: str, arch: str, log: str) -> CodegenError:
    lines = [line.strip() for line in log.splitlines()]
    wrong = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return CodegenError(f"{compiler} refuses a kernel for {arch}: {(wrong or lines or ['?'])[0]}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STATIC = re.compile(r"(\d+) bytes smem")


def read_usage(log: str) -> dict[str, Usage]:
    """What each kernel uses, from the log of ``ptxas -v``."""
    found: dict[str, Usage] = {}
    name, stack, spills = "", 0, 0
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, stack, spills = entry[1], 0, 0
        elif sizes := _STACK.search(line):
            stack, spills = int(sizes[1]), int(sizes[2]) + int(sizes[3])
        elif (used := _USED.search(line)) and name:
            static = _STATIC.search(line)
            found[name] = Usage(int(used[1]), spills, stack, int(static[1]) if static else 0)
            name = ""
    return found


def _warnings(log: str) -> tuple[str, ...]:
    """What ptxas remarks on: warnings, and what it numbers, such as products that it serializes."""
    lines = (line.strip() for line in log.splitlines())
    return tuple(
        line for line in lines if "ptxas" in line and re.search(r"warning|advisory|\(C\d+\)", line)
    )


# --- the cache ------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where machine code is kept from one build to the next; may be deleted at any time."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pwopt" / "cubin"


def _cached(compiler: Compiler, source: str, arch: str) -> Cubin:
    parts = (str(_CACHE_LAYOUT), compiler.identity, arch, *_OPTIONS, source)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    file = cache_folder() / key[:2] / key
    if (known := _read(file)) is not None:
        return known
    image, log = compiler.compile(source, arch)
    made = Cubin(image, read_usage(log), _warnings(log))
    _write(file, made)
    return made


def _read(file: Path) -> Cubin | None:
    """What a file of the cache holds; None where it is not there or damaged."""
    try:
        header, _, image = file.read_bytes().partition(b"\n")
        facts = json.loads(header)
        if zlib.crc32(image) != facts["crc"]:
            return None
        kernels = {name: Usage(**usage) for name, usage in facts["kernels"].items()}
        os.utime(file)  # what is used stays
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Cubin(image, kernels, tuple(facts["warnings"]))


def _write(file: Path, cubin: Cubin) -> None:
    """Adds to the cache, whole or not at all; a cache that cannot be written is none."""
    facts = {
        "crc": zlib.crc32(cubin.image),
        "kernels": {name: asdict(usage) for name, usage in cubin.kernels.items()},
        "warnings": cubin.warnings,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as partial:
            try:
                partial.write(json.dumps(facts).encode() + b"\n" + cubin.image)
                partial.close()
                os.replace(partial.name, file)
            except BaseException:
                Path(partial.name).unlink(missing_ok=True)
                raise
    except OSError:
        return


def trim_cache(max_bytes: int = _MAX_CACHE_BYTES) -> None:
    """Deletes what was used the longest ago, until the cache is no larger than ``max_bytes``."""
    files = []
    for file in cache_folder().glob("*/*"):
        try:
            facts = file.stat()
        except OSError:
            continue
        files.append((facts.st_mtime, facts.st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= max_bytes:
            return
        file.unlink(missing_ok=True)
        total -= size
