"""The pass ``fold-affine``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.affine import (
    AFFINE_OPS,
    Affine,
    Step,
    broadcastable,
    chain_from,
    labels,
    step_at,
)
from pwopt.passes.linear import LINEAR_OPS, absorb_after, absorb_before, linear_at, not_alone
from pwopt.passes.rewriting import replace_node
from pwopt.pipeline import Applied, Context, Missed, Rewrite


@dataclass(frozen=True)
class FoldAffine(Rewrite):
    """Folds a chain of constant per-channel Mul, Add, Sub, Div and Neg into its neighbours.

    Rewrite:
        ``Add(Mul(Conv(x, W, b), s), t)`` → ``Conv(x, W * s, b * s + t)``; else
        ``Conv(Add(Mul(x, s), t), W, b)`` → ``Conv(x, W * s, b + W t)``; else a chain of several
        becomes ``Add(Mul(x, s), t)``. ConvTranspose, Gemm and MatMul count as convolutions.

    Shapes:
        Constants that broadcast along the channel axis only: ``(C, 1, 1)``, ``(1, C, 1, 1)``, a
        scalar; ``(C,)`` for Gemm and MatMul. None may change the shape of what it is applied to.

    Numerics:
        Exact up to rounding: composed in float64, rounded once to the weights' type. A divisor of
        zero is never folded.

    Misses when:
        The value in between has another reader or is an output; the weight or bias is not
        constant, or is shared beyond ``max_growth_bytes``; before a convolution also when it pads
        with zeros and the chain adds something, or when the convolution is a ConvTranspose.

    Source:
        The usual folding of Caffe's BatchNorm + Scale, for chains of any length.

    Attributes:
        max_growth_bytes: how much a shared weight may grow the model by when its readers each get
            their own copy.
    """

    name: ClassVar[str] = "fold-affine"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset(("", op) for op in AFFINE_OPS)

    max_growth_bytes: int = 1 << 20

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        first = step_at(graph, node)
        if first is None or _continues_chain(graph, first):
            return None
        growth = context.growth(self.max_growth_bytes)
        before = self._into_previous(graph, first, growth)
        if isinstance(before, Applied):
            return before
        after = self._into_next(graph, first, growth)
        if isinstance(after, Applied):
            return after
        return _merge(graph, first) or before or after

    @staticmethod
    def _into_previous(graph: Graph, first: Step, growth: Growth) -> Applied | Missed | None:
        producer = first.x.node
        if not producer.is_op(*LINEAR_OPS):
            return None
        linear = linear_at(graph, producer)
        if isinstance(linear, str):
            return Missed(linear)
        chain = chain_from(graph, first, linear.axis)
        if chain is None:
            return Missed(f"its constant does not run along the channels of {producer.label}")
        if (missed := not_alone(graph, first.x)) is not None:
            return missed
        steps, affine = chain
        if not affine.is_finite:
            return Missed("its factors are not all finite")
        nodes = [step.node for step in steps]
        shown = labels(nodes)
        why = absorb_after(graph, linear, affine, nodes, growth)
        if why is not None:
            return Missed(why)
        return Applied(f"folded {shown} into {producer.label}")

    @staticmethod
    def _into_next(graph: Graph, first: Step, growth: Growth) -> Applied | Missed | None:
        for axis in _channel_axes(first.x):
            chain = chain_from(graph, first, axis)
            if chain is None:
                continue
            steps, affine = chain
            last = steps[-1].node
            readers = graph.uses(last.out) if graph.reader_count(last.out) <= 8 else []
            if not any(u.slot == 0 and u.node.is_op(*LINEAR_OPS) for u in readers):
                continue
            if (missed := not_alone(graph, last.out)) is not None:
                return missed
            linear = linear_at(graph, readers[0].node)
            if isinstance(linear, str):
                return Missed(linear)
            if axis != (1 if linear.node.op != "MatMul" else linear.axis):
                continue
            if not affine.is_finite:
                return Missed("its factors are not all finite")
            nodes = [step.node for step in steps]
            shown = labels(nodes)
            why = absorb_before(graph, linear, affine, first.x, nodes, growth)
            if why is not None:
                return Missed(why)
            return Applied(f"folded {shown} into {linear.node.label}")
        return None


def _channel_axes(x: Value) -> tuple[int, ...]:
    """Axes that a convolution or a MatMul may read channels from."""
    rank = x.tensor.rank
    if rank is None or rank < 2:
        return ()
    return (1,) if rank == 2 else (1, rank - 1)


def _continues_chain(graph: Graph, step: Step) -> bool:
    """Whether the node before is affine too and read only here: then that one is the anchor."""
    previous = step_at(graph, step.x.node)
    if previous is None or graph.only_use(step.x) is None:
        return False
    return any(
        previous.along(axis) is not None and step.along(axis) is not None
        for axis in _channel_axes(step.x)
    )


def _merge(graph: Graph, first: Step) -> Applied | None:
    """Composes a chain that is longer than the Mul and Add it amounts to."""
    for axis in _channel_axes(first.x):
        chain = chain_from(graph, first, axis)
        if chain is None:
            continue
        steps, affine = chain
        wanted = [op for op, needed in (("Mul", affine.scales), ("Add", affine.shifts)) if needed]
        if len(steps) <= max(len(wanted), 1) or not affine.is_finite:
            continue
        return _write(graph, first.x, steps, affine, axis)
    return None


def _write(graph: Graph, x: Value, steps: list[Step], affine: Affine, axis: int) -> Applied | None:
    nodes = [step.node for step in steps]
    last = nodes[-1]
    rank = x.tensor.rank or 0
    dtype = next(s.constant.dtype for s in steps if s.constant is not None)
    with np.errstate(all="ignore"):
        scale = broadcastable(affine.scale, rank, axis).astype(dtype)
        shift = broadcastable(affine.shift, rank, axis).astype(dtype)
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return None
    shown = labels(nodes)
    if affine.scales and affine.shifts:
        product = graph.add("Mul", [x, graph.constant(scale)], types=nodes[0].types)
        replace_node(graph, last, "Add", [product.out, graph.constant(shift)], absorbed=nodes[:-1])
    elif affine.scales:
        replace_node(graph, last, "Mul", [x, graph.constant(scale)], absorbed=nodes[:-1])
    else:
        replace_node(graph, last, "Add", [x, graph.constant(shift)], absorbed=nodes[:-1])
    return Applied(f"merged {shown} into one Mul and Add")
