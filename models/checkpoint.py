"""Reads tensors out of a PyTorch checkpoint without PyTorch and without running its pickle.

The file is a pickle, which can name any function of any module. This reader resolves four names,
each to a function of its own that makes plain NumPy arrays, and refuses every other one. Format:
the "legacy" one that PyTorch wrote up to 1.5 (a row of pickles, then the raw storages).
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import FrontendError

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass
class _Storage:
    """A flat buffer that tensors point into; its data follow after the pickles."""

    dtype: np.dtype
    size: int
    data: np.ndarray | None = None


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A copy of the tensor; a view that leaves its storage is an error."""
        data = self.storage.data
        numbers = (self.offset, *self.shape, *self.strides)
        valid = len(self.shape) == len(self.strides) and all(
            type(n) is int and n >= 0 for n in numbers
        )
        if data is None or not valid:
            raise FrontendError(f"checkpoint: malformed tensor {self.shape}")
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * s for n, s in steps)
        if 0 in self.shape:
            return np.empty(self.shape, data.dtype)
        if last >= len(data):
            raise FrontendError(f"checkpoint: tensor {self.shape} leaves its storage")
        strides = [s * data.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides)
        # A broadcast view may be far larger than its data; weights never are.
        if view.size > len(data):
            raise FrontendError(f"checkpoint: tensor {self.shape} is larger than its storage")
        return view.copy()


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise FrontendError("checkpoint: a tensor without a storage")
    return _View(storage, offset, tuple(shape), tuple(strides))


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that can make containers, numbers, strings and tensors, nothing else."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the four names that a state dict needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise FrontendError(f"checkpoint: refuses to load {module}.{name}; only tensors are read")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage by its key: ("storage", type, key, device, size, view)."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise FrontendError(f"checkpoint: unknown reference {pid!r}")
        _, dtype, key, _, size = pid[:5]
        if not isinstance(dtype, np.dtype) or not isinstance(key, str) or not isinstance(size, int):
            raise FrontendError(f"checkpoint: malformed storage {pid!r}")
        return self.storages.setdefault(key, _Storage(dtype, size))


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict: parameter names to arrays.

    Raises:
        FrontendError: not such a file, truncated, or with anything in it but tensors.
    """
    with path.open("rb") as file:
        try:
            return _read(file, path.stat().st_size)
        except FrontendError:
            raise
        except Exception as error:  # a malformed pickle can fail in any way at all
            raise FrontendError(f"{path}: not a legacy PyTorch checkpoint ({error})") from error


def _read(file: io.BufferedReader, file_bytes: int) -> dict[str, np.ndarray]:
    if _TensorUnpickler(file).load() != _MAGIC:
        raise FrontendError("checkpoint: not in PyTorch's legacy format")
    _TensorUnpickler(file).load()  # protocol version
    _TensorUnpickler(file).load()  # sizes of C types
    unpickler = _TensorUnpickler(file)
    state = unpickler.load()
    if not isinstance(state, dict) or not all(isinstance(v, _View) for v in state.values()):
        raise FrontendError("checkpoint: not a state dict of tensors")
    for key in _TensorUnpickler(file).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.size or not 0 <= count * storage.dtype.itemsize <= file_bytes:
            raise FrontendError(f"checkpoint: storage {key} has {count} elements")
        raw = file.read(count * storage.dtype.itemsize)
        storage.data = np.frombuffer(raw, storage.dtype)
        if len(storage.data) != count:
            raise FrontendError(f"checkpoint: storage {key} is truncated")
    return {str(name): view.array() for name, view in state.items()}
