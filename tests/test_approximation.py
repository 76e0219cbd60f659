"""The judge of lossy rewrites: each metric against one computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.approximation import Approximation, Judge, Loss
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from tests.passes.building import Build

# The model hands its input on, so that outputs can be chosen at will.
SCORES = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0], [5.0, 4.0, 0.0]], np.float32)


def identity(*shape: int | str, op: str = "Identity", **attributes: int) -> Graph:
    b = Build()
    return b.output(b.op(op, b.input(*shape), **attributes))


def probabilities(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores.astype(np.float64))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def judge(scores: np.ndarray, labels: list[int] | None = None, metric: str = "auto") -> Judge:
    numbers = None if labels is None else np.array(labels)
    data = Calibration({"x": scores.astype(np.float32)}, numbers)
    return Judge(identity("n", *scores.shape[1:]), data, metric)


def test_metrics_of_logits() -> None:
    found = SCORES + np.array([[0, 2, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    loss = judge(SCORES, [0, 1, 2, 1]).loss_of(found)
    assert loss.examples == 4
    assert loss.l2 == pytest.approx(np.sqrt(5.0) / np.linalg.norm(SCORES))
    assert loss.agreement == 0.75
    assert (loss.accuracy_before, loss.accuracy_after) == (0.75, 0.5)
    p, q = probabilities(SCORES), probabilities(found)
    assert loss.kl == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)))
    assert loss.by("accuracy") == loss.by("agreement") == 0.25
    assert loss.by("l2") == loss.l2


def test_divergence_of_probabilities_is_their_own() -> None:
    found = probabilities(SCORES + np.array([1.0, 0.0, 0.0]))
    by_logits = judge(SCORES).loss_of(SCORES + np.array([1.0, 0.0, 0.0]))
    by_probabilities = judge(probabilities(SCORES)).loss_of(found)
    assert by_probabilities.kl == pytest.approx(by_logits.kl, rel=1e-5)
    assert by_logits.kl is not None
    assert by_logits.kl > 0.01


def test_certain_probabilities_have_a_finite_divergence() -> None:
    loss = judge(np.eye(3)).loss_of(np.eye(3)[[1, 0, 2]])
    assert loss.kl is not None
    assert np.isfinite(loss.kl)
    assert loss.kl > 1


def test_the_original_loses_nothing() -> None:
    for scores in (SCORES, probabilities(SCORES), SCORES[:, :, None, None]):
        loss = judge(scores, [0, 1, 2, 0]).loss_of(scores)
        assert loss.by("accuracy") == loss.by("agreement") == 0.0
        assert abs(loss.by("kl")) < 1e-7
        assert loss.by("l2") < 1e-7


def test_a_better_model_loses_less_than_nothing() -> None:
    loss = judge(SCORES, [1, 1, 2, 0]).loss_of(np.eye(3)[[1, 1, 2, 0]])
    assert (loss.accuracy_before, loss.accuracy_after) == (0.75, 1.0)
    assert loss.by("accuracy") == -0.25


def test_graphs_are_run_in_batches_of_the_model() -> None:
    data = Calibration({"x": SCORES[:3]})
    for batch in (1, 2, "n"):
        loss = Judge(identity(batch, 3), data)(identity(batch, 3, op="Neg"))
        assert loss.l2 == pytest.approx(2.0)
        assert loss.examples == 3


def test_auto_is_what_the_data_allow() -> None:
    assert judge(SCORES, [0, 1, 2, 1]).metric == "accuracy"
    assert judge(SCORES).metric == "agreement"
    assert judge(SCORES[:, :, None, None]).metric == "agreement"
    assert judge(np.ones((2, 3, 4, 4))).metric == "l2"
    assert judge(SCORES[:, :1]).metric == "l2"
    noise = Calibration({"x": SCORES}, random=True)
    assert Judge(identity("n", 3), noise).metric == "l2"
    assert judge(SCORES, metric="kl").metric == "kl"


def test_metrics_that_do_not_apply() -> None:
    with pytest.raises(UsageError, match="metric accuracy needs class scores and labels; use"):
        judge(SCORES, metric="accuracy")
    for metric in ("agreement", "kl"):
        with pytest.raises(UsageError, match=f"metric {metric} needs class scores"):
            judge(np.ones((2, 3, 4, 4)), metric=metric)
    with pytest.raises(UsageError, match="metric 'l1': one of auto, accuracy,"):
        judge(SCORES, metric="l1")
    assert Loss(0.5).by("l2") == 0.5


def test_an_output_of_zeros_has_a_finite_loss() -> None:
    assert judge(np.zeros((2, 3))).loss_of(np.ones((2, 3))).l2 == pytest.approx(np.sqrt(6))


def test_outputs_without_a_first_axis_for_examples() -> None:
    flat = identity(1, 3, op="Flatten", axis=0)
    graph = flat.copy()
    shape = graph.constant(np.array([3], np.int64))
    graph.set_outputs([("y", graph.add("Reshape", [graph.outputs[0][1], shape]).out)])
    assert Judge(graph, Calibration({"x": SCORES}), "l2")(graph).l2 == 0.0
    mixed = identity(2, 3, op="ReduceSum", keepdims=1)
    with pytest.raises(UsageError, match=r"of 2 examples has the shape \(1, 1\)"):
        Judge(mixed, Calibration({"x": SCORES}))


@pytest.mark.parametrize(
    ("metric", "budget", "examples", "expected"),
    [
        ("accuracy", 0.1, 36, 0.1),
        ("agreement", 0.01, 396, 0.01),
        ("accuracy", 0.0, 36, None),
        ("l2", 0.1, 36, None),
    ],
)
def test_what_so_many_examples_leave_open(
    metric: str, budget: float, examples: int, expected: float | None
) -> None:
    loss = Loss(0.0, examples=examples)
    made = Approximation("insert-bottlenecks", budget, metric, loss, "arrays", False, 1, 1, ())
    assert made.uncertainty == (None if expected is None else pytest.approx(expected))
