"""What a lossy rewrite did to a model, and the judge that decides whether that was too much."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from pwopt import calibration
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from pwopt.running import input_types, running

NEW_LAYERS = "pwopt.new_layers"  # key of a model's metadata
METRICS = ("auto", "accuracy", "agreement", "kl", "l2")


@dataclass(frozen=True)
class Loss:
    """How far a model is from the original on some examples; None for what cannot be said.

    Attributes:
        l2: norm of the outputs' difference over the norm of the outputs.
        agreement: share of examples whose largest class is the same.
        kl: mean Kullback-Leibler divergence from the original's class probabilities, nats.
        accuracy_before, accuracy_after: share of examples whose largest class is the label.
        examples: how many.
    """

    l2: float
    agreement: float | None = None
    kl: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    examples: int = 0

    def by(self, metric: str) -> float:
        """The loss by a metric; 0 is none.

        Raises:
            UsageError: the metric does not apply to the model or the data.
        """
        values: dict[str, float | None] = {"l2": self.l2, "kl": self.kl}
        if self.agreement is not None:
            values["agreement"] = 1.0 - self.agreement
        if self.accuracy_before is not None and self.accuracy_after is not None:
            values["accuracy"] = self.accuracy_before - self.accuracy_after
        value = values.get(metric)
        if value is None:
            needs = "class scores and labels" if metric == "accuracy" else "class scores"
            raise UsageError(f"metric {metric} needs {needs}; use agreement, kl or l2")
        return value

    def standard_error(self, metric: str) -> float:
        """Of :meth:`by`, as the number of examples leaves it open; 0 for what is no share of them.

        Only where the class changes can accuracy change, too.
        """
        if metric not in ("accuracy", "agreement") or self.agreement is None:
            return 0.0
        return math.sqrt((1.0 - self.agreement) / self.examples)


@dataclass(frozen=True)
class LayerChange:
    """One layer that was replaced.

    Attributes:
        node: by the user's names.
        text: what stands in its place, such as "1x1 64->24, 3x3 24->32, 1x1 32->128".
        channels_in, channels_out: of the layer.
        rank_in, rank_out: channels that are kept of them, None where all are.
        parameters_before, parameters_after: its weights and biases.
        macs_before, macs_after: multiply-accumulates of one inference.
        predicted_before_us, predicted_after_us: by the cost model.
        measured_before_us, measured_after_us: its kernels' time, None where not measured.
        error: relative error of its responses on the examples that it was fitted to, None where
            nothing answers to them any more.
        spectrum: share of the responses' variance that each further direction explains.
        spectrum_in: the same of the inputs, as far as the layer answers to them.
        others: further layers that went with it.
    """

    node: str
    text: str
    channels_in: int
    channels_out: int
    rank_in: int | None
    rank_out: int | None
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    predicted_before_us: float
    predicted_after_us: float
    measured_before_us: float | None
    measured_after_us: float | None
    error: float | None
    spectrum: tuple[float, ...] = ()
    spectrum_in: tuple[float, ...] = ()
    others: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LayerChange:
        """From an entry of ``report.json``; keys that are not known are left out."""
        return cls(**_values(cls, content))


@dataclass(frozen=True)
class Approximation:
    """What a lossy pass did.

    Attributes:
        pass_spec: the pass with its options.
        budget: the loss that was allowed.
        metric: in which it is measured.
        loss: on examples that neither the fit nor the search has seen.
        source: of the examples.
        random: whether they are random numbers, so that nothing is known of accuracy.
        fitted, searched: examples that weights were fitted to, and that ranks were chosen by.
        layers: what was replaced.
        why_nothing: the reason where that is nothing.
    """

    pass_spec: str
    budget: float
    metric: str
    loss: Loss
    source: str
    random: bool
    fitted: int
    searched: int
    layers: tuple[LayerChange, ...]
    why_nothing: str = ""

    @property
    def uncertainty(self) -> float | None:
        """How far a count of examples leaves a loss of the budget's size open: two standard errors.

        None for metrics that are no shares of examples, and where the budget leaves nothing open.
        """
        if self.metric not in ("accuracy", "agreement") or not 0 < self.budget < 1:
            return None
        return 2.0 * math.sqrt(self.budget * (1.0 - self.budget) / self.loss.examples)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Approximation:
        """From an entry of ``report.json``; keys that are not known are left out.

        Raises:
            TypeError, KeyError: something is missing.
        """
        values = _values(cls, content)
        values["loss"] = Loss(**_values(Loss, content["loss"]))
        values["layers"] = tuple(LayerChange.from_json(each) for each in content["layers"])
        return cls(**values)


class Judge:
    """Compares models with the original on held-out examples, by the first output.

    Attributes:
        metric: that "auto" stands for: accuracy where labels are known, else the agreement of the
            largest class scores, else the relative l2 norm.
    """

    def __init__(self, original: Graph, examples: Calibration, metric: str = "auto") -> None:
        """Runs the original once.

        Raises:
            UsageError: an unknown metric, or one that does not apply.
            OrtError: the model cannot be run.
        """
        if metric not in METRICS:
            raise UsageError(f"metric {metric!r}: one of {', '.join(METRICS)}")
        self._examples = examples
        self._expected = outputs(original, examples)
        loss = self.loss_of(self._expected)
        if metric == "auto":
            metric = "l2"
            if loss.agreement is not None and not examples.random:
                metric = "accuracy" if loss.accuracy_before is not None else "agreement"
        loss.by(metric)
        self.metric = metric

    def __call__(self, graph: Graph) -> Loss:
        """The loss of a model that takes the original's inputs."""
        return self.loss_of(outputs(graph, self._examples))

    def loss_of(self, found: np.ndarray) -> Loss:
        """The loss of outputs, in the order of the examples."""
        want, count = self._expected.astype(np.float64), len(self._examples)
        have = found.astype(np.float64)
        norm = float(np.linalg.norm(want))
        l2 = float(np.linalg.norm(have - want)) / (norm or 1.0)
        before, after = _scores(want), _scores(have)
        if before is None or after is None:
            return Loss(l2, examples=count)
        top, new_top = before.argmax(axis=1), after.argmax(axis=1)
        labels = self._examples.labels
        loss = Loss(l2, _mean(top == new_top), _kl(before, after), examples=count)
        if labels is None:
            return loss
        right, still_right = _mean(top == labels), _mean(new_top == labels)
        return replace(loss, accuracy_before=right, accuracy_after=still_right)


def outputs(graph: Graph, examples: Calibration) -> np.ndarray:
    """The first output for all examples, (count, ...); see :func:`all_outputs`."""
    return all_outputs(graph, examples, 1)[0]


def all_outputs(graph: Graph, examples: Calibration, count: int | None = None) -> list[np.ndarray]:
    """The outputs, or the first ``count`` of them, for all examples, each (examples, ...).

    Raises:
        UsageError: an output is not of as many items as there are examples.
        OrtError: the model cannot be run.
    """
    names = [name for name, _ in graph.outputs[:count]]
    found: list[list[np.ndarray]] = [[] for _ in names]
    size = calibration.batch_size(input_types(graph), len(examples))
    with running(graph) as runner:
        for feeds in examples.batches(size):
            answers = runner.run(feeds)
            for name, mine in zip(names, found, strict=True):
                answer = answers[name]
                if size == 1 and answer.shape[:1] != (1,):
                    answer = answer[None]
                if answer.shape[:1] != (size,):
                    what = f"output {name} of {size} examples has the shape {answer.shape}"
                    raise UsageError(what)
                mine.append(answer)
    return [np.concatenate(mine)[: len(examples)] for mine in found]


def _values(cls: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """What of JSON's content a dataclass has fields for; arrays as tuples."""
    known = {f.name: content[f.name] for f in fields(cls) if f.name in content}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}


def mark_new_layers(graph: Graph, before: Graph) -> None:
    """Notes in a model's metadata which convolutions and products ``before`` does not have."""
    old = set(before.nodes())
    made = [n for n in graph.nodes() if n not in old and n.is_op("Conv", "Gemm", "MatMul")]
    names = [*dict.fromkeys([*new_layers(graph), *(n.name for n in made if n.name)])]
    properties = graph.metadata.get("properties", {})
    graph.metadata["properties"] = {**properties, NEW_LAYERS: json.dumps(names)}


def new_layers(graph: Graph) -> list[str]:
    """Names of the nodes that lossy passes put into a model, as its metadata have them."""
    try:
        found = json.loads(graph.metadata.get("properties", {}).get(NEW_LAYERS, "[]"))
    except json.JSONDecodeError:
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _scores(array: np.ndarray) -> np.ndarray | None:
    """Class scores (count, classes), or None where the output is something else."""
    if array.ndim < 2 or array.shape[1] < 2 or array[0].size != array.shape[1]:
        return None
    return array.reshape(len(array), -1)


def _kl(before: np.ndarray, after: np.ndarray) -> float:
    p, q = log_probabilities(before), log_probabilities(after)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=1)))


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Of class scores (count, classes): logits, or probabilities, which sum to one."""
    if np.all(scores >= 0) and np.allclose(scores.sum(axis=1), 1.0, atol=1e-3):
        scores = np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(axis=1, keepdims=True)
    made: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return made


def _mean(flags: np.ndarray) -> float:
    return float(np.mean(flags))
