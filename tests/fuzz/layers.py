"""Random layers: each function draws its options and returns the value that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from pwopt.models.builder import Value
from tests.fuzz.network import Network

T = TypeVar("T")
MAX_CHANNELS = 40
ACTIVATIONS = (
    *("relu", "relu6", "sigmoid", "leaky", "prelu", "silu", "hardsigmoid", "hardswish", "gelu"),
    *("mish", "tanh", "elu", "clip_low", "softplus", "selu", "max_leaky", "gelu_tanh"),
    *("hardswish_div", "abs", "neg", "sqrt", "softsign", "celu", "square"),
)


@dataclass
class Draw:
    """A network and the source of choices."""

    net: Network
    draw: Callable[[st.SearchStrategy[Any]], Any]

    def among(self, options: Sequence[T]) -> T:
        """One of these; shrinks towards the first."""
        index: int = self.draw(st.integers(0, len(options) - 1))
        return options[index]

    def number(self, low: int, high: int) -> int:
        """An integer within bounds."""
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        """Yes or no; shrinks towards no."""
        return bool(self.draw(st.booleans()))

    def channels(self) -> int:
        """A number of channels: odd ones, and multiples of a vector."""
        return self.among([1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, MAX_CHANNELS])

    def spatial(self, x: Value) -> tuple[int, ...]:
        """The extents of a map."""
        return self.net.shapes[x][2:]

    def rank(self, x: Value) -> int:
        """Number of axes."""
        return len(self.net.shapes[x])


Layer = Callable[[Draw, Value], Value]


def window(d: Draw, x: Value, *, stride: bool = True, dilation: bool = True) -> dict[str, Any]:
    """Attributes of a window that fits the map: size, strides, dilations and pads of any kind."""
    sizes, axes = d.spatial(x), range(d.rank(x) - 2)
    kernel = [d.among([1, 3, 2, 5, 4, 7]) for _ in axes]
    strides = [d.among([1, 1, 2, 3]) if stride else 1 for _ in axes]
    dilations = [d.among([1, 1, 1, 2]) if dilation else 1 for _ in axes]
    mode = d.among(["explicit", "asymmetric", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
    if mode.startswith("SAME"):
        dilations = [1 for _ in axes]  # ONNX Runtime and the standard differ on dilated ones
    pads = [0] * (2 * len(axes))
    for i in axes:
        extent = dilations[i] * (kernel[i] - 1) + 1
        if mode in ("NOTSET", "VALID") and extent > sizes[i]:
            kernel[i], dilations[i], extent = 1, 1, 1
        if mode == "explicit":
            pads[i] = pads[i + len(axes)] = extent // 2
        if mode == "asymmetric":
            pads[i] = d.number(0, extent - 1)
            pads[i + len(axes)] = d.number(0, extent - 1)
        if sizes[i] + pads[i] + pads[i + len(axes)] < extent:
            pads[i] = extent // 2
            pads[i + len(axes)] = extent - 1 - extent // 2
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if any(s > 1 for s in strides) or d.flag():
        attributes["strides"] = strides
    if any(v > 1 for v in dilations):
        attributes["dilations"] = dilations
    if mode in ("explicit", "asymmetric"):
        attributes["pads"] = pads
    elif mode != "NOTSET" or d.flag():
        attributes["auto_pad"] = mode
    return attributes


def conv(d: Draw, x: Value) -> Value:
    """A convolution of any window and number of groups, sometimes with another one's weights."""
    attributes = window(d, x)
    return _conv(d, x, attributes)


def pointwise(d: Draw, x: Value) -> Value:
    """A 1x1 convolution, sometimes strided or padded."""
    rank = d.rank(x) - 2
    attributes: dict[str, Any] = {"kernel_shape": [1] * rank}
    if d.among([False, False, False, True]):
        attributes["strides"] = [d.among([1, 2, 3]) for _ in range(rank)]
    if d.among([False, False, False, False, True]):
        attributes["pads"] = [d.among([0, 1]) for _ in range(2 * rank)]
    return _conv(d, x, attributes)


def _conv(d: Draw, x: Value, attributes: dict[str, Any], out: int = 0) -> Value:
    net, channels = d.net, d.net.shapes[x][1]
    kernel = attributes["kernel_shape"]
    kinds = [1, 1, 1, channels, *(g for g in (2, 3, 4) if channels % g == 0)]
    groups = 1 if out else d.among(kinds)
    out = out or (groups * d.among([1, 1, 2]) if groups > 1 else d.channels())
    if out > MAX_CHANNELS:
        out = groups
    shape = (out, channels // groups, *kernel)
    known = [n for n, a in net.arrays.items() if a.shape == shape]
    weight = known[-1] if known and d.flag() else net.weights(*shape)
    operands = [x, weight] + ([net.vector(out)] if d.flag() else [])
    if d.flag() and "kernel_shape" in attributes:
        attributes = {k: v for k, v in attributes.items() if k != "kernel_shape"}
    if groups > 1 or d.flag():
        attributes = {**attributes, "group": groups}
    return net.op("Conv", *operands, **attributes)


def conv_transpose(d: Draw, x: Value) -> Value:
    """A transposed convolution."""
    net, channels, axes = d.net, d.net.shapes[x][1], range(d.rank(x) - 2)
    groups = d.among([1, channels]) if channels <= 8 else 1
    kernel = [d.among([2, 3, 1, 4]) for _ in axes]
    strides = [d.among([2, 1]) for _ in axes]
    pads = [d.number(0, (k - 1) // 2) for k in kernel] * 2
    extra = [d.number(0, s - 1) for s in strides]
    out = d.channels() if groups == 1 else 2
    weight = net.weights(channels, out, *kernel)
    attributes: dict[str, Any] = {"strides": strides, "pads": pads, "group": groups}
    if any(extra):
        attributes["output_padding"] = extra
    bias = [net.vector(groups * out)] if d.flag() else []
    return net.op("ConvTranspose", x, weight, *bias, **attributes)


def batch_norm(d: Draw, x: Value) -> Value:
    """BatchNormalization, with negative factors too."""
    count = d.net.shapes[x][1]
    operands = (
        d.net.vector(count, -1.5, 1.5),
        d.net.vector(count),
        d.net.vector(count),
        d.net.vector(count, 0.5, 1.5),
    )
    return d.net.op("BatchNormalization", x, *operands, epsilon=d.among([1e-5, 1e-3]))


def affine(d: Draw, x: Value) -> Value:
    """A chain of Mul, Add, Sub and Div by constants, on either side."""
    net = d.net
    for _ in range(d.number(1, 3)):
        op = d.among(["Mul", "Add", "Sub", "Div"])
        shape = d.among(["channel", "scalar", "one", "map"])
        low, high = (0.5, 1.5) if op in ("Mul", "Div") else (-1.0, 1.0)
        if shape == "channel":
            constant = net.per_channel(x, low, high)
        elif shape == "map":
            constant = net.constant(net.rng.uniform(low, high, net.shapes[x][1:]))
        else:
            constant = net.constant(net.rng.uniform(low, high, () if shape == "scalar" else 1))
        swapped = op != "Div" and d.flag()
        x = net.op(op, *((constant, x) if swapped else (x, constant)))
    return x


def unit(d: Draw, x: Value) -> Value:
    """A convolution, its normalization or another affine chain, and an activation; any may show."""
    for layer in (d.among([pointwise, conv]), d.among([batch_norm, affine]), activation):
        x = layer(d, x)
        if d.among([False, False, True]):
            d.net.maps.append(x)  # for others to read, and perhaps an output
    return x


def _clip(d: Draw, x: Value, low: float, high: float) -> Value:
    net = d.net
    if d.flag():
        return net.op("Min", net.op("Max", x, net.constant(low)), net.constant(high))
    if net.opset < 11:
        return net.op("Clip", x, min=low, max=high)
    return net.op("Clip", x, net.constant(low), net.constant(high))


def activation(d: Draw, x: Value) -> Value:
    """An activation, as one operator or spelled out."""
    net, c = d.net, d.net.constant
    kind = d.among(ACTIVATIONS)
    if kind == "relu":
        return net.relu(x)
    if kind == "relu6":
        return _clip(d, x, 0.0, d.among([6.0, 1.0]))
    if kind == "leaky":
        return net.op("LeakyRelu", x, alpha=d.among([0.1, 0.01, -0.5, 1.5]))
    if kind == "prelu":
        slope = net.per_channel(x) if d.flag() else net.constant(net.rng.uniform(0, 1, 1))
        return net.op("PRelu", x, slope)
    if kind == "silu":
        gate = net.op("Sigmoid", x)
        return net.op("Mul", gate, x) if d.flag() else net.op("Mul", x, gate)
    if kind == "hardsigmoid":
        return net.op("HardSigmoid", x, alpha=d.among([0.2, 1 / 6]), beta=0.5)
    if kind == "hardswish":
        if net.opset >= 14 and d.flag():
            return net.op("HardSwish", x)
        return net.op("Mul", x, net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    if kind == "hardswish_div":
        gate = _clip(d, net.op("Add", x, c(3.0)), 0.0, 6.0)
        if d.flag():
            return net.op("Mul", x, net.op("Div", gate, c(6.0)))
        return net.op("Div", net.op("Mul", x, gate), c(6.0))
    if kind == "gelu" and net.opset >= 9:
        if net.opset >= 20 and d.flag():
            return net.op("Gelu", x, approximate=d.among(["none", "tanh"]))
        erf = net.op("Add", net.op("Erf", net.op("Div", x, c(2**0.5))), c(1.0))
        return net.op("Mul", net.op("Mul", x, erf), c(0.5))
    if kind == "gelu_tanh":
        cube = net.op("Pow", x, c(3.0)) if d.flag() else net.op("Mul", x, net.op("Mul", x, x))
        inner = net.op("Add", x, net.op("Mul", cube, c(0.044715)))
        tanh = net.op("Tanh", net.op("Mul", inner, c((2 / 3.14159265) ** 0.5)))
        return net.op("Mul", net.op("Mul", x, c(0.5)), net.op("Add", tanh, c(1.0)))
    if kind == "mish":
        return net.op("Mul", x, net.op("Tanh", net.op("Softplus", x)))
    if kind == "elu":
        return net.op("Elu", x, alpha=d.among([1.0, 0.3]))
    if kind == "clip_low" and net.opset >= 11:
        return net.op("Clip", x, c(-0.2)) if d.flag() else net.op("Clip", x, "", c(0.7))
    if kind == "max_leaky":
        return net.op("Max", x, net.op("Mul", x, c(0.1)))
    if kind == "sqrt":
        return net.op("Sqrt", net.op("Add", net.op("Abs", x), c(0.1)))
    if kind == "celu" and net.opset >= 12:
        return net.op("Celu", x, alpha=0.7)
    if kind == "square":
        return net.op("Mul", x, x)
    plain = {"tanh": "Tanh", "softplus": "Softplus", "selu": "Selu", "abs": "Abs", "neg": "Neg"}
    plain["softsign"] = "Softsign"
    return net.op(plain.get(kind, "Sigmoid"), x)


def residual(d: Draw, x: Value) -> Value:
    """``f(x) op x`` or ``f(x) op g(x)``, of one or two layers that keep the shape."""
    y, z = _keeping(d, x), x
    if d.flag():
        y = _keeping(d, activation(d, y))
    if d.among([False, False, True]):
        z = _keeping(d, x)
    op = d.among(["Add", "Add", "Add", "Mul", "Sub", "Sum", "Max", "Min"])
    return d.net.op(op, *((z, y) if d.flag() else (y, z)))


def _keeping(d: Draw, x: Value) -> Value:
    """A layer that keeps the shape."""
    rank, channels = d.rank(x) - 2, d.net.shapes[x][1]
    kind = d.among(["1", "3", "depthwise", "activation", "norm", "affine"])
    if kind == "activation":
        return activation(d, x)
    if kind == "norm":
        return batch_norm(d, x)
    if kind == "affine":
        return d.net.op("Mul", x, d.net.per_channel(x, 0.5, 1.5))
    side = 1 if kind == "1" else 3
    groups = channels if kind == "depthwise" else 1
    weight = d.net.weights(channels, channels // groups, *(side,) * rank)
    bias = [d.net.vector(channels)] if d.flag() else []
    pads = [side // 2] * (2 * rank)
    y = d.net.op("Conv", x, weight, *bias, group=groups, pads=pads)
    return batch_norm(d, y) if d.flag() else y


def global_pool(d: Draw, x: Value) -> Value:
    """The mean or maximum over the map, in several spellings."""
    net, axes = d.net, list(range(2, d.rank(x)))
    kind = d.among(["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "pool"])
    if kind.startswith("Global"):
        return net.op(kind, x)
    if kind == "pool":
        return net.op("AveragePool", x, kernel_shape=list(d.spatial(x)))
    return reduce(d, x, kind, axes, keep=True)


def reduce(d: Draw, x: Value, op: str, axes: list[int], keep: bool) -> Value:
    """A reduction in the form of the model's opset."""
    as_operand = d.net.opset >= (13 if op == "ReduceSum" else 18)
    if as_operand:
        return d.net.op(op, x, d.net.constant(axes), keepdims=int(keep))
    return d.net.op(op, x, axes=axes, keepdims=int(keep))


def squeeze_excite(d: Draw, x: Value) -> Value:
    """A gate per channel or per pixel, computed from the map itself."""
    net, rank = d.net, d.rank(x) - 2
    channels, reduced = net.shapes[x][1], d.among([1, 3, 8])
    if d.among([False, False, False, True]):
        gate = reduce(d, x, "ReduceMean", [1], keep=True)
        return net.op("Mul", x, net.op("Sigmoid", gate))
    gate = global_pool(d, x)
    if d.flag():
        gate = net.op("Flatten", gate)
        weight, bias = net.weights(channels, reduced), net.vector(reduced)
        gate = net.relu(net.op("Gemm", gate, weight, bias))
        gate = net.op("Gemm", gate, net.weights(reduced, channels), net.vector(channels))
        target = net.constant(
            [-1, channels, *[1] * rank] if d.flag() else [0, channels] + [1] * rank
        )
        gate = net.op("Reshape", net.op("Sigmoid", gate), target)
    else:
        one = [1] * rank
        gate = net.relu(net.op("Conv", gate, net.weights(reduced, channels, *one)))
        gate = net.op("Conv", gate, net.weights(channels, reduced, *one), net.vector(channels))
        hard = d.flag()
        gate = net.op("HardSigmoid", gate) if hard else net.op("Sigmoid", gate)
    return net.op("Mul", *((gate, x) if d.flag() else (x, gate)))
