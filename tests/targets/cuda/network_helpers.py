"""Whole networks on the emulator: lowered for CUDA, kernel after kernel, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

import pwopt
from pwopt.ir.graph import Graph
from pwopt.targets.cuda.arch import arch
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.cuda.rules import RULES
from pwopt.targets.plan import Plan, Step, assign_offsets, pack_constants
from tests.targets.cuda.emulator import Library, compiled
from tests.targets.kernel_helpers import aligned
from tests.targets.lowering_helpers import Arrays, loaded, reference

# Relative to the output's scale. Roundings of 2**-11 (2**-9 for bfloat16) at each layer add up like
# a random walk; a wrong element is off by orders of magnitude more.
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2, "tf32": 5e-3, "fp32": 2e-5}


def lowered(graph: Graph, precision: str, name: str = "sm_80") -> CudaLowering:
    """A graph lowered without a rejected node."""
    lowering = CudaLowering(graph, arch(name), precision)
    rejected = lowering.run(RULES)
    assert not rejected, {n.label: r for n, r in rejected.items()}
    assign_offsets(lowering.plan)
    return lowering


@dataclass(frozen=True)
class Job:
    """A plan with its inputs, and what its outputs must be.

    Attributes:
        name: for messages.
        plan: of the whole graph.
        inputs, expected: by name.
        tolerance: relative to the scale of each output.
    """

    name: str
    plan: Plan
    inputs: Arrays
    expected: Arrays
    tolerance: float


def job(
    name: str,
    source: onnx.ModelProto,
    inputs: Arrays,
    precision: str = "fp16",
    *,
    optimized: bool = True,
    tolerance: float | None = None,
) -> Job:
    """A model lowered for a precision, to be held against ONNX Runtime."""
    graph = loaded(source, inputs)
    if optimized:
        graph = pwopt.optimize(graph, verify=False).graph
    plan = lowered(graph, precision).plan
    allowed = tolerance or TOLERANCE[precision]
    return Job(name, plan, inputs, reference(source, inputs), allowed)


def check(*jobs: Job) -> dict[str, np.ndarray]:
    """Compiles the kernels of all jobs together, runs and compares them; the last one's outputs."""
    library, kernels = _built([each.plan for each in jobs], "sm_80")
    got: dict[str, np.ndarray] = {}
    for each in jobs:
        got = _run(each.plan, each.inputs, library, kernels)
        assert list(got) == list(each.expected)
        for name, expected in each.expected.items():
            _compare(f"{each.name}: {name}", got[name], expected, each.tolerance)
    return got


def run_plan(plan: Plan, inputs: Arrays, name: str = "sm_80") -> dict[str, np.ndarray]:
    """The outputs of a plan for an architecture."""
    return _run(plan, inputs, *_built([plan], name))


Kernels = dict[Any, tuple[str, Kernel]]


def _built(plans: Sequence[Plan], name: str) -> tuple[Library, Kernels]:
    """The kernels of some plans, compiled together, and their names by their steps' keys."""
    kernels: Kernels = {}
    for step in (step for plan in plans for step in plan.steps):
        if step.key not in kernels:
            kernels[step.key] = (f"k{len(kernels)}_{step.kernel_name}", _made(step))
    return compiled(dict(kernels.values()), name), kernels


def _compare(name: str, got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert got.shape == expected.shape, name
    if not expected.size:
        return
    if expected.dtype.kind != "f":
        assert np.array_equal(got, expected), name
        return
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(got), finite), f"{name}: not finite"
    if finite.any():
        scale = float(np.abs(expected[finite]).max()) or 1.0
        difference = np.abs(got[finite].astype(np.float64) - expected[finite])
        error = float(difference.max()) / scale
        assert error <= tolerance, f"{name}: relative error {error:.3g} over {tolerance:.3g}"


def _run(plan: Plan, inputs: Arrays, library: Library, kernels: Kernels) -> dict[str, np.ndarray]:
    """The outputs of a plan, by name; the workspace holds NaN before."""
    constants = aligned(pack_constants([plan]))
    workspace = aligned(np.full(max(plan.workspace_bytes, 64), 0xFF, np.uint8))
    workspace[: plan.cleared_bytes] = 0
    given = [aligned(np.ascontiguousarray(inputs[name])) for name, _, _ in plan.inputs]
    made = [aligned(np.zeros(max(b.bytes, 64), np.uint8)) for _, b, _ in plan.outputs]
    memory = {"workspace": workspace, "constant": constants}
    for step in plan.steps:
        addresses = []
        for pointer in step.pointers:
            buffer = pointer.buffer
            if buffer.kind in ("input", "output"):
                base = (given if buffer.kind == "input" else made)[buffer.index].ctypes.data
            else:
                base = memory[buffer.kind].ctypes.data + buffer.offset
            addresses.append(base + pointer.offset)
        library.run(*kernels[step.key], addresses)
    return {
        name: flat[: buffer.bytes].view(view.dtype).reshape(view.shape)
        for (name, buffer, view), flat in zip(plan.outputs, made, strict=True)
    }


def _made(step: Step) -> Kernel:
    kernel: Kernel = step.make()
    return kernel
