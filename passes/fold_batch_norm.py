"""The pass ``fold-batch-norm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.affine import Affine, broadcastable
from pwopt.passes.estimate import constant_growth
from pwopt.passes.linear import LINEAR_OPS, absorb_after, linear_at, not_alone
from pwopt.passes.rewriting import (
    in_training_mode,
    is_float,
    reads_only_first,
    replace_node,
)
from pwopt.pipeline import Applied, Context, Missed, Rewrite

_PARAMETERS = ("scale", "bias", "mean", "variance")


@dataclass(frozen=True)
class FoldBatchNorm(Rewrite):
    """Folds a BatchNormalization into the convolution or Gemm before it.

    Rewrite:
        ``BatchNormalization(Conv(x, W, b))`` → ``Conv(x, W * s, b * s + t)`` with ``s = scale /
        sqrt(var + epsilon)`` and ``t = bias - mean * s``; so too for ConvTranspose, Gemm and
        MatMul. One that cannot be folded becomes ``Add(Mul(x, s), t)``, the form that later passes
        know.

    Shapes:
        Any group count, with and without bias; ``s`` and ``t`` stand along axis 1. With
        ``spatial=0`` (operator set 8 and below) they have the shape of one image.

    Numerics:
        Exact up to rounding: computed in float64, rounded once to the weights' type.

    Misses when:
        It trains, a parameter is not constant, ``var + epsilon`` is not positive, or the rank of x
        is unknown. It becomes a Mul and an Add, with the reason in the remark, where the
        convolution has another reader, is an output, has weights that are not constant or shared
        beyond ``max_growth_bytes``, or where no convolution is before it.

    Source:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", section 3.2.

    Attributes:
        max_growth_bytes: how much a shared weight may grow the model by when its readers each get
            their own copy.
    """

    name: ClassVar[str] = "fold-batch-norm"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "BatchNormalization")})

    max_growth_bytes: int = 1 << 20

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        if in_training_mode(graph, node) or not reads_only_first(graph, node):
            return Missed("it is in training mode")
        affine = _affine(graph, node)
        if isinstance(affine, Missed):
            return affine
        x = graph.operand(node, 0)
        if x is None or not is_float(x):
            return Missed("its input is no tensor of floating-point numbers")
        growth = context.growth(self.max_growth_bytes)
        reason = self._fold(graph, node, x, affine, growth)
        if reason is None:
            return Applied(f"folded {node.label} into {x.node.label}")
        return _as_mul_add(graph, node, x, affine, reason, growth)

    @staticmethod
    def _fold(graph: Graph, node: Node, x: Value, affine: Affine, growth: Growth) -> str | None:
        linear = linear_at(graph, x.node)
        if isinstance(linear, str):
            return linear
        if affine.scale.ndim != 1 or linear.axis != 1:
            return f"{x.node.label} has no channel for each of its factors"
        if (missed := not_alone(graph, x)) is not None:
            return missed.why
        return absorb_after(graph, linear, affine, [node], growth)


def _affine(graph: Graph, node: Node) -> Affine | Missed:
    """The factors and summands; of shape (C,), or (C, ...) for ``spatial=0``."""
    arrays = []
    for slot, what in enumerate(_PARAMETERS, 1):
        array = graph.constant_value(graph.operand(node, slot))
        if array is None:
            return Missed(f"its {what} is not constant")
        arrays.append(array.astype(np.float64))
    scale, bias, mean, variance = arrays
    spread = variance + float(node.get("epsilon", 1e-5))
    if not np.all(spread > 0):
        return Missed(f"variance + epsilon is {float(np.min(spread)):g}, not positive")
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(spread)
        result = Affine(factor, bias - mean * factor)
    return result if result.is_finite else Missed("its parameters are not all finite")


def _as_mul_add(
    graph: Graph, node: Node, x: Value, affine: Affine, reason: str, growth: Growth
) -> Applied | Missed:
    rank = x.tensor.rank
    if rank is None or rank < 2:
        return Missed(f"its input is {x.tensor}; {reason}")
    if graph.opset < 7:
        return Missed(f"operator set {graph.opset} broadcasts by attribute; {reason}")
    dtype = np.asarray(graph.constant_value(graph.operand(node, 1))).dtype
    if str(dtype) != x.tensor.dtype:
        return Missed(f"its parameters are {dtype} and its input {x.tensor.dtype}; {reason}")
    with np.errstate(all="ignore"):
        scale, shift = (
            (broadcastable(v, rank, 1) if v.ndim == 1 else v).astype(dtype)
            for v in (affine.scale, affine.shift)
        )
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return Missed(f"its factors do not fit {dtype}; {reason}")
    added = constant_growth(graph, [node], scale.nbytes + shift.nbytes)
    if (why := growth.refuse(graph, added, f"the factors of {node.label}")) is not None:
        return Missed(f"{why}; {reason}")
    factor, summand = graph.constant(scale), graph.constant(shift)
    product = graph.add("Mul", [x, factor], types=node.types[:1], origin=node.origin)
    replace_node(graph, node, "Add", [product.out, summand], types=node.types[:1])
    shown = "" if not x.node.is_op(*LINEAR_OPS) else f": {reason}"
    return Applied(f"turned {node.label} into Mul and Add{shown}")
