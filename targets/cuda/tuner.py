"""What the tuner needs to know of GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pwopt.errors import TuningError
from pwopt.ir.graph import Graph
from pwopt.targets.cuda.arch import Arch, native
from pwopt.targets.cuda.arch import arch as arch_of
from pwopt.targets.cuda.arch import gpu as known_gpu
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.cuda.rules import RULES
from pwopt.targets.cuda.schedules import machine_key
from pwopt.targets.schedules import Schedules
from pwopt.targets.tracing import Tracing
from pwopt.targets.tuner import Job


class TracedCuda(Tracing, CudaLowering):
    """Lowering for CUDA that remembers what each step is for."""


def job(graph: Graph, gpu: str, arch: Arch, precision: str) -> Job:
    """A graph to tune for a GPU; :class:`~.measure.TimedLaunches` measures.

    Args:
        graph: optimized, of static shapes; not changed.
        gpu: the driver's name of it.
        arch: to generate code for.
        precision: of products: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
    """

    def trace(schedules: Schedules) -> TracedCuda:
        lowering = TracedCuda(graph, arch, precision, schedules, known_gpu(gpu))
        lowering.run_whole(RULES)
        return lowering

    # An inference takes little time, and a GPU's clock of events is coarse.
    return Job(machine_key(gpu, arch), trace, lower_half, rounds=40, confirm_rounds=100)


def lower_half(samples: Sequence[Sequence[float]]) -> list[float]:
    """The mean of the faster half of the samples of each step.

    Events tick at up to a microsecond: means tell times apart that quantiles do not.
    """
    rising = np.sort(np.array(samples), axis=0)
    return [float(t) for t in rising[: -(-len(rising) // 2)].mean(axis=0)]


def arch_for(gpu: str, capability: tuple[int, int], wanted: str | None = None) -> Arch:
    """The architecture to tune for on a GPU.

    Args:
        gpu: the driver's name of it.
        capability: compute capability.
        wanted: the name of one, the best if left out.

    Raises:
        UsageError: an unknown architecture.
        TuningError: the GPU runs no code of ours, or not that one.
    """
    name = wanted or native(capability)
    if name is None or not arch_of(name).runs_on(capability):
        version = ".".join(map(str, capability))
        what = f"no code for {wanted}" if wanted else "no code of ours"
        raise TuningError(f"{gpu} (compute capability {version}) runs {what}")
    return arch_of(name)
