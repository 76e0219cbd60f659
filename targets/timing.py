"""What an executable's kernels take: samples of its own timed entries, and what each is for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pwopt.errors import CodegenError, UsageError
from pwopt.ort import QUANTILE

ORT_KERNEL = "onnxruntime"  # stands for all kernels of a segment that ONNX Runtime runs
MIN_SAMPLES, MAX_SAMPLES = 5, 200


@dataclass(frozen=True)
class KernelTiming:
    """One kernel call of an executable, measured in its place among the others.

    Attributes:
        node: that it computes, by the user's names; empty for a copy into an output.
        kernel: its kind, :data:`ORT_KERNEL` for a segment of ONNX Runtime as a whole.
        us: microseconds of the clock on the wall, a low quantile of the samples.
        predicted_us: by the cost model; 0 on calls that only prepare another one.
        macs: multiply-accumulates of the node, all calls together.
        origin: the nodes of the ONNX model that it computes.
    """

    node: str
    kernel: str
    us: float
    predicted_us: float = 0.0
    macs: int = 0
    origin: tuple[str, ...] = ()


class Port(Protocol):
    """An input of an executable."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def shape(self) -> tuple[Any, ...] | None: ...


def random_inputs(ports: Sequence[Port]) -> dict[str, np.ndarray | None]:
    """Seeded random numbers for the inputs of an executable.

    Raises:
        UsageError: a shape is open.
    """
    from pwopt import numerics
    from pwopt.ir.types import TensorType

    types = {p.name: TensorType(p.dtype, p.shape) for p in ports}
    for name, of in types.items():
        if of.static_shape is None or of.dtype is None:
            raise UsageError(f"input {name!r} is {of}: give an array for it")
    return dict(numerics.random_inputs(types, seed=0))


def kernel_counts(report: Mapping[str, Any], segments: int) -> list[int]:
    """The kernel calls in each segment by an executable's report; 0 for ONNX Runtime's.

    Raises:
        CodegenError: the report does not tell.
    """
    counts = [each["kernels"] for each in report.get("segments", ())]
    if len(counts) != segments:
        raise CodegenError(
            "the executable was made by a version of pwopt that could not profile; build it again"
        )
    return counts


def fastest(once: Callable[[], list[float]], seconds: float) -> list[float]:
    """A low quantile of each of the numbers that ``once`` gives, called for so many seconds."""
    once()  # warms up
    start, samples = time.perf_counter(), list[list[float]]()
    while len(samples) < MIN_SAMPLES or (
        len(samples) < MAX_SAMPLES and time.perf_counter() - start < seconds
    ):
        samples.append(once())
    return [float(us) for us in np.quantile(np.array(samples), QUANTILE, axis=0)]


def timings(report: Mapping[str, Any], us: Sequence[float]) -> list[KernelTiming]:
    """The times of all segments beside what an executable's report says of their kernels."""
    kernels, times = iter(report.get("kernels", ())), iter(us)
    found = []
    for segment in report.get("segments", ()):
        for _ in range(segment["kernels"]):
            k = next(kernels)
            origin = tuple(k["origin"])
            found.append(
                KernelTiming(
                    k["node"], k["kernel"], next(times), k["predicted_us"], k["macs"], origin
                )
            )
        if not segment["kernels"]:
            origin = tuple(segment["origin"])
            name = f"{len(origin)} operator{'s' * (len(origin) != 1)} in ONNX Runtime"
            found.append(KernelTiming(name, ORT_KERNEL, next(times), origin=origin))
    return found
