"""What is checked of tuning with the emulated driver, whose kernels take a microsecond a block."""

from __future__ import annotations

import functools
import math
import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

import pwopt
from pwopt import cli
from pwopt.errors import CodegenError
from pwopt.models import blocks
from pwopt.targets import tuner
from pwopt.targets.cuda import toolchain, worker
from pwopt.targets.cuda.arch import arch
from pwopt.targets.cuda.device import current
from pwopt.targets.cuda.measure import TimedLaunches, _worker, here
from pwopt.targets.cuda.module import generate
from pwopt.targets.cuda.tuner import arch_for, job
from pwopt.targets.database import TuningDatabase
from pwopt.targets.launches import Launch
from pwopt.targets.plan import assign_offsets, pack_constants
from pwopt.targets.schedules import Schedules
from tests.targets.cuda.driver import ROOT
from tests.targets.cuda.driver.compiler import EmptyKernels

tuner.MAX_CANDIDATES = 8
GRAPH = pwopt.optimize(blocks.bottleneck(size=12), verify=False).graph
MACHINES: list[tuner.Machine] = [functools.partial(TimedLaunches, here, compiler=EmptyKernels())]


def wanted(name: str, precision: str = "fp16") -> tuner.Job:
    gpu = current()
    assert arch_for(gpu.name, gpu.capability).name == "sm_90a"
    return job(GRAPH, gpu.name, arch(name), precision)


def launches_of(made: tuner.Job, schedules: dict[str, str]) -> tuple[Launch, ...]:
    plan = made.trace(Schedules(schedules)).plan
    assign_offsets(plan)
    pack_constants([plan])
    (launches,) = generate([plan], made.key.split()[-3]).launches
    return launches.launches


def thread_blocks(made: tuner.Job, schedules: dict[str, str]) -> int:
    return sum(math.prod(each.grid) for each in launches_of(made, schedules))


def check_finds_the_fastest(folder: Path) -> None:
    for name in ("sm_90", "sm_90a"):
        made, database = wanted(name), TuningDatabase(folder / f"{name}.sqlite")
        found = tuner.tune(made, database, 1e6, MACHINES)
        assert found.finished
        assert found.measured > found.kernels == 3
        best = database.best(made.key)
        assert found.faster == len(best) > 0
        assert round(found.untuned_us) == thread_blocks(made, {})
        assert round(found.tuned_us) == thread_blocks(made, best)
        assert found.tuned_us < found.untuned_us
        every = {text for texts in database.measured(made.key).values() for text in texts}
        assert any("wgmma" in text for text in every) == (name == "sm_90a")
        assert tuner.tune(made, database, 1e6, MACHINES).measured == 0


def check_broken_candidates(folder: Path) -> None:
    """Those that break the context are found and noted; the others are measured."""
    made, database = wanted("sm_90"), TuningDatabase(folder / "broken.sqlite")
    most = max(each.shared_bytes for each in launches_of(made, {}))
    os.environ["EMULATED_FAULT"] = str(most)
    found = tuner.tune(made, database, 1e6, MACHINES)
    assert found.finished
    with sqlite3.connect(database.path) as rows:
        ratios = rows.execute("SELECT kernel, schedule, ratio FROM measurement").fetchall()
    rows.close()
    broken = {
        (k, s)
        for k, s, _ in ratios
        if any(x.shared_bytes > most for x in launches_of(made, {k: s}))
    }
    assert {(k, s) for k, s, ratio in ratios if ratio == math.inf} == broken
    assert 0 < len(broken) < len(ratios)
    assert not broken & database.best(made.key).items()
    assert tuner.tune(made, database, 1e6, MACHINES).measured == 0


def check_untuned_kernels_that_break(folder: Path) -> None:
    os.environ["EMULATED_FAULT"] = "0"
    database = TuningDatabase(folder / "none.sqlite")
    with pytest.raises(CodegenError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        tuner.tune(wanted("sm_90"), database, 1e6, MACHINES)
    assert not database.machines()


def check_a_process_that_hangs_or_ends(folder: Path) -> None:
    worker._SECONDS = 3.0

    def loaded() -> tuner.Timed:
        _worker.cache_clear()  # the next one starts a process, with the environment as it is now
        return MACHINES[0](wanted("sm_90").trace(Schedules()))

    usual = loaded().run()
    for cause, message in (
        ("EMULATED_HANG", "did not answer within 3 s"),
        ("EMULATED_ABORT", "the process that drives the GPU has ended"),
    ):
        os.environ[cause] = "0"
        timed = loaded()
        del os.environ[cause]
        with pytest.raises(CodegenError, match=message):
            timed.run()
        assert timed.run() == usual


def check_is_killed(folder: Path) -> None:
    def kill(text: str) -> None:
        if not text.startswith("tuning: 0 "):
            os.kill(os.getpid(), signal.SIGKILL)

    database = TuningDatabase(folder / "killed.sqlite")
    tuner.tune(wanted("sm_90"), database, 1e6, MACHINES, kill)


def check_goes_on(folder: Path) -> None:
    made, database = wanted("sm_90"), TuningDatabase(folder / "killed.sqlite")
    before = sum(map(len, database.measured(made.key).values()))
    found = tuner.tune(made, database, 1e6, MACHINES)
    search = tuner.Search({})
    made.trace(search)
    assert before > 0
    assert found.finished
    assert before + found.measured == sum(map(len, search.candidates.values()))


def check_time_is_kept(folder: Path) -> None:
    database = TuningDatabase(folder / "none.sqlite")
    assert tuner.tune(wanted("sm_90"), database, 0.0, MACHINES).measured == 0


def check_command_line(folder: Path) -> None:
    toolchain.find_compiler = EmptyKernels
    tuner.MAX_CANDIDATES = 4
    model, database = ROOT / "models" / "data" / "mnist-conv.onnx", folder / "command.sqlite"
    arguments = ["--target", "cuda", "--database", str(database), "-q"]
    assert cli.run(["tune", str(model), "--seconds", "1000", "--json", *arguments]) == 0
    folders = [folder / "tuned", folder / "untuned"]
    tuned = ["optimize", str(model), *arguments, "--tune", "1000", "--no-verify"]
    assert cli.run([*tuned, "-o", str(folders[0])]) == 0
    made = [pwopt.load_executable(folders[0] / "model.so"), pwopt.compile(model, "cuda")]
    grids = [
        [each.grid for s in m.manifest.segments for each in s.launches["sm_90a"].launches]
        for m in made
    ]
    assert grids[0] != grids[1]


if __name__ == "__main__":
    globals()[f"check_{sys.argv[1]}"](Path(sys.argv[2]))
