"""The fourteen networks: optimized, compiled, checked, and measured beside ONNX Runtime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pwopt import compilation, cost, driver, frontend, hardware, numerics, ort
from pwopt.baselines import check_baselines
from pwopt.comparison import compare
from pwopt.compilation import CodeOptions
from pwopt.models.datasets import LABELLED, classify, labelled_data
from pwopt.models.suite import SuiteModel
from pwopt.precision import Precision
from pwopt.running import Runner

MAX_GEOMEAN = 0.65  # of the ratios to the best peer
MAX_RATIO = 0.9
PEERS = ("onnxruntime", "openvino", "openvino-bf16")
_PEAK_SAMPLES = 5  # before and after a network, because the clock drifts


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
        macs: multiply-accumulates of the original.
        peak_gflops: fp32 multiply-adds of all threads, measured around the network.
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
    macs: int = 0
    peak_gflops: float = math.nan
    failure: str = ""

    @property
    def best_peer(self) -> str:
        """The fastest of the other runtimes on the original."""
        ratios = {name: self.ratio[name].median for name in PEERS if name in self.ratio}
        return min({PEERS[0]: 1.0} | ratios, key=lambda name: ratios.get(name, 1.0))

    @property
    def best_ratio(self) -> float:
        """Latency of the executable over the best peer's; NaN where nothing was measured."""
        if self.failure:
            return math.nan
        peer = self.ratio.get(self.best_peer)
        return self.ratio["compiled"].median / (peer.median if peer else 1.0)

    @property
    def share(self) -> dict[str, float]:
        """By contender, the original's multiply-adds a second over the peak.

        Above 1 where an algorithm gets by with fewer, as Winograd's does, or counts in bfloat16.
        """
        flop = 2e-6 * self.macs  # in units of GFLOP/s times ms
        return {n: flop / ms.median / self.peak_gflops for n, ms in self.latency_ms.items()}

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

    Raises:
        UsageError: a number format or baseline that there is not.
    """
    from pwopt.targets.cpu.measure import peak_meter

    check_baselines(baselines)
    formats = Precision.of("cpu", precision, fc_weights)
    meter = peak_meter(hardware.host())
    for model in models:
        progress(model.name)
        try:
            peaks = [meter() for _ in range(_PEAK_SAMPLES)]
            row = _measure(model, threads, runs, baselines, accuracy, formats)
            peaks += [meter() for _ in range(_PEAK_SAMPLES)]
            yield replace(row, peak_gflops=threads * float(np.median(peaks)))
        except Exception as error:  # the table must show the others
            text = " ".join(f"{type(error).__name__}: {error}".split())
            yield SuiteRow(model.name, failure=text)


@dataclass(frozen=True)
class Means:
    """Geometric means over the networks that ran; NaN where none did.

    Attributes:
        onnxruntime: of the executables' ratios to ONNX Runtime.
        best_peer: of the ratios to the best peer.
    """

    onnxruntime: float
    best_peer: float


def summarize(rows: Sequence[SuiteRow]) -> Means:
    """The suite in two numbers."""
    good = [row for row in rows if not row.failure]
    return Means(
        geometric_mean([row.ratio["compiled"].median for row in good]),
        geometric_mean([row.best_ratio for row in good]),
    )


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
    optimized = driver.optimize(
        original, verify=False, precision=formats.compute, fc_weights=formats.fc_weights
    )
    optimize_s, start = time.perf_counter() - start, time.perf_counter()
    options = CodeOptions(threads, precision=formats.compute, fc_weights=formats.fc_weights)
    program, optimized = compilation.compile_optimized(optimized, options)
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
        kernels=len(program.report["kernels"]),
        fallbacks=len(program.report["fallback"]),
        macs=cost.graph_macs(frontend.load(original)),
    )


def _accuracy(model: SuiteModel, runners: Mapping[str, Runner]) -> dict[str, float]:
    inputs, labels = labelled_data(model.name)
    return {
        name: float((classify(runner, inputs, model.input_name) == labels).mean())
        for name, runner in runners.items()
    }
