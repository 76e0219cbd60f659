"""Canonical forms of elementwise arithmetic and of clipping."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.passes.rewriting import is_float, replace_node, shared_weight
from pwopt.pipeline import Applied, Missed


def sum_(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """A Sum is a chain of Adds, from left to right."""
    operands = graph.operands(node)
    if graph.opset < 8 or len(operands) < 2 or any(v is None for v in operands):
        return None
    label = node.label
    total = operands[0]
    for value in operands[1:-1]:
        assert total is not None
        total = graph.add("Add", [total, value], origin=node.origin).out
    replace_node(graph, node, "Add", [total, operands[-1]])
    return Applied(f"turned {label} into Add")


def divide(graph: Graph, node: Node, growth: Growth) -> Applied | Missed | None:
    """Division by a constant is multiplication by its reciprocal, if that is a normal number."""
    pair = _with_constant(graph, node)
    if pair is None:
        return None
    x, divisor, array = pair
    limits = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
    with np.errstate(all="ignore"):
        reciprocal = 1.0 / array.astype(np.float64)
    size = np.abs(reciprocal)
    if not np.all((size <= float(limits.max)) & (size >= float(limits.tiny))):
        return Missed("the reciprocal of its divisor is no normal number")
    if (why := shared_weight(graph, divisor, growth)) is not None:
        return Missed(why)
    constant = graph.constant(reciprocal.astype(array.dtype))
    replace_node(graph, node, "Mul", [x, constant])
    return Applied(f"turned {node.label} into Mul")


def subtract(graph: Graph, node: Node, growth: Growth) -> Applied | Missed | None:
    """Subtraction of a constant is addition of its negative."""
    pair = _with_constant(graph, node)
    if pair is None:
        return None
    x, subtrahend, array = pair
    if (why := shared_weight(graph, subtrahend, growth)) is not None:
        return Missed(why)
    replace_node(graph, node, "Add", [x, graph.constant(np.negative(array))])
    return Applied(f"turned {node.label} into Add")


def clip(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """Clip at 0 from below is Relu; Clip of a Relu is one Clip."""
    bounds, x = clip_bounds(graph, node), graph.operand(node, 0)
    if bounds is None or x is None or not is_float(x):
        return None
    low, high = bounds
    label = node.label
    if low == 0 and high == math.inf:
        replace_node(graph, node, "Relu", [x])
        return Applied(f"turned {label} into Relu")
    source = graph.operand(x.node, 0) if x.node.is_op("Relu") else None
    if source is None or low > high:
        return None
    relu = x.node.label
    _write_clip(graph, node, source, max(low, 0.0), max(high, 0.0), absorbed=x.node)
    return Applied(f"combined {relu} and {label}")


def relu(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """Relu of a Clip is one Clip."""
    x = graph.operand(node, 0)
    if x is None or not x.node.is_op("Clip") or not is_float(x):
        return None
    bounds, source = clip_bounds(graph, x.node), graph.operand(x.node, 0)
    if bounds is None or source is None or bounds[0] > bounds[1] or bounds[1] < 0:
        return None
    labels = f"{x.node.label} and {node.label}"
    _write_clip(graph, node, source, max(bounds[0], 0.0), bounds[1], absorbed=x.node)
    return Applied(f"combined {labels}")


def bound(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """Min and Max with a constant scalar are a Clip with one bound, or Relu."""
    operands = graph.operands(node)
    if len(operands) != 2 or graph.opset < 8:
        return None
    for slot in (0, 1):
        x, array = operands[1 - slot], graph.constant_value(operands[slot])
        if x is None or array is None or array.size != 1 or x.node.is_constant or not is_float(x):
            continue
        if x.tensor.rank is None or array.ndim > x.tensor.rank:
            continue
        value = float(array.reshape(-1)[0])
        if math.isnan(value):
            return None
        low, high = (value, math.inf) if node.op == "Max" else (-math.inf, value)
        label = node.label
        inner = clip_bounds(graph, x.node) if x.node.is_op("Clip", "Relu") else None
        source = graph.operand(x.node, 0) if inner is not None else None
        if inner is None or source is None or inner[0] > inner[1]:
            _write_clip(graph, node, x, low, high, absorbed=None)
        else:
            low, high = _composed(inner, (low, high))
            _write_clip(graph, node, source, low, high, absorbed=x.node)
        return Applied(f"turned {label} into Clip")
    return None


def clip_bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """The constant bounds of a Clip or Relu, infinite where absent; None if not constant."""
    if node.op == "Relu":
        return 0.0, math.inf
    bounds = []
    for slot, attribute, absent in ((1, "min", -math.inf), (2, "max", math.inf)):
        value = graph.operand(node, slot)
        array = graph.constant_value(value)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(
            float(node.get(attribute, absent)) if array is None else float(array.reshape(-1)[0])
        )
    return None if any(math.isnan(b) for b in bounds) else (bounds[0], bounds[1])


def _composed(inner: tuple[float, float], outer: tuple[float, float]) -> tuple[float, float]:
    """The bounds of a Clip of a Clip."""
    low, high = (min(max(b, outer[0]), outer[1]) for b in inner)
    return low, high


def _write_clip(
    graph: Graph, node: Node, x: Value, low: float, high: float, *, absorbed: Node | None
) -> None:
    gone = [] if absorbed is None else [absorbed]
    if low == 0 and high == math.inf:
        replace_node(graph, node, "Relu", [x], absorbed=gone)
        return
    if graph.opset < 11:
        limits = {"min": low, "max": high}
        attributes = {k: v for k, v in limits.items() if not math.isinf(v)}
        replace_node(graph, node, "Clip", [x], attributes, absorbed=gone)
        return
    dtype = NUMPY_DTYPES[x.tensor.dtype or "float32"]
    operands = [None if math.isinf(b) else graph.constant(np.array(b, dtype)) for b in (low, high)]
    replace_node(graph, node, "Clip", [x, *operands], absorbed=gone)


def _with_constant(graph: Graph, node: Node) -> tuple[Value, Value, np.ndarray] | None:
    """The operand and the constant of ``op(x, constant)`` in floating point."""
    operands = graph.operands(node)
    if len(operands) != 2 or graph.opset < 7:
        return None
    x, constant = operands
    array = graph.constant_value(constant)
    if x is None or constant is None or array is None or x.node.is_constant or not array.size:
        return None
    return (x, constant, array) if is_float(constant) else None
