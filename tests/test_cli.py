"""The command line: what it prints where, what it writes, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import pwopt
from pwopt import cli, hardware
from pwopt.cli import console
from pwopt.cli.options import parse_shapes
from pwopt.errors import UsageError
from pwopt.models import blocks

MODEL = str(Path(__file__).parents[1] / "models" / "data" / "mnist-conv.onnx")

Capture = pytest.CaptureFixture[str]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_optimize_and_compare(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert cli.run(["optimize", MODEL, "-o", str(out)]) == 0
    shown = capsys.readouterr()
    assert names(out) == {"model.onnx", "model.so", "report.json", "report.html"}
    assert names(tmp_path) == {"out"}
    assert "checked" in shown.out
    assert shown.err.splitlines()[0] == "reading"
    onnx.checker.check_model(out / "model.onnx", full_check=True)
    report = json.loads((out / "report.json").read_text())
    assert report["verification"]["status"] == "passed"
    assert report["compilation"]["verification"]["status"] == "passed"
    predicted = [kernel["predicted_us"] for kernel in report["compilation"]["kernels"]]
    assert sum(predicted) == pytest.approx(report["after"]["predicted_us"])
    assert report["after"]["predicted_us"] <= report["before"]["predicted_us"]
    assert report["passes"][0]["us_before"] == report["before"]["predicted_us"]
    executable = pwopt.load_executable(out / "model.so")
    assert executable.metadata["sha256"] == report["source"]["sha256"]

    assert cli.run(["compare", MODEL, str(out), "--runs", "3", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["onnxruntime", "onnxruntime, optimized", "compiled"]
    for row in rows.values():
        assert row["error"] <= 1e-4
        assert 0 < row["latency_ms"]["q1"] <= row["latency_ms"]["median"]
    assert rows["onnxruntime"]["ratio"]["median"] == 1.0
    assert table["rounds"] == 3
    assert cli.run(["compare", MODEL, str(out / "model.so"), "--runs", "2"]) == 0
    shown = capsys.readouterr()
    assert "compiled" in shown.out
    assert "2 interleaved samples" in shown.out


def test_reduced_precision_is_compared_with_its_own_tolerance(
    tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    options = ["--precision", "bf16", "--fc-weights", "int8", "-o", str(out)]
    assert cli.run(["optimize", MODEL, *options]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"precision   bf16, int8 weights of fully connected layers: .*\n", shown)
    made = json.loads((out / "report.json").read_text())["compilation"]
    (checked,) = made["verification"]["outputs"]
    assert 1e-4 < checked["error"] < checked["tolerance"] < 0.1
    assert cli.run(["compare", MODEL, str(out), "--runs", "2"]) == 0
    shown = capsys.readouterr().out
    assert "WRONG" not in shown
    assert cli.run(["optimize", MODEL, "--precision", "fp8", "-o", str(out)]) == 2
    assert "--precision fp8: one of fp32, bf16" in capsys.readouterr().err


def test_optimize_without_compiling(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    command = ["optimize", MODEL, "-o", str(out), "--no-compile", "--json", "--quiet"]
    assert cli.run(command) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads((out / "report.json").read_text())
    assert shown.err == ""
    assert names(out) == {"model.onnx", "report.json", "report.html"}
    first = (out / "model.onnx").read_bytes()
    assert cli.run(command) == 0
    assert (out / "model.onnx").read_bytes() == first
    capsys.readouterr()
    assert cli.run(["compare", MODEL, str(out), "--runs", "2", "-q"]) == 0
    assert "holds no executable" in capsys.readouterr().out


def test_explain_gives_reasons(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    command = ["optimize", MODEL, "-o", str(out), "--no-compile", "--no-verify", "--explain"]
    assert cli.run(command) == 0
    shown = capsys.readouterr().out
    assert re.search(r"fold-affine +\+ +Add 'Plus30' +folded", shown)
    assert "not asked for" in shown


def test_input_shapes_close_open_dimensions(tmp_path: Path, capsys: Capture) -> None:
    model = blocks.bottleneck()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    path = tmp_path / "open.onnx"
    onnx.save(model, path)
    out = str(tmp_path / "out")
    shape = ["--input-shape", "input:2x16x8x8"]
    assert cli.run(["optimize", str(path), "-o", out, "--no-compile", *shape]) == 0
    dims = onnx.load(f"{out}/model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 16, 8, 8]
    capsys.readouterr()
    for given in ([], shape):  # the other model's sizes, unless they are given
        assert cli.run(["compare", str(path), out, "--runs", "2", *given]) == 0
        assert "inputs input float32[2x16x8x8]" in capsys.readouterr().out


def test_open_dimensions_are_named_with_the_option_that_closes_them(
    tmp_path: Path, capsys: Capture
) -> None:
    model = blocks.bottleneck()
    for value in (*model.graph.input, *model.graph.output):
        for axis, symbol in ((0, "n"), (2, "h"), (3, "w")):
            value.type.tensor_type.shape.dim[axis].dim_param = symbol
    path = tmp_path / "open.onnx"
    onnx.save(model, path)
    assert cli.run(["optimize", str(path), "-o", str(tmp_path / "out"), "-q"]) == 0
    shown = capsys.readouterr().out
    assert "open        input 'input' is float32[nx16xhxw]: only ONNX Runtime" in shown
    assert "--input-shape input:1x16x224x224" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["compilation"]["open_inputs"]) == ["input"]


def test_version(capsys: Capture) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"pwopt {pwopt.__version__}\n"


def test_passes_lists_names_and_options(capsys: Capture) -> None:
    assert cli.run(["passes", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fold-batch-norm"]["default"]
    assert all(row["summary"] for row in rows.values())
    assert cli.run(["passes"]) == 0
    assert "fold-batch-norm" in capsys.readouterr().out


def test_inspect_counts(capsys: Capture) -> None:
    assert cli.run(["inspect", MODEL, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["inputs"] == {"Input3": "float32[1x1x28x28]"}
    assert content["outputs"] == {"Plus214_Output_0": "float32[1x10]"}
    assert content["summary"]["ops"]["Conv"] == 2
    assert cli.run(["inspect", MODEL]) == 0
    assert "787 k MACs" in capsys.readouterr().out


def test_inspect_says_what_is_inside_and_what_would_be_done(
    tmp_path: Path, capsys: Capture
) -> None:
    before = Path(MODEL).read_bytes()
    assert cli.run(["inspect", MODEL, "--json"]) == 0
    shown = capsys.readouterr()
    assert "optimizing" in shown.err
    content = json.loads(shown.out)
    kinds = {kind["name"]: kind for kind in content["kinds"]}
    assert set(kinds) == {"other convolutions", "fully connected", "others"}
    assert kinds["fully connected"]["macs"] == 2560
    assert sum(kind["macs"] for kind in kinds.values()) == content["summary"]["macs"]
    assert content["head"] == ["MatMul 'Times212'"]
    assert content["layout"] == "NCHW"
    plan = {step["name"]: step for step in content["plan"]}
    assert plan["fold-affine"]["rewrites"] == 3
    assert plan["fold-affine"]["saved_us"] > 0
    assert content["optimized"]["nodes"] < content["summary"]["nodes"]
    path = tmp_path / "depthwise.onnx"
    onnx.save(blocks.depthwise_separable(), path)
    assert cli.run(["inspect", str(path), "-q"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in ("opset", "depthwise", "1x1 convolutions", "fold-batch-norm", "would do"):
        assert text in shown.out
    assert Path(MODEL).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["depthwise.onnx"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("pwopt opti", "optimize"),
        ("pwopt optimize --preci", "--precision"),
        ("pwopt optimize --passes default,fold-b", "default,fold-batch-norm"),
        ("pwopt inspect --mcpu neoverse-v", "neoverse-v1"),
        ("pwopt models build squeeze_e", "squeeze_excite"),
    ],
)
def test_the_shell_completes(words: str, wanted: str) -> None:
    asked = {"_PWOPT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split()) - 1)
    command = [sys.executable, "-m", "pwopt"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True)
    assert wanted in done.stdout.split()
    assert done.stderr == ""


def test_inspect_predicts_each_layer(capsys: Capture) -> None:
    assert cli.run(["inspect", MODEL, "--mcpu", "x86-64-v3", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    layers = content["layers"]
    assert content["hardware"]["mcpu"] == "x86-64-v3"
    times = [layer["predicted_us"] for layer in layers]
    assert times == sorted(times, reverse=True)
    assert sum(times) == pytest.approx(content["summary"]["predicted_us"])
    assert sum(layer["time_share"] for layer in layers) == pytest.approx(1.0)
    assert {layer["bound"] for layer in layers} <= {"compute", "l2", "l3", "dram", "launch"}
    assert all(0 <= layer["peak_share"] <= 1 for layer in layers)
    assert layers[0]["node"] == "Conv 'Convolution110'"
    assert layers[0]["measured_us"] is None
    assert cli.run(["inspect", MODEL, "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Conv 'Convolution110'" in shown
    assert "others" in shown
    assert cli.run(["inspect", MODEL, "--top", "0"]) == 0
    assert "Convolution110" not in capsys.readouterr().out


def test_inspect_measures_each_kernel(capsys: Capture) -> None:
    assert cli.run(["inspect", MODEL, "--measure", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert all(layer["measured_us"] >= 0 for layer in layers)
    assert cli.run(["inspect", MODEL, "--measure"]) == 0
    assert "measured" in capsys.readouterr().out
    assert cli.run(["inspect", MODEL, "--measure", "--mcpu", "x86-64-v3"]) == 2


def test_profile_measures_each_kernel(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert cli.run(["optimize", MODEL, "-o", str(out), "-q"]) == 0
    capsys.readouterr()
    assert cli.run(["profile", str(out), "--seconds", "0.1", "--json", "-q"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    content = json.loads(shown.out)
    kernels = json.loads((out / "report.json").read_text())["compilation"]["kernels"]
    assert [k["node"] for k in content["kernels"]] == [k["node"] for k in kernels]
    assert all(k["us"] > 0 for k in content["kernels"])
    assert {name for k in content["kernels"] for name in k["origin"]} >= {"Convolution28", "Plus30"}
    assert cli.run(["profile", str(out / "model.so"), "--seconds", "0", "--top", "2"]) == 0
    shown = capsys.readouterr()
    assert "Conv 'Plus112'" in shown.out
    assert "others" in shown.out
    assert "measuring" in shown.err
    assert cli.run(["profile", str(tmp_path)]) == 2
    assert "no such file; make it with" in capsys.readouterr().err


@pytest.mark.skipif(not hardware.host().bf16, reason="this processor has no AVX512-BF16")
def test_inspect_predicts_and_measures_bf16(capsys: Capture) -> None:
    flags = ["inspect", MODEL, "--measure", "--json"]
    assert cli.run(flags) == 0
    wide = json.loads(capsys.readouterr().out)
    assert cli.run([*flags, "--precision", "bf16"]) == 0
    narrow = json.loads(capsys.readouterr().out)
    assert narrow["precision"]["compute"] == "bf16"
    assert narrow["summary"]["predicted_us"] < wide["summary"]["predicted_us"]
    assert all(layer["measured_us"] >= 0 for layer in narrow["layers"])
    assert cli.run(["inspect", MODEL, "--precision", "bf16"]) == 0
    assert "bf16" in capsys.readouterr().out
    assert cli.run(["inspect", MODEL, "--precision", "fp17"]) == 2
    assert "--precision fp17" in capsys.readouterr().err


def test_inspect_shows_the_share_of_pointwise(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(blocks.pointwise(), path)
    assert cli.run(["inspect", str(path)]) == 0
    assert "100% of them in 1x1" in capsys.readouterr().out


def test_help_goes_to_stdout(capsys: Capture) -> None:
    assert cli.run(["--help"]) == 0
    assert "optimize" in capsys.readouterr().out
    assert cli.run([]) == 2
    assert "Usage: pwopt" in capsys.readouterr().err


def test_parse_shapes() -> None:
    assert parse_shapes(["a:b:1x2", "c:7"]) == {"a:b": (1, 2), "c": (7,)}
    for text in ("a", "a:", "a:1x", "a:0x2", ":1x2", "a:-1", "a:1,2"):
        with pytest.raises(UsageError, match="write NAME:1x3x224x224"):
            parse_shapes([text])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with console.Progress(quiet=False) as progress:
        progress("epoch [1] of 2")
        progress.share(0.5)
    shown = capsys.readouterr()
    assert not shown.out
    assert "epoch [1] of 2" in shown.err
    assert ("50%" in shown.err) == terminal
    assert terminal or shown.err == "epoch [1] of 2\n"
    with console.Progress(quiet=True) as progress:
        progress("epoch 1")
        progress.share(0.5)
    assert not capsys.readouterr().err
