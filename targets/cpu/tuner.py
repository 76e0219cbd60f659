"""What the tuner needs to know of the CPU."""

from __future__ import annotations

from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.precision import Precision
from pwopt.targets.cpu.profile import traced
from pwopt.targets.cpu.schedules import machine_key
from pwopt.targets.tuner import Job


def job(
    graph: Graph,
    hardware: Hardware,
    threads: int = 1,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> Job:
    """A graph to tune for a processor; :class:`~.profile.TimedPlan` measures on this machine.

    Args:
        graph: optimized, of static shapes; not changed.
        hardware: of the machines.
        threads: of one inference.
        precision: number formats of the kernels, which are part of their names in the database.
    """
    return Job(
        machine_key(hardware),
        lambda schedules: traced(graph, hardware, threads, schedules, precision),
    )
