"""What a Gemm or MatMul with constant weights says once its attributes are folded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pwopt.ir.graph import Graph, Node, Value

DTYPE = "float32"


@dataclass(frozen=True)
class FullyConnected:
    """``x @ matrix.T * alpha + bias + beta * addend``.

    Attributes:
        node: the Gemm or MatMul.
        last: the node whose result this is: ``node`` itself, or the Add of a bias behind a MatMul.
        x: (..., K), or (K, rows) where ``transposed``.
        transposed: whether x is to be transposed first.
        weight: the constant; ``matrix`` its array as (N, K).
        alpha: factor of the product.
        bias: (N), or None.
        addend: of the result's shape after broadcasting, or None: a bias that differs by row or is
            not constant.
        beta: factor of ``addend``.
    """

    node: Node
    last: Node
    x: Value
    transposed: bool
    weight: Value
    matrix: np.ndarray
    alpha: float
    bias: np.ndarray | None = None
    addend: Value | None = None
    beta: float = 1.0

    @property
    def scaled(self) -> np.ndarray:
        """The weights (N, K) with alpha folded in; a view where alpha is 1."""
        if self.alpha == 1.0:
            return self.matrix
        return (self.matrix.astype(np.float64) * self.alpha).astype(np.float32)


@dataclass(frozen=True)
class FlattenedMap:
    """A map (N, C, *spatial) that was flattened to (N, K).

    Attributes:
        value: the map.
        flatten: the nodes between it and the flat value.
        axes: for each axis of the map but the first, its place in the order of the flat K.
        shape: the sizes of the map's axes but the first, in the order of the flat K.
    """

    value: Value
    flatten: tuple[Node, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def kernel(self, matrix: np.ndarray) -> np.ndarray:
        """Weights (M, K) as those of a convolution over the whole map; a view."""
        array = matrix.reshape(matrix.shape[0], *self.shape)
        return array.transpose(0, *(1 + axis for axis in self.axes))


def read(graph: Graph, node: Node) -> FullyConnected | str:
    """The fully connected layer that a Gemm or MatMul stands for, or why it is none."""
    x, weight = graph.operands(node)[:2]
    assert x is not None
    assert weight is not None
    array = graph.constant_value(weight)
    if array is None:
        return "its weights are not constant"
    if x.tensor.dtype != DTYPE:
        return f"its element type is {x.tensor.dtype or 'unknown'}"
    if array.ndim != 2:
        return f"its weights have rank {array.ndim}"
    if array.size == 0:
        return "its weights are empty"
    if node.op == "MatMul":
        if x.tensor.rank is None or x.tensor.rank < 2:
            return f"its input has rank {x.tensor.rank or 'unknown'}"
        last, bias = _bias_behind(graph, node, array.shape[1])
        return FullyConnected(node, last, x, False, weight, array.T, 1.0, bias)
    return _gemm(graph, node, x, weight, array)


def flattened_map(graph: Graph, layer: FullyConnected) -> FlattenedMap | None:
    """The map of more than one pixel that ``layer`` reads through a Flatten or Reshape."""
    flatten = layer.x.node
    if layer.transposed or not flatten.is_op("Flatten", "Reshape") or layer.x.tensor.rank != 2:
        return None
    value = graph.operand(flatten, 0)
    assert value is not None
    shape = value.tensor.shape
    if shape is None or len(shape) < 3:
        return None
    sizes = tuple(d for d in shape[1:] if isinstance(d, int))
    # With K elements behind the first axis, a result (., K) has the same first axis.
    if len(sizes) != len(shape) - 1 or math.prod(sizes) != layer.matrix.shape[1]:
        return None
    axes = tuple(range(len(sizes)))
    path: tuple[Node, ...] = (flatten,)
    permutation = value.node.get("perm")
    if value.node.is_op("Transpose") and permutation is not None and permutation[0] == 0:
        path = (value.node, flatten)
        axes = tuple(permutation.index(axis) - 1 for axis in range(1, len(permutation)))
        source = graph.operand(value.node, 0)
        assert source is not None
        value = source
    if all(sizes[axis] == 1 for axis in axes[1:]):
        return None
    return FlattenedMap(value, path, axes, sizes)


def _gemm(graph: Graph, node: Node, x: Value, weight: Value, array: np.ndarray) -> FullyConnected:
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    layer = FullyConnected(
        node,
        node,
        x,
        bool(node.get("transA", 0)),
        weight,
        array if node.get("transB", 0) else array.T,
        alpha,
    )
    addend = graph.operand(node, 2)
    if addend is None or beta == 0.0:
        return layer
    constant = graph.constant_value(addend)
    vector = None if constant is None else _vector(constant, layer.matrix.shape[0])
    if vector is None:
        return _with(layer, addend=addend, beta=beta)
    scaled = vector if beta == 1.0 else (vector.astype(np.float64) * beta).astype(np.float32)
    return _with(layer, bias=scaled)


def _with(
    layer: FullyConnected,
    *,
    bias: np.ndarray | None = None,
    addend: Value | None = None,
    beta: float = 1.0,
) -> FullyConnected:
    return FullyConnected(
        layer.node,
        layer.last,
        layer.x,
        layer.transposed,
        layer.weight,
        layer.matrix,
        layer.alpha,
        bias,
        addend,
        beta,
    )


def _bias_behind(graph: Graph, node: Node, width: int) -> tuple[Node, np.ndarray | None]:
    """The Add of a constant vector behind a MatMul, and that vector."""
    use = graph.only_use(node.out)
    if use is None or not use.node.is_op("Add"):
        return node, None
    constant = graph.constant_value(graph.operand(use.node, 1 - use.slot))
    rank = node.out.tensor.rank
    if constant is None or rank is None or constant.ndim > rank:
        return node, None
    vector = _vector(constant, width)
    return (node, None) if vector is None else (use.node, vector)


def _vector(constant: np.ndarray, width: int) -> np.ndarray | None:
    """A constant that broadcasts over rows as (width); None where it differs by row."""
    if constant.size == 1:
        return np.full(width, constant.reshape(-1)[0])
    same = constant.size == width and constant.shape[-1] == width
    return constant.reshape(-1) if same else None
