"""1x1 convolutions, Gemm and MatMul with constant weights, seen as one matrix and one vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.linear import is_padded, linear_at
from pwopt.passes.rewriting import shared_weight

MATRIX_OPS = frozenset({("", "Conv"), ("", "Gemm"), ("", "MatMul")})


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """``matrix @ x + vector`` at every pixel or row.

    Attributes:
        node: Conv, Gemm or MatMul.
        x: what it reads.
        weight: the constant second operand.
        bias: the constant third operand, if present.
        matrix: (outputs, inputs), in the weights' type; alpha is folded in.
        vector: (outputs), or None; beta is folded in.
        strides: one per spatial axis, empty for products.
        axis: the axis of the result that holds the outputs.
    """

    node: Node
    x: Value
    weight: Value
    bias: Value | None
    matrix: np.ndarray
    vector: np.ndarray | None
    strides: tuple[int, ...]
    axis: int

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.matrix.shape[0])

    @property
    def kind(self) -> tuple[Any, ...]:
        """What two of them must share to be computed as one."""
        return self.node.op, self.strides, self.matrix.dtype, self.x.tensor.rank


def is_pointwise(graph: Graph, node: Node) -> bool:
    """Whether a node looks like a product with a weight: a 1x1 Conv, a Gemm or a MatMul."""
    if not node.is_op("Conv", "Gemm", "MatMul"):
        return False
    weight = graph.operand(node, 1)
    shape = None if weight is None else weight.tensor.shape
    if node.op == "Conv":
        return shape is not None and len(shape) > 2 and all(d == 1 for d in shape[2:])
    return shape is not None and len(shape) == 2


def matrix_at(graph: Graph, node: Node) -> Matrix | str:
    """A pointwise node as a :class:`Matrix`, or the reason why it is none."""
    linear = linear_at(graph, node)
    if isinstance(linear, str):
        return linear
    w, b = graph.constant_value(linear.weight), graph.constant_value(linear.bias)
    assert w is not None
    strides: tuple[int, ...] = ()
    vector = b
    if node.op == "Conv":
        if node.get("group", 1) != 1:
            return f"{node.label} has {node.get('group', 1)} groups"
        if is_padded(node) and any(node.get("pads", ())):
            return f"{node.label} pads with zeros"
        strides = tuple(node.get("strides", (1,) * (w.ndim - 2)))
        w = w.reshape(w.shape[:2])
    elif node.op == "Gemm":
        if node.get("transA", 0):
            return f"{node.label} transposes its first operand"
        w = _scaled(w if node.get("transB", 0) else w.T, node.get("alpha", 1.0))
        if b is not None:
            if b.size not in (1, w.shape[0]) or (b.ndim and b.shape[-1] != b.size):
                return f"the bias of {node.label} differs by row"
            vector = np.broadcast_to(_scaled(b.reshape(-1), node.get("beta", 1.0)), (w.shape[0],))
    else:
        w = w.T
    return Matrix(node, linear.x, linear.weight, linear.bias, w, vector, strides, linear.axis)


def add_matrix(
    graph: Graph,
    like: Matrix,
    x: Value,
    matrix: np.ndarray,
    vector: np.ndarray | None,
    *,
    absorbed: Sequence[Node],
    replaces: Node | None = None,
    strides: tuple[int, ...] | None = None,
) -> Node:
    """Adds an operator of the same kind with other weights, rounded to the type of ``like``'s.

    Args:
        graph: the graph.
        like: gives the operator, the type and the attributes.
        x: what it reads.
        matrix: (outputs, inputs).
        vector: (outputs), or None.
        absorbed: the nodes whose work it does; for the names that messages show.
        replaces: the node whose result it computes; gives the names and types.
        strides: other strides than those of ``like``.
    """
    node, dtype = like.node, like.matrix.dtype
    names = [v.node.origin for each in absorbed for v in graph.operands(each)[1:2] if v is not None]
    w = matrix if node.op != "MatMul" else matrix.T
    attributes = dict(node.attributes)
    if node.op == "Conv":
        w = w.reshape(w.shape + (1,) * len(like.strides))
        if strides is not None:
            attributes["strides"] = strides
    elif node.op == "Gemm":
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    origin = dict.fromkeys(name for each in names for name in each)
    operands = [x, graph.constant(np.ascontiguousarray(w.astype(dtype)), origin=origin)]
    if vector is None and node.op == "Gemm" and graph.opset < 11:
        vector = np.zeros(matrix.shape[0])  # an operand that was not optional
    if vector is not None:
        operands.append(graph.constant(np.ascontiguousarray(vector.astype(dtype))))
    if replaces is None:
        return graph.add(node.op, operands, attributes, origin=origins(absorbed))
    new = graph.add(
        node.op,
        operands,
        attributes,
        types=replaces.types,
        names=replaces.names,
        name=replaces.name,
        origin=origins(absorbed),
    )
    graph.replace_uses(replaces.out, new.out)
    graph.erase_dead([replaces, *absorbed])
    return new


def origins(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The ONNX names that some nodes descend from together."""
    return tuple(dict.fromkeys(name for each in nodes for name in each.origin))


def own_weights(graph: Graph, parts: Iterable[Matrix], growth: Growth) -> str | None:
    """Why the weights may not be copied: they are shared beyond a bound."""
    for each in parts:
        if (why := shared_weight(graph, each.weight, growth)) is not None:
            return why
    return None


def misfit(label: str, dtype: np.dtype, *arrays: np.ndarray | None) -> str | None:
    """Why new weights, in float64, cannot be held in a type."""
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    for array in arrays:
        if array is None:
            continue
        largest = float(np.max(np.abs(array), initial=0.0))
        if not largest <= float(limits.max):
            return f"the new weights of {label} do not fit {dtype}"
    return None


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1.0:
        return array
    scaled: np.ndarray = (array.astype(np.float64) * factor).astype(array.dtype)
    return scaled
