"""The optimized file does not become larger than it may, and says what that held back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pwopt
from pwopt import cli, frontend, growth
from pwopt.errors import UsageError
from pwopt.frontend.reference import evaluate
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph
from pwopt.passes import PASSES, default_pipeline
from pwopt.pipeline import Context, Pipeline
from pwopt.specs import parse_specs
from tests.passes.building import Build, random_feeds

CHANNELS = 64  # weights of 16 KiB: four times what any model may grow by


def shared_batch_norm() -> Graph:
    """One weight whose readers are normalized differently, so that folding needs copies."""
    b = Build()
    x, w = b.input(1, CHANNELS, 6, 5), b.weight(CHANNELS, CHANNELS, 1, 1)
    return b.output(*(b.batch_norm(b.op("Conv", x, w), CHANNELS) for _ in range(4)))


def shared_gemm() -> Graph:
    b = Build()
    x, w = b.input(2, CHANNELS), b.weight(CHANNELS, CHANNELS)
    return b.output(b.op("Gemm", x, w, alpha=0.5), b.op("Gemm", x, w, transB=1, alpha=2.0))


def shared_branches() -> Graph:
    """Convolutions of one input that would be one, but a weight of theirs is read elsewhere."""
    b = Build()
    x, y = b.input(1, 256, 28, 28), b.input(1, 256, 28, 28, name="y")
    v, w = b.weight(24, 256, 1, 1), b.weight(24, 256, 1, 1)
    return b.output(b.op("Conv", x, v), b.op("Conv", x, w), b.op("Conv", y, w))


def shared_shuffle() -> Graph:
    b = Build()
    x, w = b.input(1, CHANNELS, 6, 5), b.weight(CHANNELS, CHANNELS, 1, 1)
    y = b.op("Reshape", x, b.shape(1, 2, CHANNELS // 2, 6, 5))
    y = b.op("Transpose", y, perm=(0, 2, 1, 3, 4))
    y = b.op("Reshape", y, b.shape(1, CHANNELS, 6, 5))
    return b.output(b.op("Conv", y, w), b.op("Conv", x, w))


def shared_pointwise() -> Graph:
    """A weight that a convolution shares with an operator that wants it as it is."""
    b = Build()
    w = b.weight(CHANNELS, CHANNELS, 1, 1)
    return b.output(b.op("Conv", b.input(1, CHANNELS, 6, 5), w), b.op("Softmax", w, axis=0))


def shared_forms() -> Graph:
    """A matrix that one layer reads transposed."""
    b = Build()
    x, w = b.input(2, CHANNELS), b.weight(CHANNELS, CHANNELS)
    return b.output(b.op("Gemm", x, w, transB=1), b.op("MatMul", x, w))


def transposed_constants() -> Graph:
    b = Build()
    x, c = b.input(1, 16, 16, 32), b.weight(1, 32, 16, 16)
    y = b.op("Add", b.op("Transpose", x, perm=(0, 3, 1, 2)), c)
    z = b.op("Mul", b.input(1, 32, 16, 16, name="z"), c)
    return b.output(b.op("Transpose", b.op("Relu", y), perm=(0, 2, 3, 1)), z)


def expanded(op: str) -> Graph:
    """A weight that is stored small and would be stored whole."""
    b = Build()
    shape = b.shape(CHANNELS, CHANNELS, 1, 1)
    if op == "ConstantOfShape":
        w = b.op(op, shape, value=np.array([0.25], np.float32))
    elif op == "Tile":
        w = b.op(op, b.weight(1, CHANNELS, 1, 1), b.shape(CHANNELS, 1, 1, 1))
    elif op == "Expand":
        w = b.op(op, b.weight(1, CHANNELS, 1, 1), shape)
    else:
        half = b.graph.constant(np.ones((CHANNELS, CHANNELS, 1, 1), np.float16))
        w = b.op("Cast", half, to=1)
    return b.output(b.op("Conv", b.input(1, CHANNELS, 6, 5), w))


CASES: dict[str, tuple[str, Callable[[], Graph]]] = {
    "batch norm": ("fold-batch-norm", shared_batch_norm),
    "gemm": ("canonicalize", shared_gemm),
    "branches": ("merge-parallel-pointwise{max-growth-bytes=100000,copies=false}", shared_branches),
    "shuffle": ("fold-channel-shuffle", shared_shuffle),
    "pointwise": ("convert-pointwise", shared_pointwise),
    "forms": ("convert-fc-head", shared_forms),
    "transpose": ("sink-transpose", transposed_constants),
    **{
        op: ("fold-constants", lambda op=op: expanded(op))  # type: ignore[misc]
        for op in ("ConstantOfShape", "Tile", "Expand", "Cast")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_pass_asks_before_it_copies(case: str) -> None:
    spec, make = CASES[case]
    grown: dict[float, int] = {}
    for share in (growth.MAX_GROWTH, math.inf):
        graph = make()
        context = Context(AVX512, budget=growth.budget(graph, share))
        limit = context.budget.limit_bytes
        assert limit is not None
        before = graph.constant_bytes
        Pipeline(parse_specs(spec, PASSES)).run(graph, context)
        assert graph.constant_bytes <= limit
        grown[share] = graph.constant_bytes - before
        held_back = [r.text for r in context.remarks if "that --max-growth leaves" in r.text]
        assert bool(held_back) == bool(context.budget.refused) == (share < math.inf)
    assert grown[growth.MAX_GROWTH] <= growth.FLOOR_BYTES < grown[math.inf]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.0, growth.MAX_GROWTH, 0.5])
def test_the_file_stays_within_its_bound(case: str, share: float) -> None:
    graph = CASES[case][1]()
    made = pwopt.optimize(graph, max_growth=share, verify=False)
    before = len(graph.to_onnx().SerializeToString())
    after = len(made.graph.to_onnx().SerializeToString())
    # A file of a few kilobytes also grows by names and attributes, which nothing bounds at 0.
    assert after <= before + max(growth.allowance(before, share), 1000)
    assert abs(made.report.file.before - before) <= 100
    assert abs(made.report.file.after - after) <= 100
    feeds = random_feeds(graph, {})
    for want, have in zip(
        evaluate(graph, feeds).values(), evaluate(made.graph, feeds).values(), strict=True
    ):
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_a_default_run_holds_the_bound_of_a_pass() -> None:
    """As long as a copy is small, as here beside a large layer, it is still made."""
    b = Build()
    x, w = b.input(1, 64, 6, 5), b.weight(64, 64, 1, 1)
    large = b.conv(x, 512, 3)
    graph = b.output(large, *(b.batch_norm(b.op("Conv", x, w), 64) for _ in range(3)))
    made = pwopt.optimize(graph, verify=False)
    assert made.report.file.refused == 0
    assert made.graph.constant_bytes > graph.constant_bytes


def test_types_are_left_out_where_they_would_be_too_much() -> None:
    b = Build()
    x = b.input(1, 3, 4, 4)
    for _ in range(400):
        x = b.op("Softmax", x, axis=1)
    model = b.output(x).to_onnx()
    del model.graph.value_info[:]
    made = pwopt.optimize(model, verify=False)
    assert made.report.file.after <= made.report.file.before * (1 + growth.MAX_GROWTH)
    assert not made.graph.to_onnx().graph.value_info


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "model.onnx")
    pwopt.save(shared_batch_norm(), path)
    command = ["optimize", path, "-o", str(tmp_path / "out"), "--no-compile", "-q"]
    assert cli.run([*command, "--explain"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--max-growth 0.05 held back 1 rewrites that would add 49.2 kB" in shown
    assert "more than the 4096 that --max-growth leaves" in shown
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    size = (tmp_path / "out" / "model.onnx").stat().st_size
    assert report["file"]["after"] == pytest.approx(size, abs=100)
    assert report["file"]["before"] == Path(path).stat().st_size
    for share in ("3", "inf"):
        assert cli.run([*command, "--max-growth", share]) == 0
        assert "held back" not in capsys.readouterr().out
    assert cli.run([*command, "--max-growth", "-0.1"]) == 2
    assert "give a share of the model's size" in capsys.readouterr().err


@pytest.mark.parametrize("share", [-1.0, math.nan])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(UsageError, match="give a share"):
        growth.allowance(100, share)


def test_constants_are_counted_as_they_come_and_go() -> None:
    graph = shared_batch_norm()
    for each in default_pipeline():
        each.run(graph, Context())
        counted = sum(n.out.tensor.bytes or 0 for n in graph.nodes() if n.is_constant)
        assert graph.constant_bytes == counted
        assert graph.copy().constant_bytes == counted
    assert frontend.file_bytes(graph) == pytest.approx(
        len(graph.to_onnx().SerializeToString()), abs=100
    )
