"""Canonical forms of matrix products and of the flattening in front of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node
from pwopt.passes.rewriting import is_float, replace_node, shared_weight
from pwopt.passes.views import is_flattening
from pwopt.pipeline import Applied, Missed

_NORMAL: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}


def gemm(graph: Graph, node: Node, growth: Growth) -> Applied | Missed | None:
    """Brings a Gemm with a constant B to ``transB=1, alpha=1, beta=1``."""
    a, b, c = (*graph.operands(node), None)[:3]
    weight, bias = graph.constant_value(b), graph.constant_value(c)
    if a is None or b is None or weight is None or weight.ndim != 2 or not is_float(b):
        return None
    if graph.opset < 7:
        return None
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    transposed = bool(node.get("transB", 0))
    if alpha == 1 and transposed and (beta == 1 or c is None):
        return None
    if c is not None and bias is None and beta != 1:
        return Missed(f"beta={beta:g} multiplies a C that is not constant")
    trouble = shared_weight(graph, b, growth)
    if trouble is not None and not (alpha == 1 and transposed):
        return Missed(trouble)
    attributes = {**node.attributes, **_NORMAL, "transA": node.get("transA", 0)}
    new_b = b
    if not (alpha == 1 and transposed):
        scaled = weight if alpha == 1 else (weight.astype(np.float64) * alpha).astype(weight.dtype)
        array = np.ascontiguousarray(scaled if transposed else scaled.T)
        new_b = graph.constant(array, b.name if graph.only_use(b) else "", origin=b.node.origin)
    new_c = c
    if c is not None and bias is not None and beta != 1:
        array = (bias.astype(np.float64) * beta).astype(bias.dtype)
        new_c = graph.constant(array, c.name if graph.only_use(c) else "", origin=c.node.origin)
    label = node.label
    replace_node(graph, node, "Gemm", [a, new_b, new_c], attributes)
    return Applied(f"brought {label} to transB=1, alpha=1, beta=1")


def matmul(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """A product of two matrices, the second one constant, is a Gemm."""
    a, b = graph.operands(node)
    weight = graph.constant_value(b)
    if a is None or b is None or weight is None or weight.ndim != 2 or a.tensor.rank != 2:
        return None
    if not is_float(b) or graph.opset < 11:  # before 11 a Gemm must have a C
        return None
    replace_node(graph, node, "Gemm", [a, b], {**_NORMAL, "transB": 0})
    return Applied(f"turned {node.label} into Gemm")


def flatten(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """Reshape and Squeeze that keep the first axis and join the others are a Flatten."""
    x = graph.operand(node, 0)
    if x is None or not is_float(x) or not is_flattening(x, node.out):
        return None
    if x.tensor.rank == 2:
        return None  # changes nothing: eliminate-identity's business
    replace_node(graph, node, "Flatten", [x], {"axis": 1})
    return Applied(f"turned {node.label} into Flatten")
