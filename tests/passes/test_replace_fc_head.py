"""1x1 convolutions and a global average pool take the place of fully connected heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import pwopt
from pwopt.approximation import Approximation, Judge
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.frontend import export, load
from pwopt.frontend.reference import evaluate
from pwopt.ir.graph import Graph, Value
from pwopt.ir.verify import verify
from pwopt.ort import OrtModel
from pwopt.passes.replace_fc_head import ReplaceFcHead
from pwopt.pipeline import Context, KernelTime
from tests.passes.building import Build, Outcome


def run(
    graph: Graph, each: ReplaceFcHead, data: Calibration | None = None
) -> tuple[Outcome, Approximation | None]:
    """Runs the pass on a copy."""
    context, changed = Context(calibration=data), graph.copy()
    each.run(changed, context)
    verify(changed)
    made = [(r.node, r.text) for r in context.remarks if r.applied]
    missed = [(r.node, r.text) for r in context.remarks if not r.applied]
    found = context.approximations
    return Outcome(changed, made, missed), found[0] if found else None


def data(graph: Graph, count: int = 256) -> Calibration:
    """Random maps of which each has a level of its own, so that their averages differ."""
    rng, node = np.random.default_rng(7), graph.inputs[0]
    shape = [d for d in (node.out.tensor.shape or ())[1:] if isinstance(d, int)]
    level = rng.standard_normal((count, shape[0], *(1,) * (len(shape) - 1)))
    arrays = level + 0.3 * rng.standard_normal((count, *shape))
    return Calibration({node.names[0]: arrays.astype(np.float32)})


def head(batch: int | str = 1, hidden: int = 32, maps: tuple[int, ...] = (6, 3, 5)) -> Graph:
    """Two layers with a ReLU between them, on a map."""
    b = Build()
    x = b.op("Relu", b.input(batch, *maps))
    y = b.op("Flatten", x, axis=1)
    y = b.op("Gemm", y, b.weight(hidden, int(np.prod(maps))), b.weight(hidden), transB=1)
    return b.output(b.op("Gemm", b.op("Relu", y), b.weight(10, hidden), b.weight(10), transB=1))


def even_head(layer: str) -> Graph:
    """One layer that weighs all pixels alike: an average of a 1x1."""
    b = Build()
    x = b.input("batch", 4, 3, 3)
    filters = np.random.default_rng(8).standard_normal((5, 4, 1)).astype(np.float32)
    even = np.repeat(filters, 9, axis=2).reshape(5, -1)
    flat = b.op("Flatten", x, axis=1)
    if layer == "Gemm":
        y = b.op("Gemm", flat, b.graph.constant(even), b.weight(5), transB=1, alpha=0.5)
    else:
        y = b.op("Add", b.op("MatMul", flat, b.graph.constant(even.T.copy())), b.weight(5))
    return b.output(y)


@pytest.mark.parametrize("batch", [1, 4, "batch"])
def test_a_head_becomes_1x1s_and_a_pool(batch: int | str) -> None:
    graph = head(batch)
    outcome, found = run(graph, ReplaceFcHead(width=16), data(graph))
    assert outcome.ops == ["Relu", "Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten"]
    assert outcome.remarks == [("Gemm 'gemm1'", "1x1 6->16, 1x1 16->10, global average pool")]
    assert found is not None
    (layer,) = found.layers
    assert layer.parameters_before == 32 * 90 + 32 + 10 * 32 + 10
    assert layer.parameters_after == 16 * 6 + 16 + 10 * 16 + 10
    assert layer.macs_before == (32 * 90 + 320) * (batch if isinstance(batch, int) else 1)
    assert outcome.graph.outputs[0][0] == graph.outputs[0][0]
    assert outcome.graph.outputs[0][1].type == graph.outputs[0][1].type


@pytest.mark.parametrize("layer", ["Gemm", "MatMul"])
@pytest.mark.parametrize("fitted", [True, False])
def test_what_an_average_can_say_is_found(layer: str, fitted: bool) -> None:
    graph = even_head(layer)
    outcome, found = run(graph, ReplaceFcHead(), data(graph) if fitted else None)
    assert outcome.ops == ["Conv", "GlobalAveragePool", "Flatten"]
    assert found is not None
    assert found.random is not fitted
    assert found.loss.l2 < 1e-5


def test_one_layer_is_fitted_as_least_squares_would() -> None:
    b = Build()
    x = b.input("batch", 6, 3, 3)
    graph = b.output(b.op("Gemm", b.op("Flatten", x), b.weight(54, 7), b.weight(7)))
    examples = data(graph, 4000)
    changed, _ = run(graph, ReplaceFcHead(), examples)
    fit = examples.split(0.75, 0.25)[0].inputs["x"].astype(np.float64)
    w, bias = (n.attributes["value"] for n in graph.nodes() if n.is_constant)
    wanted = fit.reshape(len(fit), -1) @ w + bias
    pooled = np.column_stack([fit.mean(axis=(2, 3)), np.ones(len(fit))])
    best = np.linalg.lstsq(pooled, wanted, rcond=None)[0]
    made = next(n for n in changed.graph.nodes() if n.op == "Conv")
    weight = changed.graph.constant_value(changed.graph.operand(made, 1))
    assert weight is not None
    np.testing.assert_allclose(weight.reshape(7, 6).T, best[:-1], atol=2e-2)


def test_data_fit_better_than_the_weights_alone() -> None:
    """Where pixels differ in a way that all examples share, the filters' sum is far off."""
    b = Build()
    flat = b.op("Flatten", b.input("batch", 6, 4, 4), axis=1)
    graph = b.output(b.op("Gemm", flat, b.weight(96, 10), b.weight(10)))
    rng = np.random.default_rng(3)
    bright = rng.uniform(0.0, 4.0, (1, 1, 4, 4)) ** 2
    arrays = bright * rng.standard_normal((512, 6, 1, 1)) + 0.1 * rng.standard_normal(
        (512, 6, 4, 4)
    )
    examples, judged = Calibration({"x": arrays.astype(np.float32)}).split(0.5, 0.5)
    judge = Judge(graph, judged, "l2")
    fitted, free = (run(graph, ReplaceFcHead(), each)[0].graph for each in (examples, None))
    assert judge(fitted).l2 < 0.3 * judge(free).l2


@pytest.mark.parametrize("maps", [(6, 3, 5), (6, 7), (4, 2, 3, 2)])
def test_a_convolution_over_the_map_is_exact(maps: tuple[int, ...]) -> None:
    graph = head(2, maps=maps)
    outcome, found = run(graph, ReplaceFcHead(mode="convolution"))
    assert outcome.ops == ["Relu", "Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten"]
    assert found is not None
    assert found.loss.l2 < 1e-6
    assert found.layers[0].parameters_before == found.layers[0].parameters_after


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape", "Squeeze"])
def test_behind_a_global_pool_it_is_exact(flatten: str) -> None:
    b = Build()
    pooled = b.op("GlobalAveragePool", b.input(3, 8, 5, 4))
    more: dict[str, list[Value]] = {
        "Flatten": [],
        "Reshape": [b.shape(3, 8)],
        "Squeeze": [b.shape(2, 3)],
    }
    y = b.op("Gemm", b.op(flatten, pooled, *more[flatten]), b.weight(8, 12), b.weight(12))
    graph = b.output(b.op("Gemm", b.op("Relu", y), b.weight(12, 4), b.weight(4)))
    outcome, found = run(graph, ReplaceFcHead())
    assert outcome.ops == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Flatten"]
    assert found is not None
    assert found.loss.l2 < 1e-6


def test_a_transposed_map() -> None:
    """Channels-last exporters transpose before they flatten."""
    b = Build()
    x = b.op("Transpose", b.input("batch", 4, 3, 2), perm=(0, 2, 3, 1))
    graph = b.output(b.op("MatMul", b.op("Reshape", x, b.shape(-1, 24)), b.weight(24, 6)))
    outcome, found = run(graph, ReplaceFcHead(mode="convolution"))
    assert outcome.ops == ["Conv", "GlobalAveragePool", "Flatten"]
    assert found is not None
    assert found.loss.l2 < 1e-6


def test_the_budget_takes_it_back() -> None:
    graph = head()
    examples = data(graph)
    outcome, found = run(graph, ReplaceFcHead(budget=1e-4, metric="l2"), examples)
    assert found is None
    assert outcome.ops == [
        n.op for n in graph.topological() if not n.is_input and not n.is_constant
    ]
    assert "l2 loss" in outcome.missed[0][1]
    assert outcome.missed[0][1].endswith("of 0.0001")


def test_what_else_reads_a_value_stays_as_it_is() -> None:
    b = Build()
    flat = b.op("Flatten", b.input(1, 4, 3, 3), axis=1)
    inside = b.op("Gemm", flat, b.weight(36, 8))
    graph = b.output(b.op("Gemm", b.op("Relu", inside), b.weight(8, 3)), inside)
    outcome, _ = run(graph, ReplaceFcHead(mode="convolution"))
    assert outcome.ops.count("Gemm") == 1  # only up to the output in between
    assert outcome.remarks[0][1] == "3x3 4->8, global average pool"


def test_nothing_without_a_head() -> None:
    b = Build()
    graph = b.output(b.op("Gemm", b.input("batch", 12), b.weight(12, 6)))
    outcome, found = run(graph, ReplaceFcHead())
    assert (outcome.ops, outcome.remarks, found) == (["Gemm"], [], None)


def test_weights_that_are_not_constant() -> None:
    b = Build()
    flat = b.op("Flatten", b.input(1, 4, 3, 3), axis=1)
    graph = b.output(b.op("Gemm", flat, b.input(36, 6, name="w")))
    outcome, _ = run(graph, ReplaceFcHead())
    assert outcome.ops == ["Flatten", "Gemm"]


def test_measured_times_of_the_head() -> None:
    graph = head()
    context, changed = Context(calibration=data(graph)), graph.copy()
    context.measure = lambda g: [
        KernelTime(frozenset(n.origin), 100.0 if n.op == "Gemm" else 1.0)
        for n in g.nodes()
        if n.op in ("Gemm", "Conv", "Relu")
    ]
    ReplaceFcHead().run(changed, context)
    (layer,) = context.approximations[0].layers
    assert (layer.measured_before_us, layer.measured_after_us) == (200.0, 2.0)


@pytest.mark.parametrize(
    "options", [{"mode": "fast"}, {"metric": "f1"}, {"width": -1}, {"budget": float("nan")}]
)
def test_options(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="replace-fc-head"):
        ReplaceFcHead(**options)  # type: ignore[arg-type]


def test_as_a_user(tmp_path: Path) -> None:
    graph = head("batch")
    pwopt.save(graph, tmp_path / "m.onnx")
    examples = data(graph)
    result = pwopt.optimize(
        tmp_path / "m.onnx",
        replace_fc_head=True,
        calibration=examples,
        input_shapes={"x": (1, 6, 3, 5)},
    )
    assert result.report.verification.status == "passed"
    assert result.report.after.parameters < 0.1 * result.report.before.parameters
    assert result.report.approximations[0].pass_spec == "replace-fc-head"


def vgg_like(size: int = 16, *, between: str = "") -> Graph:
    """Two convolutions with pools and two fully connected layers on a map of 4x4."""
    b = Build(seed=3)
    x = b.op("Relu", b.conv(b.input(1, 3, size, size), 8, 3, pads=(1, 1, 1, 1)))
    x = b.op("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    if between == "Reshape":
        half = size // 2
        x = b.op("Reshape", x, b.shape(1, 8, half, half))
    elif between == "Resize":
        x = b.op("Resize", x, None, None, b.shape(1, 8, size // 2, size // 2), mode="nearest")
    elif between == "PRelu":
        x = b.op("PRelu", x, b.weight(8, size // 2, size // 2))
    x = b.op("Relu", b.conv(x, 12, 3, pads=(1, 1, 1, 1)))
    x = b.op("MaxPool", x, kernel_shape=(2, 2), strides=(2, 2))
    y = b.op("Flatten", x, axis=1)
    hidden = 12 * (size // 4) ** 2
    y = b.op("Relu", b.op("Gemm", y, b.weight(20, hidden), b.weight(20), transB=1))
    return b.output(b.op("Gemm", y, b.weight(5, 20), b.weight(5), transB=1))


def test_open_sizes_average_the_head_over_all_windows(tmp_path: Path) -> None:
    graph = vgg_like()
    result = pwopt.optimize(graph, passes="replace-fc-head{mode=convolution,open=true},default")
    pwopt.save(result.graph, tmp_path / "m.onnx")
    model = OrtModel(tmp_path / "m.onnx", optimize=True)
    rng = np.random.default_rng(9)
    small = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
    large = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
    wide = rng.standard_normal((1, 3, 16, 24)).astype(np.float32)
    weights = [n.attributes["value"] for n in graph.nodes() if n.is_constant]
    for x in (small, large, wide):
        (found,) = model.run({"x": x}).values()
        wanted = slid(x, weights)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    (original,) = evaluate(graph, {"x": small}).values()
    (found,) = model.run({"x": small}).values()
    np.testing.assert_allclose(found, original, rtol=0, atol=1e-5 * np.abs(original).max())
    loaded = pwopt.load(tmp_path / "m.onnx")
    assert loaded.inputs[0].out.tensor.shape == (1, 3, "height", "width")
    assert loaded.outputs[0][1].shape == (1, 5)
    closed = pwopt.load(tmp_path / "m.onnx", input_shapes={"x": (1, 3, 32, 32)})
    assert closed.inputs[0].out.shape == (1, 3, 32, 32)


def slid(x: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """The head of :func:`vgg_like` on every 4x4 window of the map, averaged."""
    first, first_bias, second, second_bias, w, b, v, c = (a.astype(np.float64) for a in weights)
    features = pooled(np.maximum(convolved(x[0].astype(np.float64), first, first_bias), 0))
    features = pooled(np.maximum(convolved(features, second, second_bias), 0))
    answers = [
        v @ np.maximum(w @ features[:, i : i + 4, j : j + 4].reshape(-1) + b, 0) + c
        for i in range(features.shape[1] - 3)
        for j in range(features.shape[2] - 3)
    ]
    mean: np.ndarray = np.mean(answers, axis=0)[None]
    return mean


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3x3 convolution of a map (C, H, W) with a border of zeros."""
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (1, 2))
    made: np.ndarray = np.einsum("chwij,mcij->mhw", windows, weight) + bias[:, None, None]
    return made


def pooled(x: np.ndarray) -> np.ndarray:
    """The largest of each 2x2."""
    made: np.ndarray = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max(axis=(2, 4))
    return made


@pytest.mark.parametrize(
    ("between", "why"),
    [
        ("Reshape", "Reshape 'reshape1'"),
        ("Resize", "Resize 'resize1' makes float32[1x8x8x8] whatever the size"),
        ("PRelu", "the slopes of PRelu 'prelu1' differ by pixel"),
    ],
)
def test_sizes_stay_closed_where_a_node_needs_them(between: str, why: str) -> None:
    graph = vgg_like(between=between)
    outcome, found = run(graph, ReplaceFcHead(mode="convolution", open=True))
    assert found is None
    assert "Gemm" in outcome.ops
    assert outcome.missed[0][1].startswith("sizes stay closed: ")
    assert why in outcome.missed[0][1]


def test_open_sizes_of_a_map_with_channels_last() -> None:
    b = Build()
    x = b.op("Transpose", b.input(1, 6, 5, 3), perm=(0, 3, 1, 2))
    x = b.op("Flatten", b.conv(x, 4), axis=1)
    graph = b.output(b.op("Gemm", x, b.weight(120, 4), b.weight(4)))
    outcome, found = run(graph, ReplaceFcHead(mode="convolution", open=True))
    assert found is not None
    model = load(export(outcome.graph).SerializeToString())
    assert model.inputs[0].out.tensor.shape == (1, "height", "width", 3)


def test_the_executable_keeps_the_size() -> None:
    graph = vgg_like()
    result = pwopt.optimize(graph, passes="replace-fc-head{mode=convolution,open=true},default")
    x = np.random.default_rng(9).standard_normal((1, 3, 16, 16)).astype(np.float32)
    (wanted,) = evaluate(graph, {"x": x}).values()
    (found,) = pwopt.compile(result.graph).run({"x": x}).values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
