"""Folding a per-channel affine function into the convolution or matrix product beside it.

Everything is computed in float64 and rounded once to the weights' own type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.affine import Affine, broadcastable
from pwopt.passes.estimate import constant_growth
from pwopt.passes.rewriting import is_float, replace_node, shared_weight, text
from pwopt.pipeline import Missed

LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A convolution or product with constant weights.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        x: its first operand.
        weight: the constant second operand.
        bias: the constant third operand, if present.
        axis: the axis of the result that holds the output channels.
    """

    node: Node
    x: Value
    weight: Value
    bias: Value | None
    axis: int


def linear_at(graph: Graph, node: Node) -> Linear | str:
    """A node as a :class:`Linear`, or the reason why it is none."""
    if not node.is_op(*LINEAR_OPS):
        return f"{node.label} is no convolution, Gemm or MatMul"
    x, weight, bias = (*graph.operands(node), None)[:3]
    w = graph.constant_value(weight)
    if x is None or weight is None or w is None:
        return f"the weight of {node.label} is not constant"
    if bias is not None and graph.constant_value(bias) is None:
        return f"the bias of {node.label} is not constant"
    if not is_float(weight) or not w.size:
        return f"the weight of {node.label} is {weight.tensor}"
    axis = 1
    if node.op == "MatMul":
        rank = x.tensor.rank
        if w.ndim != 2 or rank is None or rank < 2:
            return f"{node.label} multiplies {x.tensor} by {weight.tensor}"
        axis = rank - 1
    elif w.ndim < (2 if node.op == "Gemm" else 3):
        return f"the weight of {node.label} is {weight.tensor}"
    if node.op == "Gemm" and graph.opset < 7:
        return f"{node.label} is of operator set {graph.opset}, which broadcasts by attribute"
    return Linear(node, x, weight, bias, axis)


def absorb_after(
    graph: Graph,
    linear: Linear,
    affine: Affine,
    chain: Sequence[Node],
    growth: Growth,
) -> str | None:
    """Replaces ``affine(linear(x))`` by one linear operator; ``chain`` computes ``affine``.

    A MatMul whose X is a matrix becomes a Gemm where it needs a bias; of any other MatMul only the
    factor is folded, and one Add remains.

    Returns:
        None if it was done, else the reason why not.
    """
    node = linear.node
    w, b = _array(graph, linear.weight), _array(graph, linear.bias)
    with np.errstate(all="ignore"):
        new_w = w.astype(np.float64) * _along_outputs(node, w, affine.scale)
        new_b = _bias_after(node, w, b, affine)
    trouble = _growth_trouble(graph, linear, affine, new_b, chain, growth)
    trouble = trouble or _range_trouble(node, w.dtype, new_w, new_b, w)
    if trouble is not None:
        return trouble
    remainder = None
    op, attributes = node.op, dict(node.attributes)
    if op == "MatMul" and new_b is not None:
        if linear.x.tensor.rank == 2 and graph.opset >= 7:
            op, attributes = "Gemm", {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
        else:
            remainder, new_b = new_b, None
            if not affine.scales:
                return f"{node.label} has no bias"
    if op == "Gemm":
        attributes["beta"] = 1.0
    weight = _put(graph, linear.weight, new_w, affine.scales)
    bias = None if new_b is None else _put_bias(graph, linear, new_b, w.dtype)
    if remainder is None:
        replace_node(
            graph, chain[-1], op, [linear.x, weight, bias], attributes, absorbed=[node, *chain[:-1]]
        )
        return None
    product = graph.add(op, [linear.x, weight], attributes, types=node.types, origin=node.origin)
    rest = graph.constant(remainder.astype(w.dtype))
    replace_node(graph, chain[-1], "Add", [product.out, rest], absorbed=[node, *chain[:-1]])
    return None


def absorb_before(
    graph: Graph,
    linear: Linear,
    affine: Affine,
    x: Value,
    chain: Sequence[Node],
    growth: Growth,
) -> str | None:
    """Replaces ``linear(affine(x))`` by one linear operator; ``chain`` computes ``affine``.

    Returns:
        None if it was done, else the reason why not.
    """
    node = linear.node
    if affine.shifts and (why := _shift_trouble(node)) is not None:
        return why
    if node.get("transA", 0):
        return f"{node.label} transposes its first operand"
    w, b = _array(graph, linear.weight), _array(graph, linear.bias)
    wide = w.astype(np.float64)
    with np.errstate(all="ignore"):
        new_w = wide * _along_inputs(node, w, affine.scale)
        new_b = _bias_before(node, wide, b, affine)
    if node.op == "MatMul" and new_b is not None:
        return f"{node.label} has no bias"
    trouble = _growth_trouble(graph, linear, affine, new_b, chain, growth)
    trouble = trouble or _range_trouble(node, w.dtype, new_w, new_b, w)
    if trouble is not None:
        return trouble
    attributes = dict(node.attributes)
    if node.op == "Gemm" and new_b is not None:
        attributes["beta"] = 1.0
    weight = _put(graph, linear.weight, new_w, affine.scales)
    bias = linear.bias
    if new_b is not None:
        bias = _put_bias(graph, linear, new_b, w.dtype)
    replace_node(graph, node, node.op, [x, weight, bias], attributes, absorbed=chain)
    return None


def is_padded(node: Node) -> bool:
    """Whether a convolution reads zeros from outside its input."""
    return any(node.get("pads", ())) or text(node, "auto_pad", "NOTSET").startswith("SAME")


def _shift_trouble(node: Node) -> str | None:
    if node.op == "ConvTranspose":
        return f"{node.label} sums fewer terms at its borders, so a shift is no bias"
    if node.op == "Conv" and is_padded(node):
        return f"{node.label} pads with zeros, which a shift before it would not reach"
    return None


def _array(graph: Graph, value: Value | None) -> np.ndarray:
    array = graph.constant_value(value)
    return np.zeros(0) if array is None else array


def _out_axis(node: Node) -> int:
    """The axis of the weight that holds the output channels (ConvTranspose: of one group)."""
    if node.op == "Gemm":
        return 0 if node.get("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op]


def _along_outputs(node: Node, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Factors per output channel, shaped to multiply the weight."""
    if node.op == "ConvTranspose" and scale.size > 1:
        groups = node.get("group", 1)
        per_group = scale.reshape(groups, 1, w.shape[1])
        spread = np.repeat(per_group, w.shape[0] // groups, axis=1)
        return spread.reshape(w.shape[:2] + (1,) * (w.ndim - 2))
    return broadcastable(scale, w.ndim, _out_axis(node))


def _along_inputs(node: Node, w: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Factors per input channel, shaped to multiply the weight."""
    if scale.size == 1:
        return scale.reshape((1,) * w.ndim)
    if node.op == "ConvTranspose":
        return broadcastable(scale, w.ndim, 0)
    if node.op == "Conv":
        groups = node.get("group", 1)
        rows = np.repeat(scale.reshape(groups, -1), w.shape[0] // groups, axis=0)
        return rows.reshape(rows.shape + (1,) * (w.ndim - 2))
    return broadcastable(scale, 2, 1 - _out_axis(node))


def _channels(node: Node, w: np.ndarray) -> int:
    size = int(w.shape[_out_axis(node)])
    return size * int(node.get("group", 1)) if node.op == "ConvTranspose" else size


def _bias_after(node: Node, w: np.ndarray, b: np.ndarray, affine: Affine) -> np.ndarray | None:
    """The bias of ``affine`` after the operator; None where it needs none."""
    channels = _channels(node, w)
    shift: np.ndarray = np.broadcast_to(affine.shift, (channels,))
    if b.size:
        own: np.ndarray = b.astype(np.float64) * node.get("beta", 1.0)
        shift = own * affine.scale + shift
        return shift
    return shift if affine.shifts else None


def _bias_before(node: Node, wide: np.ndarray, b: np.ndarray, affine: Affine) -> np.ndarray | None:
    """The bias of the operator after ``affine``; None where the present one stays."""
    if not affine.shifts:
        return None
    if node.op == "Conv":
        columns = wide.reshape(wide.shape[0], wide.shape[1], -1).sum(axis=2)
        spread = _along_inputs(node, columns[..., None], affine.shift)[..., 0]
        extra: np.ndarray = (columns * spread).sum(axis=1)
    else:
        spread = _along_inputs(node, wide, affine.shift)
        extra = node.get("alpha", 1.0) * (wide * spread).sum(axis=1 - _out_axis(node))
    if not b.size:
        return extra
    own: np.ndarray = b.astype(np.float64) * node.get("beta", 1.0)
    total: np.ndarray = own + extra
    return total


def _growth_trouble(
    graph: Graph,
    linear: Linear,
    affine: Affine,
    new_b: np.ndarray | None,
    chain: Sequence[Node],
    growth: Growth,
) -> str | None:
    """Why the new constants may not take more than what goes away with the chain."""
    weight, node = linear.weight.tensor, linear.node
    if affine.scales and (why := shared_weight(graph, linear.weight, growth)) is not None:
        return why
    item = (weight.bytes or 0) // max(1, weight.elements or 1)
    new = (weight.bytes or 0) * affine.scales + (0 if new_b is None else item * new_b.size)
    kept = [
        v
        for v, changed in ((linear.weight, affine.scales), (linear.bias, new_b is not None))
        if not changed
    ]
    added = constant_growth(graph, [node, *chain], new, kept)
    return growth.refuse(graph, added, f"the new weights of {node.label}")


def _range_trouble(
    node: Node, dtype: np.dtype, new_w: np.ndarray, new_b: np.ndarray | None, w: np.ndarray
) -> str | None:
    """Why the new weights cannot be held in their type."""
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    for array in (new_w, new_b):
        if array is not None and not np.all(np.abs(array) <= float(limits.max)):
            return f"the new weights of {node.label} do not fit {dtype}"
    largest = float(np.max(np.abs(new_w), initial=0.0))
    before = float(np.max(np.abs(w.astype(np.float64)), initial=0.0))
    if 0 < largest < float(limits.tiny) <= before:
        return f"the new weights of {node.label} are too small for {dtype}"
    return None


def _put(graph: Graph, old: Value, array: np.ndarray, changed: bool) -> Value:
    """A constant in place of ``old``, of its type and shape; ``old`` itself if it did not change.

    The name goes along where nothing else reads ``old``.
    """
    if not changed:
        return old
    name = old.name if graph.only_use(old) is not None else ""
    before = graph.constant_value(old)
    assert before is not None
    return graph.constant(
        np.ascontiguousarray(array.astype(before.dtype)), name, origin=old.node.origin
    )


def _put_bias(graph: Graph, linear: Linear, bias: np.ndarray, dtype: np.dtype) -> Value:
    name = ""
    if linear.bias is not None and graph.only_use(linear.bias) is not None:
        name = linear.bias.name
    return graph.constant(np.ascontiguousarray(bias.astype(dtype)), name)


def not_alone(graph: Graph, value: Value) -> Missed | None:
    """The reason why the only reader of ``value`` may not change it."""
    if graph.is_output(value):
        return Missed(f"{value.label!r} is an output of the graph")
    count = graph.reader_count(value)
    return Missed(f"{value.label!r} is read by {count} nodes") if count != 1 else None
