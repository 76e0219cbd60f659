"""From a graph to segments and their plans: the part of compiling that all targets share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import OpaqueType
from pwopt.targets.lowering import Lowering, Rule
from pwopt.targets.manifest import Port, SegmentSpec
from pwopt.targets.partition import Segment, partition, value_key
from pwopt.targets.plan import Plan
from pwopt.targets.values import DTYPES


@dataclass
class Lowered:
    """A graph cut into segments, the compiled ones lowered.

    Attributes:
        segments: in the order of execution.
        plans: by variant of the code, one per compiled segment.
        elsewhere: the nodes that ONNX Runtime runs, with reasons.
        by_fallback: the nodes that the fallback lowered, with why no rule did.
    """

    segments: list[Segment]
    plans: list[list[Plan]]
    elsewhere: dict[Node, str]
    by_fallback: dict[Node, str]

    def specs(self, compiled: Callable[[int], dict[str, Any]]) -> tuple[list[SegmentSpec], bytes]:
        """What the manifest says of the segments, and the models of those of ONNX Runtime.

        Args:
            compiled: the fields of a compiled segment, by its position among these.
        """
        specs, models, index = [], b"", 0
        for segment in self.segments:
            if segment.compiled:
                fields = compiled(index)
                index += 1
            else:
                model = segment.graph.to_onnx().SerializeToString()
                fields = {"model": (len(models), len(models) + len(model))}
                models += model
            inputs = tuple(port(n.names[0], n.out) for n in segment.graph.inputs)
            outputs = tuple(port(name, v) for name, v in segment.graph.outputs)
            specs.append(SegmentSpec(inputs, outputs, **fields))
        return specs, models


def lower(
    graph: Graph,
    variants: Sequence[Callable[[Graph], Lowering]],
    rules: dict[tuple[str, str], Rule],
    fallback: Rule | None = None,
) -> Lowered:
    """Lowers a graph; what cannot be lowered moves to segments for ONNX Runtime.

    Args:
        graph: of :func:`with_identities`.
        variants: each makes a lowering of a segment's graph; a node stays only if all of them
            lower it.
        rules: by domain and operator.
        fallback: for nodes that no rule lowers.
    """
    reasons = {n: r for n in graph.nodes() if (r := _not_static(graph, n)) is not None}
    while True:
        segments = partition(graph, reasons)
        plans: list[list[Plan]] = [[] for _ in variants]
        rejected, by_fallback = dict[Node, str](), dict[Node, str]()
        for segment in segments:
            if not segment.compiled:
                continue
            for prepare, made in zip(variants, plans, strict=True):
                lowering = prepare(segment.graph)
                for node, reason in lowering.run(rules, fallback).items():
                    rejected.setdefault(segment.original[node], reason)
                by_fallback.update((segment.original[n], r) for n, r in lowering.notes.items())
                made.append(lowering.plan)
        if not rejected:
            return Lowered(segments, plans, reasons, by_fallback)
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


def with_identities(graph: Graph) -> Graph:
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


def port(name: str, value: Value, key: str | None = None) -> Port:
    """What the manifest says of an input or output; ``key`` is its name if left out."""
    tensor, kind = value.tensor, value.type
    optional = isinstance(kind, OpaqueType) and kind.optional
    return Port(name, tensor.dtype, tensor.shape, key or name, optional)


def report(lowered: Lowered, plans: Sequence[Plan]) -> dict[str, Any]:
    """What an executable says of its kernels.

    Args:
        lowered: the graph.
        plans: of the variant that is described, one per compiled segment.
    """
    calls = iter(plans)
    return {
        "segments": [
            {
                "kernels": len(next(calls).steps) if segment.compiled else 0,
                "origin": [] if segment.compiled else _origin(segment.graph),
            }
            for segment in lowered.segments
        ],
        "kernels": [
            {
                "node": s.label,
                "kernel": s.kernel_name,
                "origin": list(s.origin),
                "macs": s.macs,
                "predicted_us": s.predicted_us,
            }
            for plan in plans
            for s in plan.steps
        ],
        "fallback": [{"node": n.label, "reason": r} for n, r in lowered.elsewhere.items()],
        "workspace_bytes": max([p.workspace_bytes for p in plans], default=0),
    }


def _origin(graph: Graph) -> list[str]:
    nodes = (n for n in graph.topological() if not n.is_input and not n.is_constant)
    return list(dict.fromkeys(name for node in nodes for name in node.origin))


def inputs_of(graph: Graph) -> tuple[Port, ...]:
    """The inputs of a whole graph, as the manifest has them."""
    return tuple(port(n.names[0], n.out, value_key(n.out)) for n in graph.inputs)


def outputs_of(graph: Graph) -> tuple[Port, ...]:
    """The outputs of a whole graph, as the manifest has them."""
    return tuple(port(name, v, value_key(v)) for name, v in graph.outputs)
