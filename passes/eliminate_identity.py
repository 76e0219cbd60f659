"""The pass ``eliminate-identity``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.types import NUMPY_DTYPES
from pwopt.passes.canonical_arithmetic import clip_bounds
from pwopt.passes.rewriting import (
    in_training_mode,
    int_list,
    is_dynamic,
    reads_only_first,
    replace_node,
    replace_value,
    text,
)
from pwopt.passes.views import VIEWS, is_view, same_shape, viewed_through
from pwopt.pipeline import Applied, Context, Missed, Rewrite

Found = Value | Missed | None
MAX_PASSED = 16  # operators between a Relu and one that makes it needless
_NEVER_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax")
_KEEP_THE_SIGN = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", *VIEWS)
INT32_MAX = int(np.iinfo(np.int32).max)


@dataclass(frozen=True)
class EliminateIdentity(Rewrite):
    """Removes operators that hand on their operand, and pairs that undo each other.

    Rewrite:
        ``Identity(x)``, ``Dropout(x)`` of inference, ``Cast(x)`` to its own type, ``x * 1``, ``x
        + 0``, and any Reshape, Flatten, Squeeze, Unsqueeze, Expand, Transpose, Pad, Slice, Concat,
        Sum, Tile or pool that changes nothing, a Relu of what is never negative → ``x``.
        ``Transpose(Transpose(x))`` → one Transpose; ``Reshape(Reshape(x))``, with any other
        operator that only changes the shape in place of either, such as a Transpose that moves
        axes of size one → one Reshape.

    Shapes:
        Only where the shape provably stays, which static shapes or one open dimension allow.

    Numerics:
        Exact, but for the sign of a zero: ``-0.0 + 0.0`` is ``0.0``.

    Misses when:
        A Dropout trains, or its mask is read.

    Source:
        Common practice.
    """

    name: ClassVar[str] = "eliminate-identity"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset()  # set below, from the table

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        found = _RULES[node.op](graph, node)
        if found is None:
            return self._combine(graph, node)
        if isinstance(found, Missed):
            return found
        label = node.label
        if _is_end(graph, found) and graph.is_output(node.out):
            # An output needs a node of its own to carry its name.
            if node.op == "Identity":
                return None
            replace_node(graph, node, "Identity", [found], types=node.types[:1])
            return Applied(f"turned {label} into Identity")
        replace_value(graph, node, found)
        return Applied(f"removed {label}")

    @staticmethod
    def _combine(graph: Graph, node: Node) -> Applied | None:
        if node.op == "Transpose" and (done := _combine_transposes(graph, node)) is not None:
            return done
        return _combine_views(graph, node) if is_view(graph, node) else None


def _is_end(graph: Graph, value: Value) -> bool:
    return value.node.is_input or value.node.is_constant or graph.is_output(value)


def _combine_transposes(graph: Graph, node: Node) -> Applied | None:
    x = graph.operand(node, 0)
    if x is None or not x.node.is_op("Transpose"):
        return None
    source = graph.operand(x.node, 0)
    outer, inner = node.get("perm"), x.node.get("perm")
    rank = x.tensor.rank if inner is None else len(inner)
    if source is None or rank is None:
        return None
    inner = tuple(inner) if inner is not None else tuple(range(rank))[::-1]
    outer = tuple(outer) if outer is not None else tuple(range(rank))[::-1]
    perm = tuple(inner[i] for i in outer)
    labels = f"{x.node.label} and {node.label}"
    if perm == tuple(range(rank)) and not (_is_end(graph, source) and graph.is_output(node.out)):
        replace_value(graph, node, source)
        return Applied(f"removed {labels}")
    replace_node(graph, node, "Transpose", [source], {"perm": perm}, absorbed=[x.node])
    return Applied(f"combined {labels}")


def _combine_views(graph: Graph, node: Node) -> Applied | None:
    x = graph.operand(node, 0)
    if x is None or not is_view(graph, x.node) or graph.opset < 5:
        return None
    source = graph.operand(x.node, 0)
    shape = node.out.tensor.shape
    if source is None or shape is None:
        return None
    labels = f"{x.node.label} and {node.label}"
    end = _is_end(graph, source) and graph.is_output(node.out)
    if same_shape(source, node.out) and not end:
        replace_value(graph, node, source)
        return Applied(f"removed {labels}")
    target = viewed_through(source, node.out)
    if target is None:
        return None
    replace_node(
        graph,
        node,
        "Reshape",
        [source, graph.constant(np.array(target, np.int64))],
        absorbed=[x.node],
    )
    return Applied(f"combined {labels}")


def _first(graph: Graph, node: Node) -> Value | None:
    return graph.operand(node, 0)


def _dropout(graph: Graph, node: Node) -> Found:
    training = in_training_mode(graph, node)
    if training is None:
        return Missed("whether it trains is only known at run time")
    if training:
        return Missed("it is in training mode")
    return graph.operand(node, 0) if reads_only_first(graph, node) else Missed("its mask is read")


def _cast(graph: Graph, node: Node) -> Found:
    x = graph.operand(node, 0)
    if x is None or x.tensor.dtype is None or x.tensor.dtype != node.out.tensor.dtype:
        return None
    return x


def _view(graph: Graph, node: Node) -> Found:
    x = graph.operand(node, 0)
    return x if x is not None and same_shape(x, node.out) else None


def _expand(graph: Graph, node: Node) -> Found:
    x = graph.operand(node, 0)
    shape = graph.constant_value(graph.operand(node, 1))
    if x is None or x.tensor.rank is None:
        return None
    if shape is not None and shape.size <= x.tensor.rank and np.all(shape == 1):
        return x
    return x if x.shape is not None and x.shape == node.out.shape else None


def _tile(graph: Graph, node: Node) -> Found:
    if graph.opset < 6:
        return None
    repeats = graph.constant_value(graph.operand(node, 1))
    return graph.operand(node, 0) if repeats is not None and np.all(repeats == 1) else None


def _transpose(graph: Graph, node: Node) -> Found:
    x, perm = graph.operand(node, 0), node.get("perm")
    if x is None:
        return None
    if perm is None:
        return x if x.tensor.rank is not None and x.tensor.rank < 2 else None
    return x if tuple(perm) == tuple(range(len(perm))) else None


def _pad(graph: Graph, node: Node) -> Found:
    if is_dynamic(graph, node, 1):
        return None
    pads = int_list(graph, node, 1, "pads")
    return graph.operand(node, 0) if pads is not None and not any(pads) else None


def _slice(graph: Graph, node: Node) -> Found:
    x = graph.operand(node, 0)
    starts, ends = int_list(graph, node, 1, "starts"), int_list(graph, node, 2, "ends")
    if x is None or starts is None or ends is None or is_dynamic(graph, node, 4):
        return None
    if any(step != 1 for step in int_list(graph, node, 4, "steps") or ()):
        return None
    if x.shape is not None and x.shape == node.out.shape:
        return x
    whole = not any(starts) and all(end >= INT32_MAX for end in ends)
    return x if whole else None


def _single(graph: Graph, node: Node) -> Found:
    return graph.operand(node, 0) if node.arity == 1 else None


def _pool(graph: Graph, node: Node) -> Found:
    kernel = node.get("kernel_shape") or (0,)
    ones = all(k == 1 for k in (*kernel, *(node.get("strides") or ())))
    padded = any(node.get("pads") or ()) and text(node, "auto_pad", "NOTSET") == "NOTSET"
    if not ones or padded or not reads_only_first(graph, node):
        return None
    return graph.operand(node, 0)


def _neutral(element: int, *, either: bool) -> Callable[[Graph, Node], Found]:
    """The rule of a binary operator with a neutral element; ``either``: on both sides."""

    def rule(graph: Graph, node: Node) -> Found:
        operands = graph.operands(node)
        if len(operands) != 2 or graph.opset < 7:
            return None
        for slot in (1, 0) if either else (1,):
            x, constant = operands[1 - slot], graph.constant_value(operands[slot])
            if x is None or constant is None or not constant.size or x.node.is_constant:
                continue
            if constant.dtype.kind == "O" or constant.reshape(-1)[0] != element:
                continue
            if _keeps_shape(x, constant, node.out) and np.all(constant == element):
                return x
        return None

    return rule


def _keeps_shape(x: Value, constant: np.ndarray, result: Value) -> bool:
    rank = x.tensor.rank
    if x.tensor.dtype is None or NUMPY_DTYPES[x.tensor.dtype] != constant.dtype:
        return False
    if rank is not None and constant.ndim <= rank and constant.size == 1:
        return True
    return x.shape is not None and x.shape == result.shape


def _relu(graph: Graph, node: Node) -> Found:
    x = graph.operand(node, 0)
    return x if x is not None and _is_never_negative(graph, x) else None


def _is_never_negative(graph: Graph, value: Value) -> bool:
    """Whether a value comes from an operator without negative results, perhaps through a pool."""
    for _ in range(MAX_PASSED):
        node = value.node
        if node.is_op(*_NEVER_NEGATIVE):
            return True
        if node.is_op("Clip"):
            bounds = clip_bounds(graph, node)
            return bounds is not None and bounds[0] >= 0
        source = graph.operand(node, 0)
        if source is None or not node.is_op(*_KEEP_THE_SIGN) or value.index:
            return False
        value = source
    return False


_RULES: dict[str, Callable[[Graph, Node], Found]] = {
    "Add": _neutral(0, either=True),
    "AveragePool": _pool,
    "Cast": _cast,
    "Concat": _single,
    "Div": _neutral(1, either=False),
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _view,
    "Identity": _first,
    "Max": _single,
    "MaxPool": _pool,
    "Mean": _single,
    "Min": _single,
    "Mul": _neutral(1, either=True),
    "Pad": _pad,
    "Pow": _neutral(1, either=False),
    "Relu": _relu,
    "Reshape": _view,
    "Slice": _slice,
    "Squeeze": _view,
    "Sub": _neutral(0, either=False),
    "Sum": _single,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _view,
}
EliminateIdentity.ops = frozenset((ONNX_DOMAIN, op) for op in _RULES)
