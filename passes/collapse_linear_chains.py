"""The pass ``collapse-linear-chains``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pwopt.cost import node_macs
from pwopt.ir.graph import Graph, Node
from pwopt.passes.estimate import constant_growth, sizes, spread
from pwopt.passes.linear import Linear, is_padded, linear_at, not_alone
from pwopt.passes.matrix import MATRIX_OPS, add_matrix, is_pointwise, matrix_at, misfit
from pwopt.passes.rewriting import replace_node, text
from pwopt.pipeline import Applied, Context, Missed, Rewrite


@dataclass(frozen=True)
class CollapseLinearChains(Rewrite):
    """Turns two linear layers with nothing between them into one, where that is no more work.

    Rewrite:
        ``Conv1x1(Conv1x1(X, V, a), W, b)`` → ``Conv1x1(X, W V, W a + b)``; the same for a 1x1
        before or after a kxk convolution, whose kernel is multiplied at each of its taps, and for
        ``Gemm(Gemm(·))`` and ``MatMul(MatMul(·))``. Longer chains go pair by pair.
    Shapes:
        any batch and spatial rank; strides multiply; of two group counts the result has the
        greatest common divisor.
    Numerics:
        exact up to rounding: multiplied in float64, rounded once to the weights' type.
    Misses when:
        the product costs more multiply-accumulates, or the constants would grow (a shared weight
        stays where another layer reads it); the value in between has another reader or is an
        output; a bias reaches a convolution that pads with zeros; a 1x1 pads; a 1x1 with strides
        stands before a kxk; weights or biases are not constant, or their product does not fit
        their type.
    Source:
        associativity; the reverse of low-rank factorization, Denton et al., NIPS 2014.
    """

    name: ClassVar[str] = "collapse-linear-chains"
    ops: ClassVar[frozenset[tuple[str, str]]] = MATRIX_OPS

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        x = graph.operand(node, 0)
        if x is None or x.node.op != node.op or not x.node.is_op("Conv", "Gemm", "MatMul"):
            return None
        first = x.node
        if not is_pointwise(graph, first) and not is_pointwise(graph, node):
            return None
        if (missed := not_alone(graph, x)) is not None:
            return missed
        shown = first.label
        if node.op == "Conv":
            why = _collapse_convolutions(graph, first, node)
        else:
            why = _collapse_products(graph, first, node)
        return Missed(why) if why is not None else Applied(f"multiplied with {shown} before it")


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A convolution as arrays; ``weight`` is (outputs, inputs per group, taps)."""

    linear: Linear
    weight: np.ndarray
    bias: np.ndarray | None
    group: int
    strides: tuple[int, ...]

    @property
    def is_pointwise(self) -> bool:
        return int(self.weight.shape[2]) == 1


def _layer(graph: Graph, node: Node) -> _Layer | str:
    linear = linear_at(graph, node)
    if isinstance(linear, str):
        return linear
    w = graph.constant_value(linear.weight)
    assert w is not None
    strides = tuple(node.get("strides", (1,) * (w.ndim - 2)))
    bias = graph.constant_value(linear.bias)
    return _Layer(linear, w.reshape(*w.shape[:2], -1), bias, node.get("group", 1), strides)


def _collapse_convolutions(graph: Graph, first: Node, node: Node) -> str | None:
    a, b = _layer(graph, first), _layer(graph, node)
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b if isinstance(b, str) else None
    if (why := _geometry_trouble(a, b)) is not None:
        return why
    group = math.gcd(a.group, b.group)
    inputs = a.weight.shape[1] * a.group // group
    taps = a.weight.shape[2] * b.weight.shape[2]
    shape = (b.weight.shape[0], inputs, taps)
    if (why := _cost_trouble(graph, a, b, math.prod(shape))) is not None:
        return why
    if (why := _growth_trouble(graph, first, node, _size(a, b, math.prod(shape)))) is not None:
        return why
    with np.errstate(all="ignore"):
        kernel, bias = _multiply(a, b, group)
    dtype = a.weight.dtype
    if (why := misfit(node.label, dtype, kernel, bias)) is not None:
        return why
    larger = (b if a.is_pointwise else a).linear
    spatial = larger.weight.tensor.static_shape
    assert spatial is not None
    attributes: dict[str, Any] = {
        **larger.node.attributes,
        "group": group,
        "strides": tuple(s * t for s, t in zip(a.strides, b.strides, strict=True)),
    }
    if taps == 1:
        # SAME pads a 1x1 by nothing; ONNX Runtime by less than nothing beyond a stride of 2.
        attributes.pop("auto_pad", None)
    array = np.ascontiguousarray(kernel.reshape(*shape[:2], *spatial[2:]).astype(dtype))
    origin = (*a.linear.weight.node.origin, *b.linear.weight.node.origin)
    operands = [a.linear.x, graph.constant(array, origin=origin)]
    if bias is not None:
        operands.append(graph.constant(bias.astype(dtype)))
    replace_node(graph, node, "Conv", operands, attributes, absorbed=[first])
    return None


def _geometry_trouble(a: _Layer, b: _Layer) -> str | None:
    """Why the two are no single convolution, whatever it costs."""
    first, second = a.linear.node, b.linear.node
    if a.weight.dtype != b.weight.dtype:
        return f"{first.label} is of type {a.weight.dtype}, {second.label} of {b.weight.dtype}"
    for layer in (a, b):
        node = layer.linear.node
        if layer.is_pointwise and any(node.get("pads", ())):
            return f"{node.label} pads with zeros"
    if a.is_pointwise and not b.is_pointwise:
        if any(s != 1 for s in a.strides):
            return f"{first.label} has strides {list(a.strides)} before a larger kernel"
        if is_padded(second) and a.bias is not None and np.any(a.bias):
            return f"{second.label} pads with zeros, which the bias of {first.label} does not reach"
    auto_pad = text(first, "auto_pad", "NOTSET")
    strided = any(s != 1 for s in b.strides)
    if strided and not a.is_pointwise and auto_pad.startswith("SAME"):
        return f"{first.label} pads by its strides: {auto_pad}"
    return None


def _cost_trouble(graph: Graph, a: _Layer, b: _Layer, product: int) -> str | None:
    """Why the product, of so many weights, is more work."""
    first, second = a.linear.node, b.linear.node
    result = sizes(second.out)
    if result is not None and sizes(first.out) is not None:
        before = node_macs(graph, first) + node_macs(graph, second)
        after = spread(result, 1) * product
        unit = ""
    else:
        # A 1x1 reads at least as many pixels as it writes; of a larger kernel that is not known.
        before = b.weight.size + (a.weight.size if b.is_pointwise else 0)
        after, unit = product, " per pixel"
    if after <= before:
        return None
    return f"the product takes {after} multiply-accumulates{unit}, the two take {before}"


def _size(a: _Layer, b: _Layer, weights: int) -> int:
    """Bytes of the new constants."""
    biased = a.bias is not None or b.bias is not None
    return (weights + biased * int(b.weight.shape[0])) * a.weight.dtype.itemsize


def _growth_trouble(graph: Graph, first: Node, node: Node, new_bytes: int) -> str | None:
    grown = constant_growth(graph, [first, node], new_bytes)
    return f"the constants would grow by {grown} bytes" if grown > 0 else None


def _multiply(a: _Layer, b: _Layer, group: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Weight (outputs, inputs per group, taps) and bias of ``b`` after ``a``, in float64."""
    outputs, taps = b.weight.shape[0] // group, b.weight.shape[2]
    v = _regrouped(a, group).reshape(group, a.weight.shape[0] // group, -1)
    w = _regrouped(b, group).reshape(group, outputs, -1, taps)
    # One of the two has a single tap, so the taps of both together are those of the other.
    kernel = w.swapaxes(2, 3).reshape(group, outputs * taps, -1) @ v
    kernel = kernel.reshape(group, outputs, taps, -1, a.weight.shape[2]).swapaxes(2, 3)
    kernel = kernel.reshape(b.weight.shape[0], kernel.shape[2], -1)
    if a.bias is None:
        return kernel, None if b.bias is None else b.bias.astype(np.float64)
    columns = a.bias.astype(np.float64).reshape(group, -1, 1)
    bias: np.ndarray = (w.sum(axis=3) @ columns).reshape(-1)
    return kernel, bias if b.bias is None else bias + b.bias


def _regrouped(layer: _Layer, group: int) -> np.ndarray:
    """The weights as those of fewer groups, zeros between the old ones, in float64."""
    w, joined = layer.weight.astype(np.float64), layer.group // group
    if joined == 1:
        return w
    outputs, inputs, taps = w.shape
    wide = np.zeros((group, joined, outputs // layer.group, joined, inputs, taps))
    narrow = w.reshape(group, joined, outputs // layer.group, inputs, taps)
    for i in range(joined):
        wide[:, i, :, i] = narrow[:, i]
    return wide.reshape(outputs, joined * inputs, taps)


def _collapse_products(graph: Graph, first: Node, node: Node) -> str | None:
    a, b = matrix_at(graph, first), matrix_at(graph, node)
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else b if isinstance(b, str) else None
    if a.matrix.dtype != b.matrix.dtype:
        return f"{first.label} is of type {a.matrix.dtype}, {node.label} of {b.matrix.dtype}"
    outputs, inputs = b.outputs, a.matrix.shape[1]
    before, after = a.matrix.size + b.matrix.size, outputs * inputs
    if after > before:
        return f"the product takes {after} multiply-accumulates per row, the two take {before}"
    biased = a.vector is not None or b.vector is not None
    new_bytes = (after + biased * outputs) * a.matrix.dtype.itemsize
    if (why := _growth_trouble(graph, first, node, new_bytes)) is not None:
        return why
    with np.errstate(all="ignore"):
        wide = b.matrix.astype(np.float64)
        matrix = wide @ a.matrix.astype(np.float64)
        vector = None if b.vector is None else b.vector.astype(np.float64)
        if a.vector is not None:
            shift = wide @ a.vector.astype(np.float64)
            vector = shift if vector is None else vector + shift
    if (why := misfit(node.label, a.matrix.dtype, matrix, vector)) is not None:
        return why
    add_matrix(graph, b, a.x, matrix, vector, absorbed=[first, node], replaces=node)
    return None
