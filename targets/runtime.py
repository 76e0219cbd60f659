"""TVM's small runtime, without its compiler: tensors on NumPy memory, and the thread pool."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from pwopt.errors import CodegenError

# What machine code of several threads, or of TVM's own operators, calls in libtvm_runtime. The code
# has a pointer for each that it needs, which must be set before the code runs.
FUNCTIONS = ("TVMBackendParallelLaunch", "TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace")
_NAME = "libtvm_runtime.so"


def ensure_loaded(beside: Path | None = None) -> None:
    """Loads libtvm_runtime, unless TVM itself has been imported.

    It is taken from apache-tvm where that is installed, else from a folder, else from where the
    loader looks.

    Args:
        beside: the folder.

    Raises:
        CodegenError: it is nowhere.
    """
    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
        return
    spec = importlib.util.find_spec("tvm")
    folders = [Path(f) / "lib" for f in (spec and spec.submodule_search_locations) or ()]
    places = [*folders, *([beside] if beside else [])]
    found = next((str(f / _NAME) for f in places if (f / _NAME).exists()), _NAME)
    try:
        ctypes.CDLL(found, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise CodegenError(
            f"{_NAME} of apache-tvm was not found; install apache-tvm, or put the file beside the "
            "executable"
        ) from error


def tensor(array: np.ndarray) -> Any:
    """A TVM tensor on the memory of an array."""
    return tvm_ffi.from_dlpack(array)


def address(array: np.ndarray) -> int:
    """Where an array lies; a third of the time of ``array.ctypes.data``."""
    return int(tvm_ffi.from_dlpack(array).data_ptr())


def load_module(path: Path) -> Any:
    """A runtime module from a shared library."""
    return tvm_ffi.load_module(str(path))


_pool = threading.local()  # TVM has one thread pool for each thread that calls it


def set_threads(threads: int) -> None:
    """Sizes the pool that the parallel loops of this thread's next run use."""
    if threads > 1 and threads != getattr(_pool, "threads", 0):
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, threads)
        _pool.threads = threads
