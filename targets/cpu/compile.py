"""The CPU target: a graph to an executable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import OpaqueType
from pwopt.precision import Precision
from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.bfloat16 import PAIR
from pwopt.targets.cpu.fallback import TvmFallback
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.module import build_module, entry_name
from pwopt.targets.cpu.rules import RULES
from pwopt.targets.cpu.schedules import Schedules
from pwopt.targets.executable import Executable, Manifest, Port, SegmentSpec
from pwopt.targets.lowering import DTYPES, Rule
from pwopt.targets.partition import Segment, partition, value_key
from pwopt.targets.plan import Plan, assign_offsets, pack_constants

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
    graph = _with_identities(graph)
    options = (hardware, threads, schedules, winograd, precision, max_growth)
    fallback = TvmFallback(hardware, threads)
    lowered = _lower(graph, lambda part: Lowering(part, *options), fallback)
    segments, plans, reasons, from_tvm = lowered
    for plan in plans:
        assign_offsets(plan)
    constants = pack_constants(plans)
    module = build_module(plans, constants.nbytes, hardware, threads, timed=True) if plans else None
    specs, models = [], b""
    plan_index = 0
    for segment in segments:
        if segment.compiled:
            plan = plans[plan_index]
            spec = SegmentSpec(
                tuple(_port(n.names[0], n.out) for n in segment.graph.inputs),
                tuple(_port(name, v) for name, v in segment.graph.outputs),
                entry=entry_name(plan_index),
                workspace_bytes=plan.workspace_bytes,
            )
            plan_index += 1
        else:
            model = segment.graph.to_onnx().SerializeToString()
            spec = SegmentSpec(
                tuple(_port(n.names[0], n.out) for n in segment.graph.inputs),
                tuple(_port(name, v) for name, v in segment.graph.outputs),
                model=(len(models), len(models) + len(model)),
            )
            models += model
        specs.append(spec)
    manifest = Manifest(
        inputs=tuple(_port(n.names[0], n.out, value_key(n.out)) for n in graph.inputs),
        outputs=tuple(_port(name, v, value_key(v)) for name, v in graph.outputs),
        segments=tuple(specs),
        threads=threads,
        lanes=hardware.lanes,
        bf16=hardware.bf16,
        triple=hardware.triple,
        metadata={"target": "cpu", "mcpu": hardware.mcpu, **(metadata or {})},
        report=_report(segments, plans, reasons, from_tvm),
    )
    return Executable(manifest, module, constants, models)


def _lower(
    graph: Graph, prepare: Callable[[Graph], Lowering], fallback: Rule
) -> tuple[list[Segment], list[Plan], dict[Node, str], dict[Node, str]]:
    """Segments and the plans of the compiled ones; what cannot be lowered moves to the others.

    Then the nodes that ONNX Runtime runs, and those that TVM's own kernels compute, with reasons.
    """
    reasons = {n: r for n in graph.nodes() if (r := _not_static(graph, n)) is not None}
    while True:
        segments = partition(graph, reasons)
        plans, rejected, from_tvm = [], dict[Node, str](), dict[Node, str]()
        for segment in segments:
            if not segment.compiled:
                continue
            lowering = prepare(segment.graph)
            for node, reason in lowering.run(RULES, fallback).items():
                rejected[segment.original[node]] = reason
            from_tvm.update((segment.original[n], r) for n, r in lowering.notes.items())
            plans.append(lowering.plan)
        if not rejected:
            return segments, plans, reasons, from_tvm
        reasons.update(rejected)


def _not_static(graph: Graph, node: Node) -> str | None:
    """Why a node cannot be compiled whatever the kernels, or None."""
    if node.is_input or node.is_constant:
        return None
    operands = [v for v in graph.operands(node) if v is not None]
    results = [node[i] for i in range(len(node.types))]
    for value in (*operands, *results):
        if value.node.is_constant:
            continue
        if value.shape is None:
            unread = value.node is node and not graph.uses(value) and not graph.is_output(value)
            if unread:
                continue
            return f"the shape of {value.label} is not known at build time: {value.type}"
        if value.tensor.dtype not in DTYPES:
            return f"{value.label} has element type {value.tensor.dtype}"
    return None


def _with_identities(graph: Graph) -> Graph:
    """A graph without dead code whose outputs are all results of operations, each once."""
    graph = graph.copy()
    graph.erase_dead()  # a segment of nothing else would have no outputs
    seen: set[Value] = set()
    outputs = graph.outputs
    if all(not v.node.is_input and not v.node.is_constant for _, v in outputs) and len(
        {v for _, v in outputs}
    ) == len(outputs):
        return graph
    fresh: list[tuple[str, Value]] = []
    for name, value in outputs:
        if value in seen or value.node.is_input or value.node.is_constant:
            value = graph.add("Identity", [value], types=(value.type,), names=(name,)).out
        seen.add(value)
        fresh.append((name, value))
    graph.set_outputs(fresh)
    return graph


def _port(name: str, value: Value, key: str | None = None) -> Port:
    tensor, kind = value.tensor, value.type
    optional = isinstance(kind, OpaqueType) and kind.optional
    return Port(name, tensor.dtype, tensor.shape, key or name, optional)


def _origin(graph: Graph) -> list[str]:
    nodes = (n for n in graph.topological() if not n.is_input and not n.is_constant)
    return list(dict.fromkeys(name for node in nodes for name in node.origin))


def _report(
    segments: list[Segment],
    plans: list[Plan],
    reasons: dict[Node, str],
    from_tvm: dict[Node, str],
) -> dict[str, Any]:
    calls = iter(plans)
    return {
        "segments": [
            {
                "kernels": len(next(calls).steps) if segment.compiled else 0,
                "origin": [] if segment.compiled else _origin(segment.graph),
            }
            for segment in segments
        ],
        "kernels": [
            {
                "node": s.label,
                "kernel": s.kernel_name,
                "origin": list(s.origin),
                "macs": s.macs,
                "predicted_us": s.predicted_us,
                "weights": _WEIGHTS.get(dict(s.keywords).get("weights", ""), ""),
            }
            for plan in plans
            for s in plan.steps
        ],
        "tvm": [{"node": n.label, "reason": r} for n, r in from_tvm.items()],
        "fallback": [{"node": n.label, "reason": r} for n, r in reasons.items()],
        "workspace_bytes": max([p.workspace_bytes for p in plans], default=0),
    }
