"""Builds small graphs for the tests of fusing passes, runs passes on them, and compares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pwopt import numerics
from pwopt.frontend import export
from pwopt.frontend.reference import evaluate
from pwopt.hardware import AVX512, Hardware
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.types import TensorType
from pwopt.ir.verify import verify
from pwopt.ort import OrtModel
from pwopt.pipeline import Context, Pass

# In float64 only what a pass itself rounds to float32 remains: constants, each by 2**-24.
FOLDED = 2e-6


class Build:
    """A graph under construction; every operator's result and node are named after it."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.graph = Graph("test", {"": opset})
        self._random = np.random.default_rng(seed)
        self._count: dict[str, int] = {}

    def input(self, *shape: int | str, name: str = "x", dtype: str = "float32") -> Value:
        return self.graph.add_input(name, TensorType(dtype, shape))

    def weight(self, *shape: int, name: str = "") -> Value:
        array = self._random.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[1:])))
        return self.graph.constant(array.astype(np.float32), name)

    def positive(self, *shape: int) -> Value:
        return self.graph.constant(self._random.uniform(0.5, 1.5, shape).astype(np.float32))

    def number(self, value: float, *shape: int) -> Value:
        return self.graph.constant(np.full(shape, value, np.float32))

    def shape(self, *sizes: int) -> Value:
        return self.graph.constant(np.array(sizes, np.int64))

    def op(self, op: str, *operands: Value | float | None, **attributes: Any) -> Value:
        """Adds an operator; numbers become scalar constants."""
        values = [self.number(v) if isinstance(v, float | int) else v for v in operands]
        count = self._count[op] = self._count.get(op, 0) + 1
        name = f"{op.lower()}{count}"
        node = self.graph.add(
            op, values, attributes, names=(f"{name}_out",), name=name, origin=(name,)
        )
        return node.out

    def conv(self, x: Value, channels: int, kernel: int = 1, **attributes: Any) -> Value:
        """A convolution with random weights and a bias; ``kernel`` on every axis."""
        shape = x.tensor.shape
        assert shape is not None
        in_channels = shape[1]
        assert isinstance(in_channels, int)
        group = attributes.get("group", 1)
        weight = self.weight(channels, in_channels // group, *(kernel,) * (len(shape) - 2))
        return self.op("Conv", x, weight, self.weight(channels), **attributes)

    def batch_norm(self, x: Value, channels: int) -> Value:
        return self.op(
            "BatchNormalization",
            x,
            self.positive(channels),
            self.weight(channels),
            self.weight(channels),
            self.positive(channels),
        )

    def output(self, *values: Value) -> Graph:
        """Makes these the graph's outputs."""
        for value in values:
            self.graph.add_output(value.name or f"y{len(self.graph.outputs)}", value)
        verify(self.graph)
        return self.graph


@dataclass(frozen=True)
class Outcome:
    """What passes made of a graph."""

    graph: Graph
    remarks: list[tuple[str, str]]  # label and text of those made
    missed: list[tuple[str, str]]  # the same of those declined

    @property
    def ops(self) -> list[str]:
        """Operators in order, internal ones with a dot in front."""
        return [
            ("." if node.domain == KERNEL_DOMAIN else "") + node.op
            for node in self.graph.topological()
            if not node.is_constant and not node.is_input
        ]

    def only(self, op: str) -> Node:
        """The one internal node of an operator."""
        found = [n for n in self.graph.nodes() if n.op == op and n.domain == KERNEL_DOMAIN]
        assert len(found) == 1, f"{len(found)} nodes {op}"
        return found[0]

    def program(self, op: str) -> str:
        """The text of the one such node's program."""
        node = self.only(op)
        return str(node.get("epilogue") if op != "Map" else node.get("program"))


def transform(graph: Graph, *passes: Pass, machine: Hardware = AVX512) -> Outcome:
    """Runs passes on a copy, verifies after each, and checks that another run changes nothing.

    What is predicted to pay depends on the machine, so that is not this one.
    """
    result, context = graph.copy(), Context(machine)
    for each in passes:
        each.run(result, context)
        verify(result)
    version, repeated = result.version, Context(machine)
    for each in passes:
        each.run(result, repeated)
    assert result.version == version, "the passes are not idempotent"
    made = [(r.node, r.text) for r in context.remarks if r.applied]
    return Outcome(result, made, [(r.node, r.text) for r in context.remarks if not r.applied])


def check(
    graph: Graph, *passes: Pass, sizes: Mapping[str, int] | None = None, runtime: bool = True
) -> Outcome:
    """As :func:`transform`, and compares the results in float64 and in ONNX Runtime.

    Args:
        graph: stays as it is.
        passes: run in this order.
        sizes: numbers for symbolic dimensions.
        runtime: whether ONNX Runtime can run the graph at all.
    """
    outcome = transform(graph, *passes)
    feeds = random_feeds(graph, sizes or {})
    wide = {name: array.astype(np.float64) for name, array in feeds.items()}
    _compare(evaluate(graph, wide), evaluate(outcome.graph, wide), FOLDED)
    if runtime:
        before, after = (
            OrtModel(export(g).SerializeToString(), threads=1).run(feeds)
            for g in (graph, outcome.graph)
        )
        for found in numerics.differences(before, after):
            assert found.ok, str(found)
    return outcome


def random_feeds(graph: Graph, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Normally distributed inputs."""
    random = np.random.default_rng(1)
    feeds = {}
    for node in graph.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in node.out.tensor.shape or ()]
        array = random.standard_normal([d or 0 for d in shape])
        feeds[node.out.name] = array.astype(node.out.tensor.dtype)
    return feeds


def _compare(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], tolerance: float
) -> None:
    assert list(expected) == list(actual)
    for name, want in expected.items():
        have = actual[name]
        assert want.shape == have.shape
        scale = np.abs(want).max(initial=0.0) or 1.0
        error = np.abs(want - have).max(initial=0.0) / scale
        assert error <= tolerance, f"{name} is off by {error:.3g} of its scale"
