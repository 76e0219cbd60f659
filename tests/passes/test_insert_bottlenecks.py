"""insert-bottlenecks: finds the rank that is there, keeps its budget, says why it declines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import cost
from pwopt.approximation import Approximation, Judge, LayerChange
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph
from pwopt.ir.verify import verify
from pwopt.models.builder import ModelBuilder
from pwopt.passes import bottleneck, parse
from pwopt.passes.insert_bottlenecks import InsertBottlenecks
from pwopt.passes.rank_choice import Choice
from pwopt.pipeline import Context, KernelTime

RANK = 16  # a vector of AVX512
WITH_DATA = pytest.mark.parametrize("data", [False, True], ids=["without data", "with data"])


def low_rank(outputs: int, inputs: int, kernel: Sequence[int] = (), seed: int = 0) -> np.ndarray:
    """Weights of rank RANK as seen from the outputs."""
    rng = np.random.default_rng(seed)
    fan_in = inputs * _size(kernel)
    wide = rng.standard_normal((outputs, RANK)) @ rng.standard_normal((RANK, fan_in))
    made = wide.reshape(outputs, inputs, *kernel) / np.sqrt(RANK * fan_in)
    return np.asarray(made, np.float32)


def narrow_inputs(weight: np.ndarray) -> np.ndarray:
    """The weights, looking at RANK directions of their inputs only."""
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((weight.shape[1], RANK)))[0]
    return np.asarray(np.einsum("oi...,ij->oj...", weight, q @ q.T), np.float32)


def decaying(outputs: int, inputs: int, kernel: Sequence[int] = (), seed: int = 0) -> np.ndarray:
    """Weights whose singular values fall, so that every rank costs something."""
    rng = np.random.default_rng(seed)
    flat = rng.standard_normal((outputs, inputs * _size(kernel)))
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    values = values * np.geomspace(1, 1e-3, len(values))
    return np.asarray(((left * values) @ right).reshape(outputs, inputs, *kernel), np.float32)


def _size(kernel: Sequence[int]) -> int:
    return int(np.prod(kernel, initial=1))


def examples(
    graph: Graph, count: int = 24, labels: bool = False, shift: float = 0.0
) -> Calibration:
    """Random examples, other ones than pwopt draws; labels are the model's own answers."""
    rng = np.random.default_rng(11)
    name, shape = graph.inputs[0].names[0], graph.inputs[0].out.tensor.shape or ()
    x = rng.standard_normal((count, *(d for d in shape[1:] if isinstance(d, int)))) + shift
    data = Calibration({name: x.astype(np.float32)})
    if not labels:
        return data
    from pwopt.approximation import outputs

    return Calibration(data.inputs, outputs(graph, data).reshape(count, -1).argmax(axis=1))


@dataclass(frozen=True)
class Made:
    """What the pass made of a graph."""

    before: Graph
    graph: Graph
    context: Context

    @property
    def approximation(self) -> Approximation:
        (found,) = self.context.approximations
        return found

    @property
    def layers(self) -> dict[str, LayerChange]:
        return {each.node: each for each in self.approximation.layers}

    @property
    def only(self) -> LayerChange:
        (found,) = self.approximation.layers
        return found

    @property
    def missed(self) -> dict[str, str]:
        return {r.node: r.text for r in self.context.remarks if not r.applied}

    def loss(self, data: Calibration) -> float:
        return Judge(self.before, data, "l2")(self.graph).l2


def insert(
    model: onnx.ModelProto | Graph,
    data: Calibration | bool | None = None,
    measure: Callable[[Graph], Sequence[KernelTime]] | None = None,
    **options: Any,
) -> Made:
    """Runs the pass once; ``data`` True stands for :func:`examples`."""
    before = model if isinstance(model, Graph) else pwopt.load(model)
    if isinstance(data, bool):
        data = examples(before) if data else None
    graph, context = before.copy(), Context(AVX512, calibration=data, measure=measure)
    InsertBottlenecks(**{"budget": 1e-3, "metric": "l2", **options}).run(graph, context)
    verify(graph)
    return Made(before, graph, context)


def one_layer(
    weight: np.ndarray, size: int = 8, batch: int | str = 1, bias: bool = True, **attributes: Any
) -> onnx.ModelProto:
    """A convolution by ``weight`` between its input and a ReLU."""
    b = ModelBuilder("one", seed=3)
    spatial = weight.ndim - 2
    x = b.input((batch, weight.shape[1], *(size,) * spatial))
    operands = [x, b.constant(weight)]
    if bias:
        operands.append(b.constant(np.linspace(-1, 1, len(weight))))
    return b.build(b.relu(b.op("Conv", *operands, channels=len(weight), **attributes)))


def dense(
    op: str, weight: np.ndarray, batch: int | str = 4, opset: int = 17, **attributes: Any
) -> onnx.ModelProto:
    """A product with ``weight`` (outputs, inputs) between its input and a ReLU."""
    b = ModelBuilder("dense", opset=opset)
    x = b.input((batch, weight.shape[1]))
    if op == "MatMul":
        return b.build(b.relu(b.op(op, x, b.constant(weight.T))))
    operands = (b.constant(weight), b.constant(np.linspace(-1, 1, len(weight))))
    return b.build(b.relu(b.op(op, x, *operands, transB=1, **attributes)))


def network(seed: int = 0, classes: int = 10) -> onnx.ModelProto:
    """Three 3x3 convolutions of falling singular values, and a classifier."""
    b = ModelBuilder("network", seed)
    x = b.relu(b.conv(b.input(("n", 16, 8, 8)), 64, 3))
    for i in range(2):
        x = b.relu(b.conv(x, weight=decaying(64, 64, (3, 3), seed + i)))
    return b.build(b.linear(b.global_pool(x), classes, gain=40.0))


@WITH_DATA
def test_rank_of_the_outputs_is_found(data: bool) -> None:
    made = insert(one_layer(low_rank(64, 48, (3, 3)), batch="n", pads=[1] * 4), data)
    assert (made.only.rank_in, made.only.rank_out) == (None, RANK)
    assert made.only.text == "3x3 48->16, 1x1 16->64"
    assert made.only.error is not None
    assert made.only.error < 1e-10
    assert made.approximation.loss.l2 < 1e-5
    assert made.loss(examples(made.before, 5)) < 1e-5


@WITH_DATA
def test_ranks_of_both_sides_are_found(data: bool) -> None:
    weight = narrow_inputs(low_rank(64, 64, (3, 3)))
    made = insert(one_layer(weight, batch="n", pads=[1] * 4), data)
    assert (made.only.rank_in, made.only.rank_out) == (RANK, RANK)
    assert made.only.text == "1x1 64->16, 3x3 16->16, 1x1 16->64"
    assert made.loss(examples(made.before, 5)) < 1e-5


@WITH_DATA
def test_rank_of_the_inputs_is_found(data: bool) -> None:
    weight = narrow_inputs(np.random.default_rng(0).standard_normal((32, 64, 3, 3)) / 24)
    made = insert(one_layer(weight, batch="n", pads=[1] * 4), data)
    assert (made.only.rank_in, made.only.rank_out) == (RANK, None)
    assert made.only.text == "1x1 64->16, 3x3 16->32"
    assert made.loss(examples(made.before, 5)) < 1e-5


@WITH_DATA
def test_rank_of_a_1x1_is_found(data: bool) -> None:
    made = insert(one_layer(low_rank(128, 128, (1, 1)), size=16, batch="n", strides=[2, 2]), data)
    assert made.only.text == "1x1 128->16, 1x1 16->128"
    assert made.loss(examples(made.before, 5)) < 1e-5


@WITH_DATA
@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_rank_of_a_matrix_is_found(op: str, opset: int, data: bool) -> None:
    made = insert(dense(op, low_rank(256, 512), opset=opset), data)
    assert made.only.rank_out == RANK
    assert made.loss(examples(made.before, 8)) < 1e-5
    onnx.checker.check_model(made.graph.to_onnx(), full_check=True)


def test_factors_of_a_gemm_are_folded() -> None:
    made = insert(dense("Gemm", low_rank(256, 512), alpha=0.5, beta=-2.0), True)
    assert made.only.rank_out == RANK
    assert made.loss(examples(made.before, 8)) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3), {"strides": [2, 2], "pads": [1] * 4}),
        ((3, 3), {"strides": [1, 2], "pads": [0, 1, 2, 1]}),
        ((3, 3), {"dilations": [2, 2], "pads": [2] * 4}),
        ((3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((3, 3), {"auto_pad": "VALID"}),
        ((5, 3), {}),
        ((5,), {"pads": [2, 2]}),
        ((3, 3, 3), {"pads": [1] * 6}),
    ],
)
@WITH_DATA
def test_windows_of_all_kinds(
    kernel: tuple[int, ...], attributes: dict[str, Any], data: bool
) -> None:
    weight = narrow_inputs(low_rank(64, 64, kernel))
    size = 64 if len(kernel) == 1 else 8
    made = insert(one_layer(weight, size, batch="n", **attributes), data)
    assert (made.only.rank_in, made.only.rank_out) == (RANK, RANK)
    assert made.loss(examples(made.before, 5)) < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 5, "n"])
@pytest.mark.parametrize("bias", [False, True])
def test_batches_and_missing_biases(batch: int | str, bias: bool) -> None:
    made = insert(one_layer(low_rank(64, 48, (3, 3)), batch=batch, bias=bias, pads=[1] * 4), True)
    assert made.only.rank_out == RANK
    assert made.loss(examples(made.before, 7)) < 1e-5


def test_a_result_that_others_read_and_that_is_an_output() -> None:
    b = ModelBuilder("readers")
    y = b.conv(b.input((1, 48, 8, 8)), weight=low_rank(64, 48, (3, 3)))
    model = b.build(y, b.op("Add", b.relu(y), b.op("Sigmoid", y)))
    made = insert(model, True)
    assert made.only.rank_out == RANK
    assert [name for name, _ in made.graph.outputs] == [v.name for v in model.graph.output]
    whole = made.graph.copy()
    whole.set_outputs(list(reversed(made.graph.outputs)))
    before = made.before.copy()
    before.set_outputs(list(reversed(made.before.outputs)))
    assert Judge(before, examples(before, 4), "l2")(whole).l2 < 1e-5


def test_names_stay_for_messages() -> None:
    made = insert(one_layer(low_rank(64, 48, (3, 3)), pads=[1] * 4))
    convs = [n for n in made.graph.topological() if n.op == "Conv"]
    assert [n.name for n in convs] == ["conv_0/narrow", "conv_0"]
    assert all("conv_0" in n.origin for n in convs)


def test_what_cannot_be_replaced_says_why() -> None:
    b = ModelBuilder("declined")
    x = b.input((1, 64, 8, 8))
    shared = b.constant(low_rank(64, 64, (3, 3)))
    y = [b.op("Conv", x, shared, kernel_shape=[3, 3], pads=[1] * 4) for _ in range(2)]
    grouped = b.conv(x, 64, 3, groups=2)
    depthwise = b.conv(x, 64, 3, groups=64)
    variable = b.op("Conv", x, b.op("Relu", b.constant(low_rank(64, 64, (3, 3)))), pads=[1] * 4)
    dynamic = b.op("Conv", x, b.input((64, 64, 3, 3), "w"), channels=64, pads=[1] * 4)
    made = insert(b.build(*y, grouped, depthwise, variable, dynamic))
    assert not made.context.approximations
    why = list(made.missed.values())
    assert sum("the weights of" in w and w.endswith("are shared") for w in why) == 2
    assert any(w.endswith("has 2 groups") for w in why)
    assert any(w.endswith("has 64 groups") for w in why)
    assert sum("is not constant" in w for w in why) == 2
    assert len(why) == 6


def test_matrices_of_other_kinds_say_why() -> None:
    b = ModelBuilder("declined")
    x, y = b.input((2, 9, 64)), b.input((64, 9), "y")
    batched = b.op("MatMul", x, b.constant(low_rank(128, 64).T))
    turned = b.op("Gemm", y, b.constant(low_rank(128, 64)), transA=1, transB=1)
    made = insert(b.build(batched, turned))
    assert set(made.missed.values()) == {
        "MatMul 'matmul_0' is no plain product of a matrix with weights and a bias",
        "Gemm 'gemm_1' is no plain product of a matrix with weights and a bias",
    }


def test_maps_of_unknown_size_say_why() -> None:
    b = ModelBuilder("open")
    model = b.build(b.conv(b.input((1, 64, "h", "w")), weight=low_rank(64, 64, (3, 3))))
    assert insert(model).missed == {"Conv 'conv_0'": "the size of input is not known"}


def test_nothing_is_inserted_where_1x1s_do_all_the_work() -> None:
    b = ModelBuilder("pointwise", seed=1)
    x = b.relu(b.conv(b.input((1, 32, 8, 8)), 64))
    x = b.relu(b.conv(x, 64, 3, groups=64))
    made = insert(b.build(b.relu(b.conv(x, 32))), True, budget=0.02)
    assert not made.approximation.layers
    assert made.approximation.loss.l2 == 0.0
    assert made.graph.to_onnx() == made.before.to_onnx()
    assert len(made.missed) == 3
    for why in made.missed.values():
        assert "groups" in why or "vectors" in why or "budget" in why or "predicted" in why


@pytest.mark.parametrize("metric", ["l2", "kl", "agreement", "accuracy"])
@pytest.mark.parametrize("budget", [0.02, 0.3])
def test_budget_holds_on_examples_that_were_not_fitted_to(metric: str, budget: float) -> None:
    graph = pwopt.load(network())
    data = examples(graph, 64, labels=True)
    made = insert(graph, data, metric=metric, budget=budget)
    loss = made.approximation.loss
    assert made.approximation.metric == metric
    assert loss.by(metric) <= budget
    held_out = data.split(0.5, 0.25, 0.25)[2]
    assert loss == Judge(graph, held_out, metric)(made.graph)
    assert loss.examples == len(held_out)
    assert (made.approximation.fitted, made.approximation.searched) == (31, 16)


def test_larger_budgets_take_less_time() -> None:
    graph = pwopt.load(network())
    data = examples(graph, 64)
    macs = [
        cost.graph_macs(insert(graph, data, budget=budget).graph) for budget in (0, 0.01, 0.1, 0.5)
    ]
    assert macs == sorted(macs, reverse=True)
    assert macs[0] == cost.graph_macs(graph)
    assert macs[-1] < macs[1] < macs[0]


def test_without_a_budget_nothing_is_replaced() -> None:
    made = insert(network(), True, budget=0.0)
    assert not made.approximation.layers
    assert set(made.missed.values()) >= {
        "every faster choice would cost more than the budget allows"
    }
    assert made.graph.to_onnx() == made.before.to_onnx()


@WITH_DATA
def test_result_is_deterministic_and_the_argument_not_changed(data: bool) -> None:
    graph = pwopt.load(network())
    before = graph.to_onnx().SerializeToString()
    first, second = (insert(graph, data, budget=0.1) for _ in range(2))
    assert first.approximation.layers
    assert first.graph.to_onnx().SerializeToString() == second.graph.to_onnx().SerializeToString()
    assert graph.to_onnx().SerializeToString() == before
    assert first.approximation == second.approximation


def test_random_numbers_are_called_that() -> None:
    made = insert(network(), None, budget=0.1, metric="auto").approximation
    assert made.random
    assert made.metric == "l2"
    assert made.source == "random numbers"


def test_a_share_of_the_channels_instead_of_a_search() -> None:
    b = ModelBuilder("rank", seed=1)
    x = b.relu(b.conv(b.input((1, 64, 8, 8)), 128, 3))
    x = b.relu(b.conv(x, 512))
    made = insert(b.build(b.linear(b.global_pool(x), 10)), True, rank=0.25)
    ranks = {node: (c.rank_in, c.rank_out) for node, c in made.layers.items()}
    assert ranks == {"Conv 'conv_0'": (16, 32), "Conv 'conv_2'": (None, 32)}
    assert made.missed == {
        "Gemm 'gemm_6'": "0.25 of its channels are not fewer in whole vectors of 16"
    }


def test_options_out_of_range() -> None:
    for options in ("budget=-0.1", "budget=nan", "rank=1.0", "rank=-0.5"):
        with pytest.raises(UsageError, match="the budget is at least 0, the rank from 0 to 1"):
            parse(f"insert-bottlenecks{{{options}}}")
    with pytest.raises(UsageError, match="the metric is one of auto, accuracy"):
        InsertBottlenecks(metric="l3")


def test_losers_are_kept_out_by_their_measured_time() -> None:
    slow = "conv_2"

    def measure(graph: Graph) -> list[KernelTime]:
        """A microsecond for 10**6 multiply-adds, but a second for ``slow`` once it is split."""
        names = [n.name for n in graph.nodes()]
        split = f"{slow}/narrow" in names or f"{slow}/reduce" in names
        times = []
        for node in graph.topological():
            us = 1e6 if split and slow in node.origin else 1e-6 * cost.node_macs(graph, node)
            times.append(KernelTime(frozenset(node.origin), us))
        return times

    free = insert(network(), True, budget=0.2)
    assert f"Conv '{slow}'" in free.layers
    assert all(c.measured_before_us is c.measured_after_us is None for c in free.layers.values())
    made = insert(network(), True, measure, budget=0.2)
    assert f"Conv '{slow}'" not in made.layers
    assert made.layers
    assert "measured" in made.missed[f"Conv '{slow}'"]
    assert made.missed[f"Conv '{slow}'"].endswith("us before")
    for change in made.layers.values():
        assert change.measured_before_us == pytest.approx(1e-6 * change.macs_before)
        assert change.measured_after_us == pytest.approx(1e-6 * change.macs_after)


def test_a_network_that_gains_little_stays_as_it_is() -> None:
    def measure(graph: Graph) -> list[KernelTime]:
        """A fixed time besides a microsecond for 10**6 multiply-adds."""
        nodes = graph.topological()
        times = [KernelTime(frozenset(n.origin), 1e-6 * cost.node_macs(graph, n)) for n in nodes]
        return [KernelTime(frozenset(), rest), *times]

    rest = 0.0
    gained = insert(network(), True, measure, budget=0.2).approximation
    assert gained.layers
    assert not gained.why_nothing
    rest = 1000.0
    made = insert(network(), True, measure, budget=0.2)
    assert not made.approximation.layers
    why = made.approximation.why_nothing
    assert "measured" in why
    assert why.endswith("; 5% less would be worth a loss")
    for change in gained.layers:
        assert made.missed[change.node] == why
    assert made.graph.to_onnx() == made.before.to_onnx()


def test_plans_that_begin_alike_share_what_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = pwopt.load(network())
    data, replaced, replace = examples(graph, 64), list[str](), bottleneck.replace

    def counted(graph: Graph, layer: bottleneck.Layer, *rest: Any) -> float:
        replaced.append(layer.label)
        return replace(graph, layer, *rest)

    monkeypatch.setattr(bottleneck, "replace", counted)
    made = insert(graph, data, budget=0.1)
    assert len(made.approximation.layers) == 3
    # All plans differ; those that differ in the last layer alone have the others in common.
    assert replaced.count("Conv 'conv_0'") < replaced.count("Conv 'conv_4'")


def test_a_relu_behind_a_layer_hides_some_of_its_errors() -> None:
    model = one_layer(decaying(64, 64, (3, 3)), batch="n", pads=[1] * 4)
    graph = pwopt.load(model)
    data = examples(graph, 32)
    losses = []
    for bounds in ((0.0, np.inf), (-np.inf, np.inf)):
        (layer,) = (bottleneck.read(graph, n) for n in graph.topological() if n.op == "Conv")
        assert isinstance(layer, bottleneck.Layer)
        assert layer.bounds == (0.0, np.inf)
        layer.bounds = bounds
        bottleneck.observe(graph, [layer], data)
        changed = graph.copy()
        bottleneck.replace(changed, layer, Choice(None, 16, 0.0, 0.0), data)
        losses.append(Judge(graph, data, "l2")(changed).l2)
    assert losses[0] < 0.97 * losses[1]


def test_a_corrected_bias_is_better_than_none() -> None:
    graph = pwopt.load(one_layer(decaying(64, 64, (3, 3)), batch="n", pads=[1] * 4))
    data = examples(graph, 32, shift=2.0)
    (layer,) = (bottleneck.read(graph, n) for n in graph.topological() if n.op == "Conv")
    assert isinstance(layer, bottleneck.Layer)
    bottleneck.observe(graph, [layer], data)

    def loss(rank_in: int | None, rank_out: int | None, fit: Calibration | None) -> float:
        changed = graph.copy()
        bottleneck.replace(changed, layer, Choice(rank_in, rank_out, 0.0, 0.0), fit)
        return Judge(graph, data, "l2")(changed).l2

    assert loss(16, None, data) < loss(16, None, None)
    corrected = loss(None, 16, None)
    assert loss(None, 16, data) < 1.01 * corrected
    layer.center = np.zeros_like(layer.center)
    assert corrected < 0.8 * loss(None, 16, None)


def test_later_layers_make_up_for_earlier_ones() -> None:
    graph = pwopt.load(network())
    data = examples(graph, 32)
    layers = [bottleneck.read(graph, n) for n in graph.topological() if n.op == "Conv"][1:]
    found = [layer for layer in layers if isinstance(layer, bottleneck.Layer)]
    assert len(found) == 2
    bottleneck.observe(graph, found, data)
    choice = Choice(None, 16, 0.0, 0.0)
    together, apart = graph.copy(), graph.copy()
    for layer in found:
        bottleneck.replace(together, layer, choice, data)
    for layer in reversed(found):  # the second is fitted to what the original's first answers
        bottleneck.replace(apart, layer, choice, data)
    judge = Judge(graph, data, "l2")
    assert judge(together).l2 < judge(apart).l2


def test_figures_are_those_of_the_graphs() -> None:
    for model in (
        network(),
        one_layer(low_rank(64, 48, (3, 3)), pads=[1] * 4, bias=False),
        dense("MatMul", low_rank(256, 512), batch=1),
    ):
        made = insert(model, True, budget=0.2)
        changes = made.approximation.layers
        assert changes
        for count, before, after in (
            (cost.graph_macs, "macs_before", "macs_after"),
            (cost.parameters, "parameters_before", "parameters_after"),
        ):
            saved = sum(getattr(c, before) - getattr(c, after) for c in changes)
            assert saved == count(made.before) - count(made.graph)
        for change in changes:
            assert change.predicted_after_us < change.predicted_before_us
            assert sum(change.spectrum) == pytest.approx(1.0)
            assert max(np.diff(change.spectrum)) < 1e-12
            assert len(change.spectrum) == change.channels_out


def test_too_few_examples_and_metrics_that_do_not_apply() -> None:
    graph = pwopt.load(network())
    with pytest.raises(UsageError, match="2 examples for 3 parts"):
        insert(graph, examples(graph, 2))
    with pytest.raises(UsageError, match="metric accuracy needs class scores and labels"):
        insert(graph, True, metric="accuracy")
