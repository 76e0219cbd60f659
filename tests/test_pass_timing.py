"""What each pass brought: every change is measured, errors are right, code is built once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest

import pwopt
from pwopt import cli, compilation, driver, hardware, numerics, page, pass_timing, timing
from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.models.builder import ModelBuilder
from pwopt.pipeline import Context, Pass
from pwopt.report import runs_by_pass
from pwopt.running import input_types
from tests.page.test_page import Page
from tests.test_driver import AddIdentity

Capture = pytest.CaptureFixture[str]
SEEDS = (0, 1, 2)  # of the check


@dataclass(frozen=True)
class CoarseWeights(Pass):
    """Rounds every convolution's weights to steps of their own scale, once."""

    name: ClassVar[str] = "coarse-weights"
    lossy: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        for node in [n for n in graph.nodes() if n.is_op("Conv")]:
            weights = graph.operand(node, 1)
            assert weights is not None
            array = weights.node.attributes["value"]
            step = np.abs(array).max() / 16
            coarse = (np.round(array / step) * step).astype(np.float32)
            graph.replace_uses(weights, graph.constant(coarse))
            graph.erase_dead()


def network() -> onnx.ModelProto:
    """Convolutions with batch normalization and ReLU, an Identity, and a classifier."""
    b = ModelBuilder("network", seed=2)
    x = b.relu(b.batch_norm(b.conv(b.input((1, 3, 12, 12)), 16, 3)))
    y = b.relu(b.batch_norm(b.conv(b.op("Identity", x), 24, 1)))
    return b.build(b.linear(b.global_pool(y), 10, gain=2.0))


def measured(model: onnx.ModelProto, passes: str | Sequence[Pass] | None = None) -> pwopt.Optimized:
    """An optimization whose passes were measured, in a few samples."""
    made = driver.optimize(model, passes=passes, keep_stages=True)
    executable, made = compilation.compile_optimized(made)
    return pwopt.measure_passes(made, executable=executable, model=model)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwopt.timing.MAX_ROUNDS", 10)


@pytest.fixture(scope="module")
def lossy() -> tuple[onnx.ModelProto, pwopt.Optimized]:
    from pwopt.passes import default_pipeline

    model = network()
    return model, measured(model, [CoarseWeights(), *default_pipeline()])


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    """One output a seed, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    types = input_types(pwopt.load(model))
    return [session.run(None, numerics.random_inputs(types, seed))[0] for seed in SEEDS]


def test_every_change_is_measured_and_nothing_else(
    lossy: tuple[onnx.ModelProto, pwopt.Optimized],
) -> None:
    _, made = lossy
    rows, how = made.report.passes, made.report.pass_timing
    assert how is not None
    assert how.reason == ""
    assert how.latency_ms is not None
    assert [row.measured is not None for row in rows] == [row.changed for row in rows]
    assert len(made.stages) == 1 + sum(row.changed for row in rows) > 4
    for row in rows:
        if found := row.measured:
            assert 0 < found.latency_ms.q1 <= found.latency_ms.median <= found.latency_ms.q3
            assert found.saved_ms.q1 <= found.saved_ms.median <= found.saved_ms.q3


def test_errors_are_those_of_the_graphs_in_onnxruntime(
    lossy: tuple[onnx.ModelProto, pwopt.Optimized],
) -> None:
    model, made = lossy
    want = outputs(model)
    how = made.report.pass_timing
    assert how is not None
    errors = [how.error, *(r.measured.error for r in made.report.passes if r.measured)]
    for graph, error in zip(made.stages, errors, strict=True):
        pairs = zip(want, outputs(graph.to_onnx()), strict=True)
        expected = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
        assert error == pytest.approx(expected, rel=1e-3, abs=5e-6)


def test_a_lossy_pass_pays_at_its_row(lossy: tuple[onnx.ModelProto, pwopt.Optimized]) -> None:
    _, made = lossy
    rows = [row for row in made.report.passes if row.measured]
    at = [row.spec for row in rows].index(CoarseWeights.name)
    errors = [row.measured.error for row in rows if row.measured]
    assert 0 < at < len(rows) - 1
    assert all(error is not None and error < 1e-5 for error in errors[:at])
    assert all(error is not None and error > 1e-3 for error in errors[at:])
    coarse = rows[at].measured
    assert coarse is not None
    assert not coarse.same_code  # the kernels are the same, their weights are not


def test_the_last_error_is_that_of_the_check() -> None:
    made = measured(network())
    last = [row.measured for row in made.report.passes if row.measured][-1]
    compilation = made.report.compilation
    assert compilation is not None
    assert compilation.verification is not None
    assert last.error == max(d.error for d in compilation.verification.outputs)


def test_equal_code_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pwopt.passes import default_pipeline

    built: list[Graph] = []
    compile_as = compilation.compile_as

    def counted(report: Any, graph: Graph, options: Any) -> Any:
        built.append(graph)
        return compile_as(report, graph, options)

    made = driver.optimize(network(), passes=[AddIdentity(), *default_pipeline()], keep_stages=True)
    executable, made = compilation.compile_optimized(made)
    monkeypatch.setattr(compilation, "compile_as", counted)
    made = pwopt.measure_passes(made, executable=executable)
    how = made.report.pass_timing
    assert how is not None
    found = {row.spec: row.measured for row in made.report.passes if row.measured}
    same = [spec for spec, each in found.items() if each.same_code]
    assert "add-identity" in same
    assert "eliminate-identity" in same
    assert all(found[spec].saved_ms == (0, 0, 0) for spec in same)
    assert not found["fold-batch-norm"].same_code
    assert how.executables == 1 + sum(not each.same_code for each in found.values())
    assert len(built) == how.executables - 1  # the last one was there


def test_what_does_not_fit_is_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    interleaved = timing.interleaved

    def counted(runners: Sequence[Any], feeds: Any) -> Any:
        together.append(len(runners))
        return interleaved(runners, feeds)

    monkeypatch.setattr(pass_timing, "interleaved", counted)
    whole = measured(network())
    monkeypatch.setattr(pass_timing, "MAX_RESIDENT_BYTES", 0)
    parts = measured(network())
    assert together[0] > 2
    assert together[1:] == [2] * (together[0] - 1)

    def errors(made: pwopt.Optimized) -> list[Any]:
        rows = [row.measured for row in made.report.passes if row.measured]
        return [(each.error, each.same_code) for each in rows]

    assert errors(parts) == errors(whole)
    counts = [made.report.pass_timing for made in (whole, parts)]
    assert counts[0] is not None
    assert counts[1] is not None
    assert counts[0].executables == counts[1].executables


def test_stages_must_have_been_kept() -> None:
    with pytest.raises(UsageError, match="keep_stages=True"):
        pwopt.measure_passes(pwopt.optimize(blocks.bottleneck(), verify=False))


def test_open_sizes_are_a_reason_to_measure_nothing() -> None:
    model = blocks.bottleneck()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "h"
    made = pwopt.measure_passes(driver.optimize(model, keep_stages=True))
    how = made.report.pass_timing
    assert how is not None
    assert how.latency_ms is None
    assert "only ONNX Runtime takes open sizes" in how.reason
    assert not any(row.measured for row in made.report.passes)
    assert how.reason in Page(made.html()).text


def test_code_for_another_machine_is_not_run() -> None:
    other = replace(hardware.host(), triple="aarch64-unknown-linux-gnu", mcpu="neoverse-n1")
    made = driver.optimize(blocks.bottleneck(), hardware=other, keep_stages=True)
    how = pwopt.measure_passes(made).report.pass_timing
    assert how is not None
    assert how.reason == "the code is for another machine"


def test_command_line_and_page_show_every_change(tmp_path: Path, capsys: Capture) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / "out"
    onnx.save(network(), model)
    command = ["optimize", str(model), "-o", str(out), "-q"]
    assert cli.run([*command, "--measure-passes", "--no-profile"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    rows = [row for row in report["passes"] if row["measured"]]
    assert [row["spec"] for row in rows] == [r["spec"] for r in report["passes"] if r["changed"]]
    assert rows[0]["measured"]["saved_ms"].keys() == {"median", "q1", "q3"}
    assert report["pass_timing"]["executables"] > 1
    text = Page((out / "report.html").read_text()).text
    for row in rows:
        assert row["spec"] in shown
        assert f"{row['measured']['error']:.1e}" in shown
        assert f"{row['measured']['error']:.1e}" in text
    assert "same code" in shown
    assert "same code" in text
    assert "measures them" not in text
    assert cli.run([*command, "--no-profile"]) == 0
    assert "measured " not in capsys.readouterr().out
    text = Page((out / "report.html").read_text()).text
    assert "pwopt optimize --measure-passes measures them" in text


@pytest.mark.parametrize("other", [["--no-compile"], ["--mcpu", "x86-64-v3"]])
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, capsys: Capture, other: list[str]
) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(network(), model)
    assert cli.run(["optimize", str(model), "--measure-passes", *other]) == 2
    assert "--measure-passes measures executables on this machine" in capsys.readouterr().err


def test_runs_of_a_pass_stand_together_or_by_change() -> None:
    runs = [("a", False), ("b", True), ("a", True), ("b", True), ("b", False)]
    assert runs_by_pass(runs) == [("a", [0, 2]), ("b", [1, 3, 4])]
    assert runs_by_pass(runs, apart=True) == [("b", [1]), ("a", [0, 2]), ("b", [3, 4])]


def test_noise_is_told_from_a_saving(lossy: tuple[onnx.ModelProto, pwopt.Optimized]) -> None:
    """On the page a change within the quartiles is quiet."""
    content = page.of_optimization(lossy[1])
    row = next(r for r in content["report"]["passes"] if r["measured"])
    row["measured"] |= {"same_code": False}
    for q1, q3, quiet in ((-0.1, 0.2, True), (0.1, 0.3, False)):
        row["measured"]["saved_ms"] = {"median": 0.15, "q1": q1, "q3": q3}
        for other in content["report"]["passes"]:
            if other is not row:
                other["measured"] = None
        assert ("within the noise" in page.render(content)) is quiet
