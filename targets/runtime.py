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


def ensure_loaded() -> None:
    """Loads libtvm_runtime, unless TVM itself has been imported."""
    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
        return
    spec = importlib.util.find_spec("tvm")
    for folder in (spec and spec.submodule_search_locations) or ():
        library = Path(folder) / "lib" / "libtvm_runtime.so"
        if library.exists():
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
            return
    raise CodegenError("apache-tvm's libtvm_runtime.so was not found; install apache-tvm")


def tensor(array: np.ndarray) -> Any:
    """A TVM tensor on the memory of an array."""
    return tvm_ffi.from_dlpack(array)


def address(array: np.ndarray) -> int:
    """Where an array lies; a third of the time of ``array.ctypes.data``."""
    return int(tvm_ffi.from_dlpack(array).data_ptr())


def load_module(path: Path) -> Any:
    """A runtime module from a shared library."""
    ensure_loaded()
    return tvm_ffi.load_module(str(path))


_pool = threading.local()  # TVM has one thread pool for each thread that calls it


def set_threads(threads: int) -> None:
    """Sizes the pool that the parallel loops of this thread's next run use."""
    if threads > 1 and threads != getattr(_pool, "threads", 0):
        tvm_ffi.get_global_func("runtime.config_threadpool")(1, threads)
        _pool.threads = threads
