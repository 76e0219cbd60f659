"""Lossy passes in a whole optimization: what is reported, what is checked, and wrong usage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import cli, cost, ort
from pwopt.approximation import Judge
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph
from pwopt.models.builder import ModelBuilder
from pwopt.passes.insert_bottlenecks import InsertBottlenecks
from pwopt.pipeline import Context, Pass, Remark

Capture = pytest.CaptureFixture[str]
OTHER = ("--no-compile", "--mcpu", "x86-64-v4")  # than this machine, so that nothing is measured


def network(batch: int | str = 1) -> onnx.ModelProto:
    """A 3x3 convolution of rank 16 with batch normalization behind it, and a classifier."""
    b = ModelBuilder("network", seed=2)
    x = b.relu(b.conv(b.input((batch, 3, 8, 8)), 64, 3))
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((64, 16)) @ rng.standard_normal((16, 576))
    y = b.conv(x, weight=(wide / 96).reshape(64, 64, 3, 3).astype(np.float32))
    return b.build(b.linear(b.global_pool(b.relu(b.batch_norm(y))), 10, gain=40.0))


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "d.npz"
    rng = np.random.default_rng(1)
    images = rng.standard_normal((20, 3, 8, 8)).astype(np.float32)
    np.savez(path, images=images, labels=rng.integers(0, 10, 20))
    return str(path)


def run(model: str, out: Path, *options: str) -> int:
    return cli.run(["optimize", model, "-o", str(out), "-q", *options])


def test_a_folder_and_its_report(model: str, data: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run(model, out, "--bottleneck", "0.05", "--calibration", data) == 0
    shown = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} >= {"model.onnx", "model.so", "report.json"}
    report = json.loads((out / "report.json").read_text())
    (made,) = report["approximations"]
    assert made["pass_spec"] == "insert-bottlenecks{budget=0.05}"
    assert (made["metric"], made["budget"], made["random"]) == ("accuracy", 0.05, False)
    assert made["source"] == data
    assert made["loss"]["accuracy_before"] - made["loss"]["accuracy_after"] <= 0.05
    assert made["loss"]["examples"] + made["fitted"] + made["searched"] in (19, 20)
    assert report["verification"]["status"] == "passed"
    assert report["compilation"]["verification"]["status"] == "passed"
    assert "insert-bottlenecks{budget=0.05}" in [row["spec"] for row in report["passes"]]
    assert "lossy       insert-bottlenecks{budget=0.05}: " in shown
    assert f"on {made['loss']['examples']} held-out examples" in shown
    assert "accuracy unknown" not in shown
    few = made["loss"]["examples"]
    assert f"warning     {few} held-out examples tell a loss of 0.05 only to within 0." in shown


def test_without_data_accuracy_is_unknown(model: str, tmp_path: Path, capsys: Capture) -> None:
    assert (
        run(model, tmp_path / "out", "--bottleneck", "0.01", "--no-compile", "--mcpu", "znver5")
        == 0
    )
    shown = capsys.readouterr().out
    assert "1 layer replaced" in shown
    assert ": 3x3 64->16, 1x1 16->64; " in shown
    assert "accuracy unknown: no calibration data (--calibration)" in shown
    assert "same class" not in shown


def test_passes_by_spec_with_options(model: str, data: str, tmp_path: Path) -> None:
    out, spec = tmp_path / "out", "insert-bottlenecks{budget=0.02,metric=l2}"
    options = ("--passes", f"{spec},default", "--calibration", data)
    assert run(model, out, *options, *OTHER) == 0
    report = json.loads((out / "report.json").read_text())
    (made,) = report["approximations"]
    assert made["pass_spec"] == spec
    assert (made["metric"], made["budget"]) == ("l2", 0.02)
    assert made["loss"]["l2"] < 1e-5
    (layer,) = made["layers"]
    assert (layer["rank_in"], layer["rank_out"]) == (None, 16)
    assert layer["macs_after"] < layer["macs_before"] / 3
    assert report["after"]["macs"] < report["before"]["macs"]
    assert report["verification"]["status"] == "passed"


def test_wrong_usage_is_one_line(model: str, data: str, tmp_path: Path, capsys: Capture) -> None:
    bytes_file, few = tmp_path / "bytes.npz", tmp_path / "few.npz"
    np.savez(bytes_file, x=np.zeros((9, 3, 8, 8), np.uint8))
    np.savez(few, x=np.zeros((2, 3, 8, 8), np.float32))
    lossy = ("--bottleneck", "0.05")
    cases: list[tuple[tuple[str, ...], str]] = [
        ((*lossy, "--calibration", str(tmp_path / "no.npz")), "no.npz: no such file"),
        ((*lossy, "--calibration", model), "are a .npz, a .npy or a folder of images"),
        ((*lossy, "--calibration", str(bytes_file)), "state their preprocessing"),
        ((*lossy, "--calibration", str(few)), "2 examples for 3 parts"),
        ((*lossy, "--calibration", str(bytes_file), "--preprocessing", "imagnet"), "imagenet"),
        ((*lossy, "--preprocessing", "unit"), "give --calibration, too"),
        (("--calibration", data), "give --bottleneck"),
        (("--preprocessing", "unit"), "give --bottleneck"),
        (("--bottleneck", "-1"), "the budget is at least 0"),
        (("--passes", "insert-bottlenecks{buget=1}"), "did you mean 'budget'"),
        (("--passes", "insert-bottlenecks{metric=kl2}"), "the metric is one of"),
        (("--passes", "insert-bottlenecks{metric=accuracy}"), "needs class scores and labels"),
    ]
    for options, words in cases:
        assert run(model, tmp_path / "out", "--no-compile", *options) == 2, options
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
    scaled = (*lossy, "--calibration", str(bytes_file), "--preprocessing", "unit")
    assert run(model, tmp_path / "out", "--no-compile", *scaled) == 0


@pytest.mark.parametrize("batch", [1, 3, "n"])
def test_every_batch_is_optimized_measured_and_checked(batch: int | str) -> None:
    before = network(batch)
    result = pwopt.optimize(before, bottleneck=0.05)
    assert result.report.verification.status == "passed"
    (made,) = result.report.approximations
    assert made.random
    assert made.loss.l2 <= 0.05
    assert all(change.measured_after_us is not None for change in made.layers)


def test_result_is_near_the_original_and_its_argument_unchanged() -> None:
    graph = pwopt.load(network())
    before = str(graph), graph.version
    x = np.random.default_rng(5).standard_normal((40, 3, 8, 8)).astype(np.float32)
    examples = Calibration({"input": x})
    result = pwopt.optimize(
        graph, bottleneck=0.05, calibration=examples, hardware=AVX512, verify_passes=True
    )
    assert (str(graph), graph.version) == before
    assert not result.report.taken_back
    (made,) = result.report.approximations
    assert made.metric == "agreement"
    assert [each.rank_out for each in made.layers] == [16]
    assert Judge(graph, examples)(result.graph).l2 < 1e-5
    want = ort.OrtModel(graph.to_onnx().SerializeToString()).run({"input": x[:1]})
    have = ort.OrtModel(result.graph.to_onnx().SerializeToString()).run({"input": x[:1]})
    for name, array in want.items():
        np.testing.assert_allclose(have[name], array, atol=1e-4)
    assert cost.graph_macs(result.graph) < cost.graph_macs(graph) / 2


def test_examples_for_other_inputs() -> None:
    examples = Calibration({"pixels": np.zeros((9, 3, 8, 8), np.float32)})
    with pytest.raises(UsageError, match="data for pixels; the model's inputs are input"):
        pwopt.optimize(network(), bottleneck=0.05, calibration=examples)


def test_text_of_the_graph_after_lossy_passes_is_dumped(tmp_path: Path) -> None:
    pwopt.optimize(network(), bottleneck=0.05, hardware=AVX512, dump=tmp_path)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert any(name.endswith("-insert-bottlenecks.txt") for name in names)
    assert [name[:3] for name in names] == [f"{i + 1:03}" for i in range(len(names))]


@dataclass(frozen=True)
class HalveBiases(Pass):
    """A lossy pass of a user's own; says how often it ran."""

    name: ClassVar[str] = "halve-biases"
    lossy: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        context.remarks.append(Remark(self.name, "graph", True, "halved"))
        for node in graph.nodes():
            if node.is_constant and len(node.out.tensor.shape or ()) == 1:
                half = graph.constant(node.attributes["value"] * np.float32(0.5))
                graph.replace_uses(node.out, half)
        graph.erase_dead()


def test_lossy_passes_run_once_before_the_exact_ones() -> None:
    passes = [*pwopt.passes.default_pipeline(), HalveBiases(), InsertBottlenecks(budget=0.0)]
    report = pwopt.optimize(network(), passes=passes, hardware=AVX512).report
    assert report.verification.status == "passed"
    specs = [row.spec for row in report.passes]
    assert specs.count("halve-biases") == 1
    assert specs.index("halve-biases") + 1 == specs.index("insert-bottlenecks{budget=0.0}")
    assert specs.index("halve-biases") < specs.index("fuse-epilogue")
