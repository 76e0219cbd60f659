"""The cost model beside measured kernels, one kernel at a time, operands as a network leaves them.

The constants in :mod:`pwopt.hardware` and the instruction counts in :mod:`pwopt.cost_model` were
fitted to this table by hand; run it again after a change of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pwopt import hardware
from pwopt.cost_model import cost_model
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.program import Program
from pwopt.ir.types import TensorType
from pwopt.precision import Precision


@dataclass(frozen=True)
class CalibrationRow:
    """One kernel.

    Attributes:
        name: what it computes.
        predicted_us, measured_us: one run on one core.
        bound: what the model says bounds it.
    """

    name: str
    predicted_us: float
    measured_us: float
    bound: str

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_us / max(self.measured_us, 1e-3)


@dataclass(frozen=True)
class Case:
    """One kernel to measure.

    Attributes:
        name: for the table.
        shape: of the kernel's first operand.
        add: adds the node that reads that operand.
    """

    name: str
    shape: tuple[int, ...]
    add: Callable[[Graph, Value], Node]

    def graph(self) -> tuple[Graph, Node]:
        """A graph around the node: its operand is in the layout that kernels leave."""
        graph = Graph(self.name)
        x = graph.add_input("x", TensorType("float32", self.shape))
        if len(self.shape) == 4 and self.shape[1] > 3:  # a photo is read as it lies
            x = _op("MaxPool", {"kernel_shape": (1, 1)})(graph, x).out
        node = self.add(graph, x)
        graph.add_output("y", node.out)
        return graph, node


def measure(
    rounds: int = 20,
    repeats: int = 3,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> Iterator[CalibrationRow]:
    """Measures :func:`cases` on this machine, one thread; the fastest of a few repeats."""
    from pwopt.targets.cpu.profile import profile

    machine = hardware.host()
    model = cost_model(machine, precision)
    for case in cases():
        graph, node = case.graph()
        runs = [profile(graph, machine, rounds, precision) for _ in range(repeats)]
        measured = min(sum(t.us for t in run if t.node is node) for run in runs)
        yield CalibrationRow(
            case.name, model.node_us(graph, node), measured, model.bottleneck(graph, node)
        )


def cases() -> list[Case]:
    """Some of every kind of kernel, over the sizes of the reference networks."""
    found = [
        Case(f"1x1 {i}->{o} @{side}", (1, i, side, side), _pointwise(i, o))
        for i, o, side in (
            *((64, 64, 56), (64, 256, 56), (256, 64, 56), (128, 512, 28), (1024, 256, 14)),
            *((512, 2048, 7), (16, 96, 112), (96, 24, 56), (320, 1280, 7), (64, 20, 56)),
        )
    ]
    found += [
        Case(f"{k}x{k} {i}->{o} @{side} /{s}", (1, i, side, side), _conv(i, o, k, s))
        for i, o, k, side, s in (
            *((3, 32, 3, 224, 2), (3, 64, 7, 224, 2), (64, 64, 3, 56, 1), (128, 128, 3, 28, 1)),
            *((512, 512, 3, 7, 1), (32, 128, 3, 28, 1), (256, 256, 3, 28, 2), (16, 64, 3, 56, 1)),
        )
    ]
    found += [
        Case(f"depthwise {k}x{k} {c} @{side} /{s}", (1, c, side, side), _conv(c, c, k, s, c))
        for c, k, side, s in (
            *((32, 3, 112, 1), (96, 3, 112, 2), (144, 3, 56, 1), (192, 5, 28, 1), (960, 3, 7, 1)),
        )
    ]
    found += [
        Case(f"group of 2: 3x3 {c} @{side}", (1, c, side, side), _conv(c, c, 3, 1, 2))
        for c, side in ((96, 27),)
    ]
    found += [
        Case(f"linear {k}->{n}, {rows} rows", (rows, k), _linear(k, n))
        for k, n, rows in ((2048, 1000, 1), (9216, 4096, 1), (256, 256, 1), (256, 256, 64))
    ]
    for kind, c, k, side, s in (
        *(("MaxPool", 64, 3, 112, 2), ("MaxPool", 256, 3, 28, 1), ("AveragePool", 128, 2, 56, 2)),
        ("AveragePool", 192, 3, 35, 1),
    ):
        pads = (k // 2,) * 4 if k % 2 else (0,) * 4
        pool = {"kernel_shape": (k, k), "strides": (s, s), "pads": pads}
        found.append(Case(f"{kind} {k}x{k} {c} @{side} /{s}", (1, c, side, side), _op(kind, pool)))
    for c, side in ((2048, 7), (1000, 13), (64, 56)):
        found.append(Case(f"global pool {c} @{side}", (1, c, side, side), _op("GlobalAveragePool")))
    found.append(Case("softmax 1000", (1, 1000), _op("Softmax", {"axis": 1})))
    for op in ("Relu", "Sigmoid", "Tanh", "Exp", "HardSwish"):
        found.append(Case(f"{op} 64 @56", (1, 64, 56, 56), _map(Program().then(op))))
    found.append(Case("Relu 256 @112", (1, 256, 112, 112), _map(Program().then("Relu"))))
    sigmoid = Program().then("Sigmoid")
    found.append(Case("1x1 64->64 @56, sigmoid", (1, 64, 56, 56), _pointwise(64, 64, sigmoid)))
    return found


def _weight(*shape: int) -> np.ndarray:
    return np.resize(np.random.default_rng(0).standard_normal(8191, dtype=np.float32), shape)


def _pointwise(
    inputs: int, outputs: int, program: Program | None = None
) -> Callable[[Graph, Value], Node]:
    def add(graph: Graph, x: Value) -> Node:
        operands = [x, graph.constant(_weight(outputs, inputs)), graph.constant(_weight(outputs))]
        attributes = {"epilogue": program or Program().then("Relu")}
        return graph.add("Pointwise", operands, attributes, domain=KERNEL_DOMAIN)

    return add


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int, group: int = 1
) -> Callable[[Graph, Value], Node]:
    def add(graph: Graph, x: Value) -> Node:
        weight = graph.constant(_weight(outputs, inputs // group, kernel, kernel))
        attributes = {
            "strides": (stride, stride),
            "dilations": (1, 1),
            "pads": (kernel // 2,) * 4,
            "group": group,
            "epilogue": Program().then("Relu"),
        }
        operands = [x, weight, graph.constant(_weight(outputs))]
        return graph.add("Conv", operands, attributes, domain=KERNEL_DOMAIN)

    return add


def _linear(inputs: int, outputs: int) -> Callable[[Graph, Value], Node]:
    def add(graph: Graph, x: Value) -> Node:
        operands = [x, graph.constant(_weight(outputs, inputs)), graph.constant(_weight(outputs))]
        return graph.add("Linear", operands, domain=KERNEL_DOMAIN)

    return add


def _map(program: Program) -> Callable[[Graph, Value], Node]:
    def add(graph: Graph, x: Value) -> Node:
        return graph.add("Map", [x], {"program": program}, domain=KERNEL_DOMAIN)

    return add


def _op(op: str, attributes: dict[str, Any] | None = None) -> Callable[[Graph, Value], Node]:
    def add(graph: Graph, x: Value) -> Node:
        return graph.add(op, [x], attributes or {})

    return add
