"""Tensors of other libraries that lie on the device, and new ones for them."""

from __future__ import annotations

import contextlib
import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt.errors import UsageError
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets.cuda.driver import bindings, quietly, release
from pwopt.targets.manifest import Port

if TYPE_CHECKING:
    from pwopt.targets.cuda.device import CudaDevice


def tensor(port: Port, value: Any, stream: int, device: CudaDevice) -> Any:
    """A view of somebody's tensor; ``stream`` waits for what they still do to it."""
    from cuda.core.utils import StridedMemoryView

    if isinstance(value, np.ndarray) or not (
        hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__")
    ):
        kind = type(value).__name__
        raise UsageError(f"{port} must lie on the GPU as the others do, got {kind}")
    view = StridedMemoryView.from_any_interface(value, stream_ptr=stream)
    if not view.is_device_accessible or view.device_id != device.ordinal:
        raise UsageError(f"{port} must lie on GPU {device.ordinal}, {device.name}")
    shape = tuple(view.shape)
    if view.dtype != np.dtype(NUMPY_DTYPES[str(port.dtype)]) or shape != tuple(port.shape or ()):
        raise UsageError(f"{port} got {view.dtype}[{'x'.join(map(str, shape))}]")
    if not _is_row_major(shape, view.strides):
        raise UsageError(f"{port} must be contiguous, its strides are {tuple(view.strides)}")
    return view


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    if strides is None or 0 in shape:
        return True
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def new_tensor(device: CudaDevice, port: Port) -> Any:
    """A tensor on the device with ``__dlpack__``, whose memory it owns."""
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    dtype = np.dtype(NUMPY_DTYPES[str(port.dtype)])
    shape = tuple(int(size) for size in port.shape or ())
    size = max(math.prod(shape) * dtype.itemsize, 1)
    owner = _Allocation(device, size)
    buffer = Buffer.from_handle(owner.address, size, owner=owner)
    return StridedMemoryView.from_buffer(buffer, shape, dtype=dtype)


class _Allocation:
    """Memory on the device that is freed with this object."""

    def __init__(self, device: CudaDevice, size: int) -> None:
        self.address = device.memory(size)
        undo = contextlib.ExitStack()
        undo.callback(quietly, bindings().cuMemFree, self.address)
        weakref.finalize(self, release, device, undo)
