"""Time of every kernel of a graph, measured in its place: the others run in between."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node
from pwopt.precision import Precision
from pwopt.targets import runtime
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.module import build_module, entry_name
from pwopt.targets.cpu.rules import RULES
from pwopt.targets.machine_code import aligned
from pwopt.targets.plan import Plan, Step, assign_offsets, pack_constants
from pwopt.targets.schedules import Schedules
from pwopt.targets.tracing import Tracing
from pwopt.targets.tuner import fastest


@dataclass(frozen=True)
class TimedCall:
    """A kernel call and what it took.

    Attributes:
        node: that it computes, None for the copy into an output.
        kernel: its kind.
        us: processor time in microseconds, a low quantile of the samples, less what a call costs.
    """

    node: Node | None
    kernel: str
    us: float


def profile(
    graph: Graph,
    hardware: Hardware,
    rounds: int = 30,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> list[TimedCall]:
    """Measures each kernel of one inference on one thread, all of them in turn.

    Args:
        graph: of static shapes; not changed.
        hardware: this machine.
        rounds: inferences measured.
        precision: number formats.

    Raises:
        CodegenError: a node has no kernel.
    """
    lowering = traced(graph, hardware, precision=precision)
    timed = TimedPlan(lowering)
    us = fastest([timed.run() for _ in range(rounds + 1)][1:])
    return [
        TimedCall(node, step.kernel_name, t)
        for node, step, t in zip(lowering.nodes, lowering.plan.steps, us, strict=True)
    ]


def traced(
    graph: Graph,
    hardware: Hardware,
    threads: int = 1,
    schedules: Schedules | None = None,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> Traced:
    """A graph lowered as a whole, with what each step is for.

    Raises:
        CodegenError: a node has no kernel.
    """
    lowering = Traced(graph, hardware, threads, schedules, precision=precision)
    lowering.run_whole(RULES)
    return lowering


class TimedPlan:
    """A plan as functions of one step each, which run in turn on this machine.

    Attributes:
        constant_bytes: size of the plan's constants.
    """

    def __init__(self, lowering: Traced) -> None:
        """Builds what was lowered; its offsets are not assigned yet."""
        plan, threads = lowering.plan, lowering.threads
        assign_offsets(plan)
        constants = pack_constants([plan])
        parts = [dataclasses.replace(plan, steps=[step]) for step in plan.steps]
        parts.append(dataclasses.replace(plan, steps=[]))  # what a call costs
        self.constant_bytes = constants.nbytes
        module = build_module(parts, constants.nbytes, lowering.hardware, threads)
        names = [entry_name(i) for i in range(len(parts))]
        self._place(module, names, _arguments(plan, constants), threads)

    def run(self) -> list[float]:
        """One inference: microseconds of each step, less what a call costs."""
        times = self._times()
        return [max(t - times[-1], 0.0) for t in times[:-1]]

    def _place(
        self, module: Any, names: Sequence[str], arguments: Sequence[np.ndarray], threads: int
    ) -> None:
        self._functions = [module[name] for name in names]
        self._arguments = [runtime.tensor(a) for a in arguments]
        # One thread's own time is free of what else the machine does.
        self._clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns

    def _times(self) -> list[float]:
        times, clock, arguments = [], self._clock, self._arguments
        for function in self._functions:
            start = clock()
            function(*arguments)
            times.append(1e-3 * (clock() - start))
        return times


def _arguments(plan: Plan, constants: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [aligned(max(plan.workspace_bytes, 64)), constants]
    for _, buffer, view in (*plan.inputs, *plan.outputs):
        array = aligned(max(buffer.bytes, 1))
        array[:] = 0
        if view.dtype == "float32":
            array.view(np.float32)[:] = rng.random(array.size // 4, np.float32)
        arrays.append(array)
    arrays[0][:] = 0
    return arrays


class Traced(Tracing, Lowering):
    """Lowering for the CPU that remembers what each step is for."""

    def _arrange(self, parts: Sequence[tuple[int, Step]]) -> None:
        super()._arrange(parts)
        self.nodes = [self.nodes[i] for i, _ in parts]
        self.kernels = [self.kernels[i] for i, _ in parts]
