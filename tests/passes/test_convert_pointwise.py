"""1x1 convolutions become GEMMs over pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.passes.convert_pointwise import ConvertPointwise
from tests.passes.building import Build, check, transform


def network() -> Graph:
    b = Build()
    x = b.input("batch", 8, 9, 7)
    y = b.conv(x, 12)
    y = b.op("Relu", y)
    y = b.conv(y, 6, strides=(2, 2), group=3)
    y = b.op("Add", b.conv(y, 6, group=6), b.conv(y, 6, 3, pads=(1, 1, 1, 1)))
    return b.output(y)


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("convert_pointwise", str(transform(network(), ConvertPointwise()).graph))


def test_network() -> None:
    outcome = check(network(), ConvertPointwise(), sizes={"batch": 3})
    assert outcome.ops == [".Pointwise", "Relu", ".Pointwise", "Conv", "Mul", "Add", "Add"]


@pytest.mark.parametrize("opset", [1, 7, 9, 11, 13, 17, 21])
@pytest.mark.parametrize(
    ("shape", "channels", "attributes"),
    [
        ((1, 3, 17, 5), 7, {}),
        ((2, 8, 13, 1), 4, {"strides": (2, 3)}),
        ((2, 6, 7, 7), 9, {"group": 3, "dilations": (2, 5)}),
        ((1, 4, 31), 5, {"strides": (3,)}),
        ((1, 4, 3, 5, 7), 2, {"group": 2, "strides": (1, 2, 2)}),
        ((0, 3, 4, 4), 2, {}),
        ((1, 3, 9, 9), 2, {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
        ((1, 3, 9, 9), 2, {"auto_pad": "SAME_LOWER", "strides": (3, 2)}),
        ((1, 3, 9, 9), 2, {"auto_pad": "VALID"}),
        ((1, 5, 6, 6), 10, {"group": 5}),
        ((1, 5, 6, 6), 5, {"group": 5, "strides": (2, 2)}),
    ],
)
def test_forms(
    opset: int, shape: tuple[int, ...], channels: int, attributes: dict[str, Any]
) -> None:
    b = Build(opset)
    graph = b.output(b.conv(b.input(*shape), channels, **attributes))
    # ONNX Runtime knows operator sets from 7 on, and convolutions of one image or more.
    outcome = check(graph, ConvertPointwise(), runtime=shape[0] > 0 and opset >= 7)
    assert outcome.ops == [".Pointwise"]
    node = outcome.only("Pointwise")
    assert len(node.attributes["strides"]) == len(shape) - 2
    weight = outcome.graph.operand(node, 1)
    assert weight is not None
    assert weight.shape == (channels, shape[1] // attributes.get("group", 1))


def test_without_bias_and_names() -> None:
    b = Build()
    graph = b.output(b.op("Conv", b.input(1, 3, 4, 4), b.weight(5, 3, 1, 1)))
    node = check(graph, ConvertPointwise()).only("Pointwise")
    assert node.arity == 2
    assert (node.name, node.names, node.origin) == ("conv1", ("conv1_out",), ("conv1",))


@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_is_a_scaling(bias: bool) -> None:
    b = Build()
    x = b.input(2, 5, 4, 3)
    operands = [x, b.weight(5, 1, 1, 1), *([b.weight(5)] if bias else [])]
    outcome = check(b.output(b.op("Conv", *operands, group=5)), ConvertPointwise())
    assert outcome.ops == (["Mul", "Add"] if bias else ["Mul"])


def test_shared_weights_stay_shared() -> None:
    b = Build()
    x, w = b.input(1, 4, 5, 5), b.weight(4, 4, 1, 1)
    first = b.op("Conv", x, w)
    second = b.op("Conv", first, w, b.weight(4), strides=(2, 2))
    padded = b.op("Conv", first, w, pads=(1, 1, 1, 1))
    outcome = check(b.output(first, second, padded), ConvertPointwise())
    nodes = [n for n in outcome.graph.nodes() if n.op == "Pointwise"]
    assert len({outcome.graph.operand(n, 1) for n in nodes}) == 1
    assert outcome.remarks == [
        ("Conv 'conv1'", "converted with the 1 others that share its weights")
    ]
    assert outcome.missed == [("Conv 'conv3'", "its pads [1, 1, 1, 1] are not zero")]


def test_larger_kernels_are_none_of_it() -> None:
    b = Build()
    outcome = check(b.output(b.conv(b.input(1, 3, 5, 5), 4, 5)), ConvertPointwise())
    assert (outcome.ops, outcome.missed) == (["Conv"], [])


def test_misses() -> None:
    b = Build()
    x, w = b.input(1, 3, 4, 4), b.input(2, 3, 1, 1, name="w")
    v = b.input(2, name="v")
    half = b.input(1, 3, 4, 4, name="half", dtype="float16")
    weight = b.graph.constant(np.ones((2, 3, 1, 1), np.float16))
    values = [b.op("Conv", x, w), b.op("Conv", x, b.weight(2, 3, 1, 1), v)]
    values += [b.op("Conv", half, weight)]
    outcome = transform(b.output(*values), ConvertPointwise())
    assert outcome.missed == [
        ("Conv 'conv1'", "its weights are not constant"),
        ("Conv 'conv2'", "its bias is not constant"),
        ("Conv 'conv3'", "its element type is float16"),
    ]


def test_an_input_of_unknown_rank_stays() -> None:
    b = Build()
    x = b.graph.add_input("x", TensorType("float32", None))
    outcome = transform(b.output(b.op("Conv", x, b.weight(4, 3, 1, 1))), ConvertPointwise())
    assert (outcome.ops, outcome.missed) == (
        ["Conv"],
        [("Conv 'conv1'", "the rank of 'x' is not known")],
    )
