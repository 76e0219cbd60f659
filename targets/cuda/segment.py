"""Segments of GPU kernels: from an executable's launch lists to runs on a device."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pwopt.errors import CodegenError, UsageError
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets.cuda.arch import best
from pwopt.targets.executable import Executable
from pwopt.targets.launches import LaunchList
from pwopt.targets.manifest import Port, SegmentSpec


class Loaded(Protocol):
    """A launch list on a device, with its constants; may be run from several threads at once."""

    def run(
        self, inputs: Sequence[Any], outputs: Sequence[np.ndarray | None], keep: Sequence[int] = ()
    ) -> list[Any]:
        """Runs once.

        Args:
            inputs: of the shapes and dtypes that the segment has, whatever their strides; or what
                another run has kept.
            outputs: contiguous; are written. None for those that the host does not need.
            keep: positions of outputs that other launch lists of the device read.

        Returns:
            One value for each of ``keep``, which an input can be.
        """


class Device(Protocol):
    """What runs launch lists: a GPU, or in the tests an emulator of one.

    Attributes:
        name: for messages.
        capability: compute capability.
    """

    name: str
    capability: tuple[int, int]

    def load(
        self,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
    ) -> Loaded:
        """Makes a launch list ready to run.

        Args:
            launches: of one segment.
            kernels: the cubin of each kernel, by symbol.
            constants: bytes of the whole executable.
            inputs: arrays of the shapes and dtypes to come; contents mean nothing.
            outputs: likewise.
        """


class Launched:
    """Runs one launch list; it is loaded on first use, so that any machine can look inside."""

    def __init__(self, executable: Executable, spec: SegmentSpec) -> None:
        self._executable, self._spec = executable, spec
        self._inputs = [_array(p) for p in spec.inputs]
        self._outputs = [_array(p) for p in spec.outputs]
        self._lock = threading.Lock()
        self._loaded: Any = None
        others = [s for s in executable.manifest.segments if s is not spec]
        on_host = {p.key for s in others if not s.launches for p in s.inputs}
        on_host.update(p.key for p in executable.manifest.outputs)
        on_device = {p.key for s in others if s.launches for p in s.inputs}
        self._on_host = [p.key in on_host for p in spec.outputs]
        self._kept = [i for i, p in enumerate(spec.outputs) if p.key in on_device]

    def run(self, values: dict[str, Any]) -> None:
        """Adds the outputs to the values, by their names inside the executable.

        What other launch lists read stays on the device; what the host reads is copied to it.
        """
        self._run(values, self._on_host, self._kept)

    def _run(self, values: dict[str, Any], on_host: Sequence[bool], keep: Sequence[int]) -> None:
        outputs = [
            np.empty(a.shape, a.dtype) if needed else None
            for a, needed in zip(self._outputs, on_host, strict=True)
        ]
        inputs = [values.get(_kept(p.key), values.get(p.key)) for p in self._spec.inputs]
        kept = self.loaded.run(inputs, outputs, keep)
        ports = self._spec.outputs
        values.update((p.key, a) for p, a in zip(ports, outputs, strict=True) if a is not None)
        values.update((_kept(ports[i].key), each) for i, each in zip(keep, kept, strict=True))

    def timed(self, values: dict[str, Any], _: int) -> list[float]:
        """Runs; returns the microseconds of each kernel, one after the other."""
        self._run(values, [True] * len(self._outputs), ())
        us = self.loaded.kernel_us([values[p.key] for p in self._spec.inputs])
        return list(us)

    def run_on_device(
        self, inputs: Mapping[str, Any], out: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Runs on tensors of the device; see :meth:`Executable.run`."""
        ports = self._executable.manifest
        given = {p.key: inputs[p.name] for p in ports.inputs if p.name in inputs}
        missing = next((p for p in ports.inputs if p.key not in given), None)
        if missing is not None or len(inputs) > len(ports.inputs):
            known = ", ".join(str(p) for p in ports.inputs)
            unknown = sorted(set(inputs) - {p.name for p in ports.inputs})
            what = f"input {missing.name!r} is missing" if missing else f"no input {unknown[0]!r}"
            raise UsageError(f"{what}; the model's inputs: {known}")
        wanted = {p.key: out[p.name] for p in ports.outputs if p.name in out} if out else {}
        results = self.loaded.run_on_device(
            [(p, given[p.key]) for p in self._spec.inputs],
            [(p, wanted.get(p.key)) for p in self._spec.outputs],
        )
        by_key = dict(zip((p.key for p in self._spec.outputs), results, strict=True))
        return {p.name: by_key[p.key] for p in ports.outputs}

    @property
    def loaded(self) -> Any:
        """The launch list on its device.

        Raises:
            CodegenError: there is no device, or none of the code runs on it.
        """
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> Any:
        executable, archs = self._executable, tuple(self._spec.launches)
        device = executable.device or _gpu(archs)
        arch = best(archs, device.capability)
        if arch is None:
            version = ".".join(map(str, device.capability))
            raise CodegenError(
                f"the executable holds machine code for {', '.join(archs)}; {device.name} has "
                f"compute capability {version}: build it again with --arch for it"
            )
        places = executable.manifest.cubins[arch]
        launches = self._spec.launches[arch]
        kernels = {
            each.kernel: executable.cubins[slice(*places[each.kernel])].tobytes()
            for each in launches.launches
        }
        constants = executable.constants
        return device.load(launches, kernels, constants, self._inputs, self._outputs)


def _kept(key: str) -> str:
    """Where the values of a run have what stays on the device."""
    return f"{key} on the device"


def _gpu(archs: Sequence[str]) -> Device:
    from pwopt.targets.cuda import device

    try:
        return device.current()
    except CodegenError as error:
        raise CodegenError(
            f"the executable is for GPUs ({', '.join(archs)}) and cannot run here: {error}"
        ) from error


def _array(port: Port) -> np.ndarray:
    """An array of a port's shape and dtype that takes no memory."""
    shape = tuple(int(size) for size in port.shape or ())
    dtype = np.dtype(NUMPY_DTYPES[str(port.dtype)])
    element = np.zeros((), dtype)
    return np.broadcast_to(element, shape) if math.prod(shape) else np.zeros(shape, dtype)
