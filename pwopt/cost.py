"""What a graph costs, counted from shapes: multiply-accumulates and constants.

An open first axis counts as one, so a model with a symbolic batch is counted per item; a node with
any other open dimension counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pwopt.ir.graph import KERNEL_DOMAIN, ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.types import NUMPY_DTYPES, TensorType, Type

Operands = Sequence[Value | None]


def node_macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of one run of a node; 0 for what is no convolution or matrix product."""
    rule = _RULES.get((node.domain, node.op))
    if rule is None or not node.types:
        return 0
    return rule(node, graph.operands(node)) or 0


def graph_macs(graph: Graph) -> int:
    """Multiply-accumulates of one inference."""
    return sum(node_macs(graph, node) for node in graph.nodes())


def parameters(graph: Graph) -> int:
    """Number of elements of the floating-point constants."""
    return sum(t.elements or 0 for t in _constant_types(graph) if _is_floating(t))


def _constant_types(graph: Graph) -> list[TensorType]:
    types = (node.types[0] for node in graph.nodes() if node.is_constant)
    return [t for t in types if isinstance(t, TensorType)]


def _is_floating(t: TensorType) -> bool:
    return t.dtype is not None and NUMPY_DTYPES[t.dtype].kind in "fV"  # V: bfloat16, float8


def elements(of: Type) -> int | None:
    """Number of elements, an open first axis counted as one."""
    shape = of.shape if isinstance(of, TensorType) else None
    if shape is None:
        return None
    product = 1
    for axis, d in enumerate(shape):
        if isinstance(d, int):
            product *= d
        elif axis:
            return None
    return product


def _shape(operands: Operands, slot: int) -> tuple[int, ...] | None:
    value = operands[slot] if slot < len(operands) else None
    return None if value is None else value.shape


def _per_output(weight: int) -> Callable[[Node, Operands], int | None]:
    """Rule of a convolution: each output element reads one filter of the weight."""

    def rule(node: Node, operands: Operands) -> int | None:
        w, outputs = _shape(operands, weight), elements(node.types[0])
        return None if w is None or outputs is None else outputs * math.prod(w[1:])

    return rule


def _conv_transpose(node: Node, operands: Operands) -> int | None:
    w = _shape(operands, 1)
    inputs = None if operands[0] is None else elements(operands[0].type)
    return None if w is None or inputs is None else inputs * math.prod(w[1:])


def _gemm(node: Node, operands: Operands) -> int | None:
    outputs, b = elements(node.types[0]), _shape(operands, 1)
    if outputs is None or b is None:
        return None
    return outputs * b[1 if node.get("transB", 0) else 0]


def _matmul(a: int, b: int) -> Callable[[Node, Operands], int | None]:
    def rule(node: Node, operands: Operands) -> int | None:
        outputs = elements(node.types[0])
        left, right = operands[a], operands[b]
        if outputs is None or left is None or right is None:
            return None
        row = left.tensor.shape[-1] if left.tensor.shape else None
        shape = right.tensor.shape
        column = shape[-2] if shape and len(shape) > 1 else shape[0] if shape else None
        depth = row if isinstance(row, int) else column
        return outputs * depth if isinstance(depth, int) else None

    return rule


_RULES: dict[tuple[str, str], Callable[[Node, Operands], int | None]] = {
    (ONNX_DOMAIN, "Conv"): _per_output(1),
    (ONNX_DOMAIN, "ConvInteger"): _per_output(1),
    (ONNX_DOMAIN, "QLinearConv"): _per_output(3),
    (ONNX_DOMAIN, "ConvTranspose"): _conv_transpose,
    (ONNX_DOMAIN, "Gemm"): _gemm,
    (ONNX_DOMAIN, "MatMul"): _matmul(0, 1),
    (ONNX_DOMAIN, "MatMulInteger"): _matmul(0, 1),
    (ONNX_DOMAIN, "QLinearMatMul"): _matmul(0, 3),
    (KERNEL_DOMAIN, "Conv"): _per_output(1),
    (KERNEL_DOMAIN, "Pointwise"): _per_output(1),
    (KERNEL_DOMAIN, "Linear"): _per_output(1),
}

MAC_OPS = frozenset(_RULES)  # operators whose work is multiply-accumulates, as (domain, op)
