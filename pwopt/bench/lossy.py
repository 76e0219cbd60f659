"""What the lossy passes and recovery cost and win, and whether predictions of them hold.

The trained networks go through the steps that the documentation shows, on training pictures of
Fashion-MNIST, and are judged on the test pictures. AlexNet and VGG-19, whose random weights say
nothing of accuracy, get bottlenecks of fixed ranks, predicted and measured.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from pwopt import compilation, cost, driver, frontend, numerics
from pwopt.approximation import Judge
from pwopt.calibration import Calibration
from pwopt.errors import UsageError, nearest
from pwopt.ir.graph import Graph
from pwopt.models import fashion
from pwopt.passes import default_pipeline
from pwopt.passes.insert_bottlenecks import InsertBottlenecks
from pwopt.recovery import RecoveryOptions, recover
from pwopt.running import Runner, input_types
from pwopt.timing import Spread, interleaved

BUDGET = 0.01  # of accuracy
PICTURES = 24_000  # of the training pictures, for the passes; recovery takes all
SWEPT = ("alexnet", "vgg19")
RANKS = (0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Trial:
    """A network on its way through the steps of a recipe.

    Attributes:
        original: before the first step.
        graph: as the last step left it.
        train: examples.
    """

    original: Graph
    graph: Graph
    train: Calibration


@dataclass(frozen=True)
class Step:
    """One command of a user: its options, and what it makes of a network."""

    text: str
    run: Callable[[Trial], Graph]


@dataclass(frozen=True)
class LossyRow:
    """A network after a step, or before the first.

    Attributes:
        network: its name.
        step: what was done last; empty for the original.
        seconds: that it took, of the clock on the wall.
        parameters: of the network then.
        accuracy: on the test pictures.
        latency_us: of one inference, one thread.
        speedup: the original's latency over this one's, within one round.
    """

    network: str
    step: str
    seconds: float
    parameters: int
    accuracy: float
    latency_us: Spread
    speedup: Spread


@dataclass(frozen=True)
class SweepRow:
    """A network with bottlenecks of one rank.

    Attributes:
        network: its name.
        rank: share of the channels that is kept; 1 for the original.
        predicted_ms: of one inference by the cost model, one core.
        measured_ms: the same, measured.
        speedup: the original's measured latency over this one's, within one round.
        predicted_speedup: the same, predicted.
    """

    network: str
    rank: float
    predicted_ms: float
    measured_ms: Spread
    speedup: Spread
    predicted_speedup: float


def recipes() -> dict[str, tuple[Step, ...]]:
    """The steps of each trained network, by its name in :mod:`pwopt.models`."""
    insert = _optimization(f"--bottleneck {BUDGET}", bottleneck=BUDGET)
    tune = _recovery(mode="finetune", epochs=2)
    head = "replace-fc-head{width=112},default"  # as wide as the hidden layer was
    return {
        "fashion_vgg": (insert, tune),
        "fashion_cnn": (insert, tune),
        "fashion_squeezenet": (insert, tune),
        "fashion_mobilenet": (insert,),
        "fashion_lenet": (
            _optimization(f"--passes {head}", passes=head),
            _recovery(epochs=30, batch=256, rate=0.04),
            _recovery(mode="finetune", epochs=8, rate=0.002),
        ),
    }


def chosen(names: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The trained networks and the others, of those that are named, or of all.

    Raises:
        UsageError: an unknown network.
    """
    known = (*recipes(), *SWEPT)
    for name in names or ():
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(f"no network {name}{hint}; there are {', '.join(known)}")
    wanted = [name for name in known if not names or name in names]
    return [n for n in wanted if n not in SWEPT], [n for n in wanted if n in SWEPT]


def measure_steps(
    name: str,
    model: onnx.ModelProto,
    steps: Sequence[Step],
    train: Calibration,
    test: Calibration,
    *,
    runs: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[LossyRow]:
    """Takes a network through steps, and measures it before the first and after each.

    Args:
        name: of the network.
        model: a classifier.
        steps: each goes on with what the last one left.
        train: examples with labels, for the steps.
        test: examples with labels that accuracy is measured on.
        runs: interleaved samples; None for about ten seconds.
        progress: called with a step's text before it runs.
    """
    original = frontend.load(model)
    graphs, seconds = [original], [0.0]
    for step in steps:
        progress(f"{name} {step.text}")
        start = time.perf_counter()
        graphs.append(step.run(Trial(original, graphs[-1], train)))
        seconds.append(time.perf_counter() - start)
    finished = [driver.optimize(graph).graph for graph in graphs]
    judge = Judge(original, test)
    samples = _us([compilation.compile(graph) for graph in finished], original, runs)
    for text, spent, graph, mine in zip(
        ("", *(step.text for step in steps)), seconds, finished, samples, strict=True
    ):
        accuracy = judge(graph).accuracy_after
        assert accuracy is not None
        speedup = Spread.of([a / b for a, b in zip(samples[0], mine, strict=True)])
        parameters = cost.parameters(graph)
        yield LossyRow(name, text, spent, parameters, accuracy, Spread.of(mine), speedup)


def measure_sweep(
    models: Mapping[str, onnx.ModelProto],
    ranks: Sequence[float] = RANKS,
    *,
    runs: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[SweepRow]:
    """Puts bottlenecks of fixed ranks into networks, by their weights alone.

    Args:
        models: by name.
        ranks: shares of the channels.
        runs: interleaved samples; None for about ten seconds a network.
        progress: called with a network's name before it is measured.
    """
    for name, model in models.items():
        progress(name)
        graph = frontend.load(model)
        lists = [[], *([InsertBottlenecks(rank=rank)] for rank in ranks)]
        made = [driver.optimize(graph, passes=[*each, *default_pipeline()]) for each in lists]
        samples = _us([compilation.compile(each.graph) for each in made], graph, runs)
        predicted = [each.report.after.predicted_us for each in made]
        for rank, mine, us in zip((1.0, *ranks), samples, predicted, strict=True):
            assert us is not None
            yield SweepRow(
                name,
                rank,
                us / 1e3,
                Spread.of([sample / 1e3 for sample in mine]),
                Spread.of([a / b for a, b in zip(samples[0], mine, strict=True)]),
                (predicted[0] or us) / us,
            )


def examples(part: str) -> Calibration:
    """All pictures of Fashion-MNIST for "train" or "test", for networks of the input "input"."""
    pictures = fashion.load(part)
    return Calibration({"input": pictures.inputs()}, pictures.labels, f"Fashion-MNIST, {part}")


def _optimization(text: str, **options: Any) -> Step:
    def run(trial: Trial) -> Graph:
        few = trial.train.take(PICTURES)
        return driver.optimize(trial.graph, calibration=few, **options).graph

    return Step(text, run)


def _recovery(**settings: Any) -> Step:
    options = RecoveryOptions(**settings, threads=os.cpu_count() or 1)
    shown = " ".join(f"--{name} {value}" for name, value in settings.items())

    def run(trial: Trial) -> Graph:
        return recover(trial.graph, trial.train, options, teacher=trial.original).graph

    return Step(f"recover {shown}", run)


def _us(runners: Sequence[Runner], model: Graph, runs: int | None) -> list[list[float]]:
    """Microseconds of an inference, by runner and round."""
    feeds = numerics.random_inputs(input_types(model), seed=0)
    samples, _ = interleaved(runners, feeds, runs)
    return [[1e6 * sample.wall for sample in each] for each in samples]
