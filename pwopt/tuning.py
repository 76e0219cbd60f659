"""``pwopt tune``: measures schedules of a model's kernels, and records what is faster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pwopt import driver, hardware
from pwopt.errors import UsageError
from pwopt.hardware import Hardware
from pwopt.precision import Precision

if TYPE_CHECKING:
    from pwopt.targets.tuner import Tuned


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Machines behind TVM's RPC tracker.

    Attributes:
        tracker: HOST:PORT.
        key: that the machines registered with.
        machine: what they are.
    """

    tracker: str
    key: str
    machine: Hardware


def tune(
    model: driver.Model,
    seconds: float = 60.0,
    threads: int = 1,
    *,
    database: Path | None = None,
    fleet: Fleet | None = None,
    input_shapes: driver.Shapes | None = None,
    progress: driver.Progress | None = None,
    precision: str = "fp32",
    fc_weights: str = "fp32",
    export: Path | None = None,
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
        precision: of the kernels: a schedule holds for the formats that it was measured with.
        fc_weights: likewise.
        export: a file of schedules such as pwopt ships. What is 2 % faster, and once more when it
            is measured again, is written there.

    Raises:
        UsageError: no time, an unknown format, open dimensions, or a fleet and a file.
        CodegenError: a node has no kernel of ours.
        TuningError: the database or the fleet cannot be used.
    """
    if seconds <= 0 or threads < 1:
        raise UsageError(f"{seconds:g} seconds, {threads} threads: both must be positive")
    if export and fleet:
        raise UsageError("--export measures on this machine; leave out --tracker")
    formats = Precision.of("cpu", precision, fc_weights)
    from pwopt.targets import tuner
    from pwopt.targets.cpu.fleet import machines
    from pwopt.targets.cpu.profile import TimedPlan
    from pwopt.targets.cpu.shipping import write_schedules
    from pwopt.targets.cpu.tuner import job
    from pwopt.targets.database import TuningDatabase, default_path

    step = progress or (lambda _: None)
    machine = fleet.machine if fleet else hardware.host()
    graph, _ = driver.read(model, input_shapes)
    if graph is not model:
        step("optimizing")
        graph = driver.optimize(
            graph, verify=False, hardware=machine, precision=precision, fc_weights=fc_weights
        ).graph
    known = TuningDatabase(database or default_path())
    tuned = tuner.tune(
        job(graph, machine, threads, formats),
        known,
        seconds,
        machines(fleet.tracker, fleet.key) if fleet else (TimedPlan,),
        step,
    )
    if export:
        step("measuring the best again")
        write_schedules(graph, machine, threads, known, export, formats)
    return tuned
