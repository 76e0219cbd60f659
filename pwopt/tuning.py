"""``pwopt tune``: measures schedules of a model's kernels, and records what is faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pwopt import driver, hardware, sources
from pwopt.errors import UsageError
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.precision import Precision

if TYPE_CHECKING:
    from pwopt.targets.tuner import Job, Machine, Tuned


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Machines behind TVM's RPC tracker.

    Attributes:
        tracker: HOST:PORT.
        key: that the machines registered with.
        machine: what they are; GPUs say it themselves.
    """

    tracker: str
    key: str
    machine: Hardware | None = None


def tune(
    model: sources.Model,
    seconds: float = 60.0,
    threads: int = 1,
    *,
    database: Path | None = None,
    fleet: Fleet | None = None,
    input_shapes: sources.Shapes | None = None,
    progress: sources.Progress | None = None,
    precision: str | None = None,
    fc_weights: str = "fp32",
    export: Path | None = None,
    target: str = "cpu",
    arch: str | None = None,
) -> Tuned:
    """Measures schedules of a model's kernels and records them in the tuning database.

    What is in the database already is not measured again, so an interrupted run goes on where it
    was. :func:`pwopt.compile` reads the same database.

    Args:
        model: as for :func:`pwopt.optimize`; a :class:`Graph` is taken as it is.
        seconds: to spend; the batch that runs out of them is still finished.
        threads: of one inference.
        database: a file; ``PWOPT_DATABASE`` or one in the user's cache folder if left out.
        fleet: machines to measure on; this one if left out.
        input_shapes: sizes for open dimensions, by input name.
        progress: called with a few words at the start of each step.
        precision: of the kernels, the target's default if left out: a schedule holds for the
            formats that it was measured with.
        fc_weights: likewise.
        export: a file of schedules such as pwopt ships. What is 2 % faster, and once more when it
            is measured again, is written there.
        target: "cpu", or "cuda" for the GPU here or those of the fleet.
        arch: of the code for a GPU, the best that it runs if left out.

    Raises:
        UsageError: no time, an unknown format, open dimensions, or a fleet and a file, or an
            option of the other target.
        CodegenError: a node has no kernel of ours.
        TuningError: the database or the fleet cannot be used.
    """
    if seconds <= 0 or threads < 1:
        raise UsageError(f"{seconds:g} seconds, {threads} threads: both must be positive")
    if export and fleet:
        raise UsageError("--export measures on this machine; leave out --tracker")
    hardware.check_target(target)
    formats = Precision.of(target, precision, fc_weights)
    if target == "cuda" and export:
        raise UsageError("--export: only --target cpu has it")
    if target == "cpu" and arch:
        raise UsageError(f"--arch {arch}: only --target cuda has it")
    from pwopt.targets import tuner
    from pwopt.targets.database import TuningDatabase, default_path

    step = progress or (lambda _: None)
    machine = (fleet.machine if fleet else None) or hardware.host()
    graph, _ = sources.read(model, input_shapes)
    if not isinstance(model, Graph):
        step("optimizing")
        graph = driver.optimize(
            graph,
            target,
            verify=False,
            hardware=machine,
            precision=formats.compute,
            fc_weights=fc_weights,
        ).graph
    known = TuningDatabase(database or default_path())
    if target == "cuda":
        job, machines = _gpus(graph, formats, fleet, arch)
    else:
        job, machines = _cpus(graph, formats, fleet, machine, threads)
    tuned = tuner.tune(job, known, seconds, machines, step)
    if export:
        from pwopt.targets.cpu.shipping import write_schedules

        step("measuring the best again")
        write_schedules(graph, machine, threads, known, export, formats)
    return tuned


def _cpus(
    graph: Graph, formats: Precision, fleet: Fleet | None, machine: Hardware, threads: int
) -> tuple[Job, Sequence[Machine]]:
    from pwopt.targets.cpu.fleet import machines
    from pwopt.targets.cpu.profile import TimedPlan
    from pwopt.targets.cpu.tuner import job

    found = machines(fleet.tracker, fleet.key) if fleet else [TimedPlan]
    return job(graph, machine, threads, formats), found


def _gpus(
    graph: Graph, formats: Precision, fleet: Fleet | None, arch: str | None
) -> tuple[Job, Sequence[Machine]]:
    from pwopt.targets.cuda import device
    from pwopt.targets.cuda.fleet import gpus
    from pwopt.targets.cuda.measure import local
    from pwopt.targets.cuda.toolchain import find_compiler
    from pwopt.targets.cuda.tuner import arch_for, job

    find_compiler()  # before the work, if there is none
    machines: Sequence[Machine]
    if fleet:
        name, capability, machines = gpus(fleet.tracker, fleet.key)
    else:
        gpu = device.current()
        name, capability, machines = gpu.name, gpu.capability, [local]
    return job(graph, name, arch_for(name, capability, arch), formats.compute), machines
