"""Recipes and sweeps of the benchmark, on small networks and few pictures."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from pwopt.bench import lossy, tables
from pwopt.bench.lossy import RANKS, Step, measure_steps, measure_sweep
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from pwopt.models import fashion
from pwopt.models.registry import entry
from tests.bench.test_bench import text_of


def subset(part: str) -> Calibration:
    pictures = fashion.subset(part)
    return Calibration({"input": pictures.inputs()}, pictures.labels)


def test_rows_are_of_the_network_after_each_step() -> None:
    model = entry("fashion_lenet").build()
    steps = lossy.recipes()["fashion_lenet"][:1]
    test = subset("test")
    before, after = measure_steps("lenet", model, steps, subset("train"), test, runs=2)

    session = onnxruntime.InferenceSession(model.SerializeToString())
    scores = np.concatenate(
        [session.run(None, {"input": x[None]})[0] for x in test.inputs["input"]]
    )
    assert before.accuracy == pytest.approx(np.mean(scores.argmax(axis=1) == test.labels))
    assert (before.step, before.speedup.median) == ("", 1.0)
    assert after.step == steps[0].text
    assert after.parameters < 0.2 * before.parameters
    assert after.accuracy < before.accuracy
    shown = text_of(tables.lossy_table([before, after]))
    assert f"{before.accuracy:.2%}" in shown
    assert f"{100 * (after.accuracy - before.accuracy):+.2f}" in shown


def test_a_step_goes_on_with_what_the_last_one_left() -> None:
    seen = []

    def double(trial: lossy.Trial) -> Graph:
        seen.append(trial)
        return trial.graph.copy()

    model = entry("fashion_mobilenet").build()
    rows = list(
        measure_steps("m", model, [Step("a", double)] * 2, subset("train"), subset("test"), runs=1)
    )
    assert [row.step for row in rows] == ["", "a", "a"]
    assert seen[0].graph is seen[0].original is seen[1].original
    assert seen[1].graph is not seen[0].graph


def test_sweep_predicts_and_measures_every_rank() -> None:
    model = entry("vgg").build(size=32, classes=10, width=16, hidden=(64,))
    first, *others = measure_sweep({"vgg": model}, runs=2)
    assert (first.rank, first.speedup.median, first.predicted_speedup) == (1.0, 1.0, 1.0)
    assert tuple(row.rank for row in others) == RANKS
    predicted = [row.predicted_ms for row in (first, *others)]
    assert predicted == sorted(predicted, reverse=True)
    assert others[-1].predicted_speedup == pytest.approx(predicted[0] / predicted[-1])
    assert "0.125" in text_of(tables.sweep_table([first, *others]))


def test_chosen_networks() -> None:
    trained, swept = lossy.chosen(None)
    assert trained == list(lossy.recipes())
    assert swept == ["alexnet", "vgg19"]
    assert lossy.chosen(["vgg19", "fashion_vgg"]) == (["fashion_vgg"], ["vgg19"])
    with pytest.raises(UsageError, match="did you mean 'fashion_cnn'"):
        lossy.chosen(["fashion_cn"])
