"""Executables: segments of machine code, of GPU kernels and of ONNX Runtime behind one ``run``.

This module needs neither TVM nor onnx. Machine code needs TVM's FFI library, and its runtime for
several threads; GPU kernels need the driver's bindings, and only once they are run.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt.errors import CodegenError, UsageError
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets.manifest import Manifest, Port, SegmentSpec
from pwopt.targets.timing import KernelTiming, fastest, kernel_counts, random_inputs, timings

if TYPE_CHECKING:
    from pwopt.targets.cuda.segment import Device


class Executable:
    """A compiled network. ``run`` may be called from several threads at once.

    Attributes:
        manifest: what it is.
        module: TVM runtime module with the entry functions, None if nothing was compiled.
        constants: packed weights, bytes.
        models: models of the ONNX Runtime segments, one after the other.
        path: the file that it was loaded from, None if it was compiled in this process.
        cubins: machine code of the GPU kernels, one after the other.
        device: that GPU kernels run on; None for the GPU of this thread's context, or the first.
    """

    def __init__(
        self,
        manifest: Manifest,
        module: Any,
        constants: np.ndarray,
        models: bytes,
        path: Path | None = None,
        *,
        cubins: np.ndarray | None = None,
        device: Device | None = None,
    ) -> None:
        self.manifest, self.module, self.path = manifest, module, path
        self.constants, self.models = constants, models
        self.cubins = np.zeros(0, np.uint8) if cubins is None else cubins
        self.device = device
        self._segments = [_segment(self, spec) for spec in manifest.segments]
        self._inputs = [_Input(port) for port in manifest.inputs]

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What :meth:`run` wants, in the model's order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What :meth:`run` gives, in the model's order."""
        return self.manifest.outputs

    @property
    def metadata(self) -> dict[str, Any]:
        """The version of pwopt, the source model's SHA-256, target, passes and the like."""
        return self.manifest.metadata

    @property
    def report(self) -> dict[str, Any]:
        """What each kernel computes, and why anything runs in ONNX Runtime."""
        return self.manifest.report

    def run(
        self, inputs: Mapping[str, Any], out: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Runs the network once.

        Args:
            inputs: an array per graph input, of its dtype and shape; of optional type: None or
                nothing where there is none. Of a network that runs on a GPU as a whole: instead
                tensors that lie there, with ``__dlpack__`` or ``__cuda_array_interface__``, which
                are not copied.
            out: contiguous tensors on the GPU for some of the outputs, where the inputs are ones.

        Returns:
            The outputs in the model's order: arrays of their own, or tensors on the GPU with
            ``__dlpack__``.

        Raises:
            UsageError: an input is missing, unknown, or of another dtype or shape.
            CodegenError: the GPU that it is for is not there, or failed.
        """
        if out is not None or (self._launched and _on_device(inputs)):
            results: dict[str, np.ndarray] = self._only_segment().run_on_device(inputs, out)
            return results
        values: dict[str, Any] = {}
        for each in self._inputs:
            array = each.array(inputs, self.manifest.inputs)
            if array is not None:
                values[each.port.key] = array
        if len(inputs) > len(self.manifest.inputs):
            unknown = sorted(set(inputs) - {p.name for p in self.manifest.inputs})
            if unknown:
                known = ", ".join(str(p) for p in self.manifest.inputs)
                raise UsageError(f"no input {unknown[0]!r}; the model's inputs: {known}")
        for segment in self._segments:
            segment.run(values)
        return {p.name: values[p.key] for p in self.manifest.outputs}

    def profile(
        self, inputs: Mapping[str, np.ndarray | None] | None = None, *, seconds: float = 1.0
    ) -> list[KernelTiming]:
        """Measures every kernel in its place among the others.

        Args:
            inputs: as for :meth:`run`; seeded random numbers if left out.
            seconds: time to spend, about.

        Returns:
            the kernel calls in order; a segment of ONNX Runtime counts as one.

        Raises:
            UsageError: as :meth:`run`, or the inputs are left out and their shapes are open.
            CodegenError: another version of pwopt made the executable, without what notes times.
        """
        feeds = random_inputs(self.inputs) if inputs is None else inputs
        self.run(feeds)
        counts = kernel_counts(self.report, len(self._segments))

        def once() -> list[float]:
            values: dict[str, Any] = {p.key: feeds[p.name] for p in self.inputs if p.name in feeds}
            parts = zip(self._segments, counts, strict=True)
            return [us for segment, count in parts for us in segment.timed(values, count)]

        return timings(self.report, fastest(once, seconds))

    def seconds_on_device(self, inputs: Mapping[str, np.ndarray], calls: int = 1) -> float:
        """Mean time of one inference on the GPU, without copies to and from it.

        Args:
            inputs: as of :meth:`run`.
            calls: inferences in a row that are measured.

        Raises:
            UsageError: parts of the network do not run on a GPU.
        """
        ports = self.manifest.inputs
        arrays = {each.port.key: each.array(inputs, ports) for each in self._inputs}
        segment = self._only_segment()
        ordered = [arrays[p.key] for p in self.manifest.segments[0].inputs]
        return float(segment.loaded.seconds(ordered, calls))

    @property
    def _launched(self) -> bool:
        return len(self._segments) == 1 and bool(self.manifest.segments[0].launches)

    def _only_segment(self) -> Any:
        """The segment of a network that runs on a GPU as a whole."""
        if self._launched:
            return self._segments[0]
        if any(s.launches for s in self.manifest.segments):
            parts = [str(each["node"]) for each in self.report.get("fallback", ())]
            raise UsageError(
                f"parts of the model run in ONNX Runtime ({', '.join(parts[:3])}): "
                "only run() with NumPy arrays can be used"
            )
        raise UsageError("the executable is not for GPUs: only run() with NumPy arrays can be used")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one shared library that :func:`load_executable` reads.

        Raises:
            CodegenError: there is no C++ compiler, or it failed.
        """
        from pwopt.targets.library import write_library

        write_library(self, Path(path))


def load_executable(path: str | os.PathLike[str]) -> Executable:
    """Reads an executable that :meth:`Executable.save` wrote.

    Raises:
        CodegenError: the file is missing or no executable of pwopt, or this machine lacks the
            vector instructions that it was built for.
    """
    from pwopt.targets.library import read_library

    return read_library(Path(path))


def _segment(executable: Executable, spec: SegmentSpec) -> Any:
    """What runs a segment."""
    if spec.entry:
        from pwopt.targets.machine_code import MachineCode

        return MachineCode(executable, spec)
    if spec.launches:
        from pwopt.targets.cuda.segment import Launched

        return Launched(executable, spec)
    return _Runtime(executable, spec)


class _Runtime:
    """Runs one segment in ONNX Runtime; the session is made on first use."""

    def __init__(self, executable: Executable, spec: SegmentSpec) -> None:
        start, end = spec.model
        self._model = executable.models[start:end]
        self._spec, self._threads = spec, executable.manifest.threads
        self._session: Any = None
        self._lock = threading.Lock()

    def run(self, values: dict[str, Any]) -> None:
        with self._lock:
            if self._session is None:
                self._session = self._start()
        feeds = {p.key: values[p.key] for p in self._spec.inputs if p.key in values}
        names = [p.key for p in self._spec.outputs]
        values.update(zip(names, self._session.run(names, feeds), strict=True))

    def timed(self, values: dict[str, Any], _: int) -> list[float]:
        """Runs; returns the microseconds that it took."""
        start = time.perf_counter()
        self.run(values)
        return [1e6 * (time.perf_counter() - start)]

    def _start(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            text = str(error).splitlines()[0]
            raise CodegenError(
                f"neither pwopt nor ONNX Runtime can run a part of the model: {text}"
            ) from error


def _on_device(inputs: Mapping[str, Any]) -> bool:
    """Whether some input is a tensor on a device."""
    return any(
        not isinstance(value, np.ndarray)
        and (hasattr(value, "__cuda_array_interface__") or hasattr(value, "__dlpack__"))
        for value in inputs.values()
    )


def runs_here(machine: str) -> bool:
    """Whether this machine's processor is of a family, by the first part of its triple."""
    return machine in ("", os.uname().machine)


class _Input:
    """Takes the array of one input from what the user passes."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self._dtype = NUMPY_DTYPES.get(port.dtype or "")
        self._shape = None if port.shape is None else tuple(port.shape)

    def array(self, inputs: Mapping[str, Any], ports: tuple[Port, ...]) -> Any:
        """What is passed for this input, None where an optional one is left out.

        Raises:
            UsageError: it is missing, or of another dtype or shape.
        """
        port = self.port
        array: Any = inputs.get(port.name)
        # Two comparisons tell what it usually is.
        usual = isinstance(array, np.ndarray) and array.dtype == self._dtype
        if (usual and array.shape == self._shape) or (array is None and port.optional):
            return array
        if port.name not in inputs:
            known = ", ".join(str(p) for p in ports)
            raise UsageError(f"input {port.name!r} is missing; the model's inputs: {known}")
        if port.dtype is None and port.shape is None and not isinstance(array, np.ndarray):
            return array  # a sequence or an optional, which only ONNX Runtime looks into
        if not isinstance(array, np.ndarray):
            raise UsageError(
                f"input {port} must be a numpy array, got {type(array).__name__}; use numpy.asarray"
            )
        strings = port.dtype == "string" and array.dtype.kind in "OUS"
        if port.dtype is not None and not strings and array.dtype != self._dtype:
            raise UsageError(
                f"input {port} got {array.dtype}; convert it with .astype({port.dtype!r})"
            )
        if self._shape is not None and not _fits_shape(array.shape, self._shape):
            got = "x".join(map(str, array.shape))
            raise UsageError(
                f"input {port} got shape {got}; compile for it with --input-shape {port.name}:{got}"
            )
        return array


def _fits_shape(got: tuple[int, ...], wanted: tuple[Any, ...]) -> bool:
    """Whether a shape is the one wanted, open where that holds no number."""
    return len(got) == len(wanted) and all(
        not isinstance(want, int) or want == have for want, have in zip(wanted, got, strict=True)
    )
