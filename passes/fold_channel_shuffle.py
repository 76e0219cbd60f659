"""The pass ``fold-channel-shuffle``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.types import Dim
from pwopt.passes.linear import not_alone
from pwopt.passes.mixing import UNARY, again, put
from pwopt.passes.rewriting import replace_node, shared_weight
from pwopt.pipeline import Applied, Context, Missed, Rewrite


@dataclass(frozen=True, slots=True, eq=False)
class _Shuffle:
    """Channel ``j`` of ``node`` is channel ``order[j]`` of ``x``."""

    node: Node
    x: Value
    order: np.ndarray


@dataclass(frozen=True)
class FoldChannelShuffle(Rewrite):
    """Folds a shuffle of channels into the weights of the convolutions beside it.

    Rewrite:
        ``Conv(Reshape(Transpose(Reshape(x))), W)`` → ``Conv(x, W[:, order])`` for a convolution of
        one group, or of groups that the shuffle does not mix;
        ``Conv_dw(Reshape(Transpose(Reshape(x))), W)`` before such a convolution →
        ``Conv(Conv_dw(x, W[order]), ...)``; and
        ``Reshape(Transpose(Reshape(Conv(x, W, b))))`` → ``Conv(x, W[order], b[order])`` for one
        group again. Activations and depthwise convolutions in between are passed.

    Shapes:
        (N, C, *spatial) → (N, g, C / g, *spatial), or more factors of C, permuted and joined
        again. The channels must be known; batch and spatial sizes need not.

    Numerics:
        Exact: weights change their places, sums their order.

    Misses when:
        A convolution beside it has groups that the shuffle mixes, which is what shuffles are for:
        a grouped 1x1 on either side keeps it; a value in between has another reader or is an
        output; weights are not constant, or shared beyond ``max_growth_bytes``.

    Source:
        ShuffleNet's channel shuffle as an index map.

    Attributes:
        max_growth_bytes: how much a shared weight may grow the model by when its readers each get
            their own copy.
    """

    name: ClassVar[str] = "fold-channel-shuffle"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({(ONNX_DOMAIN, "Reshape")})

    max_growth_bytes: int = 1 << 20

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        shuffle = _shuffle_at(graph, node)
        if shuffle is None:
            return None
        label = node.label
        growth = context.growth(self.max_growth_bytes)
        behind = _into_readers(graph, shuffle, growth)
        if isinstance(behind, Applied):
            return behind
        before = _into_producer(graph, shuffle, growth)
        if isinstance(before, Applied):
            return before
        reasons = [why.why for why in (behind, before) if why is not None]
        return Missed("; ".join(reasons) or f"no convolution beside {label} can take it")


def _shuffle_at(graph: Graph, node: Node) -> _Shuffle | None:
    """The shuffle that ends with a Reshape, None if it is none."""
    middle = graph.operand(node, 0)
    if middle is None or not middle.node.is_op("Transpose"):
        return None
    split = graph.operand(middle.node, 0)
    x = None if split is None or not split.node.is_op("Reshape") else graph.operand(split.node, 0)
    if split is None or x is None:
        return None
    before, factors, after = x.tensor.shape, split.tensor.shape, node.out.tensor.shape
    perm = middle.node.get("perm")
    if before is None or factors is None or after is None or perm is None or len(before) < 3:
        return None
    count = _channel_axes(before, factors)
    if count is None or not _same(before, after):
        return None
    axes = tuple(range(len(perm)))
    if perm[0] != 0 or tuple(perm[1 + count :]) != axes[1 + count :]:
        return None
    sizes = [d for d in factors[1 : 1 + count] if isinstance(d, int)]
    inner = [p - 1 for p in perm[1 : 1 + count]]
    order = np.arange(math.prod(sizes)).reshape(sizes).transpose(inner).reshape(-1)
    return _Shuffle(node, x, order)


def _channel_axes(shape: tuple[Dim, ...], split: tuple[Dim, ...]) -> int | None:
    """How many axes of ``split`` the channels of ``shape`` are spread over."""
    if not _same(shape[:1], split[:1]):
        return None
    for count in range(2, len(split)):
        if _elements(split[1 : 1 + count]) != shape[1]:
            continue
        pixels, rest = _elements(shape[2:]), split[1 + count :]
        if (pixels and pixels == _elements(rest)) or _same(shape[2:], rest):
            return count
    return None


def _elements(dims: tuple[Dim, ...]) -> int | None:
    """The product of dimensions, None where one is open."""
    sizes = [d for d in dims if isinstance(d, int)]
    return math.prod(sizes) if len(sizes) == len(dims) else None


def _same(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    """Whether two shapes are known to be equal, or open in one axis, which elements decide."""
    if len(a) != len(b) or 0 in a or 0 in b:
        return False
    unequal = [(m, n) for m, n in zip(a, b, strict=True) if m != n or m is None]
    return not unequal or (len(unequal) == 1 and not all(isinstance(d, int) for d in unequal[0]))


def _into_readers(graph: Graph, shuffle: _Shuffle, growth: Growth) -> Applied | Missed | None:
    """Permutes the input channels of every reader, perhaps behind a depthwise convolution."""
    passed: list[Node] = []
    value, order = shuffle.node.out, shuffle.order
    while True:
        if graph.is_output(value):
            return Missed(f"{value.label!r} is an output of the graph")
        uses = graph.uses(value)
        if len(uses) != 1 or not _is_passed(graph, uses[0].node):
            break
        passed.append(uses[0].node)
        value = uses[0].node.out
    if not uses:
        return None
    for use in uses:
        conv = use.node
        if not conv.is_op("Conv") or use.slot != 0:
            return Missed(f"{conv.label} reads {value.label!r}")
        why = _weights(graph, conv, growth) or _groups(graph, conv, order)
        if why is not None:
            return Missed(why)
    for each in passed:
        if each.is_op("Conv") and (why := _weights(graph, each, growth)) is not None:
            return Missed(why)
    shown = ", ".join(use.node.label for use in uses)
    back = np.argsort(order)
    source = _redo(graph, passed, shuffle.x, back)
    for conv in dict.fromkeys(use.node for use in uses):
        weight, *rest = graph.operands(conv)[1:]
        new = _inputs_permuted(graph, conv, weight, back)
        replace_node(graph, conv, "Conv", [source, new, *rest], conv.attributes)
    return Applied(f"folded {shuffle.node.label} into {shown}")


def _into_producer(graph: Graph, shuffle: _Shuffle, growth: Growth) -> Applied | Missed | None:
    """Permutes the output channels of what computes x."""
    passed: list[Node] = []
    value = shuffle.x
    trouble = not_alone(graph, value)
    while trouble is None and _is_passed(graph, value.node):
        passed.insert(0, value.node)
        source = graph.operand(value.node, 0)
        assert source is not None
        value = source
        trouble = not_alone(graph, value)
    if not value.node.is_op("Conv"):
        return None
    if trouble is not None:
        return trouble
    conv = value.node
    if conv.get("group", 1) != 1:
        return Missed(f"{conv.label} has {conv.get('group')} groups, which the shuffle mixes")
    for each in (conv, *passed):
        if each.is_op("Conv") and (why := _weights(graph, each, growth)) is not None:
            return Missed(why)
    what = f"folded {shuffle.node.label} into {conv.label}"
    x, *rest = graph.operands(conv)
    operands = [x, *(_taken(graph, v, shuffle.order) for v in rest)]
    names = shuffle.node.names[:1]
    mapped = again(graph, conv, operands, conv.out.tensor, () if passed else names)
    put(graph, shuffle.node, _redo(graph, passed, mapped, shuffle.order, names))
    return Applied(what)


def _is_passed(graph: Graph, node: Node) -> bool:
    """Whether a permutation of channels passes: activations and depthwise convolutions."""
    if node.is_op(*UNARY):
        return True
    weight = graph.operand(node, 1) if node.is_op("Conv") else None
    shape = None if weight is None else weight.tensor.shape
    return shape is not None and shape[1] == 1 and shape[0] == node.get("group", 1) != 1


def _groups(graph: Graph, conv: Node, order: np.ndarray) -> str | None:
    """Why a convolution's groups do not read the channels that they would without the shuffle."""
    group = conv.get("group", 1)
    members = order.reshape(group, -1) // (order.size // group)
    if np.all(members == np.arange(group)[:, None]):
        return None
    return f"{conv.label} has {group} groups, which the shuffle mixes"


def _weights(graph: Graph, conv: Node, growth: Growth) -> str | None:
    """Why the weights of a convolution may not be permuted."""
    for value in graph.operands(conv)[1:]:
        if value is None:
            continue
        if graph.constant_value(value) is None:
            return f"the weights of {conv.label} are not constant"
        if (why := shared_weight(graph, value, growth)) is not None:
            return why
    return None


def _redo(
    graph: Graph, nodes: list[Node], x: Value, order: np.ndarray, names: tuple[str, ...] = ()
) -> Value:
    """Activations and depthwise convolutions once more, their channels taken in another order."""
    value = x
    for node in nodes:
        rest = list(graph.operands(node)[1:])
        if node.is_op("Conv"):
            rest = [_taken(graph, v, order) for v in rest]
        own = names if node is nodes[-1] else ()
        value = again(graph, node, [value, *rest], node.out.tensor, own)
    return value


def _taken(graph: Graph, value: Value | None, order: np.ndarray) -> Value | None:
    array = graph.constant_value(value)
    if value is None or array is None:
        return None
    return graph.constant(np.ascontiguousarray(array[order]), "", origin=value.node.origin)


def _inputs_permuted(
    graph: Graph, conv: Node, weight: Value | None, back: np.ndarray
) -> Value | None:
    """A weight that reads channel ``back[j]`` where it read channel j of its group before."""
    array = graph.constant_value(weight)
    if weight is None or array is None:
        return None
    group = conv.get("group", 1)
    per_group, outputs = array.shape[1], array.shape[0] // group
    result = np.empty_like(array)
    for g in range(group):
        rows = slice(g * outputs, (g + 1) * outputs)
        places = back[g * per_group : (g + 1) * per_group] - g * per_group
        result[rows] = array[rows][:, places]
    return graph.constant(result, "", origin=weight.node.origin)
