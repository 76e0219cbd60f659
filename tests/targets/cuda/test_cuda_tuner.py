"""The tuner on GPUs: here, after a kill, and behind TVM's RPC tracker; the driver is emulated."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import pwopt
from pwopt import cli
from pwopt.errors import CodegenError, TuningError, UsageError
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.targets import tuner
from pwopt.targets.cuda import device, fleet
from pwopt.targets.cuda.arch import arch
from pwopt.targets.cuda.schedules import machine_key, tuned
from pwopt.targets.cuda.tuner import arch_for, job, lower_half
from pwopt.targets.database import Measurement, TuningDatabase
from pwopt.targets.schedules import Schedules
from tests.targets.cuda.driver import ROOT, check, environment
from tests.targets.cuda.driver.compiler import EmptyKernels
from tests.targets.fleet_helpers import KEY, Fleet

SERVER = "pwopt.targets.cuda.server"


@pytest.fixture
def graph() -> Graph:
    return pwopt.optimize(blocks.bottleneck(size=12), verify=False).graph


@pytest.mark.parametrize(
    "name",
    [
        "finds_the_fastest",
        "time_is_kept",
        "command_line",
        "broken_candidates",
        "untuned_kernels_that_break",
        "a_process_that_hangs_or_ends",
    ],
)
def test_with_the_emulated_driver(name: str, emulated_driver: Path, tmp_path: Path) -> None:
    tune(name, emulated_driver, tmp_path)


def test_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> device.CudaDevice:
        raise CodegenError("no NVIDIA driver was found")

    monkeypatch.setattr(device, "current", none)
    model = str(ROOT / "models" / "data" / "mnist-conv.onnx")
    for command in (["tune", model], ["optimize", model, "-o", str(tmp_path / "o"), "--tune", "5"]):
        assert cli.run([*command, "--target", "cuda", "-q"]) == 1
        assert capsys.readouterr().err == "pwopt: no NVIDIA driver was found\n"


def test_goes_on_after_a_kill(emulated_driver: Path, tmp_path: Path) -> None:
    tune("is_killed", emulated_driver, tmp_path, -signal.SIGKILL)
    tune("goes_on", emulated_driver, tmp_path)


def tune(name: str, driver: Path, cache: Path, code: int = 0) -> None:
    check(name, driver, script="tuning_checks", code=code, XDG_CACHE_HOME=str(cache))


# TVM's client leaves sockets open where a server is lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", [0, 1])
def test_one_of_two_gpu_servers_is_killed(
    emulated_driver: Path,
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: int,
) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 7)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    database, said = TuningDatabase(tmp_path / "tuning.sqlite"), list[str]()
    with Fleet(SERVER, environment(emulated_driver)) as servers:
        for _ in range(2):
            servers.add_server()
        servers.wait_for(2)
        name, capability, machines = fleet.gpus(servers.tracker, KEY, EmptyKernels())
        assert (name, capability, len(machines)) == ("Emulated GPU", (9, 0), 2)

        def kill_one(text: str) -> None:
            said.append(text)
            if len(said) == 2:
                servers.kill(servers.servers[lost])

        made = job(graph, name, arch_for(name, capability), "fp16")
        found = tuner.tune(made, database, 1e6, machines, kill_one)
    assert found.finished
    assert found.tuned_us <= found.untuned_us
    search = tuner.Search(database.measured(made.key))
    made.trace(search)
    assert search.left == 0  # what the lost server was given was measured by the other one


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_servers_without_a_gpu(emulated_driver: Path) -> None:
    around = environment(emulated_driver) | {"EMULATED_NO_GPU": "1"}
    with Fleet(SERVER, around) as servers:
        servers.add_server()
        servers.wait_for(1)
        with pytest.raises(TuningError, match="finds no GPU that it can use"):
            fleet.gpus(servers.tracker, KEY)
        with pytest.raises(TuningError, match=f"under 'phones'; .* `python -m {SERVER}"):
            fleet.gpus(servers.tracker, "phones")


@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
def test_the_text_of_a_schedule_brings_it_back(name: str, graph: Graph) -> None:
    made, search = job(graph, "H200", arch(name), "fp16"), tuner.Search({})
    plain = made.trace(search)
    every = {kernel: list(texts) for kernel, texts in search.candidates.items()}
    for kernel, texts in every.items():
        assert len(set(texts)) == len(texts)
        keys = {step.key for step in plain.plan.steps}
        for text in texts:
            steps = made.trace(Schedules({kernel: text})).plan.steps
            assert any(step.key not in keys for step in steps), text


def test_schedules_of_the_gpu_before_those_of_its_relatives(tmp_path: Path) -> None:
    database, hopper = TuningDatabase(tmp_path / "tuning.sqlite"), arch("sm_90a")

    def record(gpu: str, name: str, *rows: tuple[str, str, float]) -> None:
        key = machine_key(gpu, arch(name))
        database.record(key, [Measurement(k, s, ratio, 1.0) for k, s, ratio in rows])

    record("NVIDIA H200", "sm_90a", ("a", "1", 0.9), ("b", "1", 1.2))
    record("NVIDIA H100 PCIe", "sm_90a", ("a", "2", 0.5), ("b", "1", 0.7), ("c", "3", 0.8))
    record("NVIDIA A100", "sm_80", ("d", "4", 0.5))
    assert tuned(database, hopper, "NVIDIA H200") == {"a": "1", "c": "3"}
    assert tuned(database, hopper, "NVIDIA H100 PCIe") == {"a": "2", "b": "1", "c": "3"}
    assert tuned(database, hopper, None).keys() == {"a", "b", "c"}
    assert tuned(database, arch("sm_86"), None) == {}


def test_architectures_that_a_gpu_runs() -> None:
    assert arch_for("GPU", (8, 6)).name == "sm_86"
    assert arch_for("GPU", (8, 6), "sm_80").name == "sm_80"
    with pytest.raises(TuningError, match=r"capability 8\.6\) runs no code for sm_90a"):
        arch_for("GPU", (8, 6), "sm_90a")
    with pytest.raises(TuningError, match=r"compute capability 7\.5\) runs no code of ours"):
        arch_for("GPU", (7, 5))
    with pytest.raises(UsageError, match="unknown architecture"):
        arch_for("GPU", (9, 0), "sm_901")


def test_coarse_events_are_told_apart_by_means() -> None:
    ticks = [[5.0, 6.0]] * 3 + [[6.0, 6.0]] + [[50.0, 60.0]] * 4
    assert lower_half(ticks) == [5.25, 6.0]
