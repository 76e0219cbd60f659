"""GPUs through the CUDA driver."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pwopt.errors import CodegenError, UsageError
from pwopt.targets.cuda.arch import ARCHS, DEFAULT_ARCH, native
from pwopt.targets.cuda.driver import SLACK, bindings, call
from pwopt.targets.cuda.loaded import LoadedLaunches
from pwopt.targets.launches import LaunchList


def current() -> CudaDevice:
    """The GPU of this thread's context, else the first one.

    Raises:
        CodegenError: there is no driver or no GPU, or the driver's bindings are not installed.
    """
    driver = bindings()
    context = call(driver.cuCtxGetCurrent)
    ordinal = int(call(driver.cuCtxGetDevice)) if int(context) else 0
    return _device(ordinal)


def usual_arch() -> tuple[str, str]:
    """The architecture to generate code for where none was named, and a remark or nothing.

    Raises:
        UsageError: there is no code for the GPU here.
    """
    try:
        gpu = current()
    except CodegenError:
        return DEFAULT_ARCH, f"for {DEFAULT_ARCH}, as there is no GPU here; --arch names others"
    arch = native(gpu.capability)
    if arch is None:
        version = ".".join(map(str, gpu.capability))
        raise UsageError(
            f"pwopt has no code for {gpu.name} (compute capability {version}); name another "
            f"architecture with --arch: {', '.join(ARCHS)}"
        )
    return arch, ""


def name_of_gpu() -> str | None:
    """The driver's name of the GPU here, or None where there is none."""
    try:
        return str(current().name)
    except CodegenError:
        return None


@functools.cache
def _device(ordinal: int) -> CudaDevice:
    return CudaDevice(ordinal)


class CudaDevice:
    """A GPU; its primary context, which other libraries use as well.

    Attributes:
        name: the driver's.
        capability: compute capability.
        driver_version: CUDA version that the driver supports, e.g. 13000.
    """

    def __init__(self, ordinal: int) -> None:
        driver = self._driver = bindings()
        if ordinal >= call(driver.cuDeviceGetCount):
            raise CodegenError(f"there is no GPU {ordinal}")
        self.ordinal = ordinal
        handle = call(driver.cuDeviceGet, ordinal)
        name = call(driver.cuDeviceGetName, 256, handle)
        self.name = name.split(b"\0")[0].decode()
        attribute = driver.CUdevice_attribute
        self.capability = (
            self._attribute(handle, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(handle, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self.driver_version = int(call(driver.cuDriverGetVersion))
        self._context = call(driver.cuDevicePrimaryCtxRetain, handle)

    def _attribute(self, handle: Any, which: Any) -> int:
        return int(call(self._driver.cuDeviceGetAttribute, which, handle))

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        """Makes this GPU's context the thread's for a while; gives the driver's bindings."""
        call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield self._driver
        finally:
            call(self._driver.cuCtxPopCurrent)

    def load(
        self,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
    ) -> LoadedLaunches:
        """See :class:`pwopt.targets.cuda.segment.Device`."""
        return LoadedLaunches(self, launches, kernels, constants, inputs, outputs)

    def memory(self, size: int) -> int:
        """Address of new memory on the device, of at least one byte."""
        return int(call(self._driver.cuMemAlloc, max(size, 1) + SLACK))

    def free_bytes(self) -> int:
        """Memory of the device that nobody has taken."""
        with self.active() as driver:
            code, free, _ = driver.cuMemGetInfo()
            if int(code):
                raise CodegenError(f"the NVIDIA driver's cuMemGetInfo failed: {code.name}")
            return int(free)
