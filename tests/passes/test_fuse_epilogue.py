"""What follows a convolution or GEMM elementwise becomes its epilogue."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.passes.convert_fc_head import ConvertFcHead
from pwopt.passes.convert_pointwise import ConvertPointwise
from pwopt.passes.fuse_elementwise import FuseElementwise
from pwopt.passes.fuse_epilogue import FuseEpilogue
from tests.passes.building import Build, check, transform


def network() -> Graph:
    """A residual block, a swish, and a scale as of squeeze-excite."""
    b = Build()
    x = b.input("batch", 8, 7, 5)
    y = b.op("Relu", b.conv(x, 8, 3, pads=(1, 1, 1, 1)))
    y = b.op("Relu", b.op("Add", b.conv(y, 8, 1), x))
    z = b.conv(y, 8, 1)
    z = b.op("Mul", z, b.op("Sigmoid", z))
    scale = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y), 8))
    return b.output(b.op("Mul", scale, z))


PASSES = (ConvertPointwise(), FuseEpilogue())


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("fuse_epilogue", str(transform(network(), *PASSES).graph))


def test_network() -> None:
    outcome = check(network(), *PASSES, sizes={"batch": 2})
    assert outcome.ops == [".Conv", ".Pointwise", "GlobalAveragePool", ".Pointwise", ".Pointwise"]
    programs = [str(n.get("epilogue")) for n in outcome.graph.topological() if n.get("epilogue")]
    assert sorted(programs) == sorted(
        ["Relu(%0)", "Relu(Add(%0, %1))", "Sigmoid(%0)", "Mul(%1, Mul(%0, Sigmoid(%0)))"]
    )


Activation = Callable[[Build, Value], Value]


def tanh_gelu(b: Build, y: Value, cube: Value) -> Value:
    inside = b.op("Mul", (2 / math.pi) ** 0.5, b.op("Add", y, b.op("Mul", 0.044715, cube)))
    return b.op("Mul", b.op("Mul", 0.5, y), b.op("Add", 1.0, b.op("Tanh", inside)))


UNARY: dict[str, tuple[int, Activation, str]] = {
    "relu": (7, lambda b, y: b.op("Relu", y), "Relu(%0)"),
    "relu6-attribute": (7, lambda b, y: b.op("Clip", y, min=0.0, max=6.0), "Clip(%0, 0, 6)"),
    "relu6-operand": (11, lambda b, y: b.op("Clip", y, 0.0, 6.0), "Clip(%0, 0, 6)"),
    "clip-above": (13, lambda b, y: b.op("Clip", y, None, 1.0), "Clip(%0, -inf, 1)"),
    "clip-below": (9, lambda b, y: b.op("Clip", y, min=-0.5), "Clip(%0, -0.5, inf)"),
    "leaky": (7, lambda b, y: b.op("LeakyRelu", y, alpha=0.2), "LeakyRelu(%0, 0.2)"),
    "prelu": (9, lambda b, y: b.op("PRelu", y, b.weight(6, 1, 1)), "PRelu(%0, %1)"),
    "prelu-scalar": (7, lambda b, y: b.op("PRelu", y, b.weight(1)), "PRelu(%0, %1)"),
    "sigmoid": (7, lambda b, y: b.op("Sigmoid", y), "Sigmoid(%0)"),
    "tanh": (7, lambda b, y: b.op("Tanh", y), "Tanh(%0)"),
    "hard-sigmoid": (7, lambda b, y: b.op("HardSigmoid", y), "HardSigmoid(%0, 0.2, 0.5)"),
    "elu": (7, lambda b, y: b.op("Elu", y), "Elu(%0, 1)"),
    "celu": (12, lambda b, y: b.op("Celu", y), "Elu(%0, 1)"),
    "selu": (7, lambda b, y: b.op("Selu", y), "Selu(%0, 1.67326, 1.0507)"),
    "softplus": (7, lambda b, y: b.op("Softplus", y), "Softplus(%0)"),
    "hard-swish": (14, lambda b, y: b.op("HardSwish", y), "HardSwish(%0)"),
    "gelu": (20, lambda b, y: b.op("Gelu", y), "Gelu(%0, 0)"),
    "gelu-tanh": (20, lambda b, y: b.op("Gelu", y, approximate="tanh"), "Gelu(%0, 1)"),
    "mish": (18, lambda b, y: b.op("Mish", y), "Mul(%0, Tanh(Softplus(%0)))"),
    "square": (13, lambda b, y: b.op("Pow", y, 2.0), "Mul(%0, %0)"),
    "double": (7, lambda b, y: b.op("Add", y, y), "Add(%0, %0)"),
    "from-one": (7, lambda b, y: b.op("Sub", 1.0, y), "Sub(%1, %0)"),
    "batch-norm": (9, lambda b, y: b.batch_norm(y, 6), "Add(Mul(%0, %1), %2)"),
    "chain": (
        11,
        lambda b, y: b.op("Relu", b.op("Mul", b.op("Tanh", y), b.weight(6, 1, 1))),
        "Relu(Mul(Tanh(%0), %1))",
    ),
    "silu": (7, lambda b, y: b.op("Mul", b.op("Sigmoid", y), y), "Mul(Sigmoid(%0), %0)"),
    "hard-swish-hard-sigmoid": (
        7,
        lambda b, y: b.op("Mul", y, b.op("HardSigmoid", y, alpha=1 / 6, beta=0.5)),
        "HardSwish(%0)",
    ),
    "hard-swish-clip-div": (
        11,
        lambda b, y: b.op("Div", b.op("Mul", y, b.op("Clip", b.op("Add", y, 3.0), 0.0, 6.0)), 6.0),
        "HardSwish(%0)",
    ),
    "hard-swish-div-first": (
        9,
        lambda b, y: b.op(
            "Mul", b.op("Div", b.op("Clip", b.op("Add", 3.0, y), min=0.0, max=6.0), 6.0), y
        ),
        "HardSwish(%0)",
    ),
    "hard-sigmoid-clip": (
        11,
        lambda b, y: b.op("Mul", b.op("Clip", b.op("Add", y, 3.0), 0.0, 6.0), 1 / 6),
        "HardSigmoid(%0, 0.166667, 0.5)",
    ),
    "gelu-erf": (
        13,
        lambda b, y: b.op(
            "Mul", b.op("Mul", y, b.op("Add", b.op("Erf", b.op("Div", y, 2**0.5)), 1.0)), 0.5
        ),
        "Gelu(%0, 0)",
    ),
    "gelu-half-first": (
        13,
        lambda b, y: b.op(
            "Mul", b.op("Mul", 0.5, y), b.op("Add", 1.0, b.op("Erf", b.op("Mul", y, 0.5**0.5)))
        ),
        "Gelu(%0, 0)",
    ),
    "gelu-tanh-cube": (13, lambda b, y: tanh_gelu(b, y, b.op("Pow", y, 3.0)), "Gelu(%0, 1)"),
    "gelu-tanh-products": (
        7,
        lambda b, y: tanh_gelu(b, y, b.op("Mul", y, b.op("Mul", y, y))),
        "Gelu(%0, 1)",
    ),
    "almost-gelu-tanh": (
        7,
        lambda b, y: tanh_gelu(b, y, b.op("Mul", y, y)),
        "Mul(Mul(%3, %0), Add(%4, Tanh(Mul(%2, Add(%0, Mul(%1, Mul(%0, %0)))))))",
    ),
    "sigmoid-quotient": (
        7,
        lambda b, y: b.op("Div", 1.0, b.op("Add", b.op("Exp", b.op("Neg", y)), 1.0)),
        "Sigmoid(%0)",
    ),
    "sigmoid-reciprocal": (
        7,
        lambda b, y: b.op("Reciprocal", b.op("Add", 1.0, b.op("Exp", b.op("Mul", y, -1.0)))),
        "Sigmoid(%0)",
    ),
    "leaky-maximum": (
        8,
        lambda b, y: b.op("Max", b.op("Mul", y, 0.25), y),
        "LeakyRelu(%0, 0.25)",
    ),
    "maximum-of-more": (
        8,
        lambda b, y: b.op("Max", b.op("Mul", y, 2.0), y),
        "Max(Mul(%0, %1), %0)",
    ),
    "almost-hard-swish": (
        11,
        lambda b, y: b.op("Div", b.op("Mul", y, b.op("Clip", b.op("Add", y, 3.0), 0.0, 6.0)), 5.0),
        "Div(Mul(%0, Clip(Add(%0, %1), 0, 6)), %2)",
    ),
    "clip-by-inputs": (
        12,
        lambda b, y: b.op("Clip", y, b.input(name="low"), b.input(name="high")),
        "Min(Max(%0, %1), %2)",
    ),
}


@pytest.mark.parametrize("name", UNARY)
def test_activations(name: str) -> None:
    since, activation, expected = UNARY[name]
    opset = since if since < 11 else max(since, 13)
    b = Build(opset)
    y = activation(b, b.conv(b.input(2, 3, 5, 7), 6, 3))
    outcome = check(b.output(y), FuseEpilogue())
    assert outcome.ops == [".Conv"]
    assert outcome.program("Conv") == expected
    node = outcome.only("Conv")
    assert node.name == "conv1"
    assert node.names == (y.name,)
    assert y.node.name in node.origin


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((1, 4, 9, 9), 3, {"strides": (2, 2), "pads": (1, 0, 2, 1)}),
        ((3, 4, 9), 3, {"dilations": (2,), "pads": (0, 3)}),
        ((3, 4, 9), 2, {"auto_pad": "SAME_LOWER"}),
        ((1, 4, 9, 8), 2, {"auto_pad": "SAME_LOWER", "dilations": (3, 2)}),
        ((1, 4, 5, 6, 7), 3, {"group": 2}),
        ((2, 4, 8, 7), 2, {"group": 4, "auto_pad": "SAME_UPPER", "strides": (3, 2)}),
        ((0, 4, 5, 5), 3, {}),
        ((1, 4, 7, 7), 1, {"strides": (2, 2), "group": 2}),
    ],
)
@pytest.mark.parametrize("opset", [7, 21])
def test_geometry(
    shape: tuple[int, ...], kernel: int, attributes: dict[str, Any], opset: int
) -> None:
    b = Build(opset)
    y = b.op("Relu", b.conv(b.input(*shape), 4, kernel, **attributes))
    refused = shape[0] == 0 or ("auto_pad" in attributes and "dilations" in attributes)
    outcome = check(b.output(y), *PASSES, runtime=not refused)
    assert outcome.ops == [".Pointwise" if kernel == 1 else ".Conv"]


@pytest.mark.parametrize("first", [True, False])
def test_residual_of_two_convolutions_goes_to_the_later(first: bool) -> None:
    b = Build()
    x = b.input(1, 4, 5, 5)
    left, right = b.conv(x, 4, 3, pads=(1, 1, 1, 1)), b.conv(x, 4)
    y = b.op("Relu", b.op("Add", left, right) if first else b.op("Add", right, left))
    outcome = check(b.output(y), FuseEpilogue())
    assert outcome.ops == [".Conv", ".Conv"]
    earlier, later = (n for n in outcome.graph.topological() if n.op == "Conv")
    assert str(earlier.get("epilogue")) == "%0"
    order = "%1, %0" if first else "%0, %1"
    assert str(later.get("epilogue")) == f"Relu(Add({order}))"
    assert outcome.graph.operand(later, 3) == earlier.out


def test_a_chain_of_residual_blocks() -> None:
    b = Build()
    y = b.input(1, 4, 5, 5)
    for _ in range(3):
        z = b.op("Relu", b.conv(y, 4, 3, pads=(1, 1, 1, 1)))
        y = b.op("Relu", b.op("Add", y, b.conv(z, 4, 3, pads=(1, 1, 1, 1))))
    assert check(b.output(y), FuseEpilogue()).ops == [".Conv"] * 6


def test_extras_that_broadcast() -> None:
    b = Build()
    x, s = b.input(2, 4, 5, 3), b.input(2, 4, 1, 1, name="s")
    row, t = b.input(3, name="row"), b.input(1, 1, 5, 1, name="t")
    y = b.op("Mul", s, b.conv(x, 4))
    y = b.op("Add", b.op("Sub", y, row), t)
    outcome = check(b.output(y), FuseEpilogue())
    assert outcome.program("Conv") == "Add(Sub(Mul(%1, %0), %2), %3)"


def test_equal_arguments_become_one() -> None:
    b = Build()
    x = b.input(1, 4, 5, 5)
    y = b.op("Mul", b.op("Add", b.op("Mul", b.conv(x, 4), 3.0), x), 3.0)
    outcome = check(b.output(b.op("Sub", y, x)), FuseEpilogue())
    assert outcome.program("Conv") == "Sub(Mul(Add(Mul(%0, %1), %2), %1), %2)"
    assert outcome.only("Conv").arity == 5


def test_linear() -> None:
    b = Build()
    x, residual = b.input(2, 3, 4), b.input(2, 3, 5, name="r")
    y = b.op("Add", b.op("MatMul", x, b.weight(4, 5)), b.weight(5))
    y = b.op("Add", residual, b.op("Relu", y))
    outcome = check(b.output(y), ConvertFcHead(), FuseEpilogue())
    assert outcome.ops == [".Linear"]
    assert outcome.program("Linear") == "Add(%1, Relu(%0))"


def test_takes_a_map() -> None:
    b = Build()
    y = b.conv(b.input(1, 3, 4, 4), 4, 3)
    graph = b.output(b.op("Relu", b.op("Tanh", y)))
    outcome = check(graph, FuseElementwise(), FuseEpilogue())
    assert outcome.ops == [".Conv"]
    assert outcome.program("Conv") == "Relu(Tanh(%0))"


def test_fuses_into_what_was_fused_before() -> None:
    b = Build()
    x = b.input(1, 4, 5, 5)
    y = b.op("Mul", b.op("Add", b.op("Relu", b.conv(x, 4)), x), b.weight(4, 1, 1))
    outcome = check(b.output(y), FuseEpilogue(max_extras=0), FuseEpilogue())
    assert outcome.program("Conv") == "Mul(Add(Relu(%0), %1), %2)"
    assert outcome.only("Conv").origin == ("conv1", "relu1", "add1", "mul1")


def test_intermediate_output() -> None:
    b = Build()
    y = b.conv(b.input(1, 3, 4, 4), 4, 3)
    z = b.op("Relu", y)
    outcome = check(b.output(y, b.op("Tanh", z)), FuseEpilogue())
    assert outcome.ops == [".Conv", "Relu", "Tanh"]
    assert outcome.missed == [
        ("Conv 'conv1'", "conv1_out is a graph output, so Relu 'relu1' stays")
    ]


def test_output_behind_an_activation() -> None:
    b = Build()
    z = b.op("Relu", b.conv(b.input(1, 3, 4, 4), 4, 3))
    outcome = check(b.output(z, b.op("Tanh", z)), FuseEpilogue())
    assert outcome.ops == [".Conv", "Tanh"]
    assert outcome.program("Conv") == "Relu(%0)"


def test_several_readers() -> None:
    b = Build()
    y = b.conv(b.input(1, 3, 4, 4), 4, 3)
    z = b.op("Mul", y, b.op("Sigmoid", b.op("GlobalAveragePool", y)))
    outcome = check(b.output(z), FuseEpilogue())
    assert outcome.ops == [".Conv", "GlobalAveragePool", "Sigmoid", "Mul"]
    assert outcome.missed == [
        ("Conv 'conv1'", "Mul 'mul1': not the only reader of conv1_out"),
    ]


def test_readers_that_are_both_results() -> None:
    b = Build()
    y = b.conv(b.input(1, 3, 4, 4), 4, 3)
    outcome = check(b.output(b.op("Relu", y), b.op("Tanh", y)), FuseEpilogue())
    assert outcome.ops == [".Conv", "Relu", "Tanh"]
    assert outcome.missed == [
        ("Conv 'conv1'", "relu1_out is a graph output"),
    ]


def test_an_operand_that_widens() -> None:
    b = Build()
    x, wide = b.input(1, 3, 4, 4), b.input(2, 4, 2, 2, name="wide")
    outcome = check(b.output(b.op("Add", b.conv(x, 4, 3), wide)), FuseEpilogue())
    assert outcome.ops == [".Conv", "Add"]
    assert outcome.missed == [
        (
            "Conv 'conv1'",
            "Add 'add1': its result float32[2x4x2x2] is wider than float32[1x4x2x2]",
        )
    ]


def test_too_many_operands() -> None:
    b = Build()
    y = b.conv(b.input(1, 3, 4, 4), 4)
    for i in range(3):
        y = b.op("Add", y, b.input(1, 4, 4, 4, name=f"r{i}"))
    outcome = check(b.output(y), FuseEpilogue(max_extras=2))
    assert outcome.ops == [".Conv", "Add"]
    assert outcome.missed == [
        ("Conv 'conv1'", "Add 'add3': 3 operands, more than max-extras=2"),
    ]


def test_too_many_steps() -> None:
    b = Build()
    y = b.conv(b.input(1, 3, 4, 4), 4)
    for _ in range(40):
        y = b.op("Tanh", y)
    outcome = check(b.output(y), FuseEpilogue())
    assert outcome.ops == [".Conv", *["Tanh"] * 8]
    assert outcome.missed == [
        ("Conv 'conv1'", "Tanh 'tanh33': 33 instructions, more than max-steps=32")
    ]


def test_misses_of_the_convolution_itself() -> None:
    b = Build()
    x, w = b.input(1, 3, 4, 4), b.input(2, 3, 3, 3, name="w")
    half = b.input(1, 3, 4, 4, name="half", dtype="float16")
    weight = b.graph.constant(np.ones((2, 3, 3, 3), np.float16))
    values = [b.op("Relu", b.op("Conv", x, w)), b.op("Relu", b.op("Conv", half, weight))]
    outcome = transform(b.output(*values), FuseEpilogue())
    assert outcome.ops == ["Conv", "Relu", "Conv", "Relu"]
    assert sorted(outcome.missed) == [
        ("Conv 'conv1'", "its weights are not constant"),
        ("Conv 'conv2'", "its element type is float16"),
    ]


def test_transposed_convolution_stays() -> None:
    b = Build()
    y = b.op("ConvTranspose", b.input(1, 3, 4, 4), b.weight(3, 2, 3, 3))
    assert check(b.output(b.op("Relu", y)), FuseEpilogue()).ops == ["ConvTranspose", "Relu"]


def test_old_broadcasting_stays() -> None:
    b = Build(6)
    y = b.conv(b.input(1, 3, 4, 4), 4)
    node = b.graph.add(
        "Add",
        [y, b.weight(4)],
        {"broadcast": 1, "axis": 1},
        types=y.node.types,
        names=("z",),
        name="add1",
    )
    outcome = transform(b.output(node.out), FuseEpilogue())
    assert outcome.ops == [".Conv", "Add"]
    assert outcome.missed == [("Conv 'conv1'", "Add 'add1': it broadcasts by the rules of opset 6")]
