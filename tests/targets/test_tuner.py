"""The tuner: every schedule that it may try is right, and nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pwopt
from pwopt import hardware, numerics
from pwopt.frontend.reference import ReferenceModel
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.models.suite import SUITE
from pwopt.precision import Precision
from pwopt.targets import tuner
from pwopt.targets.cpu.compile import compile_graph
from pwopt.targets.cpu.profile import TimedPlan, traced
from pwopt.targets.cpu.schedules import machine_key, shipped
from pwopt.targets.cpu.tuner import job
from pwopt.targets.database import Measurement, TuningDatabase
from pwopt.targets.schedules import Schedules

HOST = hardware.host()
BLOCKS = ("bottleneck", "inverted_residual", "fc_head")


def optimized(name: str, size: int = 12) -> Graph:
    return pwopt.optimize(blocks.BLOCKS[name](size=size), verify=False).graph


def tune(
    graph: Graph,
    database: TuningDatabase,
    seconds: float = 1e6,
    progress: Callable[[str], None] = lambda _: None,
) -> tuner.Tuned:
    return tuner.tune(job(graph, HOST), database, seconds, [TimedPlan], progress)


@pytest.fixture
def database(tmp_path: Path) -> TuningDatabase:
    return TuningDatabase(tmp_path / "tuning.sqlite")


@pytest.mark.parametrize("name", BLOCKS)
def test_every_candidate_is_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 14)
    graph = optimized(name)
    feeds = {"input": np.random.default_rng(0).standard_normal((1, *_shape(graph)), np.float32)}
    want = ReferenceModel(graph).run(feeds)
    search = tuner.Search({})
    traced(graph, HOST, 1, search)
    assert search.candidates
    while search.left:
        executable = compile_graph(graph, HOST, schedules=search.next())
        found = numerics.differences(want, executable.run(feeds))
        assert all(d.ok for d in found), found


@pytest.mark.skipif(not HOST.bf16, reason="this processor has no AVX512-BF16")
def test_every_candidate_of_bf16_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 14)
    source, bf16 = blocks.BLOCKS["bottleneck"](size=12), Precision("bf16")
    graph = pwopt.optimize(source, verify=False, precision="bf16").graph
    feeds = {"input": np.random.default_rng(0).standard_normal((1, *_shape(graph)), np.float32)}
    (want,) = ReferenceModel(graph).run(feeds).values()
    search = tuner.Search({})
    kernels = [k for k in traced(graph, HOST, 1, search, bf16).kernels if k]
    assert all("pair32" in kernel for kernel in kernels)
    while search.left:
        made = compile_graph(graph, HOST, schedules=search.next(), precision=bf16)
        (got,) = made.run(feeds).values()
        assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 1e-2


def test_measures_each_schedule_once(
    database: TuningDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 3)
    graph = optimized("bottleneck")
    first = tune(graph, database)
    assert first.finished
    assert first.measured > first.kernels > 0
    known = database.measured(machine_key(HOST))
    assert known.keys() == {k for k in traced(graph, HOST).kernels if k}
    assert all(len(schedules) <= 3 for schedules in known.values())
    again = tune(graph, database)
    assert again.measured == 0
    assert again.finished


def test_goes_on_where_it_was_stopped(
    database: TuningDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 6)
    graph = optimized("bottleneck")

    def stop(text: str) -> None:
        if database.measured(machine_key(HOST)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(graph, database, progress=stop)
    before = sum(map(len, database.measured(machine_key(HOST)).values()))
    rest = tune(graph, database)
    after = sum(map(len, database.measured(machine_key(HOST)).values()))
    assert before > 0
    assert rest.measured > 0
    assert after >= before + rest.measured


def test_no_time_no_measurement(database: TuningDatabase) -> None:
    assert tune(optimized("bottleneck"), database, 0.0).measured == 0


def test_a_database_decides_the_build(database: TuningDatabase) -> None:
    graph = optimized("bottleneck")
    search = tuner.Search({})
    traced(graph, HOST, 1, search)
    rows = [Measurement(k, texts[0], 0.5, 1.0) for k, texts in search.candidates.items()]
    plain = compile_graph(graph, HOST).module.inspect_source("asm")
    database.record(machine_key(HOST), rows)
    best = database.best(machine_key(HOST))
    builds = [compile_graph(graph, HOST, schedules=Schedules(best)) for _ in range(2)]
    texts = [b.module.inspect_source("asm") for b in builds]
    assert texts[0] == texts[1] != plain


def test_schedules_that_are_gone_are_ignored() -> None:
    graph = optimized("bottleneck")
    gone = Schedules(dict.fromkeys(traced(graph, HOST).kernels, "99x9 sideways"))
    plain, other = (compile_graph(graph, HOST, schedules=s) for s in (Schedules(), gone))
    assert plain.module.inspect_source("asm") == other.module.inspect_source("asm")


def test_schedules_are_shipped_for_a_family_of_processors() -> None:
    cloud = replace(hardware.ZEN4, mcpu="x86-64-v4", l3_bytes=96 << 20)
    assert shipped(cloud) == shipped(hardware.ZEN4) != {}
    assert shipped(replace(hardware.ZEN4, l2_bytes=512 << 10)) == {}
    assert shipped(hardware.NEON) == {}


def test_shipped_schedules_are_those_of_todays_kernels() -> None:
    machine, chosen = hardware.ZEN4, dict[str, str]()

    class Chosen(Schedules):
        def choose(self, kernel: str, *ways: Any) -> Any:
            found = super().choose(kernel, *ways)
            chosen[kernel] = str(found)
            return found

    tuned = shipped(machine)
    graph = pwopt.optimize(SUITE["squeezenet"].build(), verify=False, hardware=machine).graph
    traced(graph, machine, 1, Chosen(tuned))
    used = tuned.keys() & chosen.keys()
    assert len(used) >= 2
    assert {k: chosen[k] for k in used} == {k: tuned[k] for k in used}


def _shape(graph: Graph) -> tuple[int, ...]:
    shape = graph.inputs[0].out.shape
    assert shape is not None
    return shape[1:]
