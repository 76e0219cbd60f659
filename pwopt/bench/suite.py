"""The fourteen networks: optimized, compiled, checked, and measured beside ONNX Runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pwopt import driver, numerics, ort
from pwopt.comparison import compare
from pwopt.driver import CodeOptions
from pwopt.models.datasets import LABELLED, labelled_data
from pwopt.models.suite import SuiteModel
from pwopt.precision import Precision
from pwopt.running import Runner

MAX_GEOMEAN = 0.9
MAX_RATIO = 1.1


@dataclass(frozen=True)
class Latency:
    """Milliseconds: median and quartiles."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class SuiteRow:
    """One network's results.

    Attributes:
        name: in the suite.
        latency_ms: by contender: "onnxruntime", "onnxruntime, optimized", "compiled", "openvino".
        ratio: latency over ONNX Runtime's on the original, by contender, from interleaved rounds.
        error: by contender, relative to the output's scale: the worst over random inputs and a
            representative one, over all outputs.
        tolerance: by contender, what its error may be.
        accuracy: by contender, on labelled data, where there are any.
        optimize_s, compile_s: wall time of the two steps.
        kernels: calls in the executable.
        fallbacks: parts that run in ONNX Runtime.
        failure: what went wrong; nothing else is filled in then.
    """

    name: str
    latency_ms: Mapping[str, Latency] = field(default_factory=dict)
    ratio: Mapping[str, Latency] = field(default_factory=dict)
    error: Mapping[str, float] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    optimize_s: float = math.nan
    compile_s: float = math.nan
    kernels: int = 0
    fallbacks: int = 0
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether every contender agrees with the original, and labelled accuracy is the same."""
        default = numerics.TOLERANCES["float32"]
        small = all(e <= self.tolerance.get(name, default) for name, e in self.error.items())
        return not self.failure and small and len(set(self.accuracy.values())) <= 1


def run_suite(
    models: Sequence[SuiteModel],
    *,
    threads: int = 1,
    runs: int | None = None,
    baselines: Sequence[str] = ("onnxruntime",),
    accuracy: bool = True,
    precision: str = "fp32",
    fc_weights: str = "fp32",
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[SuiteRow]:
    """Measures one network after the other; a failure becomes a row and the rest goes on.

    Args:
        models: what to measure.
        threads: of every contender.
        runs: interleaved samples; None for about ten seconds a network.
        baselines: see :func:`pwopt.compare`.
        accuracy: whether to run the labelled data, too.
        precision: of the executables.
        fc_weights: likewise.
        progress: called with a few words at the start of each step.
    """
    for model in models:
        progress(model.name)
        try:
            formats = Precision(precision, fc_weights)
            yield _measure(model, threads, runs, baselines, accuracy, formats)
        except Exception as error:  # the table must show the others
            text = " ".join(f"{type(error).__name__}: {error}".split())
            yield SuiteRow(model.name, failure=text)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of positive numbers; NaN of none."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


def _measure(
    model: SuiteModel,
    threads: int,
    runs: int | None,
    baselines: Sequence[str],
    accuracy: bool,
    formats: Precision,
) -> SuiteRow:
    original = model.build()
    start = time.perf_counter()
    optimized = driver.optimize(original, verify=False)
    optimize_s, start = time.perf_counter() - start, time.perf_counter()
    options = CodeOptions(threads, precision=formats.compute, fc_weights=formats.fc_weights)
    program, optimized = driver.compile_optimized(optimized, options)
    compile_s = time.perf_counter() - start
    exported = optimized.graph.to_onnx().SerializeToString()
    table = compare(
        original,
        program,
        optimized=exported,
        runs=runs,
        threads=threads,
        baselines=baselines,
        inputs=model.inputs(),
    )
    runners: dict[str, Runner] = {
        "onnxruntime": ort.OrtModel(original.SerializeToString(), threads),
        "onnxruntime, optimized": ort.OrtModel(exported, threads),
        "compiled": program,
    }
    labelled = accuracy and model.name in LABELLED
    return SuiteRow(
        name=model.name,
        latency_ms={r.name: Latency(*r.latency_ms) for r in table.rows},
        ratio={r.name: Latency(*r.ratio) for r in table.rows[1:]},
        error={r.name: r.error for r in table.rows[1:]},
        tolerance={r.name: r.tolerance for r in table.rows[1:]},
        accuracy=_accuracy(model, runners) if labelled else {},
        optimize_s=optimize_s,
        compile_s=compile_s,
        kernels=len(program.report.get("kernels", ())),
        fallbacks=len(program.report.get("fallbacks", ())),
    )


def _accuracy(model: SuiteModel, runners: Mapping[str, Runner]) -> dict[str, float]:
    inputs, labels = labelled_data(model.name)
    right = dict.fromkeys(runners, 0)
    for i, label in enumerate(labels):
        for name, runner in runners.items():
            first = next(iter(runner.run({model.input_name: inputs[i : i + 1]}).values()))
            right[name] += int(np.argmax(first) == label)
    return {name: count / len(labels) for name, count in right.items()}
