"""The pass ``commute-upsample``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.types import Dim
from pwopt.passes.elementwise import Operand
from pwopt.passes.linear import not_alone
from pwopt.passes.mixing import (
    UNARY,
    Mixing,
    Pointwise,
    again,
    conv_first,
    mix_first,
    pointwise_at,
    put,
)
from pwopt.passes.rewriting import is_float, text
from pwopt.pipeline import Applied, Context, Missed, Rewrite

_RESIZERS = ("Resize", "Upsample")
_BINARY = ("Add", "Div", "Max", "Min", "Mul", "PRelu", "Sub")


@dataclass(frozen=True)
class CommuteUpsample(Rewrite):
    """Puts 1x1 convolutions and elementwise operators where the map is smaller: before upsampling.

    Rewrite:
        ``Conv(Resize(x), W[M, C, 1, 1], b)`` → ``Resize(Conv(x, W, b))`` where that saves work (a
        factor of two: three quarters of the convolution), and the other way round where the
        resizer shrinks; ``Relu(Resize(x))`` → ``Resize(Relu(x))`` for a resizer that only repeats
        pixels, and so for any activation and for operands that are the same at every pixel.

    Shapes:
        Any batch, group count, spatial rank and factors, whole or not; open sizes too.

    Numerics:
        Exact for ``nearest``, which maps indices. For ``linear`` and ``cubic`` exact up to
        rounding: their weights add up to one at every pixel, so that a bias passes.

    Misses when:
        The upsampled value has another reader or is an output; channels are resized too, or
        factors or sizes are not constant; ``tf_crop_and_resize`` (it fills in a value); the
        convolution is strided or padded; it would not pay.

    Source:
        Resizing is linear over pixels and the same in each channel; a 1x1 convolution is linear
        over channels.
    """

    name: ClassVar[str] = "commute-upsample"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        (ONNX_DOMAIN, op) for op in (*_RESIZERS, *UNARY, *_BINARY, "Conv")
    )

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        if not node.types or not is_float(node.out) or 0 in (node.out.tensor.shape or ()):
            return None
        if node.op in _RESIZERS:
            return _shrinking(graph, node, context)
        if node.op != "Conv":
            return _elementwise(graph, node)
        x = graph.operand(node, 0)
        if x is None or not x.node.is_op(*_RESIZERS):
            return None
        conv = pointwise_at(graph, node)
        if not isinstance(conv, Pointwise):
            return None if conv is None else Missed(conv)
        mixing = resizer_at(graph, x.node)
        return mixing if isinstance(mixing, Missed) else conv_first(graph, conv, mixing, context)


def resizer_at(graph: Graph, node: Node) -> Mixing | Missed:
    """A resizer of the spatial axes, or why it is none."""
    x = graph.operand(node, 0)
    assert x is not None
    if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return Missed(f"{node.label} crops")
    rank = x.tensor.rank
    if rank is None or not is_float(x):
        return Missed(f"{node.label} resizes {x.tensor}")
    rest = graph.operands(node)[1:]
    axes = node.get("axes")
    if axes is not None:
        if any(a % rank < 2 for a in axes):
            return Missed(f"{node.label} resizes the axes {tuple(axes)}")
        return Mixing(node, x, None, lambda _: rest)
    scales = _scales(graph, node)
    if scales is not None:
        if any(s != 1 for s in scales[:2]):
            return Missed(f"{node.label} resizes batch or channels by {scales[0]:g}, {scales[1]:g}")
        return Mixing(node, x, None, lambda _: rest)
    sizes = graph.constant_value(graph.operand(node, 3))
    if sizes is None or text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return Missed(f"the factors of {node.label} are not constant")
    if tuple(sizes[:2]) != (x.tensor.shape or ())[:2]:
        return Missed(f"{node.label} resizes {x.tensor} to {tuple(int(s) for s in sizes)}")
    return Mixing(node, x, None, lambda channels: _with_sizes(rest, sizes, channels))


def _with_sizes(
    rest: Sequence[Value | None], sizes: np.ndarray, channels: Dim
) -> Sequence[Operand | None]:
    """The operands after x for a map of other channels: sizes counts them too."""
    changed = sizes.copy()
    changed[1] = channels
    return [*rest[:2], changed]


def _scales(graph: Graph, node: Node) -> tuple[float, ...] | None:
    """One constant factor per axis; None where there are none."""
    if "scales" in node.attributes:
        return tuple(node.attributes["scales"])
    if "height_scale" in node.attributes:
        return 1.0, 1.0, node.get("height_scale"), node.get("width_scale")
    slot = 1 if node.op == "Upsample" or graph.opset < 11 else 2
    array = graph.constant_value(graph.operand(node, slot))
    return None if array is None or not array.size else tuple(float(s) for s in array.reshape(-1))


def _shrinking(graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
    """``resize(conv(x))`` → ``conv(resize(x))`` where the map becomes smaller."""
    x = graph.operand(node, 0)
    if x is None or not _is_larger(x, node.out):
        return None
    conv = pointwise_at(graph, x.node)
    if not isinstance(conv, Pointwise):
        return None if conv is None else Missed(conv)
    mixing = resizer_at(graph, node)
    return mixing if isinstance(mixing, Missed) else mix_first(graph, conv, mixing, context)


def _elementwise(graph: Graph, node: Node) -> Applied | Missed | None:
    """``f(resize(x))`` → ``resize(f(x))`` for a resizer that repeats pixels."""
    operands = graph.operands(node)
    slot = next((i for i, v in enumerate(operands) if v and v.node.is_op(*_RESIZERS)), None)
    x = None if slot is None else operands[slot]
    if slot is None or x is None or (node.op in UNARY and slot):
        return None
    resize, shape = x.node, x.tensor.shape
    if text(resize, "mode", "nearest") != "nearest":
        return None
    source = graph.operand(resize, 0)
    if source is None or shape is None or not _is_larger(node.out, source):
        return None
    others = [v for i, v in enumerate(operands) if i != slot and v is not None]
    if node.op in _BINARY and (graph.opset < 7 or any(not _is_flat(v, x) for v in others)):
        return None
    if node.out.tensor.shape != shape:
        return None
    mixing = resizer_at(graph, resize)
    trouble = mixing if isinstance(mixing, Missed) else not_alone(graph, x)
    if trouble is not None:
        return trouble
    what = f"moved {node.label} before {resize.label}"
    own = [source if i == slot else v for i, v in enumerate(operands)]
    mapped = again(graph, node, own, source.tensor)
    kind = node.out.tensor
    rest = graph.operands(resize)[1:]
    put(graph, node, again(graph, resize, [mapped, *rest], kind, node.names[:1]))
    return Applied(what)


def _is_flat(value: Value, x: Value) -> bool:
    """Whether an operand is the same at every pixel of ``x``."""
    shape, rank = value.tensor.shape, x.tensor.rank
    if shape is None or rank is None or len(shape) > rank:
        return False
    return all(d == 1 for d in shape[max(0, len(shape) - (rank - 2)) :])


def _is_larger(large: Value, small: Value) -> bool:
    """Whether one map is known to have more elements than another."""
    sizes = []
    for value in (large, small):
        shape = value.tensor.shape
        known = None if shape is None else [d for d in shape[2:] if isinstance(d, int)]
        if known is None or shape is None or len(known) != len(shape) - 2:
            return False
        sizes.append(int(np.prod(known)))
    return sizes[0] > sizes[1]
