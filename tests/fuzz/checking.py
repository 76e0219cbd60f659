"""A random network through every way that pwopt computes it, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from hypothesis import reject

import pwopt
from pwopt import hardware, numerics
from pwopt.frontend import load
from pwopt.frontend.reference import evaluate
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.ort import OrtError, OrtModel
from pwopt.passes import default_pipeline, parse
from pwopt.pipeline import Context, Pipeline
from tests.fuzz.generator import Example
from tests.targets.guarding import compile_guarded

Outputs = Mapping[str, np.ndarray]


# Machines that are slow at one thing, so that every rewrite pays somewhere.
SLOW: dict[str, dict[str, float]] = {
    "": {},
    "arithmetic": {"peak_gflops": 0.5, "launch_us": 0.0},
    "memory": {"l2_gbps": 0.1, "l3_gbps": 0.1, "bandwidth_gbps": 0.1, "launch_us": 0.0},
    "launches": {"launch_us": 1000.0},
}


@dataclass(frozen=True)
class Machine:
    """What to optimize and to compile for; ``slow`` at one of :data:`SLOW` while optimizing."""

    hardware: Hardware
    threads: int
    slow: str = ""

    @property
    def imagined(self) -> Hardware:
        """What the passes weigh their rewrites by."""
        return replace(self.hardware, **SLOW[self.slow])  # type: ignore[arg-type]

    def __repr__(self) -> str:
        slow = f", slow {self.slow}" if self.slow else ""
        return f"{self.hardware.mcpu}, {self.threads} threads{slow}"


MACHINES = tuple(
    Machine(h, t, slow) for slow in SLOW for h in (hardware.AVX512, hardware.AVX2) for t in (1, 2)
)


class Oracle:
    """The right answers: ONNX Runtime's, or in doubt the float64 reference's."""

    def __init__(self, example: Example) -> None:
        """Runs the original model."""
        self.example, self.feeds = example, example.feeds()
        self.graph = load(example.model, example.inputs)
        self._expected = OrtModel(example.model.SerializeToString(), threads=1).run(self.feeds)
        self._exact: dict[str, np.ndarray] | None = None

    def check(self, what: str, run: Callable[[Outputs], Outputs]) -> None:
        """Runs something else on the same inputs and compares all outputs."""
        actual = run(self.feeds)
        assert list(actual) == list(self._expected), f"{what}: outputs {list(actual)}"
        for name, want in self._expected.items():
            found = numerics.difference(name, want, actual[name])
            if not found.ok:
                found = numerics.difference(name, self._reference()[name], actual[name])
            assert found.ok, f"{what}: {found}"

    def _reference(self) -> dict[str, np.ndarray]:
        if self._exact is None:
            exact = evaluate(self.graph, self.feeds)
            self._exact = {n: a.astype(self._expected[n].dtype) for n, a in exact.items()}
        return self._exact


def optimized(
    oracle: Oracle, machine: Machine, passes: str | None = None, *, closed: bool = True
) -> Graph:
    """The graph after some passes, the default ones if left out, for a machine.

    It knows all sizes of its inputs, or only those in the file unless ``closed``.
    """
    if closed:
        graph = oracle.graph
        return pwopt.optimize(graph, passes=passes, hardware=machine.imagined, verify=False).graph
    graph = load(oracle.example.model)
    sequence = default_pipeline() if passes is None else parse(passes)
    Pipeline(sequence).run(graph, Context(machine.imagined))
    return graph


def check_export(oracle: Oracle, graph: Graph) -> None:
    """The optimized graph as a valid file in ONNX Runtime."""
    model = graph.to_onnx()
    onnx.checker.check_model(model)
    oracle.check("exported", OrtModel(model.SerializeToString(), threads=1).run)


def check_compiled(
    oracle: Oracle, graph: Graph, machine: Machine, *, separate: bool = False
) -> None:
    """A graph as machine code, twice in guarded memory; ``separate``: its buffers share none."""
    executable, guard = compile_guarded(
        graph, separate=separate, threads=machine.threads, hardware=machine.hardware
    )
    oracle.check(f"compiled for {machine!r}", lambda feeds: guard.run(executable, feeds))


def oracle(example: Example) -> Oracle:
    """The right answers, unless ONNX Runtime does not take the model: then another is drawn."""
    try:
        return Oracle(example)
    except OrtError:
        reject()
