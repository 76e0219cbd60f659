"""pwopt tune: from Python and from the command line, and what compile makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pwopt
from pwopt import cli, hardware
from pwopt.errors import TuningError, UsageError
from pwopt.models import blocks
from pwopt.targets import tuner
from pwopt.targets.cpu import schedules, shipping
from pwopt.targets.cpu.profile import traced
from pwopt.targets.cpu.schedules import family_key, machine_key
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


def test_export_keeps_what_gains_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database, file = tmp_path / "tuning.sqlite", tmp_path / "schedules.json"
    graph = pwopt.optimize(blocks.bottleneck(size=12), verify=False).graph
    machine, family = machine_key(hardware.host()), family_key(hardware.host())
    search = tuner.Search({})
    traced(graph, hardware.host(), 1, search)
    first, second, *_ = search.candidates
    rows = [Measurement(k, t[0], 0.5, 1.0) for k, t in search.candidates.items()]
    TuningDatabase(database).record(machine, rows)
    file.write_text(json.dumps({"others": {"k": "1x1"}, family: {"other": "2x2", second: "old"}}))

    def again(*arguments: Any) -> tuner.Confirmation:
        ratios = {first: 0.97, second: 0.99}
        known = [Measurement(k, s, ratios.get(k, 1.1), 1.0) for k, s in arguments[1].items()]
        return tuner.Confirmation(known, 2.0, 1.0)

    monkeypatch.setattr(shipping, "confirm", again)
    known = TuningDatabase(database)
    assert shipping.write_schedules(graph, hardware.host(), 1, known, file) == 1
    kept = {"other": "2x2", first: search.candidates[first][0]}
    assert json.loads(file.read_text()) == {"others": {"k": "1x1"}, family: kept}


@pytest.mark.usefixtures("few")
def test_export_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "schedules.json"
    options = ["--database", str(tmp_path / "tuning.sqlite"), "--export", str(file)]
    assert cli.run(["tune", str(MODEL), "--seconds", "1000", "--quiet", *options]) == 0
    assert list(json.loads(file.read_text())) == [family_key(hardware.host())]


def test_export_into_a_file_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "schedules.json"
    file.write_text("[]")
    options = ["--database", str(tmp_path / "tuning.sqlite"), "--export", str(file)]
    assert cli.run(["tune", str(MODEL), "--seconds", "0.01", "--quiet", *options]) == 1
    assert capsys.readouterr().err.startswith(f"pwopt: {file}: no file of schedules")


def test_what_was_measured_here_overrides_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = pwopt.optimize(blocks.pointwise(16, 48, 9), verify=False).graph
    search = tuner.Search({})
    traced(graph, hardware.host(), 1, search)
    ((kernel, (schedule, *_)),) = search.candidates.items()
    file = tmp_path / "schedules.json"
    file.write_text(json.dumps({family_key(hardware.host()): {kernel: schedule}}))
    monkeypatch.setattr(schedules, "SHIPPED", file)
    database = tmp_path / "tuning.sqlite"
    asm = [pwopt.compile(graph, database=database).module.inspect_source("asm")]
    row = Measurement(kernel, schedule, 1.2, 1.0)
    TuningDatabase(database).record(machine_key(hardware.host()), [row])
    asm.append(pwopt.compile(graph, database=database).module.inspect_source("asm"))
    file.write_text("{}")
    asm.append(pwopt.compile(graph, database=database).module.inspect_source("asm"))
    assert asm[0] != asm[1] == asm[2]
