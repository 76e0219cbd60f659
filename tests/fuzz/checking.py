"""A random network through every way that pwopt computes it, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from hypothesis import reject

import pwopt
from pwopt import hardware, numerics
from pwopt.frontend import load
from pwopt.frontend.reference import evaluate
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.ort import OrtError, OrtModel
from tests.fuzz.generator import Example

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Machine:
    """What to compile for."""

    hardware: Hardware
    threads: int

    def __repr__(self) -> str:
        return f"{self.hardware.mcpu}, {self.threads} threads"


MACHINES = tuple(Machine(h, t) for h in (hardware.AVX512, hardware.AVX2) for t in (1, 2))


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


def optimized(oracle: Oracle, machine: Machine) -> Graph:
    """The graph after the default pipeline, for a machine."""
    return pwopt.optimize(oracle.graph, hardware=machine.hardware, verify=False).graph


def check_export(oracle: Oracle, graph: Graph) -> None:
    """The optimized graph as a file in ONNX Runtime."""
    oracle.check("exported", OrtModel(graph.to_onnx().SerializeToString(), threads=1).run)


def check_compiled(oracle: Oracle, graph: Graph, machine: Machine) -> None:
    """A graph as machine code, twice on the same workspace."""
    executable = pwopt.compile(graph, threads=machine.threads, hardware=machine.hardware)
    oracle.check(f"compiled for {machine!r}", executable.run)
    oracle.check(f"compiled for {machine!r}, second run", executable.run)


def oracle(example: Example) -> Oracle:
    """The right answers, unless ONNX Runtime does not take the model: then another is drawn."""
    try:
        return Oracle(example)
    except OrtError:
        reject()
