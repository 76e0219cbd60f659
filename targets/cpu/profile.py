"""Time of every kernel of a graph, measured in its place: the others run in between."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pwopt.errors import CodegenError
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node
from pwopt.targets import runtime
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.module import build_module, entry_name
from pwopt.targets.cpu.plan import Plan, assign_offsets, pack_constants
from pwopt.targets.cpu.rules import RULES
from pwopt.targets.executable import aligned

_QUANTILE = 0.1  # of the samples: interference only ever adds


@dataclass(frozen=True)
class KernelTime:
    """One kernel call.

    Attributes:
        node: that it computes, None for the copy into an output.
        kernel: its kind.
        us: processor time in microseconds, a low quantile of the samples, less what a call costs.
    """

    node: Node | None
    kernel: str
    us: float


def profile(graph: Graph, hardware: Hardware, rounds: int = 30) -> list[KernelTime]:
    """Measures each kernel of one inference on one thread, all of them in turn.

    Args:
        graph: of static shapes; not changed.
        hardware: this machine.
        rounds: inferences measured.

    Raises:
        CodegenError: a node has no kernel.
    """
    lowering = _Traced(graph, hardware)
    rejected = lowering.run(RULES)
    for node, reason in rejected.items():
        raise CodegenError(f"{node.label} has no kernel: {reason}")
    plan = lowering.plan
    assign_offsets(plan)
    constants = pack_constants([plan])
    parts = [dataclasses.replace(plan, steps=[step]) for step in plan.steps]
    parts.append(dataclasses.replace(plan, steps=[]))  # what a call costs
    module = build_module(parts, constants.nbytes, hardware, 1)
    functions = [module[entry_name(i)] for i in range(len(parts))]
    arguments = _arguments(plan, constants)
    samples = np.array([_run(functions, arguments) for _ in range(rounds + 2)][2:])
    us = np.quantile(samples, _QUANTILE, axis=0)
    return [
        KernelTime(node, step.kernel_name, max(float(t - us[-1]), 0.0))
        for node, step, t in zip(lowering.nodes, plan.steps, us, strict=False)
    ]


def _arguments(plan: Plan, constants: np.ndarray) -> list[Any]:
    rng = np.random.default_rng(0)
    arrays = [aligned(max(plan.workspace_bytes, 64)), constants]
    for _, buffer, view in (*plan.inputs, *plan.outputs):
        array = aligned(max(buffer.bytes, 1))
        array[:] = 0
        if view.dtype == "float32":
            array.view(np.float32)[:] = rng.random(array.size // 4, np.float32)
        arrays.append(array)
    arrays[0][:] = 0
    return [runtime.tensor(a) for a in arrays]


def _run(functions: Sequence[Any], arguments: Sequence[Any]) -> list[float]:
    times = []
    for function in functions:
        start = time.thread_time_ns()
        function(*arguments)
        times.append(1e-3 * (time.thread_time_ns() - start))
    return times


class _Traced(Lowering):
    """Lowering that remembers which node each step is for.

    Attributes:
        nodes: one per step.
    """

    def __init__(self, graph: Graph, hardware: Hardware) -> None:
        self.nodes: list[Node | None] = []
        super().__init__(graph, hardware)

    def emit(self, *arguments: Any, **keywords: Any) -> None:
        super().emit(*arguments, **keywords)
        self.nodes.append(self._node)
