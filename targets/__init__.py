"""Targets: from an optimized graph to an executable."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ != "pwopt.targets":
    raise ImportError("import pwopt.targets; the folder `targets` is a part of the package pwopt")

# TVM reads these when its thread pool starts, which is after any module here is imported.
os.environ.setdefault("TVM_BIND_THREADS", "0")  # or it pins the main thread to core 0
os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))  # or it takes half of them

if TYPE_CHECKING:
    from pwopt.hardware import Hardware
    from pwopt.ir.graph import Graph
    from pwopt.precision import Precision
    from pwopt.targets.executable import Executable


def compile_graph(
    graph: Graph,
    target: str,
    hardware: Hardware,
    threads: int = 1,
    *,
    metadata: Mapping[str, Any] | None = None,
    winograd: str = "auto",
    precision: Precision | None = None,
    database: Path | None = None,
    max_size_growth: float = math.inf,
    arch: str | None = None,
) -> Executable:
    """Compiles a graph for a target.

    Args:
        graph: not changed.
        target: "cpu" or "cuda".
        hardware: the processor to generate code for, of the former.
        threads: of one run.
        metadata: stored in the executable.
        winograd: the tiles that convolutions may use: "off", "f2" or "auto".
        precision: number formats, float32 if left out.
        max_size_growth: of packed weights over the graph's constants, by Winograd's algorithm.
        database: of tuned schedules; the default one if left out.
        arch: of GPUs, several separated by commas; that of the GPU here if left out.

    Raises:
        UsageError: an unknown target or architecture.
        CodegenError: there is no compiler for CUDA.
        TuningError: the database cannot be read.
    """
    from pwopt.errors import UsageError
    from pwopt.precision import Precision

    if target == "cuda":
        return _compile_cuda(graph, arch, precision, dict(metadata or {}), database)
    from pwopt.targets.cpu.compile import compile_graph as compile_cpu
    from pwopt.targets.cpu.schedules import machine_key, shipped
    from pwopt.targets.database import TuningDatabase, default_path
    from pwopt.targets.schedules import Schedules

    if target != "cpu":
        raise UsageError(f"no target {target!r}; there are cpu and cuda")
    machine = machine_key(hardware)
    own = TuningDatabase(database or default_path())
    known = own.measured(machine)  # here, which says more than what came with pwopt
    tuned = {k: s for k, s in shipped(hardware).items() if s not in known.get(k, ())}
    tuned |= own.best(machine)
    return compile_cpu(
        graph,
        hardware,
        threads,
        dict(metadata or {}),
        Schedules(tuned),
        winograd=winograd,
        precision=precision or Precision(),
        max_growth=max_size_growth,
    )


def _compile_cuda(
    graph: Graph,
    arch: str | None,
    precision: Precision | None,
    metadata: dict[str, Any],
    database: Path | None,
) -> Executable:
    from pwopt.precision import Precision
    from pwopt.targets.cuda.arch import archs
    from pwopt.targets.cuda.arch import gpu as known_gpu
    from pwopt.targets.cuda.compile import compile_graph
    from pwopt.targets.cuda.device import name_of_gpu, usual_arch
    from pwopt.targets.cuda.schedules import tuned
    from pwopt.targets.database import TuningDatabase, default_path
    from pwopt.targets.schedules import Schedules

    if arch is None:
        arch, remark = usual_arch()
        metadata |= {"arch_remark": remark} if remark else {}
    formats = precision or Precision.of("cuda")
    known, gpu, wanted = TuningDatabase(database or default_path()), name_of_gpu(), archs(arch)
    schedules = {each.name: Schedules(tuned(known, each, gpu)) for each in wanted}
    here = known_gpu(gpu) if gpu else None
    return compile_graph(graph, wanted, formats.compute, metadata, schedules=schedules, gpu=here)
