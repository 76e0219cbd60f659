"""The benchmark's bookkeeping; what it measures is no test's business."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pwopt.bench import build, sheet, tables
from pwopt.bench.build import BuildCost
from pwopt.bench.kernels import KernelRow, WinogradRow
from pwopt.bench.passes import PassRow, measure_passes
from pwopt.bench.suite import Latency, SuiteRow, geometric_mean, run_suite, summarize
from pwopt.errors import UsageError
from pwopt.models import SUITE, blocks
from pwopt.timing import Spread

NAMES = ("onnxruntime", "onnxruntime, optimized", "compiled")


def row(ratio: float = 0.5, error: float = 1e-6, compiled_accuracy: float = 0.9) -> SuiteRow:
    latency = Latency(1.0, 0.9, 1.1)
    return SuiteRow(
        "net",
        latency_ms=dict.fromkeys(NAMES, latency),
        ratio={"onnxruntime, optimized": latency, "compiled": Latency(ratio, ratio, ratio)},
        error={"onnxruntime, optimized": 0.0, "compiled": error},
        accuracy={"onnxruntime": 0.9, "compiled": compiled_accuracy},
    )


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert math.isnan(geometric_mean([]))


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (row(), True),
        (row(error=2e-4), False),
        (row(error=math.inf), False),
        (row(error=math.nan), False),
        (row(compiled_accuracy=0.8), False),
        (SuiteRow("net", failure="no"), False),
    ],
)
def test_passed(given: SuiteRow, passed: bool) -> None:
    assert given.passed is passed


def text_of(*things: object) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(*things, sep="\n")
    return capture.get()


@pytest.mark.parametrize(
    ("precision", "fc_weights"), [("fp32", "fp32"), ("fp32", "int8"), ("bf16", "int8")]
)
def test_suite_of_either_precision(precision: str, fc_weights: str) -> None:
    (found,) = run_suite(
        [SUITE["mnist_conv"]], runs=2, accuracy=False, precision=precision, fc_weights=fc_weights
    )
    assert found.passed, found.failure
    exact = precision == fc_weights == "fp32"
    assert (found.error["compiled"] < 1e-5) is exact
    assert (found.tolerance["compiled"] == 1e-4) is exact


def test_tables_show_every_row() -> None:
    rows = [row(ratio=0.5), row(ratio=1.3), SuiteRow("broken", failure="Error: [x] y")]
    text = text_of(tables.suite_table(rows), *tables.suite_summary(rows))
    assert "[x] y" in text
    assert "geometric mean over the best peer: 0.806 (goal: at most 0.65; missed)" in text
    assert "largest ratio to the best peer: 1.300 (goal: at most 0.9; missed)" in text
    assert "same accuracy: 2 of 3" in text
    speed = KernelRow("64->256", 90.0, 100.0, 0.9)
    assert re.search(r"90\.0%.*93%.*no", text_of(tables.kernel_table([speed])))
    assert re.search(r"80%.*yes", text_of(tables.kernel_table([replace(speed, goal=0.8)])))
    ways = {"direct": 0.97, "F(2x2)": 1.9, "F(4x4)": 3.1}
    layer = WinogradRow("64->64", {name: 100 * share for name, share in ways.items()}, ways)
    assert "310 (310%)" in text_of(tables.winograd_table([layer]))
    cost = BuildCost("resnet50", 12.0, 20.0, 10**9, 10**8)
    assert "yes" in text_of(tables.build_table([cost]))


def test_sizes_are_measured_deep_and_wide() -> None:
    rows = list(build.measure_scale([100]))
    assert [r.name for r in rows] == ["chain, 100 nodes", "wide, 100 nodes"]
    assert all(r.passed for r in rows)
    text = text_of(tables.build_table([*rows, replace(rows[0], limit_s=1e-3)]))
    assert f"{rows[0].cpu_s / 100 * 1e6:.0f}" in text
    assert "no" in text


def test_json_has_no_nan() -> None:
    plain = sheet.without_nan({"a": [1.0, math.nan, math.inf], "b": "x"})
    assert json.loads(json.dumps(plain, allow_nan=False)) == {"a": [1.0, None, None], "b": "x"}


def test_best_peer_and_share_of_the_peak() -> None:
    alone = replace(row(ratio=0.5), macs=10**9, peak_gflops=4000.0)
    assert (alone.best_peer, alone.best_ratio) == ("onnxruntime", 0.5)
    assert alone.share["compiled"] == pytest.approx(0.5)  # 2 GFLOP in a millisecond
    faster = Latency(0.8, 0.8, 0.8)
    beside = replace(alone, ratio={**alone.ratio, "openvino": faster})
    assert beside.best_peer == "openvino"
    assert beside.best_ratio == pytest.approx(0.625)
    means = summarize([alone, beside, SuiteRow("broken", failure="no")])
    assert means.onnxruntime == pytest.approx(0.5)
    assert means.best_peer == pytest.approx(math.sqrt(0.5 * 0.625))
    assert math.isnan(SuiteRow("broken", failure="no").best_ratio)


def test_build_is_measured_and_its_failure_noticed(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(blocks.pointwise().SerializeToString())
    cost = build._measure("block", model, tmp_path / "out", ["--no-compile", "--no-verify"])
    assert cost.passed
    assert 0 < cost.cpu_s < 60
    assert 10 << 20 < cost.memory_bytes < build.LIMIT_BYTES
    assert not replace(cost, limit_s=0.0).passed
    model.write_bytes(b"no model")
    assert "model.onnx" in build._measure("damaged", model, tmp_path / "out", []).failure


def test_passes_are_measured_without_and_with(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"naive": lambda: blocks.naive(width=8, size=32)}
    monkeypatch.setattr("pwopt.bench.passes.networks", lambda: small)
    rows = {row.name: row for row in measure_passes(runs=2)}
    pools, everything = rows["commute-pooling"], rows["all"]
    assert pools.rewrites > 0
    assert pools.macs_before == everything.macs_before > pools.macs_after > everything.macs_after
    assert pools.compiled is not None
    assert rows["merge-parallel-pointwise"].compiled is None  # nothing to merge, nothing to run
    shown = text_of(tables.pass_table(list(rows.values())))
    assert "commute-pooling" in shown
    assert "merge-parallel-pointwise" not in shown


def test_a_slow_pass_does_not_pass() -> None:
    slow, fine = Spread(1.2, 1.1, 1.3), Spread(1.01, 0.9, 1.1)
    assert PassRow("net", "all", 1, 2, 1, fine, fine).passed
    assert not PassRow("net", "all", 1, 2, 1, slow, fine).passed
    assert not PassRow("net", "all", 1, 2, 1, fine, slow).passed


def test_unknown_peer() -> None:
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        list(run_suite([SUITE["mnist_conv"]], baselines=["openvin"]))


def test_unknown_network_of_passes() -> None:
    with pytest.raises(UsageError, match="no network resnet51, did you mean 'resnet50'"):
        list(measure_passes(["resnet51"]))
