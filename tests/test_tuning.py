"""pwopt tune: from Python and from the command line, and what compile makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pwopt
from pwopt import cli, hardware
from pwopt.errors import TuningError, UsageError
from pwopt.models import blocks
from pwopt.targets.cpu import tuner
from pwopt.targets.cpu.schedules import machine_key
from pwopt.targets.database import Measurement, TuningDatabase

MODEL = Path(__file__).parents[1] / "models" / "data" / "mnist-conv.onnx"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 2)


@pytest.mark.usefixtures("few")
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "tuning.sqlite"
    arguments = ["tune", str(MODEL), "--database", str(database), "--json", "--seconds", "1000"]
    assert cli.run(arguments) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["finished"]
    assert found["measured"] > 0
    assert "tuning: 0 of" in said.err
    assert cli.run([*arguments, "--quiet"]) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["measured"] == 0
    assert again.err == ""


@pytest.mark.usefixtures("few")
def test_the_database_of_the_environment_or_the_one_named(tmp_path: Path) -> None:
    graph = pwopt.optimize(blocks.pointwise(16, 48, 9), verify=False).graph
    database = tmp_path / "tuning.sqlite"
    assert pwopt.tune(graph, 1000, database=database).finished
    machine = machine_key(hardware.host())
    (kernel,) = TuningDatabase(database).measured(machine)
    slow = sorted(TuningDatabase(database).measured(machine)[kernel])[0]
    TuningDatabase(database).record(machine, [Measurement(kernel, slow, 0.1, 1.0)])
    plain, tuned = (pwopt.compile(graph, database=d) for d in (None, database))
    assert plain.module.inspect_source("asm") != tuned.module.inspect_source("asm")


@pytest.mark.usefixtures("few")
def test_optimize_tunes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, folder = tmp_path / "tuning.sqlite", tmp_path / "out"
    arguments = ["optimize", str(MODEL), "-o", str(folder), "--database", str(database)]
    assert cli.run([*arguments, "--tune", "1000"]) == 0
    assert "tuning: 0 of 2" in capsys.readouterr().err
    assert TuningDatabase(database).measured(machine_key(hardware.host()))
    assert (folder / "model.so").is_file()


@pytest.mark.skipif(not hardware.host().bf16, reason="this processor has no AVX512-BF16")
@pytest.mark.usefixtures("few")
def test_bf16_has_kernels_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, flags = tmp_path / "tuning.sqlite", ["--precision", "bf16"]
    arguments = ["tune", str(MODEL), "--database", str(database), "--seconds", "1000", "--json"]
    assert cli.run(arguments) == 0
    machine = machine_key(hardware.host())
    plain = set(TuningDatabase(database).measured(machine))
    assert cli.run([*arguments, *flags]) == 0
    added = set(TuningDatabase(database).measured(machine)) - plain
    assert added
    assert all("pair" in kernel for kernel in added)
    capsys.readouterr()
    folder = tmp_path / "out"
    arguments = ["optimize", str(MODEL), "-o", str(folder), "--database", str(database)]
    assert cli.run([*arguments, "--tune", "1000", *flags]) == 0
    assert "tuning: 0 of" not in capsys.readouterr().err  # nothing is left to measure
    assert (folder / "model.so").is_file()


@pytest.mark.parametrize("flags", [["--mcpu", "x86-64-v3"], ["--no-compile"]])
def test_what_cannot_be_tuned(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["optimize", str(MODEL), "-o", str(tmp_path / "out"), "--tune", "5", *flags]
    assert cli.run(arguments) == 2
    assert capsys.readouterr().err.startswith("pwopt: --tune measures")


def test_unusable_files_and_times(tmp_path: Path) -> None:
    (tmp_path / "no.sqlite").write_text("no database at all " * 40)
    with pytest.raises(TuningError, match=r"no\.sqlite: no usable tuning database"):
        pwopt.compile(MODEL, database=tmp_path / "no.sqlite")
    with pytest.raises(UsageError, match="0 seconds"):
        pwopt.tune(MODEL, 0)


@pytest.mark.parametrize(
    "flags", [["--tracker", "localhost:1"], ["--key", "phones"], ["--mcpu", "x86-64-v3"]]
)
def test_half_a_fleet(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["tune", str(MODEL), *flags]) == 2
    assert capsys.readouterr().err.startswith("pwopt: --tracker and --key go together")
