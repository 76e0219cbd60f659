"""Whole networks on the emulator: lowered for CUDA, kernel after kernel, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

import pwopt
from pwopt.ir.graph import Graph
from pwopt.targets.cuda.arch import arch
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.cuda.rules import RULES
from pwopt.targets.in_place import in_place
from pwopt.targets.plan import Plan, Step, assign_offsets, pack_constants
from tests.targets.cuda.emulator import compiled
from tests.targets.kernel_helpers import aligned
from tests.targets.lowering_helpers import Arrays, reference

# Relative to the output's scale. Roundings of 2**-11 (2**-9 for bfloat16) at each layer add up like
# a random walk; a wrong element is off by orders of magnitude more.
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2, "tf32": 5e-3, "fp32": 2e-5}


def lowered(graph: Graph, precision: str, name: str = "sm_80") -> CudaLowering:
    """A graph lowered without a rejected node."""
    lowering = CudaLowering(graph, arch(name), precision)
    rejected = lowering.run(RULES)
    assert not rejected, {n.label: r for n, r in rejected.items()}
    return lowering


def run_plan(
    plan: Plan, inputs: Mapping[str, np.ndarray], name: str = "sm_80"
) -> dict[str, np.ndarray]:
    """The outputs of a plan for an architecture; the workspace holds NaN before."""
    assign_offsets(plan)
    constants = aligned(pack_constants([plan]))
    workspace = aligned(np.full(max(plan.workspace_bytes, 64), 0xFF, np.uint8))
    workspace[: plan.cleared_bytes] = 0
    given = [aligned(np.ascontiguousarray(inputs[name])) for name, _, _ in plan.inputs]
    made = [aligned(np.zeros(max(b.bytes, 64), np.uint8)) for _, b, _ in plan.outputs]
    memory: dict[str, Any] = {"workspace": workspace, "constant": constants}
    kernels: dict[Any, tuple[str, Kernel]] = {}
    for step in plan.steps:
        if step.key not in kernels:
            kernels[step.key] = (f"k{len(kernels)}_{step.kernel_name}", _made(step))
    library = compiled(dict(kernels.values()), name)
    for step in plan.steps:
        addresses = []
        for pointer in step.pointers:
            buffer = pointer.buffer
            if buffer.kind in ("input", "output"):
                base = (given if buffer.kind == "input" else made)[buffer.index].ctypes.data
            else:
                base = memory[buffer.kind].ctypes.data + buffer.offset
            addresses.append(base + pointer.offset)
        name, kernel = kernels[step.key]
        library.run(name, kernel, addresses)
    return {
        name: flat[: buffer.bytes].view(_numpy(view.dtype)).reshape(view.shape)
        for (name, buffer, view), flat in zip(plan.outputs, made, strict=True)
    }


def _made(step: Step) -> Kernel:
    if step.shares and step.in_place is not None:
        with in_place(*step.in_place):
            kernel: Kernel = step.make()
            return kernel
    kernel = step.make()
    return kernel


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype)


def check_network(
    source: onnx.ModelProto,
    inputs: Arrays,
    precision: str = "fp16",
    *,
    optimized: bool = True,
    tolerance: float | None = None,
) -> Plan:
    """Lowers, runs and compares a model; its plan."""
    want = reference(source, inputs)
    graph = pwopt.optimize(source, verify=False).graph if optimized else pwopt.load(source)
    plan = lowered(graph, precision).plan
    got = run_plan(plan, inputs)
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        assert np.isfinite(got[name]).all(), name
        scale = float(np.abs(expected).max()) or 1.0
        error = float(np.abs(got[name].astype(np.float64) - expected).max()) / scale
        allowed = tolerance or TOLERANCE[precision]
        assert error <= allowed, f"{name}: relative error {error:.3g} over {allowed:.3g}"
    return plan
