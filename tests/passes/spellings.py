"""Activations and layer patterns as exporters write them, and what pwopt makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pwopt.ir.graph import Graph, Value
from tests.passes.building import Build

Spelling = Callable[[Build, Value], Value]


def _relu6(b: Build, x: Value) -> Value:
    return b.op("Clip", x, 0.0, 6.0)


def _min_relu6(b: Build, x: Value) -> Value:
    return b.op("Min", b.op("Relu", x), 6.0)


def _exp_above_one(b: Build, x: Value) -> Value:
    return b.op("Add", b.op("Exp", x), 1.0)


def _tanh_gelu(b: Build, x: Value, cube: Value) -> Value:
    inside = b.op("Mul", math.sqrt(2 / math.pi), b.op("Add", x, b.op("Mul", 0.044715, cube)))
    return b.op("Mul", b.op("Mul", 0.5, x), b.op("Add", 1.0, b.op("Tanh", inside)))


def _positive(b: Build, x: Value) -> Value:
    return b.op("Greater", x, 0.0)


# Name: (program of a Map over x, spelling).
ACTIVATIONS: dict[str, tuple[str, Spelling]] = {
    "relu, where": ("Relu(%0)", lambda b, x: b.op("Where", _positive(b, x), x, 0.0)),
    "relu6, min of max": (
        "Clip(%0, 0, 6)",
        lambda b, x: b.op("Min", b.op("Max", x, 0.0), 6.0),
    ),
    "relu6, min of relu": ("Clip(%0, 0, 6)", _min_relu6),
    "hard-sigmoid, Keras": (
        "HardSigmoid(%0, 0.2, 0.5)",
        lambda b, x: b.op("Clip", b.op("Add", b.op("Mul", x, 0.2), 0.5), 0.0, 1.0),
    ),
    "hard-sigmoid, max of min": (
        "HardSigmoid(%0, 0.2, 0.5)",
        lambda b, x: b.op("Max", b.op("Min", b.op("Add", b.op("Mul", x, 0.2), 0.5), 1.0), 0.0),
    ),
    "hard-sigmoid, PyTorch": (
        "HardSigmoid(%0, 0.166667, 0.5)",
        lambda b, x: b.op("Div", _relu6(b, b.op("Add", x, 3.0)), 6.0),
    ),
    "hard-swish, PyTorch": (
        "HardSwish(%0)",
        lambda b, x: b.op("Div", b.op("Mul", x, _relu6(b, b.op("Add", x, 3.0))), 6.0),
    ),
    "hard-swish, Keras": (
        "HardSwish(%0)",
        lambda b, x: b.op("Mul", x, b.op("Mul", _relu6(b, b.op("Add", x, 3.0)), 1 / 6)),
    ),
    "hard-swish, TensorFlow": (
        "HardSwish(%0)",
        lambda b, x: b.op("Mul", b.op("Mul", x, 1 / 6), _min_relu6(b, b.op("Add", x, 3.0))),
    ),
    "hard-swish, Paddle": (
        "HardSwish(%0)",
        lambda b, x: b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)),
    ),
    "hard-swish, clip to one": (
        "HardSwish(%0)",
        lambda b, x: b.op("Mul", x, b.op("Clip", b.op("Add", b.op("Div", x, 6.0), 0.5), 0.0, 1.0)),
    ),
    "sigmoid, quotient": (
        "Sigmoid(%0)",
        lambda b, x: b.op("Div", 1.0, _exp_above_one(b, b.op("Neg", x))),
    ),
    "sigmoid, zero less": (
        "Sigmoid(%0)",
        lambda b, x: b.op("Reciprocal", _exp_above_one(b, b.op("Sub", 0.0, x))),
    ),
    "sigmoid of the negative": (
        "Sigmoid(Neg(%0))",
        lambda b, x: b.op("Div", 1.0, _exp_above_one(b, x)),
    ),
    "silu": ("Mul(%0, Sigmoid(%0))", lambda b, x: b.op("Mul", x, b.op("Sigmoid", x))),
    "silu, quotient": (
        "Mul(%0, Sigmoid(%0))",
        lambda b, x: b.op("Div", x, _exp_above_one(b, b.op("Neg", x))),
    ),
    "silu, times minus one": (
        "Mul(%0, Sigmoid(%0))",
        lambda b, x: b.op("Div", x, _exp_above_one(b, b.op("Mul", x, -1.0))),
    ),
    "softplus": ("Softplus(%0)", lambda b, x: b.op("Log", _exp_above_one(b, x))),
    "mish": (
        "Mul(%0, Tanh(Softplus(%0)))",
        lambda b, x: b.op("Mul", x, b.op("Tanh", b.op("Log", _exp_above_one(b, x)))),
    ),
    "gelu, PyTorch": (
        "Gelu(%0, 0)",
        lambda b, x: b.op(
            "Mul",
            b.op("Mul", x, b.op("Add", b.op("Erf", b.op("Div", x, math.sqrt(2))), 1.0)),
            0.5,
        ),
    ),
    "gelu, Paddle": (
        "Gelu(%0, 0)",
        lambda b, x: b.op(
            "Mul",
            x,
            b.op("Mul", b.op("Add", b.op("Erf", b.op("Mul", x, math.sqrt(0.5))), 1.0), 0.5),
        ),
    ),
    "gelu by tanh, power": (
        "Gelu(%0, 1)",
        lambda b, x: _tanh_gelu(b, x, b.op("Pow", x, 3.0)),
    ),
    "gelu by tanh, products": (
        "Gelu(%0, 1)",
        lambda b, x: _tanh_gelu(b, x, b.op("Mul", x, b.op("Mul", x, x))),
    ),
    "leaky relu, max": (
        "LeakyRelu(%0, 0.1)",
        lambda b, x: b.op("Max", b.op("Mul", x, 0.1), x),
    ),
    "leaky relu, where": (
        "LeakyRelu(%0, 0.1)",
        lambda b, x: b.op("Where", _positive(b, x), x, b.op("Mul", x, 0.1)),
    ),
    "leaky relu, where less": (
        "LeakyRelu(%0, 0.1)",
        lambda b, x: b.op("Where", b.op("Less", x, 0.0), b.op("Mul", 0.1, x), x),
    ),
    "leaky relu, difference": (
        "LeakyRelu(%0, 0.1)",
        lambda b, x: b.op("Sub", b.op("Relu", x), b.op("Mul", b.op("Relu", b.op("Neg", x)), 0.1)),
    ),
    "prelu, Keras": (
        "PRelu(%0, %1)",
        lambda b, x: b.op(
            "Add",
            b.op("Relu", x),
            b.op("Mul", b.op("Neg", b.positive(8, 1, 1)), b.op("Relu", b.op("Neg", x))),
        ),
    ),
    "prelu, TensorFlow": (
        "PRelu(%0, %1)",
        lambda b, x: b.op(
            "Add",
            b.op("Relu", x),
            b.op(
                "Mul",
                b.op("Mul", b.positive(8, 1, 1), b.op("Sub", x, b.op("Abs", x))),
                0.5,
            ),
        ),
    ),
    "prelu, min": (
        "PRelu(%0, %1)",
        lambda b, x: b.op(
            "Add", b.op("Mul", b.weight(8, 1, 1), b.op("Min", x, 0.0)), b.op("Relu", x)
        ),
    ),
}

_LAST = {"perm": (0, 2, 3, 1)}
_FIRST = {"perm": (0, 3, 1, 2)}


def _channels_last(b: Build, x: Value) -> Value:
    return b.op("Transpose", x, **_LAST)


def _channels_first(b: Build, x: Value) -> Value:
    return b.op("Transpose", x, **_FIRST)


def _padded(b: Build, x: Value) -> Value:
    x = b.op("Relu", b.op("Add", _channels_last(b, b.conv(x, 8)), b.weight(8)))
    x = b.op("Pad", x, b.shape(0, 1, 2, 0, 0, 0, 1, 0))
    return b.conv(_channels_first(b, x), 8, 3)


def _cropped(b: Build, x: Value) -> Value:
    x = b.op("Slice", _channels_last(b, b.conv(x, 8)), b.shape(0, 1), b.shape(9, 9), b.shape(-1, 1))
    return b.conv(_channels_first(b, x), 4, 3)


def _resized(b: Build, x: Value) -> Value:
    scales = b.graph.constant(np.array([1, 2, 3, 1], np.float32))
    x = b.op("Resize", _channels_last(b, b.conv(x, 8)), None, scales, mode="nearest")
    return b.conv(_channels_first(b, x), 4, 3)


def _squeeze_excite(b: Build, x: Value) -> Value:
    x = b.op("Relu", b.conv(x, 8))
    gate = b.op("ReduceMean", _channels_last(b, x), axes=(1, 2), keepdims=0)
    gate = _channels_first(b, b.op("Reshape", gate, b.shape(-1, 1, 1, 8)))
    gate = b.op("Sigmoid", b.conv(b.op("Relu", b.conv(gate, 4)), 8))
    return b.conv(b.op("Mul", x, gate), 4, 3)


def _pooled_head(b: Build, x: Value) -> Value:
    x = _channels_last(b, b.op("GlobalMaxPool", b.conv(x, 8)))
    x = b.op("Squeeze", x, b.shape(1, 2))
    return b.op("Add", b.op("MatMul", x, b.weight(8, 4)), b.weight(4))


def _flat_head(b: Build, x: Value) -> Value:
    x = b.op("Reshape", _channels_last(b, b.op("Relu", b.conv(x, 8))), b.shape(-1, 8 * 72))
    return b.op("Add", b.op("MatMul", x, b.weight(8 * 72, 4)), b.weight(4))


def _shape_head(b: Build, x: Value) -> Value:
    x = b.conv(x, 8)
    first = b.op("Gather", b.op("Shape", x), b.graph.constant(np.array(0)), axis=0)
    shape = b.op("Concat", b.op("Unsqueeze", first, b.shape(0)), b.shape(-1), axis=0)
    return b.op("Gemm", b.op("Reshape", x, shape), b.weight(8 * 72, 4), b.weight(4))


def _product_head(b: Build, x: Value) -> Value:
    x = b.conv(x, 8)
    shape = b.op("Shape", x)
    first = b.op("Slice", shape, b.shape(0), b.shape(1))
    rest = b.op("ReduceProd", b.op("Slice", shape, b.shape(1), b.shape(4)), axes=(0,))
    flat = b.op("Reshape", x, b.op("Concat", first, rest, axis=0))
    return b.op("Gemm", flat, b.weight(8 * 72, 4), b.weight(4))


def _cast_head(b: Build, x: Value) -> Value:
    x = b.conv(x, 8)
    first = b.op("Slice", b.op("Cast", b.op("Shape", x), to=6), b.shape(0), b.shape(1))
    rest = b.graph.constant(np.array([8 * 72], np.int32))
    shape = b.op("Cast", b.op("Concat", first, rest, axis=0), to=7)
    return b.op("Gemm", b.op("Reshape", x, shape), b.weight(8 * 72, 4), b.weight(4))


def _scale_chain(b: Build, x: Value) -> Value:
    x = b.op("Add", b.op("Mul", b.conv(x, 8), b.number(2.0, 1)), b.number(0.5, 1))
    return b.op("Relu", b.op("Mul", b.op("Add", x, b.number(1.0, 1)), b.number(0.25, 1)))


def _reshaped_bias(b: Build, x: Value) -> Value:
    bias = b.op("Reshape", b.weight(8), b.shape(1, 8, 1, 1))
    return b.op("Relu", b.op("Add", b.op("Conv", x, b.weight(8, 8, 1, 1)), bias))


def _static_gate(b: Build, x: Value) -> Value:
    gate = b.op("Sigmoid", b.weight(8, 1, 1))
    return b.conv(b.op("Mul", b.op("Relu", b.conv(x, 8)), gate), 4, 3, pads=(1, 1, 1, 1))


def _pre_activation(b: Build, x: Value) -> Value:
    return b.conv(b.op("Relu", b.conv(b.batch_norm(x, 8), 8)), 4, 3)


def _normalized_fc(b: Build, x: Value) -> Value:
    x = b.op("Flatten", b.op("GlobalMaxPool", x), axis=1)
    x = b.batch_norm(b.op("Gemm", x, b.weight(8, 16), b.weight(16)), 16)
    return b.op("Gemm", x, b.weight(16, 4), b.weight(4))


# Name: (operators that are left, internal ones with a dot, pattern).
LAYERS: dict[str, tuple[list[str], Spelling]] = {
    "Keras: channels last, Pad": ([".Pointwise", ".Conv"], _padded),
    "Keras: channels last, Cropping": ([".Pointwise", "Slice", ".Conv"], _cropped),
    "Keras: channels last, UpSampling": ([".Pointwise", "Resize", ".Conv"], _resized),
    "Keras: squeeze-excite": (
        [".Pointwise", "GlobalAveragePool", ".Pointwise", ".Pointwise", ".Map", ".Conv"],
        _squeeze_excite,
    ),
    "Keras: pooled head": ([".Pointwise", "GlobalMaxPool", "Flatten", ".Linear"], _pooled_head),
    "Keras: flat head": ([".Pointwise", ".Conv", "Flatten"], _flat_head),
    "PyTorch: x.view(x.size(0), -1)": ([".Pointwise", ".Conv", "Flatten"], _shape_head),
    "TensorFlow: product of sizes": ([".Pointwise", ".Conv", "Flatten"], _product_head),
    "TensorFlow: shape in int32": ([".Pointwise", ".Conv", "Flatten"], _cast_head),
    "Paddle: scale": ([".Pointwise"], _scale_chain),
    "Paddle: reshaped bias": ([".Pointwise"], _reshaped_bias),
    "static gate": ([".Pointwise", ".Conv"], _static_gate),
    "pre-activation without an activation": ([".Pointwise", ".Conv"], _pre_activation),
    "normalized fully connected": (["GlobalMaxPool", "Flatten", ".Linear"], _normalized_fc),
}


def activation(name: str) -> Graph:
    """The activation of an inner value, so that nothing folds into what computes it."""
    b = Build()
    return b.output(ACTIVATIONS[name][1](b, b.input(2, 8, 5, 3)))


def layer(name: str) -> Graph:
    """The pattern for an open batch."""
    b = Build()
    return b.output(LAYERS[name][1](b, b.input("N", 8, 9, 8)))
