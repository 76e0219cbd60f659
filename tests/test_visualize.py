"""`pwopt visualize`: from a model and its report to pictures."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pwopt import cli, driver, sources, visualize
from pwopt.approximation import Approximation, LayerChange
from pwopt.calibration import Calibration
from pwopt.errors import PwoptError
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.models.builder import ModelBuilder
from pwopt.report import plain_json
from pwopt.sweep import run_sweep
from tests.passes.building import Build

Capture = pytest.CaptureFixture[str]
OTHER = ("--no-compile", "--mcpu", "x86-64-v4")  # than this machine, so that nothing is measured


def network() -> onnx.ModelProto:
    """A 1x1, a 3x3 of rank 16 with batch normalization, and a classifier."""
    b = ModelBuilder("network", seed=2)
    x = b.relu(b.conv(b.input((1, 3, 12, 12)), 64, 1))
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((64, 16)) @ rng.standard_normal((16, 576))
    y = b.conv(x, weight=(wide / 96).reshape(64, 64, 3, 3).astype(np.float32))
    return b.build(b.linear(b.global_pool(b.relu(b.batch_norm(y))), 10))


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    return str(path)


def run(*arguments: str | Path) -> int:
    return cli.run(["visualize", *map(str, arguments), "-q"])


def error(capsys: Capture, *arguments: str | Path) -> str:
    """The one line of an error."""
    assert run(*arguments) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_of_a_model_and_what_was_made_of_it(
    model: str, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    out, folder = tmp_path / "out", tmp_path / "a" / "pictures"
    options = ["--bottleneck", "0.5", "-o", str(out), "-q", *OTHER]
    assert cli.run(["optimize", model, *options]) == 0
    capsys.readouterr()
    assert run(model, out, "-o", folder, "--format", kind, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    names = [f"channels-conv_0.{kind}", f"channels-conv_2.{kind}", f"layers.{kind}"]
    assert [Path(f).name for f in made["files"]] == names
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[kind]
    assert all(Path(f).read_bytes().startswith(start) for f in made["files"])
    (change,) = json.loads((out / "report.json").read_text())["approximations"][0]["layers"]
    pointwise, window = made["channels"]
    assert len(pointwise["singular_values"]) == 3
    assert window["spectrum"] == change["spectrum"]
    assert window["rank_out"] == change["rank_out"]
    row = made["layers"][1]
    assert row["name"] == "conv_2"
    assert row["parameters"] == 64 * 64 * 9 + 64  # a bias by the normalization
    assert row["parameters_after"] == change["parameters_after"]
    assert row["macs_after"] == change["macs_after"]
    assert made["sweep"] is None


def test_the_matrix_is_that_of_the_file(tmp_path: Path) -> None:
    graph, _ = sources.read(blocks.pointwise(24, 16))
    (layer,) = visualize.find_channels(visualize.cleaned(graph), [])
    weight = next(n.attributes["value"] for n in graph.nodes() if n.is_constant)
    assert layer.matrix is not None
    np.testing.assert_array_equal(layer.matrix, weight.reshape(16, 24))
    assert layer.before.widths == (24, 16)
    assert layer.macs == 16 * 24 * int(np.prod(graph.inputs[0].out.shape[2:]))  # type: ignore[index]


def test_groups_are_blocks_of_the_matrix() -> None:
    b = Build()
    x = b.input(1, 6, 2, 2)
    graph = b.output(b.op("Conv", x, b.weight(4, 3, 1, 1), group=2))
    (layer,) = visualize.find_channels(graph, [])
    weight = next(n.attributes["value"] for n in graph.nodes() if n.is_constant)
    wanted = np.zeros((4, 6), np.float32)
    wanted[:2, :3], wanted[2:, 3:] = weight[:2, :, 0, 0], weight[2:, :, 0, 0]
    assert layer.matrix is not None
    np.testing.assert_array_equal(layer.matrix, wanted)


def test_the_layers_with_the_most_work_are_drawn(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(blocks.inception(), path)
    assert run(path, "-o", tmp_path, "--top", "2", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["channels"]) == 2
    drawn = {each["node"] for each in made["channels"]}
    work = {s["node"]: s["macs"] for s in made["layers"] if s["pointwise"]}
    assert min(work[n] for n in drawn) >= max(work[n] for n in work if n not in drawn)


def test_layers_by_name(model: str, tmp_path: Path, capsys: Capture) -> None:
    assert run(model, "-o", tmp_path, "--layers", "conv_0") == 0
    shown = capsys.readouterr().out.splitlines()
    assert [Path(f).name for f in shown] == ["channels-conv_0.png", "layers.png"]
    assert "did you mean 'conv_0'?" in error(capsys, model, "-o", tmp_path, "--layers", "conv0")
    assert "no 1x1 convolution or replaced layer" in error(
        capsys, model, "-o", tmp_path, "--layers", "conv_2"
    )


def change(node: str, **values: object) -> LayerChange:
    made = LayerChange(node, "", 8, 8, None, None, 100, 40, 1000, 300, 0, 0, None, None, None)
    return replace(made, **values)  # type: ignore[arg-type]


def head() -> Graph:
    b = Build()
    y = b.op("Flatten", b.input(1, 4, 3, 3), axis=1)
    y = b.op("Relu", b.op("Gemm", y, b.weight(36, 8), b.weight(8)))
    return b.output(b.op("Gemm", y, b.weight(8, 3)))


def test_a_head_becomes_one_row_and_later_changes_of_it_count() -> None:
    first = change("Gemm 'gemm1'", others=("Gemm 'gemm2'",), parameters_before=320, macs_before=312)
    later = change("Conv 'gemm2/pixels'", parameters_before=30, parameters_after=20)
    (row,) = visualize.layer_sizes(head(), [first, replace(later, macs_before=300, macs_after=200)])
    assert row.name == "gemm1 and 1 more"
    assert (row.parameters, row.parameters_after) == (36 * 8 + 8 + 8 * 3, 40 - 30 + 20)
    assert (row.macs, row.macs_after) == (36 * 8 + 8 * 3, 300 - 300 + 200)


def test_a_change_of_a_layer_that_is_not_there() -> None:
    with pytest.raises(PwoptError, match=r"Conv 'other/part': .* it is not there"):
        visualize.layer_sizes(head(), [change("Conv 'other/part'")])


def test_reports_are_read_as_they_were_written(model: str, tmp_path: Path) -> None:
    report = driver.optimize(model, bottleneck=0.5, verify=False).report
    (made,) = report.approximations
    written = json.loads(report.dumps())["approximations"][0]
    assert plain_json(Approximation.from_json(written)) == written
    assert Approximation.from_json({**written, "later": 1}).layers == made.layers
    assert made.layers[0].spectrum


def test_what_is_wrong_with_a_folder(model: str, tmp_path: Path, capsys: Capture) -> None:
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    assert "no report of `pwopt optimize`" in error(capsys, model, tmp_path, "-o", pictures)
    assert cli.run(["optimize", model, "-o", str(out), "-q", "--no-compile"]) == 0
    capsys.readouterr()
    assert "nothing in it was approximated" in error(capsys, model, out, "-o", pictures)
    other = tmp_path / "other.onnx"
    onnx.save(blocks.pointwise(), other)
    assert "was made from another model" in error(capsys, other, out, "-o", pictures)
    (out / "report.json").write_text("{}")
    assert "no report of `pwopt optimize`" in error(capsys, model, out, "-o", pictures)
    assert not pictures.exists()


def test_wrong_usage(
    model: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "did you mean 'svg'?" in error(capsys, model, "--format", "svgz")
    assert "give --sweep, too" in error(capsys, model, "--calibration", "d.npz")
    assert "write budgets such as" in error(capsys, model, "--sweep", "0.01;0.02")
    assert "write budgets such as" in error(capsys, model, "--sweep", "-1")
    assert "is a file" in error(capsys, model, "-o", model)
    plain = ModelBuilder("plain")
    onnx.save(plain.build(plain.conv(plain.input((1, 3, 8, 8)), 4, 3)), tmp_path / "p.onnx")
    assert "has no 1x1 convolution to draw" in error(capsys, tmp_path / "p.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install 'pwopt[plot]'" in error(capsys, model)


def test_a_sweep_has_a_point_for_each_budget(tmp_path: Path) -> None:
    graph, _ = sources.read(network())
    images = np.random.default_rng(1).standard_normal((40, 3, 12, 12)).astype(np.float32)
    sweep = run_sweep(graph, [0.0, 1.0], calibration=Calibration({"input": images}))
    assert sweep.metric == "agreement with the original"
    assert [p.budget for p in sweep.points] == [None, 0.0, 1.0]
    original, none, all_ = sweep.points
    assert original.quality == none.quality == 1.0
    assert all_.replaced >= 1
    assert all_.parameters < original.parameters
    assert all_.predicted_us < original.predicted_us
    for point in sweep.points:
        assert point.measured_us is not None
        assert point.quartiles_us is not None
        assert 0 < point.quartiles_us[0] <= point.measured_us <= point.quartiles_us[1]
    assert sweep.note.startswith("10 held-out examples of arrays; one core of ")


def test_a_sweep_of_nothing(tmp_path: Path) -> None:
    b = Build()
    graph = b.output(b.op("Relu", b.input(1, 4, 3, 3)))
    with pytest.raises(PwoptError, match="nothing to sweep"):
        run_sweep(graph, [0.1])
