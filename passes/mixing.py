"""Swapping a 1x1 convolution with what mixes the pixels of each channel alike: pools and resizers.

Such an operator and a 1x1 convolution, which mixes the channels of each pixel alike, are linear
along different axes and commute. A bias passes where a constant map stays constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import Dim, TensorType
from pwopt.passes.elementwise import Operand, as_value
from pwopt.passes.linear import not_alone
from pwopt.passes.rewriting import is_float
from pwopt.passes.sketch import Sketch, saving
from pwopt.pipeline import Applied, Context, Missed

# Elementwise operators of one tensor.
UNARY = frozenset(
    {
        *("Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
        *("Swish", "Tanh", "ThresholdedRelu"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Mixing:
    """An operator that computes every channel of its result from the same channel of ``x``.

    Attributes:
        node: the operator.
        x: its first operand, (N, C, *spatial).
        bends: why it does not leave a constant map constant; None if it does.
        rest: its other operands for a given number of channels; arrays are constants to be made.
    """

    node: Node
    x: Value
    bends: str | None
    rest: Callable[[Dim], Sequence[Operand | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Pointwise:
    """A 1x1 convolution of stride 1 without padding; its weights need not be constant."""

    node: Node
    x: Value
    weight: Value
    bias: Value | None


def pointwise_at(graph: Graph, node: Node) -> Pointwise | str | None:
    """The node as a 1x1 convolution, why it is none that commutes, or None for any other."""
    if not node.is_op("Conv"):
        return None
    x, weight, bias = (*graph.operands(node), None)[:3]
    kernel = None if weight is None else weight.tensor.shape
    if x is None or weight is None or kernel is None or any(k != 1 for k in kernel[2:]):
        return None
    if any(s != 1 for s in node.get("strides") or ()):
        return f"{node.label} has strides {tuple(node.get('strides'))}"
    if any(node.get("pads") or ()):
        return f"{node.label} has pads {tuple(node.get('pads'))}"
    if not is_float(x) or x.tensor.rank is None or weight.tensor.elements == 0:
        return None
    return Pointwise(node, x, weight, bias)


def mix_first(graph: Graph, conv: Pointwise, mixing: Mixing, context: Context) -> Applied | Missed:
    """``mix(conv(x))`` → ``conv(mix(x))``."""
    trouble = not_alone(graph, mixing.x) or _trouble(graph, conv, mixing)
    if trouble is not None:
        return trouble
    node, channels = mixing.node, _channels(conv.x)
    try:
        before = Sketch(graph).copy([conv.node, node]).us(context)
        after = Sketch(graph)
        mixed = after.add(node.op, [conv.x, *mixing.rest(channels)], node.attributes)
        after.add("Conv", [mixed, conv.weight, conv.bias], conv.node.attributes)
        why = saving(before, after.us(context))
    except IRError as error:
        why = str(error)
    if why is not None:
        return Missed(why)
    what = f"moved {node.label} before {conv.node.label}"
    rest = [v if v is None else as_value(graph, v) for v in mixing.rest(channels)]
    kind = _type(conv.x, channels, node.out)
    mixed = again(graph, node, [conv.x, *rest], kind)
    operands = [mixed, conv.weight, conv.bias]
    put(graph, node, again(graph, conv.node, operands, node.out.tensor, node.names[:1]))
    return Applied(what)


def conv_first(
    graph: Graph, conv: Pointwise, mixing: Mixing, context: Context
) -> Applied | Missed | None:
    """``conv(mix(x))`` → ``mix(conv(x))``; None where it does not pay."""
    node, kernel = mixing.node, conv.weight.tensor.shape
    channels = kernel[0] if kernel else None
    try:
        before = Sketch(graph).copy([node, conv.node]).us(context)
        after = Sketch(graph)
        mapped = after.add("Conv", [mixing.x, conv.weight, conv.bias], conv.node.attributes)
        result = after.add(node.op, [mapped, *mixing.rest(channels)], node.attributes)
        use = graph.only_use(conv.node.out)
        if use is not None and use.node.is_op(*UNARY):
            after.add("Relu", [result], {})  # would no longer be in the convolution's epilogue
        why = saving(before, after.us(context))
    except IRError:
        return None
    if why is not None:
        return None
    trouble = not_alone(graph, conv.x) or _trouble(graph, conv, mixing)
    if trouble is not None:
        return trouble
    what = f"moved {conv.node.label} before {node.label}"
    kind = _type(mixing.x, channels, mixing.x)
    mapped = again(graph, conv.node, [mixing.x, conv.weight, conv.bias], kind)
    rest = [v if v is None else as_value(graph, v) for v in mixing.rest(channels)]
    kind = conv.node.out.tensor
    put(graph, conv.node, again(graph, node, [mapped, *rest], kind, conv.node.names[:1]))
    return Applied(what)


def _trouble(graph: Graph, conv: Pointwise, mixing: Mixing) -> Missed | None:
    if mixing.bends is None or conv.bias is None:
        return None
    bias = graph.constant_value(conv.bias)
    if bias is not None and not bias.any():
        return None
    return Missed(f"{mixing.bends}, so the bias of {conv.node.label} does not pass")


def again(
    graph: Graph,
    node: Node,
    operands: Sequence[Value | None],
    kind: TensorType,
    names: Sequence[str] = (),
) -> Value:
    """The operator once more, over other operands."""
    return graph.add(
        node.op,
        operands,
        node.attributes,
        types=[kind],
        names=names,
        name=node.name,
        origin=node.origin,
    ).out


def put(graph: Graph, old: Node, value: Value) -> None:
    """Lets ``value`` take the place of what ``old`` computes."""
    graph.replace_uses(old.out, value)
    graph.erase_dead([old])


def _channels(x: Value) -> Dim:
    shape = x.tensor.shape
    return None if shape is None else shape[1]


def _type(x: Value, channels: Dim, like: Value) -> TensorType:
    """The type of ``x`` with other channels and the spatial sizes of ``like``."""
    own, other = x.tensor.shape, like.tensor.shape
    if own is None or other is None:
        return TensorType(x.tensor.dtype)
    return TensorType(x.tensor.dtype, (own[0], channels, *other[2:]))
