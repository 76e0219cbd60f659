"""Random layers that join, resample and rearrange maps, and heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from pwopt.models.builder import Value
from tests.fuzz import layers
from tests.fuzz.layers import MAX_CHANNELS, Draw, Layer


def branches(d: Draw, x: Value) -> Value:
    """Fire or inception: branches that keep the size, side by side; some nested or shared."""
    net, rank = d.net, d.rank(x) - 2
    parts: list[Value] = []
    for _ in range(d.number(2, 3)):
        kind = d.among(["1", "3", "pool", "same", "again", "nested", "activation"])
        if kind == "nested" and parts:
            parts = [net.op("Concat", *parts, axis=1)]
            part = parts[0]
            if d.flag():
                net.maps.append(part)
                continue
        if kind == "same":
            part = x
        elif kind == "again" and parts:
            part = parts[-1]
        elif kind == "pool":
            window: dict[str, Any] = {"kernel_shape": [3] * rank, "pads": [1] * 2 * rank}
            part = net.op(d.among(["MaxPool", "AveragePool"]), x, **window)
        elif kind == "activation":
            part = layers.activation(d, x)
        else:
            side = 3 if kind == "3" else 1
            weight = net.weights(d.channels() % 17 + 1, net.shapes[x][1], *[side] * rank)
            part = net.op("Conv", x, weight, pads=[side // 2] * 2 * rank)
            part = net.relu(part) if d.flag() else part
        parts.append(part)
        if d.flag():
            net.maps.append(part)
    return net.op("Concat", *parts, axis=d.among([1, 1, 1, -1 - rank]))


def dense_block(d: Draw, x: Value) -> Value:
    """Layers on a growing concatenation."""
    net, rank = d.net, d.rank(x) - 2
    for _ in range(d.number(1, 2)):
        y = net.relu(layers.batch_norm(d, x)) if d.flag() else x
        weight = net.weights(d.among([4, 3, 8]), net.shapes[y][1], *[3] * rank)
        y = net.op("Conv", y, weight, pads=[1] * 2 * rank)
        x = net.op("Concat", *((y, x) if d.flag() else (x, y)), axis=1)
        net.maps.append(x)
    return x


def pool(d: Draw, x: Value) -> Value:
    """A pooling window of any kind."""
    net, op = d.net, d.among(["MaxPool", "AveragePool"])
    attributes = layers.window(d, x, dilation=op == "MaxPool" and net.opset >= 10)
    pads, kernel = attributes.get("pads"), attributes["kernel_shape"]
    if pads is not None:  # a window all in the padding has no maximum
        spans = list(zip(kernel, attributes.get("dilations", [1] * len(kernel)), strict=True))
        limits = [min(k - 1, k // 2 * step) for k, step in spans] * 2
        attributes["pads"] = [min(p, limit) for p, limit in zip(pads, limits, strict=True)]
        for i, (k, step) in enumerate(spans):
            low, high = attributes["pads"][i], attributes["pads"][i + len(kernel)]
            if d.spatial(x)[i] + low + high < (k - 1) * step + 1:
                return net.op(f"Global{op}", x)
    if op == "AveragePool" and d.flag():
        attributes["count_include_pad"] = 1
    if net.opset >= 10 and "auto_pad" not in attributes and d.flag():
        attributes["ceil_mode"] = int(not _ceil_is_mixed(d, x, attributes))
    return net.op(op, x, **attributes)


def _ceil_is_mixed(d: Draw, x: Value, attributes: dict[str, Any]) -> bool:
    """Whether ceil_mode adds a window on one axis, and on another only by ONNX's text before 22.

    ONNX Runtime's own inference contradicts its kernel then, and it may refuse the model.
    """
    kernel, ones = attributes["kernel_shape"], [1] * (d.rank(x) - 2)
    strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
    pads, kinds = attributes.get("pads", [0] * 2 * len(ones)), set()
    for i, size in enumerate(d.spatial(x)):
        room = size + pads[i] + pads[i + len(ones)] - (kernel[i] - 1) * dilations[i] - 1
        if room % strides[i]:
            kinds.add(-(-room // strides[i]) * strides[i] < size + pads[i])
    return len(kinds) == 2


def upsample(d: Draw, x: Value) -> Value:
    """A resize by the means of the model's opset; twice the size or any."""
    net, rank = d.net, d.rank(x) - 2
    if max(d.spatial(x)) > 12 or rank == 3:
        return x
    scales = [1.0, 1.0, *(d.among([2.0, 2.0, 3.0]) for _ in range(rank))]
    linear = d.flag() and rank == 2
    mode = "linear" if linear else "nearest"
    if net.opset < 9:
        return net.op("Upsample", x, mode=mode, scales=scales)
    if net.opset < 10:
        return net.op("Upsample", x, net.constant(scales), mode=mode)
    transform = d.among(["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
    attributes: dict[str, Any] = {"mode": mode}
    if net.opset >= 11:
        attributes["coordinate_transformation_mode"] = transform
        if not linear:
            attributes["nearest_mode"] = d.among(["floor", "round_prefer_floor", "ceil"])
        if d.flag():
            sizes = [*net.shapes[x][:2], *(d.number(1, 17) for _ in range(rank))]
            return net.op("Resize", x, *_absent(d, 2), net.constant(sizes), **attributes)
    roi = _absent(d, 1) if net.opset >= 11 else []
    return net.op("Resize", x, *roi, net.constant(scales), **attributes)


def _absent(d: Draw, count: int) -> list[Value]:
    """Operands of a Resize that say nothing: left out, or empty as opset 11 wants them."""
    empty = d.net.opset < 13 or d.flag()
    return [d.net.constant(np.zeros(0)) if empty else "" for _ in range(count)]


def pyramid(d: Draw, x: Value) -> Value:
    """Feature pyramid: a coarser map is brought back to the size and added."""
    net, rank = d.net, d.rank(x) - 2
    if rank != 2 or any(s % 2 for s in d.spatial(x)):
        return x
    channels = net.shapes[x][1]
    low = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    low = net.op("Conv", low, net.weights(channels, channels, 1, 1), net.vector(channels))
    net.maps.append(low)
    scales = [1.0, 1.0, 2.0, 2.0]
    if net.opset < 9:
        up = net.op("Upsample", low, mode="nearest", scales=scales)
    elif net.opset < 10:
        up = net.op("Upsample", low, net.constant(scales), mode="nearest")
    elif net.opset < 11:
        up = net.op("Resize", low, net.constant(scales), mode="nearest")
    else:
        how: dict[str, Any] = {
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }
        operands = (*_absent(d, 1), net.constant(scales))
        up = net.op("Resize", low, *operands, mode="nearest", **how)
    lateral = net.op("Conv", x, net.weights(channels, channels, 1, 1)) if d.flag() else x
    return net.op("Add", *((up, lateral) if d.flag() else (lateral, up)))


def channels_last(d: Draw, x: Value) -> Value:
    """A part that works on channels last, between two Transposes."""
    net, rank = d.net, d.rank(x)
    there, back = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    y = net.op("Transpose", x, perm=there)
    for _ in range(d.number(0, 2)):
        kind = d.among(["add", "matmul", "relu", "softmax", "mul_self", "norm"])
        width = net.shapes[y][-1]
        if kind == "add":
            y = net.op("Add", y, net.vector(width))
        elif kind == "matmul":
            y = net.op("MatMul", y, net.weights(width, d.channels()))
        elif kind == "relu":
            y = net.relu(y)
        elif kind == "softmax":
            y = net.op("Softmax", y, axis=rank - 1)
        elif kind == "norm" and net.opset >= 17:
            y = net.op("LayerNormalization", y, net.vector(width, 0.5, 1.5), axis=-1)
        else:
            y = net.op("Mul", y, net.op("Sigmoid", y))
    stays = d.among([False, False, False, True])
    return _mapped(d, y) if stays else net.op("Transpose", y, perm=back)


def _mapped(d: Draw, y: Value) -> Value:
    """A value in channels last that goes on as a map of its own, axis 1 being its channels."""
    return y if d.net.shapes[y][1] <= MAX_CHANNELS else d.net.op("GlobalMaxPool", y)


def pad_conv(d: Draw, x: Value) -> Value:
    """A Pad with zeros (or another number or mode), then perhaps a convolution."""
    net, rank = d.net, d.rank(x) - 2
    mode = d.among(["constant", "constant", "reflect", "edge"])
    room = [min(2, s - 1) if mode == "reflect" else 2 for s in d.spatial(x)]
    sides = [d.number(0, r) for r in room * 2]
    pads = [0, 0, *sides[:rank], 0, 0, *sides[rank:]]
    value = d.among([0.0, 0.0, 1.5]) if mode == "constant" else 0.0
    if net.opset < 11:
        y = net.op("Pad", x, pads=pads, mode=mode, value=value)
    elif value or d.flag():
        y = net.op("Pad", x, net.constant(pads), net.constant(value), mode=mode)
    else:
        y = net.op("Pad", x, net.constant(pads), mode=mode)
    kind = d.among(["conv", "none", "MaxPool", "AveragePool"])
    if kind == "conv":
        return layers.conv(d, y)
    if kind == "none":
        return y
    kernel = [min(2, s) for s in d.spatial(y)]
    return net.op(kind, y, kernel_shape=kernel)


def shuffle(d: Draw, x: Value) -> Value:
    """ShuffleNet: channels change places between groups, or are split and joined again."""
    net, shape = d.net, d.net.shapes[x]
    groups = next((g for g in (2, 3, 5) if shape[1] % g == 0), 0)
    if not groups:
        return x
    if d.flag():
        parts = net.split(x, [shape[1] // groups] * groups)
        parts[0] = net.relu(parts[0]) if d.flag() else parts[0]
        if d.flag():
            net.maps.append(parts[-1])
        return net.op("Concat", *reversed(parts), axis=1)
    wide = [shape[0], groups, shape[1] // groups, *shape[2:]]
    y = net.op("Reshape", x, net.constant(wide))
    y = net.op("Transpose", y, perm=[0, 2, 1, *range(3, len(wide))])
    return net.op("Reshape", y, net.constant([shape[0], -1, *shape[2:]]))


def crop(d: Draw, x: Value) -> Value:
    """A Slice of channels or pixels."""
    net, shape = d.net, d.net.shapes[x]
    axis = d.number(1, len(shape) - 1)
    start = d.number(0, (shape[axis] - 1) // 2)
    end = d.among([shape[axis], max(start + 1, shape[axis] - 1), 1 << 40])
    if net.opset < 10:
        return net.op("Slice", x, axes=[axis], starts=[start], ends=[end])
    step = [net.constant([d.among([1, 2])])] if d.flag() else []
    return net.op(
        "Slice", x, net.constant([start]), net.constant([end]), net.constant([axis]), *step
    )


def normalize(d: Draw, x: Value) -> Value:
    """Instance normalization, LRN, softmax over channels, dropout or an identity."""
    net, count = d.net, d.net.shapes[x][1]
    kind = d.among(["Dropout", "Identity", "LRN", "InstanceNormalization", "Softmax", "Lp"])
    if kind == "LRN":
        if d.rank(x) != 4:
            return x
        return net.op("LRN", x, size=d.among([3, 5]), alpha=0.1, beta=0.75, bias=1.0)
    if kind == "InstanceNormalization":
        if max(d.spatial(x)) < 3:
            return x
        return net.op(kind, x, net.vector(count, 0.5, 1.5), net.vector(count), epsilon=1e-2)
    if kind == "Softmax":
        return net.op(kind, x, axis=d.among([1, d.rank(x) - 1]))
    if kind == "Lp":
        return reduce_rows(d, x)
    return net.op(kind, x)


def reduce_rows(d: Draw, x: Value) -> Value:
    """A reduction over any axes that stays a map."""
    axes = sorted({d.number(1, d.rank(x) - 1) for _ in range(2)})
    op = d.among(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceMin"])
    return layers.reduce(d, x, op, axes, keep=True)


def join(d: Draw, x: Value) -> Value:
    """An earlier map of the same or a broadcast shape joins in."""
    net, shape = d.net, d.net.shapes[x]

    def broadcast(other: tuple[int, ...]) -> bool:
        same = len(other) == len(shape)
        return same and all(b in (a, 1) for a, b in zip(shape, other, strict=True))

    fitting = [v for v in net.maps if broadcast(net.shapes[v])]
    if not fitting:
        return x
    y = d.among(fitting[::-1])
    op = d.among(["Add", "Mul", "Max", "Sub"])
    return net.op(op, *((y, x) if d.flag() else (x, y)))


def head(d: Draw, x: Value) -> Value:
    """A classifier's end: perhaps pooled, flattened in one of several ways, fully connected."""
    net = d.net
    if d.flag():
        x = layers.global_pool(d, x)
    shape = net.shapes[x]
    features = 1
    for extent in shape[1:]:
        features *= extent
    kind = d.among(["Flatten", "Reshape", "Squeeze"])
    if kind == "Squeeze" and all(s == 1 for s in shape[2:]):
        axes = list(range(2, len(shape)))
        if net.opset < 13:
            x = net.op("Squeeze", x, axes=axes)
        else:
            x = net.op("Squeeze", x, net.constant(axes))
    elif kind == "Reshape":
        target = [[shape[0], -1], [0, -1], [-1, features]]
        x = net.op("Reshape", x, net.constant(d.among(target)))
    else:
        x = net.op("Flatten", x)
    for _ in range(d.number(0, 2)):
        out = d.channels()
        if d.flag():
            x = net.op("MatMul", x, net.weights(features, out))
            x = net.op("Add", x, net.vector(out)) if d.flag() else x
        elif d.flag():
            options: dict[str, Any] = {"alpha": d.among([1.0, 0.5]), "beta": d.among([1.0, 2.0])}
            x = net.op("Gemm", x, net.weights(features, out), net.vector(out), **options)
        else:
            weight = net.weights(out, features)
            x = net.op("Gemm", x, weight, net.vector(out), transB=1)
        features = out
        if d.flag():
            x = layers.activation(d, x) if d.flag() else net.relu(x)
    return net.op("Softmax", x, axis=1) if d.flag() else x


LAYERS: tuple[Layer, ...] = (
    layers.unit,
    layers.conv,
    layers.pointwise,
    layers.unit,
    layers.activation,
    layers.batch_norm,
    layers.affine,
    layers.residual,
    branches,
    pool,
    layers.squeeze_excite,
    join,
    dense_block,
    pad_conv,
    upsample,
    pyramid,
    channels_last,
    shuffle,
    crop,
    normalize,
    layers.global_pool,
    layers.conv_transpose,
)
