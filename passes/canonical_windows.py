"""Canonical forms of what slides a window: convolutions and pools."""

from __future__ import annotations

from typing import Any

from pwopt.growth import Growth
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.shapes import explicit_pads
from pwopt.passes.rewriting import (
    int_list,
    is_dynamic,
    is_float,
    replace_node,
    text,
    with_attributes,
)
from pwopt.pipeline import Applied, Missed

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def explicit(graph: Graph, node: Node, _: Growth) -> Applied | Missed | None:
    """Writes out what the attributes of a convolution or pool leave to defaults."""
    x, kernel = graph.operand(node, 0), _kernel(graph, node)
    if x is None or kernel is None or not all(isinstance(k, int) for k in kernel):
        return None
    n = len(kernel)
    attributes: dict[str, Any] = dict(node.attributes)
    attributes.setdefault("kernel_shape", kernel)
    attributes.setdefault("strides", (1,) * n)
    if node.op in _CONVOLUTIONS:
        attributes.setdefault("dilations", (1,) * n)
        attributes.setdefault("group", 1)
    missed = _resolve_auto_pad(node, x, attributes)
    _drop_ceil_mode(x, attributes)
    if attributes == dict(node.attributes):
        return missed
    changed = sorted(k for k in {*attributes, *node.attributes} if attributes.get(k) != node.get(k))
    with_attributes(graph, node, attributes)
    return Applied(f"wrote out {', '.join(changed)} of {node.label}")


def _kernel(graph: Graph, node: Node) -> tuple[int, ...] | None:
    if "kernel_shape" in node.attributes:
        return tuple(node.attributes["kernel_shape"])
    weight = graph.operand(node, 1) if node.op in _CONVOLUTIONS else None
    return None if weight is None or weight.shape is None else weight.shape[2:]


def _resolve_auto_pad(node: Node, x: Value, attributes: dict[str, Any]) -> Missed | None:
    """Replaces auto_pad by pads where they are known."""
    auto_pad = text(node, "auto_pad", "NOTSET")
    n = len(attributes["kernel_shape"])
    if node.op == "ConvTranspose" and (auto_pad.startswith("SAME") or "output_shape" in attributes):
        return Missed(f"auto_pad={auto_pad} of {node.label} stays: it follows the output's shape")
    if auto_pad.startswith("SAME"):
        shape = x.tensor.shape
        if shape is None or len(shape) != n + 2:
            return Missed(f"auto_pad={auto_pad} needs the spatial sizes of {x.tensor}")
        pads = explicit_pads(
            auto_pad,
            shape[2:],
            attributes["kernel_shape"],
            attributes["strides"],
            attributes.get("dilations", ()),
        )
        if pads is None:
            return Missed(f"auto_pad={auto_pad} needs the spatial sizes of {x.tensor}")
        attributes["pads"] = pads
    elif auto_pad == "VALID":
        attributes["pads"] = (0,) * (2 * n)
    else:
        attributes.setdefault("pads", (0,) * (2 * n))
    attributes.pop("auto_pad", None)
    return None


def _drop_ceil_mode(x: Value, attributes: dict[str, Any]) -> None:
    """Sets ceil_mode to 0 where it adds no window.

    None is added where the last one ends with the padded input, or would start behind the image.
    """
    shape, n = x.tensor.shape, len(attributes["kernel_shape"])
    if not attributes.get("ceil_mode", 0) or shape is None or "auto_pad" in attributes:
        return
    sizes = [d for d in shape[2:] if isinstance(d, int)]
    if len(sizes) != n:
        return
    pads, dilations = attributes["pads"], attributes.get("dilations") or (1,) * n
    for i, (k, s, d) in enumerate(
        zip(attributes["kernel_shape"], attributes["strides"], dilations, strict=True)
    ):
        room = sizes[i] + pads[i] + pads[n + i] - ((k - 1) * d + 1)
        if room % s and -(-room // s) * s < sizes[i] + pads[i]:
            return
    attributes["ceil_mode"] = 0


def absorb_pad(graph: Graph, node: Node, _: Growth) -> Applied | Missed | None:
    """Moves a Pad with zeros into the pads of the convolution or average pool that reads it."""
    x = graph.operand(node, 0)
    if x is None or not x.node.is_op("Pad") or "pads" not in node.attributes:
        return None
    if "auto_pad" in node.attributes or "kernel_shape" not in node.attributes:
        return None
    pad, source = x.node, graph.operand(x.node, 0)
    extra = _spatial_zero_pads(graph, pad, len(node.attributes["kernel_shape"]))
    if isinstance(extra, Missed) or source is None:
        return extra if isinstance(extra, Missed) else None
    if graph.only_use(x) is None:
        return Missed(f"{x.label!r} has another reader, so {pad.label} stays")
    own = tuple(node.attributes["pads"])
    attributes = {**node.attributes, "pads": tuple(a + b for a, b in zip(own, extra, strict=True))}
    if node.op == "AveragePool":
        # Zeros of a Pad count as elements; the pool's own do only with count_include_pad.
        if any(own) and not node.get("count_include_pad", 0):
            return Missed(f"{node.label} leaves its own padding out of the mean")
        kernel = node.attributes["kernel_shape"]
        too_wide = any(p >= k for p, k in zip(attributes["pads"], (*kernel, *kernel), strict=True))
        if node.get("ceil_mode", 0) or too_wide or graph.opset < 7:
            return Missed(f"{node.label} cannot hold pads {attributes['pads']}")
        attributes["count_include_pad"] = 1
    label, shown = pad.label, node.label
    operands = [source, *graph.operands(node)[1:]]
    replace_node(graph, node, node.op, operands, attributes, absorbed=[pad])
    return Applied(f"moved {label} into the pads of {shown}")


def _spatial_zero_pads(graph: Graph, pad: Node, n: int) -> tuple[int, ...] | Missed:
    if text(pad, "mode", "constant") != "constant":
        return Missed(f"{pad.label} pads by mode {text(pad, 'mode', 'constant')}")
    if any(is_dynamic(graph, pad, slot) for slot in (1, 2, 3)):
        return Missed(f"{pad.label} is not constant")
    value = graph.constant_value(graph.operand(pad, 2))
    filler = float(pad.get("value", 0.0)) if value is None else float(value.reshape(-1)[0])
    pads = int_list(graph, pad, 1, "pads") or int_list(graph, pad, 1, "paddings") or ()
    axes = int_list(graph, pad, 3, "axes") or tuple(range(n + 2))
    if filler != 0:
        return Missed(f"{pad.label} pads with {filler:g}")
    if len(pads) != 2 * len(axes):
        return Missed(f"{pad.label} has {len(pads)} pads for {len(axes)} axes")
    result = [0] * (2 * n)
    for i, axis in enumerate(axes):
        begin, end = pads[i], pads[len(axes) + i]
        if begin < 0 or end < 0:
            return Missed(f"{pad.label} crops: pads {pads}")
        spatial = axis % (n + 2) - 2
        if spatial < 0 and (begin or end):
            return Missed(f"{pad.label} pads batch or channels: pads {pads}")
        if spatial >= 0:
            result[spatial] += begin
            result[n + spatial] += end
    return tuple(result)


def whole_map(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """An AveragePool with one window, over the whole map, is a GlobalAveragePool."""
    x = graph.operand(node, 0)
    shape = None if x is None else x.tensor.shape
    if x is None or shape is None or "auto_pad" in node.attributes or 0 in shape:
        return None
    dilated = any(d != 1 for d in node.get("dilations") or ())
    if any(node.get("pads") or ()) or tuple(node.get("kernel_shape", ())) != shape[2:] or dilated:
        return None
    replace_node(graph, node, "GlobalAveragePool", [x])
    return Applied(f"turned {node.label} into GlobalAveragePool")


def mean_of_map(graph: Graph, node: Node, _: Growth) -> Applied | None:
    """A ReduceMean over exactly the spatial axes is a GlobalAveragePool."""
    x = graph.operand(node, 0)
    if x is None or not is_float(x) or is_dynamic(graph, node, 1):
        return None
    rank, axes = x.tensor.rank, int_list(graph, node, 1, "axes")
    # Of rank 3 this is as often the mean over the features of a sequence.
    if rank is None or rank < 4 or not axes:
        return None
    if sorted(a % rank for a in axes) != list(range(2, rank)):
        return None
    label = node.label
    if node.get("keepdims", 1):
        replace_node(graph, node, "GlobalAveragePool", [x])
        return Applied(f"turned {label} into GlobalAveragePool")
    channels = x.tensor.shape[1] if x.tensor.shape else None
    if not isinstance(channels, int) or not channels:
        return None
    pooled = graph.add("GlobalAveragePool", [x], origin=node.origin)
    replace_node(graph, node, "Flatten", [pooled.out], {"axis": 1})
    return Applied(f"turned {label} into GlobalAveragePool and Flatten")
