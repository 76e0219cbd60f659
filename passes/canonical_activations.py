"""Activations that are spelt in several operators, as the one operator that they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.canonical_arithmetic import clip_bounds
from pwopt.passes.rewriting import is_float, replace_node
from pwopt.pipeline import Applied, Missed

MAX_FACTORS = 8  # constants in a row that a slope is the product of


def softplus(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """``Log(1 + Exp(x))`` is Softplus."""
    x = graph.operand(node, 0)
    exponent = None if x is None else _above_one(graph, x)
    if exponent is None:
        return None
    replace_node(graph, node, "Softplus", [exponent])
    return Applied(f"turned {node.label} into Softplus")


def sigmoid(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """``a / (1 + Exp(-x))`` is ``a * Sigmoid(x)``, and its reciprocal alone Sigmoid."""
    numerator, denominator = (*graph.operands(node), None)[:2]
    if node.op == "Reciprocal":
        numerator, denominator = None, numerator
    exponent = None if denominator is None else _above_one(graph, denominator)
    if exponent is None:
        return None
    if numerator is None and node.types[0] != exponent.type:
        return None
    label = node.label
    x = _negated(graph, exponent)
    if x is None:
        x = graph.add("Neg", [exponent], types=[exponent.type], origin=node.origin).out
    if node.types[0] == x.type and (numerator is None or _is(graph, numerator, 1.0)):
        replace_node(graph, node, "Sigmoid", [x])
        return Applied(f"turned {label} into Sigmoid")
    assert numerator is not None
    gate = graph.add("Sigmoid", [x], types=[x.type], origin=node.origin).out
    replace_node(graph, node, "Mul", [numerator, gate])
    return Applied(f"turned {label} into Mul and Sigmoid")


def prelu(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """``Relu(x) + c * Min(x, 0)``, its second part in any spelling, is LeakyRelu or PRelu."""
    first, second = (*graph.operands(node), None)[:2]
    if first is None or second is None or len(node.types) != 1:
        return None
    swapped = ((first, second), (second, first)) if node.op == "Add" else ((first, second),)
    for positive, other in swapped:
        x = graph.operand(positive.node, 0) if positive.node.is_op("Relu") else None
        part = None if x is None else _negative_part(graph, other)
        if x is None or part is None or part.x != x:
            continue
        return _write_slope(graph, node, x, part.factor * (-1 if node.op == "Sub" else 1))
    return None


def where(graph: Graph, node: Node, _: Growth) -> Applied | Missed | None:
    """``Where(x > 0, x, c * x)`` is LeakyRelu or PRelu, and ``Where(x > 0, x, 0)`` is Relu."""
    condition, chosen, other = graph.operands(node)
    if condition is None or chosen is None or other is None:
        return None
    compared = condition.node
    if compared.is_op("Less", "LessOrEqual"):
        chosen, other = other, chosen
    elif not compared.is_op("Greater", "GreaterOrEqual"):
        return None
    x, bound = graph.operands(compared)
    if x is None or bound is None or not _is(graph, bound, 0.0) or chosen != x:
        return None
    if _is(graph, other, 0.0) and _same(node, x) and is_float(x):
        label = node.label
        replace_node(graph, node, "Relu", [x])
        return Applied(f"turned {label} into Relu")
    part = _factors(graph, other)
    return _write_slope(graph, node, x, part.factor) if part.x == x else None


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """``factor`` times ``x``, or times the smaller one of x and zero; the factor in float64."""

    x: Value
    factor: np.ndarray


def _factors(graph: Graph, value: Value) -> _Part:
    """A value without the constants that it is multiplied by."""
    factor = np.ones(())
    for _ in range(MAX_FACTORS):
        node = value.node
        operands = graph.operands(node)
        if node.is_op("Neg") and operands[0] is not None:
            value, factor = operands[0], -factor
            continue
        if not node.is_op("Mul") or graph.opset < 7:
            break
        slot = next((i for i in (0, 1) if graph.constant_value(operands[i]) is not None), None)
        source = None if slot is None else operands[1 - slot]
        if slot is None or source is None or source.type != node.types[0]:
            break
        constant = graph.constant_value(operands[slot])
        assert constant is not None
        with np.errstate(all="ignore"):
            factor = factor * constant.astype(np.float64)
        value = source
    return _Part(value, factor)


def _negative_part(graph: Graph, value: Value) -> _Part | None:
    """A multiple of ``Min(x, 0)``: so spelt, or ``-Relu(-x)``, or ``(x - Abs(x)) / 2``."""
    part = _factors(graph, value)
    node = part.x.node
    first, second = (*graph.operands(node), None, None)[:2]
    if first is None:
        return None
    if node.is_op("Relu") and (x := _negated(graph, first)) is not None:
        return _Part(x, -part.factor)
    if node.is_op("Clip") and clip_bounds(graph, node) == (-np.inf, 0.0):
        return _Part(first, part.factor)
    if node.is_op("Min") and node.arity == 2 and second is not None and _is(graph, second, 0.0):
        return _Part(first, part.factor)
    if node.is_op("Sub") and second is not None and second.node.is_op("Abs"):
        same = graph.operand(second.node, 0) == first
        return _Part(first, 2 * part.factor) if same else None
    return None


def _write_slope(graph: Graph, node: Node, x: Value, slope: np.ndarray) -> Applied | None:
    """Puts LeakyRelu or PRelu in the place of ``node``; a slope that is no number stays."""
    if not _same(node, x) or graph.opset < 7 or slope.ndim > (x.tensor.rank or 0):
        return None
    array = slope.astype(np.float32)
    if x.tensor.dtype != "float32" or not np.all(np.isfinite(array)):
        return None
    op = "LeakyRelu" if array.size == 1 else "PRelu"
    label = node.label
    if array.size == 1:
        replace_node(graph, node, op, [x], {"alpha": float(array.reshape(-1)[0])})
    else:
        replace_node(graph, node, op, [x, graph.constant(array)])
    return Applied(f"turned {label} into {op}")


def _same(node: Node, x: Value) -> bool:
    """Whether a node's result has the type of ``x``, all of it known."""
    shape = x.tensor.shape
    return node.types[0] == x.type and shape is not None and None not in shape


def _above_one(graph: Graph, value: Value) -> Value | None:
    """The x of ``1 + Exp(x)`` that nothing else reads."""
    if not value.node.is_op("Add") or graph.only_use(value) is None or not is_float(value):
        return None
    for slot in (0, 1):
        part, constant = graph.operand(value.node, slot), graph.operand(value.node, 1 - slot)
        if part is None or constant is None or not part.node.is_op("Exp"):
            continue
        if part.type == value.type and _is(graph, constant, 1.0):
            return graph.operand(part.node, 0)
    return None


def _negated(graph: Graph, value: Value) -> Value | None:
    """The x of ``-x``, ``x * -1`` or ``0 - x``."""
    operands = graph.operands(value.node)
    if value.node.is_op("Neg"):
        return operands[0]
    if value.node.is_op("Sub") and operands[0] is not None and _is(graph, operands[0], 0.0):
        x = operands[1]
        return x if x is not None and x.type == value.type else None
    part = _factors(graph, value)
    return part.x if part.factor.size == 1 and part.factor.reshape(-1)[0] == -1 else None


def _is(graph: Graph, value: Value, number: float) -> bool:
    """Whether a value is a constant scalar."""
    array = graph.constant_value(value)
    return array is not None and array.size == 1 and float(array.reshape(-1)[0]) == number
