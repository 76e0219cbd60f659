"""What reduced precision does to a model: the graph with its operands rounded, for ONNX Runtime.

How far the outputs of such a graph are from the original's says how much error a precision brings
with it for one model. It differs a hundredfold between models, so that no fixed tolerance would let
all of them pass and still find a wrong kernel.
"""

from __future__ import annotations

import math

import numpy as np

from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.numerics import PERTURBATION
from pwopt.passes.fold_constants import FoldConstants
from pwopt.passes.infer_shapes import InferShapes
from pwopt.pipeline import Context
from pwopt.precision import Precision

# Operands are multiplied by each of these before they are rounded: for independent errors.
VARIATIONS = (1.0, 1.37, 1.13, 1.73)
FEW_VARIATIONS = VARIATIONS[:2]  # enough where there are several inputs

_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
# Veltkamp's splitting: x * c - (x * c - x) with c = 2**n + 1 keeps the upper 24 - n bits of a
# float32, rounded to nearest. Runtimes cast to bfloat16 only from operator set 13 on.
_SPLITS = {"bf16": 2.0**16 + 1, "fp16": 2.0**13 + 1, "tf32": 2.0**13 + 1}


def quantizes(graph: Graph) -> bool:
    """Whether integers stand for real numbers anywhere in a graph, so that rounding takes steps."""
    return any(_is_quantized(node) for node in graph.nodes())


def _is_quantized(node: Node) -> bool:
    return "Quantize" in node.op or "QLinear" in node.op


def jittered(graph: Graph) -> Graph:
    """A copy whose quantization steps are longer or shorter by up to :data:`PERTURBATION`.

    Sums that lie near the middle between two steps then fall to the other side, as they do where
    they are added up in another order.
    """
    graph, rng = graph.copy(), np.random.default_rng(0)
    for node in graph.nodes():
        if not _is_quantized(node):
            continue
        for slot, operand in enumerate(graph.operands(node)):
            scale = graph.constant_value(operand)
            if operand is not None and scale is not None and _is_float(operand):
                noise = rng.uniform(-PERTURBATION, PERTURBATION, scale.shape)
                moved = (scale * (1 + noise)).astype(np.float32)
                _replace(graph, node, slot, graph.constant(moved))
    graph.erase_dead()
    return graph


def rounded(graph: Graph, precision: Precision, variation: float = 1.0) -> Graph:
    """A copy that rounds the operands of convolutions and products as an executable would.

    Args:
        graph: a model before any pass, so that what is rounded does not depend on them.
        precision: number formats.
        variation: see :data:`VARIATIONS`.
    """
    graph = graph.copy()
    InferShapes().run(graph, Context())
    FoldConstants().run(graph, Context())  # weights may stand behind a Reshape
    for node in graph.nodes():
        if node.domain != ONNX_DOMAIN or node.op not in _PRODUCTS:
            continue
        x, weight = graph.operand(node, 0), graph.operand(node, 1)
        if x is None or weight is None or not (_is_float(x) and _is_float(weight)):
            continue
        form = precision.fc_weights if _has_one_row(node) else "fp32"
        compute = precision.compute
        if compute in _SPLITS:
            _replace(graph, node, 0, _split(graph, x, compute, variation))
            if form == "fp32" and (compute != "bf16" or not _is_depthwise(node, x)):
                _replace(graph, node, 1, _stored(graph, weight, node, compute, variation))
        if form != "fp32":
            _replace(graph, node, 1, _stored(graph, weight, node, form, variation))
    graph.erase_dead()
    return graph


def _is_float(value: Value) -> bool:
    return value.tensor.dtype == "float32"


def _is_depthwise(node: Node, x: Value) -> bool:
    """Whether one channel is multiplied at a time, which is done in float32."""
    groups, shape = node.get("group", 1), x.tensor.shape
    return groups > 1 and shape is not None and len(shape) > 1 and groups == shape[1]


def _has_one_row(node: Node) -> bool:
    """Whether the result has one pixel, or a product one row."""
    shape = node.out.shape
    if shape is None or len(shape) < 2:
        return False
    rows = shape[:-1] if node.op != "Conv" else (shape[0], *shape[2:])
    return math.prod(rows) == 1


def _replace(graph: Graph, node: Node, slot: int, value: Value) -> None:
    operand = graph.operand(node, slot)
    assert operand is not None
    for use in graph.uses(operand):
        if use.node == node and use.slot == slot:
            graph.replace_operand(use, value)


def _stored(graph: Graph, weight: Value, node: Node, form: str, variation: float) -> Value:
    """Weights after a way through their format."""
    array = graph.constant_value(weight)
    if array is None:  # an executable has no other format for what is computed at run time
        return weight if form == "int8" else _split(graph, weight, form, variation)
    if form == "int8":
        rows = node.op == "Conv" or node.get("transB", 0)
        axes = tuple(range(1, array.ndim)) if rows else tuple(range(array.ndim - 1))
        step = np.abs(array).max(axis=axes, keepdims=True) / (127 / variation)
        step[step == 0] = 1
        return graph.constant((np.rint(array / step) * step).astype(np.float32))
    scaled = array * np.float32(variation)
    high = scaled * np.float32(_SPLITS[form])
    return graph.constant((high - (high - scaled)) / np.float32(variation))


def _split(graph: Graph, x: Value, form: str, variation: float) -> Value:
    """A value rounded at run time."""

    def step(op: str, left: Value, right: Value) -> Value:
        return graph.add(op, [left, right], types=(x.type,)).out

    def number(value: float) -> Value:
        return graph.constant(np.array(value, np.float32))

    scaled = step("Mul", x, number(variation)) if variation != 1.0 else x
    high = step("Mul", scaled, number(_SPLITS[form]))
    result = step("Sub", high, step("Sub", high, scaled))
    return step("Mul", result, number(1 / variation)) if variation != 1.0 else result
