"""The checkpoint reader: tensors come out, everything else is refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwopt.errors import FrontendError
from pwopt.models.checkpoint import read_state_dict

MAGIC = 0x1950A86A20F9469CFC6C


class Named:
    """Pickles as the global ``module.name`` called with ``args``."""

    def __init__(self, module: str, name: str, args: tuple[Any, ...]) -> None:
        self.module, self.name, self.args = module, name, args


class Storage:
    """Pickles as a reference to a storage."""

    def __init__(self, pid: Any) -> None:
        self.pid = pid


class Global:
    """Pickles as a global's name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


_PythonPickler: Any = pickle._Pickler  # its hooks are not in the stubs


class Pickler(_PythonPickler):  # type: ignore[misc]
    """The Python pickler, for its hooks."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Named):
            self.save(Global(obj.module, obj.name))
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


FLOAT = Global("torch", "FloatStorage")


def tensor(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, size: int = 6
) -> Named:
    storage = Storage(("storage", FLOAT, "0", "cpu", size, None))
    return Named("torch._utils", "_rebuild_tensor_v2", (storage, offset, shape, strides, False, {}))


def write(path: Path, state: Any, data: np.ndarray | None = None, keys: Any = ("0",)) -> Path:
    data = np.arange(6, dtype=np.float32) if data is None else data
    with path.open("wb") as file:
        for part in (MAGIC, 1001, {"little_endian": True}, state, list(keys)):
            Pickler(file, 2).dump(part)
        file.write(len(data).to_bytes(8, "little") + data.tobytes())
    return path


def test_reads_tensors(tmp_path: Path) -> None:
    state = OrderedDict(a=tensor((2, 3), (3, 1)), b=tensor((3, 2), (1, 3)), c=tensor((), (), 5))
    arrays = read_state_dict(write(tmp_path / "m.pth", state))
    assert np.array_equal(arrays["a"], np.arange(6).reshape(2, 3))
    assert np.array_equal(arrays["b"], np.arange(6).reshape(2, 3).T)
    assert arrays["c"] == 5


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("torch", "load"),
        ("collections", "deque"),
        ("torch._utils", "os.system"),
        ("pwopt.models.checkpoint", "read_state_dict"),
    ],
)
def test_refuses_anything_but_tensors(tmp_path: Path, module: str, name: str) -> None:
    path = write(tmp_path / "m.pth", {"a": Named(module, name, ("touch /tmp/x",))})
    with pytest.raises(FrontendError, match=f"refuses to load {module}.{name}"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": tensor((7,), (1,))}, "leaves its storage"),
        ({"a": tensor((2, 3), (3, 1), 1)}, "leaves its storage"),
        ({"a": tensor((2, 3), (3, -1))}, "malformed"),
        ({"a": tensor((2,), (1, 1))}, "malformed"),
        ({"a": tensor((1 << 40,), (0,))}, "larger than its storage"),
        ({"a": 1}, "not a state dict"),
        ([1], "not a state dict"),
        ({"a": tensor((2,), (1,), size=1 << 60)}, "has 6 elements"),
        ({"a": Storage("x")}, "unknown reference"),
    ],
)
def test_refuses_malformed_tensors(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        read_state_dict(write(tmp_path / "m.pth", state))


def test_refuses_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", {"a": tensor((6,), (1,))})
    whole = path.read_bytes()
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FrontendError):
            read_state_dict(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FrontendError, match="not a legacy PyTorch checkpoint"):
        read_state_dict(path)
