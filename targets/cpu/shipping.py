"""The tuned schedules that come with pwopt: made from a tuning database, for a processor family."""

from __future__ import annotations

import json
from pathlib import Path

from pwopt.errors import TuningError
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.precision import Precision
from pwopt.targets.cpu.profile import TimedPlan
from pwopt.targets.cpu.schedules import family_key
from pwopt.targets.cpu.tuner import job
from pwopt.targets.database import TuningDatabase
from pwopt.targets.tuner import confirm

GAIN = 0.98  # of the untuned time, in each of two measurements, is the most that is shipped


def write_schedules(
    graph: Graph,
    hardware: Hardware,
    threads: int,
    database: TuningDatabase,
    path: Path,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> int:
    """Measures the best schedules of a graph's kernels once more; writes those that gain in both.

    What the file holds of other kernels and families stays; of these kernels, what does not gain
    any more goes.

    Args:
        graph: optimized, of static shapes; not changed.
        hardware: this machine.
        threads: of one inference.
        database: takes the new measurements.
        path: JSON, as ``targets/schedules.json``; made where there is none.
        precision: number formats of the kernels.

    Returns:
        How many schedules of the graph's kernels the file holds now.

    Raises:
        CodegenError: a node has no kernel of ours.
        TuningError: the database or the file cannot be used.
    """
    wanted, family = job(graph, hardware, threads, precision), family_key(hardware)
    measured = confirm(wanted, database.best(wanted.key, GAIN), TimedPlan).measurements
    database.record(wanted.key, measured)
    kept = {m.kernel: m.schedule for m in measured if m.ratio < GAIN}
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
        gone = {m.kernel for m in measured}
        others = {k: s for k, s in known.get(family, {}).items() if k not in gone}
        path.write_text(json.dumps({**known, family: others | kept}, indent=1, sort_keys=True))
    except (OSError, ValueError, AttributeError) as error:
        raise TuningError(f"{path}: no file of schedules: {error}") from error
    return len(kept)
