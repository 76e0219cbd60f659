"""Random blocks of the reference networks: what 1x1 convolutions stand beside in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pwopt.models.builder import Value
from tests.fuzz import layers
from tests.fuzz.layers import MAX_CHANNELS, Draw, Layer


def plain(
    d: Draw, x: Value, out: int = 0, kernel: int = 1, *, stride: int = 1, group: int = 1
) -> Value:
    """A convolution that pads to keep the size (or its quotient), with or without a bias."""
    net, rank = d.net, d.rank(x) - 2
    out = out or d.channels()
    weight = net.weights(out, net.shapes[x][1] // group, *[kernel] * rank)
    bias = [net.vector(out)] if d.flag() else []
    options: dict[str, Any] = {"group": group} if group > 1 else {}
    if stride > 1:
        options["strides"] = [stride] * rank
    if d.among([False, False, True]):
        return net.op("Conv", x, weight, *bias, auto_pad="SAME_UPPER", **options)
    return net.op("Conv", x, weight, *bias, pads=[kernel // 2] * 2 * rank, **options)


def finished(d: Draw, x: Value) -> Value:
    """What follows a convolution: perhaps a normalization, perhaps an activation; may show."""
    x = layers.batch_norm(d, x) if d.flag() else x
    x = d.net.relu(x) if d.flag() else x
    if d.among([False, False, False, True]):
        d.net.maps.append(x)
    return x


def mlpconv(d: Draw, x: Value) -> Value:
    """Network in network: a convolution and 1x1 convolutions behind it."""
    x = d.net.relu(plain(d, x, kernel=d.among([3, 1])))
    for _ in range(d.number(1, 2)):
        x = d.net.relu(plain(d, x)) if d.flag() else plain(d, x)
    return x


def bottleneck(d: Draw, x: Value) -> Value:
    """ResNet: reduce, convolve, expand, add to the input or to its projection; strided anywhere."""
    net = d.net
    x = net.relu(plain(d, x, kernel=3)) if d.flag() else x
    channels, stride, first = net.shapes[x][1], d.among([1, 1, 2]), d.flag()
    y = finished(d, plain(d, x, max(1, channels // 4), stride=stride if first else 1))
    y = finished(d, plain(d, y, kernel=3, stride=1 if first else stride))
    project = stride > 1 or d.flag()
    out = d.channels() if project else channels
    y = plain(d, y, out)
    y = layers.batch_norm(d, y) if d.flag() else y
    short = plain(d, x, out, stride=stride) if project else x
    short = layers.batch_norm(d, short) if project and d.flag() else short
    y = net.op("Add", *((y, short) if d.flag() else (short, y)))
    return net.relu(y) if d.flag() else y


def separable(d: Draw, x: Value) -> Value:
    """MobileNet: perhaps widened, a depthwise and a 1x1 convolution, perhaps added to the input."""
    net, source = d.net, x
    if d.flag():
        x = finished(d, plain(d, x))
    stride = d.among([1, 1, 2])
    x = finished(d, plain(d, x, net.shapes[x][1], 3, stride=stride, group=net.shapes[x][1]))
    keep = stride == 1 and d.flag()
    x = plain(d, x, net.shapes[source][1] if keep else 0)
    x = layers.batch_norm(d, x) if d.flag() else x
    return net.op("Add", source, x) if keep else x


def transition(d: Draw, x: Value) -> Value:
    """DenseNet: a 1x1 convolution and a mean over windows, and the like in any order."""
    net, rank = d.net, d.rank(x) - 2
    x = net.relu(layers.batch_norm(d, x)) if d.flag() else x
    if min(d.spatial(x)) < 3:
        return plain(d, x)
    side = d.among([2, 3])
    window: dict[str, Any] = {"kernel_shape": [side] * rank, "strides": [d.among([2, 1])] * rank}
    if d.flag():
        window["pads"] = [1] * 2 * rank
    kinds = ("AveragePool", "AveragePool", "AveragePool", "MaxPool", "GlobalAveragePool")
    kind = d.among([*kinds, "ReduceMean"])
    if kind == "AveragePool" and d.flag():
        window["count_include_pad"] = 1

    def pooled(y: Value) -> Value:
        if kind == "ReduceMean":
            return layers.reduce(d, y, kind, list(range(2, rank + 2)), keep=True)
        return net.op(kind, y) if kind == "GlobalAveragePool" else net.op(kind, y, **window)

    first = d.flag()
    x = pooled(x) if first else plain(d, x)
    if d.among([False, False, True]):
        x = layers.activation(d, x)
    if d.among([False, False, False, True]):
        net.maps.append(x)
    return plain(d, x) if first else pooled(x)


def parallel(d: Draw, x: Value) -> Value:
    """Inception and fire: 1x1 convolutions side by side, joined, added or left apart."""
    net = d.net
    group = d.among([1, 1, 1, 2]) if net.shapes[x][1] % 2 == 0 else 1
    how = d.among(["Concat", "Add", "apart"])
    width, stride = d.channels() // group * group or group, d.among([1, 1, 1, 2])
    parts = []
    for _ in range(d.number(2, 3)):
        out = width if how == "Add" else (d.channels() % 17 + 1) * group
        part = plain(d, x, min(out, MAX_CHANNELS // group * group), stride=stride, group=group)
        if d.flag():
            part = layers.activation(d, part) if d.flag() else net.relu(part)
        parts.append(part)
    if how == "Concat":
        return net.op("Concat", *parts, axis=1)
    if how == "Add":
        for part in parts[1:]:
            parts[0] = net.op("Add", parts[0], part)
        return parts[0]
    net.maps.extend(parts[1:])
    return parts[0]


def sum_of_products(d: Draw, x: Value) -> Value:
    """1x1 convolutions of two maps of a size, added up, or one over their concatenation."""
    net, shape = d.net, d.net.shapes[x]
    fitting = [
        v for v in net.maps if net.shapes[v][:1] + net.shapes[v][2:] == shape[:1] + shape[2:]
    ]
    y = d.among([*fitting[::-1], x])
    if d.flag() and net.shapes[y][1] + shape[1] <= 2 * MAX_CHANNELS:
        return plain(d, net.op("Concat", x, y, axis=1))
    out = d.channels()
    if d.among([False, False, False, True]):
        y = layers.global_pool(d, y)  # the sum broadcasts
    return net.op("Add", plain(d, x, out), plain(d, y, out))


def linear_chain(d: Draw, x: Value) -> Value:
    """Convolutions with nothing between them, 1x1 and larger, of any groups and padding."""
    net = d.net
    for _ in range(d.number(2, 3)):
        channels = net.shapes[x][1]
        group = d.among([1, 1, *(g for g in (2, 3, channels) if channels % g == 0)])
        out = group * d.among([1, 2]) if group > 1 else d.channels()
        if out > MAX_CHANNELS:
            out = group
        kernel = d.among([1, 1, 3])
        if d.flag() or min(d.spatial(x)) < 3:
            x = plain(d, x, out, kernel, stride=d.among([1, 1, 1, 2]), group=group)
        else:
            rank = d.rank(x) - 2
            weight = net.weights(out, channels // group, *[kernel] * rank)
            x = net.op("Conv", x, weight, net.vector(out), group=group)
        if d.among([False, False, False, True]):
            net.maps.append(x)
    return x


def shuffle_unit(d: Draw, x: Value) -> Value:
    """ShuffleNet: a grouped 1x1, the shuffle, a depthwise and another (grouped) 1x1 convolution."""
    net, group = d.net, d.among([2, 3, 4])
    x = plain(d, x, group * d.among([2, 3, 4]))
    first = d.among([1, group])
    width = group * d.among([2, 4, 6])
    if d.flag():
        x = finished(d, plain(d, x, width, group=first))
    shape = net.shapes[x]
    y = net.op("Reshape", x, net.constant([shape[0], group, shape[1] // group, *shape[2:]]))
    y = net.op("Transpose", y, perm=[0, 2, 1, *range(3, len(shape) + 1)])
    y = net.op("Reshape", y, net.constant([shape[0], -1, *shape[2:]]))
    if d.among([False, False, False, True]):
        net.maps.append(y)
    if d.flag():
        y = finished(d, plain(d, y, shape[1], 3, stride=d.among([1, 2]), group=shape[1]))
    if d.among([True, True, False]):
        y = plain(d, y, width, group=d.among([1, 1, group]))
    same = net.shapes[y] == shape
    return net.op("Add", x, y) if same and d.flag() else y


def resized(d: Draw, x: Value) -> Value:
    """A 1x1 convolution or an activation behind a resizer, as naive authors put it."""
    net, rank = d.net, d.rank(x) - 2
    if rank != 2 or max(d.spatial(x)) > 12 or net.opset < 11:
        return plain(d, x)
    factor = d.among([2.0, 3.0, 0.5, 1.5])
    if min(d.spatial(x)) * factor < 1:
        return plain(d, x)
    how: dict[str, Any] = {"mode": d.among(["nearest", "linear", "cubic"])}
    how["coordinate_transformation_mode"] = d.among(["asymmetric", "half_pixel"])
    if how["mode"] == "nearest":
        how["nearest_mode"] = "floor"
    empty = net.constant(np.zeros(0))
    x = layers.activation(d, x) if d.among([False, False, True]) else x
    y = net.op("Resize", x, empty, net.constant([1.0, 1.0, factor, factor]), **how)
    for _ in range(d.number(1, 2)):
        kind = d.among(["conv", "activation", "scale"])
        if kind == "conv":
            y = plain(d, y)
        elif kind == "activation":
            y = layers.activation(d, y)
        else:
            y = net.op("Mul", y, net.per_channel(y, 0.5, 1.5))
    return y


def channels_last_sum(d: Draw, x: Value) -> Value:
    """Two maps that are transposed, added up channels last and transposed back."""
    net, rank = d.net, d.rank(x)
    there, back = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    parts = [net.op("Transpose", v, perm=there) for v in (x, layers.activation(d, x))]
    y = net.op(d.among(["Add", "Mul", "Sub"]), *parts)
    kind = d.among(["relu", "add", "reduce", "none"])
    if kind == "relu":
        y = net.relu(y)
    elif kind == "add":
        y = net.op("Add", y, net.vector(net.shapes[y][-1]))
    elif kind == "reduce":
        y = layers.reduce(d, y, "ReduceMean", list(range(1, rank - 1)), keep=True)
    return net.op("Transpose", y, perm=back)


def classifier(d: Draw, x: Value) -> Value:
    """Fully connected layers in a row on a flattened map, brought back to a map of one pixel."""
    net = d.net
    x = layers.global_pool(d, x) if d.flag() else x
    features = int(np.prod(net.shapes[x][1:]))
    if features > 400:
        return plain(d, x)
    x = net.op("Flatten", x)
    for _ in range(d.number(1, 3)):
        out = d.among([features, *(c for c in (1, 3, 8, 16, 33))])
        how = d.among(["MatMul", "Gemm", "scaled", "transposed"])
        shape = (out, features) if how == "transposed" else (features, out)
        known = [n for n, a in net.arrays.items() if a.shape == shape]
        weight = known[-1] if known and d.flag() else net.weights(*shape)
        if how == "MatMul":
            x = net.op("MatMul", x, weight)
            x = net.op("Add", x, net.vector(out)) if d.flag() else x
        else:
            factors: dict[str, Any] = {"alpha": 0.5, "beta": 2.0} if how == "scaled" else {}
            x = net.op(
                "Gemm", x, weight, net.vector(out), transB=int(how == "transposed"), **factors
            )
        x = net.relu(x) if d.among([False, False, True]) else x
        features = out
    return net.op("Reshape", x, net.constant([-1, features, 1, 1]))


def token_mixing(d: Draw, x: Value) -> Value:
    """MLP-Mixer: a product over the pixels of each channel, and what goes on by channels."""
    net, shape = d.net, d.net.shapes[x]
    pixels = int(np.prod(shape[2:]))
    y = net.op("Reshape", x, net.constant([shape[0], shape[1], -1]))
    y = net.op("MatMul", y, net.weights(pixels, d.among([4, 9, shape[1]])))
    return layers.batch_norm(d, y) if d.flag() else layers.affine(d, y)


def by_shape(d: Draw, x: Value) -> Value:
    """A reshape whose target is computed from the map's shape, as exporters write it."""
    net, shape = d.net, d.net.shapes[x]
    known, last = net.op("Shape", x), len(shape) - 1
    kind = d.among(["keep", "flat", "every_second"])
    if kind == "keep":
        y = net.op("Flatten", x)
        return net.reshape_to(net.relu(y) if d.flag() else y, known, shape)
    if kind == "flat":
        batch = net.op("Gather", known, net.constant([0]), axis=0)
        channels = net.op("Gather", known, net.constant([1]), axis=0)
        target = net.op("Concat", batch, channels, net.constant([-1]), axis=0)
        return net.reshape_to(x, target, (*shape[:2], int(np.prod(shape[2:]))))
    if net.opset < 10 or len(shape) < 4:
        return x
    picked = [net.constant([v]) for v in (0, last, 0, 2)]
    ends = net.op("Slice", known, *picked)
    target = net.op("Concat", ends, net.constant([-1]), axis=0)
    kept = shape[0:last:2]
    if len(kept) != 2 or kept[1] > MAX_CHANNELS:
        return x
    return net.reshape_to(x, target, (*kept, int(np.prod(shape)) // int(np.prod(kept))))


FAMILIES: tuple[Layer, ...] = (
    mlpconv,
    bottleneck,
    separable,
    transition,
    parallel,
    sum_of_products,
    linear_chain,
    shuffle_unit,
    resized,
    channels_last_sum,
    classifier,
    by_shape,
    token_mixing,
)
