"""Executables: segments of machine code and of ONNX Runtime behind one ``run``.

This module needs only TVM's FFI library, and its runtime for several threads.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import CodegenError, UsageError
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.targets import runtime
from pwopt.targets.timing import KernelTiming, fastest, kernel_counts, random_inputs, timings

ALIGNMENT = 64
SLACK = 64  # bytes that kernels may read past the end of any array
_PAGE = 4096
TIMED = "_timed"  # ends the name of the entry that notes the time before and after every kernel
TIMESPEC_BYTES = 16  # of a note: seconds and nanoseconds


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: ONNX name.
        dtype: ONNX element type in lower case, None if only known at run time.
        shape: extents, None or a symbol where only known at run time; None if the rank is unknown.
        key: the value's name inside the executable.
        optional: whether an input may be left out.
    """

    name: str
    dtype: str | None
    shape: tuple[Any, ...] | None
    key: str
    optional: bool = False

    def __str__(self) -> str:
        shape = "?" if self.shape is None else "x".join(str(d or "?") for d in self.shape)
        return f"{self.name!r} {self.dtype or '?'}[{shape}]"


@dataclass(frozen=True)
class SegmentSpec:
    """Machine code (``entry``) or a model for ONNX Runtime (``model``, a range of bytes)."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    entry: str = ""
    workspace_bytes: int = 0
    model: tuple[int, int] = (0, 0)


@dataclass
class Manifest:
    """Everything about an executable but its code, constants and models; stored as JSON.

    Attributes:
        inputs, outputs: of the graph, in order.
        segments: in the order of execution.
        threads: of one run.
        lanes: float32 elements of the vectors in the machine code.
        bf16: whether the machine code has AVX512-BF16's instructions.
        triple: LLVM's name of the machine, empty for the one that it was built on.
        metadata: pwopt's version, the source model's hash, target, passes and the like.
        report: one entry per kernel call: label, kernel, origin, macs, predicted_us, and how its
            weights are stored; and the fallback reasons.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    segments: tuple[SegmentSpec, ...]
    threads: int = 1
    lanes: int = 16
    bf16: bool = False
    triple: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as text."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> Manifest:
        """The manifest from its text."""
        fields = json.loads(text)
        if fields.pop("format", None) != FORMAT:
            raise CodegenError("the executable was written by another version of pwopt; rebuild it")

        def port(p: dict[str, Any]) -> Port:
            shape = None if p["shape"] is None else tuple(p["shape"])
            return Port(p["name"], p["dtype"], shape, p["key"], p["optional"])

        def ports(items: list[dict[str, Any]]) -> tuple[Port, ...]:
            return tuple(port(p) for p in items)

        segments = tuple(
            SegmentSpec(
                ports(s["inputs"]),
                ports(s["outputs"]),
                s["entry"],
                s["workspace_bytes"],
                tuple(s["model"]),
            )
            for s in fields.pop("segments")
        )
        return Manifest(
            ports(fields.pop("inputs")), ports(fields.pop("outputs")), segments, **fields
        )


FORMAT = 1


class Executable:
    """A compiled network. ``run`` may be called from several threads at once.

    Attributes:
        manifest: what it is.
        module: TVM runtime module with the entry functions, None if nothing was compiled.
        constants: packed weights, bytes.
        models: models of the ONNX Runtime segments, one after the other.
        path: the file that it was loaded from, None if it was compiled in this process.
    """

    def __init__(
        self,
        manifest: Manifest,
        module: Any,
        constants: np.ndarray,
        models: bytes,
        path: Path | None = None,
    ) -> None:
        self.manifest, self.module, self.path = manifest, module, path
        self.constants, self.models = constants, models
        self._segments = [
            _Compiled(self, s) if s.entry else _Runtime(self, s) for s in manifest.segments
        ]
        # What an input usually is is told by two comparisons; whatever else is looked at closely.
        self._inputs = [
            (p, NUMPY_DTYPES.get(p.dtype or ""), None if p.shape is None else tuple(p.shape))
            for p in manifest.inputs
        ]

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

    def run(self, inputs: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
        """Runs the network once.

        Args:
            inputs: an array per graph input, of its dtype and shape; of optional type: None or
                nothing where there is none.

        Returns:
            The outputs in the model's order, arrays of their own.

        Raises:
            UsageError: an input is missing, unknown, or of another dtype or shape.
        """
        values: dict[str, Any] = {}
        for port, dtype, shape in self._inputs:
            array = inputs.get(port.name)
            if array.__class__ is np.ndarray and array.dtype == dtype and array.shape == shape:
                values[port.key] = array
            elif not port.optional or array is not None:
                values[port.key] = _checked(port, inputs, self.manifest.inputs)
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


class _Compiled:
    """Runs one entry function; what runs need is pooled, so that threads do not wait."""

    def __init__(self, executable: Executable, spec: SegmentSpec) -> None:
        self._executable, self._spec = executable, spec
        self._function: Any = None  # looked up on first use, which is when code is made in memory
        self._constants = runtime.tensor(executable.constants)
        self._pool: list[tuple[Any, dict[str, np.ndarray]]] = []
        self._outputs = []
        for port in spec.outputs:
            dtype, shape = np.dtype(NUMPY_DTYPES[str(port.dtype)]), tuple(port.shape or ())
            sizes = [size for size in shape if isinstance(size, int)]
            self._outputs.append((port.key, dtype, shape, math.prod(sizes) * dtype.itemsize))

    def run(self, values: dict[str, Any]) -> None:
        if self._function is None:
            self._function = self._entry(self._spec.entry)
        self._call(self._function, values)

    def timed(self, values: dict[str, Any], kernels: int) -> list[float]:
        """Runs; returns the microseconds of each of so many kernels."""
        times = aligned(TIMESPEC_BYTES * (kernels + 1))
        self._call(self._entry(self._spec.entry + TIMED), values, runtime.tensor(times))
        seconds, nanoseconds = times.view(np.int64).reshape(-1, 2).T
        return (1e6 * np.diff(seconds) + 1e-3 * np.diff(nanoseconds)).tolist()  # type: ignore[no-any-return]

    def _entry(self, name: str) -> Any:
        triple = self._executable.manifest.triple
        if not runs_here(triple.partition("-")[0]):
            raise CodegenError(f"built for {triple}, this machine is {os.uname().machine}")
        return self._executable.module[name]

    def _call(self, function: Any, values: dict[str, Any], *more: Any) -> None:
        try:
            workspace, copies = self._pool.pop()
        except IndexError:
            workspace = runtime.tensor(aligned(max(self._spec.workspace_bytes, ALIGNMENT)))
            copies = {}
        inputs = [_bytes_of(values[p.key], copies, p.key) for p in self._spec.inputs]
        outputs = []
        for key, dtype, shape, size in self._outputs:
            raw = aligned(max(size, 1))
            values[key] = np.ndarray(shape, dtype, raw)
            outputs.append(runtime.tensor(raw))
        runtime.set_threads(self._executable.manifest.threads)
        function(workspace, self._constants, *inputs, *outputs, *more)
        self._pool.append((workspace, copies))


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


def runs_here(machine: str) -> bool:
    """Whether this machine's processor is of a family, by the first part of its triple."""
    return machine in ("", os.uname().machine)


def aligned(size: int) -> np.ndarray:
    """Fresh bytes that start on a cache line, with readable slack behind them."""
    raw = np.empty(size + ALIGNMENT + SLACK, np.uint8)
    start = -runtime.address(raw) % ALIGNMENT
    return raw[start : start + size]


def _bytes_of(array: np.ndarray, copies: dict[str, np.ndarray], key: str) -> Any:
    """An array as the flat, aligned bytes that entry functions take.

    A copy goes where ``copies`` has one: fresh memory costs more than the copy (600 KB: 105 us, of
    which 40 are page faults).
    """
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if flat.size and flat.flags.writeable and _fits(runtime.address(flat), flat.size):
        return runtime.tensor(flat)
    if key not in copies or copies[key].size < flat.size:
        copies[key] = aligned(max(flat.size, 1))
    copies[key][: flat.size] = flat
    return runtime.tensor(copies[key][: max(flat.size, 1)])


def _fits(address: int, size: int) -> bool:
    """Whether kernels can read foreign memory as it lies: aligned, the slack on its last page."""
    end = address + size
    return address % ALIGNMENT == 0 and (end - 1) // _PAGE == (end + SLACK - 1) // _PAGE


def _checked(port: Port, inputs: Mapping[str, Any], ports: tuple[Port, ...]) -> Any:
    if port.name not in inputs:
        known = ", ".join(str(p) for p in ports)
        raise UsageError(f"input {port.name!r} is missing; the model's inputs: {known}")
    array = inputs[port.name]
    if port.dtype is None and port.shape is None and not isinstance(array, np.ndarray):
        return array  # a sequence or an optional, which only ONNX Runtime looks into
    if not isinstance(array, np.ndarray):
        raise UsageError(
            f"input {port} must be a numpy array, got {type(array).__name__}; use numpy.asarray"
        )
    strings = port.dtype == "string" and array.dtype.kind in "OUS"
    if port.dtype is not None and not strings and array.dtype != NUMPY_DTYPES[port.dtype]:
        raise UsageError(f"input {port} got {array.dtype}; convert it with .astype({port.dtype!r})")
    if port.shape is not None:
        fits = len(array.shape) == len(port.shape) and all(
            not isinstance(want, int) or want == got
            for want, got in zip(port.shape, array.shape, strict=True)
        )
        if not fits:
            got = "x".join(map(str, array.shape))
            raise UsageError(
                f"input {port} got shape {got}; compile for it with --input-shape {port.name}:{got}"
            )
    return array
