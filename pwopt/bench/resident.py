"""What one runtime keeps in memory to run one model, in a process of its own.

``python -m pwopt.bench.resident onnxruntime|compiled FILE INPUTS.npz THREADS`` prints a
:class:`Resident` in JSON. At the start it imports as little as a program that only runs the model.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RUNS = 3
_LIBRARIES = re.compile(r"libtvm|tvm_ffi|onnxruntime")


@dataclass(frozen=True)
class Resident:
    """Bytes of memory.

    Attributes:
        peak: most that was resident from loading the model to the end of the last run, above what
            the interpreter, its imports and the inputs take.
        private: of that, what is the process's own at the end; the rest is mapped from files, which
            processes share and the system may drop.
        process: most that was resident in all.
        libraries: size of the runtime's shared libraries as mapped, resident or not; no part of
            the others beyond the pages that were touched.
    """

    peak: int
    private: int
    process: int
    libraries: int


def measure(runtime: str, file: Path, inputs: Path, threads: int) -> Resident:
    """Loads a model and runs it :data:`RUNS` times in this process.

    Args:
        runtime: "onnxruntime", or "compiled" for an executable of pwopt.
        file: the model.
        inputs: arrays by name, .npz.
        threads: of one inference.
    """
    import numpy as np

    start = _RUNTIMES[runtime](file, threads)
    with np.load(inputs) as stored:
        feeds = dict(stored)
    _forget_peak()
    before = _status()
    model = start()
    for _ in range(RUNS):
        model.run(feeds)
    after = _status()
    return Resident(
        peak=after["VmHWM"] - before["VmRSS"],
        private=after["RssAnon"] - before["RssAnon"],
        process=after["VmHWM"],
        libraries=_mapped(),
    )


def _onnxruntime(file: Path, threads: int) -> Callable[[], Any]:
    import onnxruntime  # noqa: F401 - loaded before the memory is looked at

    from pwopt.ort import OrtModel

    return lambda: OrtModel(file, threads)


def _compiled(file: Path, _: int) -> Callable[[], Any]:
    # TVM's Python package imports PyTorch where that is installed; nothing here needs it.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from pwopt.targets import runtime
    from pwopt.targets.executable import load_executable

    runtime.ensure_loaded()
    return lambda: load_executable(file)


_RUNTIMES = {"onnxruntime": _onnxruntime, "compiled": _compiled}


def _forget_peak() -> None:
    """Starts the kernel's high-water mark anew, where that is allowed; else imports count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status() -> Mapping[str, int]:
    """Memory of this process in bytes, by the kernel's names (proc(5))."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in lines}


def _mapped() -> int:
    """Size of the runtimes' shared libraries in the address space."""
    size = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        if path.startswith("/") and _LIBRARIES.search(path):
            start, end = (int(each, 16) for each in span.split("-"))
            size += end - start
    return size


if __name__ == "__main__":
    found = measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(json.dumps(asdict(found)))
