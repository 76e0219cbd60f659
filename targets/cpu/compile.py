"""The CPU target: a graph to an executable."""

from __future__ import annotations

import math
from typing import Any

from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.precision import Precision
from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.bfloat16 import PAIR
from pwopt.targets.cpu.fallback import TvmFallback
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.module import build_module, entry_name
from pwopt.targets.cpu.rules import RULES
from pwopt.targets.executable import Executable
from pwopt.targets.manifest import Manifest
from pwopt.targets.plan import Plan, assign_offsets, pack_constants
from pwopt.targets.schedules import Schedules
from pwopt.targets.segments import Lowered, inputs_of, lower, outputs_of, report, with_identities

_WEIGHTS = {"float32": "fp32", BFLOAT16: "bf16", PAIR: "bf16 products", "int8": "int8"}


def compile_graph(
    graph: Graph,
    hardware: Hardware,
    threads: int = 1,
    metadata: dict[str, Any] | None = None,
    schedules: Schedules | None = None,
    winograd: str = "auto",
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
    max_growth: float = math.inf,
) -> Executable:
    """Compiles a graph; nodes without a kernel run in ONNX Runtime inside the executable.

    Args:
        graph: not changed.
        hardware: the processor to generate code for.
        threads: of one run.
        metadata: stored in the executable.
        schedules: tuned ones.
        winograd: the tiles that convolutions may use: "off", "f2" or "auto".
        precision: number formats; float32 where the processor lacks bfloat16.
        max_growth: of packed weights over the graph's constants, by Winograd's algorithm.
    """
    hardware = precision.on(hardware)
    graph = with_identities(graph)
    options = (hardware, threads, schedules, winograd, precision, max_growth)
    fallback = TvmFallback(hardware, threads)
    lowered = lower(graph, [lambda part: Lowering(part, *options)], RULES, fallback)
    (plans,) = lowered.plans
    for plan in plans:
        assign_offsets(plan)
    constants = pack_constants(plans)
    module = build_module(plans, constants.nbytes, hardware, threads, timed=True) if plans else None
    specs, models = lowered.specs(
        lambda i: {"entry": entry_name(i), "workspace_bytes": plans[i].workspace_bytes}
    )
    manifest = Manifest(
        inputs=inputs_of(graph),
        outputs=outputs_of(graph),
        segments=tuple(specs),
        threads=threads,
        lanes=hardware.lanes,
        bf16=hardware.bf16,
        triple=hardware.triple,
        metadata={"target": "cpu", "mcpu": hardware.mcpu, **(metadata or {})},
        report=_report(lowered, plans),
    )
    return Executable(manifest, module, constants, models)


def _report(lowered: Lowered, plans: list[Plan]) -> dict[str, Any]:
    made = report(lowered, plans)
    steps = (step for plan in plans for step in plan.steps)
    for row, step in zip(made["kernels"], steps, strict=True):
        row["weights"] = _WEIGHTS.get(dict(step.keywords).get("weights", ""), "")
    made["tvm"] = [{"node": n.label, "reason": r} for n, r in lowered.by_fallback.items()]
    return made
