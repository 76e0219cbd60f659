"""Sums of 1x1 convolutions become one over a Concat, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.sum_of_pointwise import SumOfPointwise
from tests.passes.building import Build, check, transform

PASS = SumOfPointwise()


def maps(b: Build, *channels: int, sizes: tuple[int, ...] = (6, 5)) -> list[Value]:
    return [b.input(1, c, *sizes, name=f"x{i}") for i, c in enumerate(channels)]


def shortcut(b: Build, *channels: int) -> Graph:
    """Few channels in and many out, so that the sum itself is most of the work."""
    first, second = maps(b, *channels)
    return b.output(b.op("Relu", b.op("Add", b.conv(first, 96), b.conv(second, 96))))


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x, y = maps(b, 4, 3, sizes=(32, 32))
    z = b.input(1, 4, 16, 16, name="z")
    total = b.op("Add", b.conv(x, 96), b.conv(y, 96))
    strided = b.op("Add", b.conv(z, 96), b.op("Conv", y, b.weight(96, 3, 1, 1), strides=(2, 2)))
    outcome = check(b.output(total, strided), PASS)
    golden("sum_of_pointwise", to_text(outcome.graph, hashes=False))


def test_shortcut() -> None:
    outcome = check(shortcut(Build(), 4, 3), PASS)
    assert outcome.ops == ["Concat", "Conv", "Relu"]
    text = "made Conv 'conv1', Conv 'conv2' one over concatenated channels"
    assert outcome.remarks == [("Add 'add1'", text)]


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_equal_strides_and_open_batch(strides: tuple[int, int]) -> None:
    b = Build()
    x, y = (b.input("batch", c, 6, 6, name=f"x{c}") for c in (3, 4))
    total = b.op("Add", b.conv(x, 128, strides=strides), b.conv(y, 128, strides=strides))
    assert check(b.output(total), PASS, sizes={"batch": 2}).ops == ["Concat", "Conv"]


def test_equal_strides_over_maps_of_different_sizes() -> None:
    b = Build()
    x, y = b.input(1, 3, 31, 32, name="x"), b.input(1, 4, 32, 32, name="y")
    total = b.op("Add", b.conv(x, 96, strides=(2, 2)), b.conv(y, 96, strides=(2, 2)))
    assert check(b.output(total), PASS).ops == ["Slice", "Slice", "Concat", "Conv"]


def test_one_input() -> None:
    b = Build()
    (x,) = maps(b, 16)
    total = b.op("Add", b.conv(x, 8), b.op("Conv", x, b.weight(8, 16, 1, 1)))
    outcome = check(b.output(total), PASS)
    assert outcome.ops == ["Conv"]
    text = "added the weights of Conv 'conv1', Conv 'conv2'"
    assert outcome.remarks == [("Add 'add1'", text)]


def test_products() -> None:
    b = Build()
    x, y = b.input(64, 4, name="x"), b.input(64, 3, name="y")
    first = b.op("Gemm", x, b.weight(4, 96), b.weight(96))
    total = b.op("Add", first, b.op("Gemm", y, b.weight(3, 96), b.weight(96)))
    assert check(b.output(total), PASS).ops == ["Concat", "Gemm"]
    b = Build()
    x, y = b.input(2, 64, 4, name="x"), b.input(2, 64, 3, name="y")
    total = b.op("Add", b.op("MatMul", x, b.weight(4, 96)), b.op("MatMul", y, b.weight(3, 96)))
    assert check(b.output(total), PASS).ops == ["Concat", "MatMul"]


@pytest.mark.parametrize("operands", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_taken_apart(operands: int, bias: bool) -> None:
    b = Build()
    joined = b.op("Concat", *maps(b, *(96, 64, 80)[:operands]), axis=1)
    channels = joined.tensor.shape[1] if joined.tensor.shape else 0
    assert isinstance(channels, int)
    end = b.conv(joined, 4) if bias else b.op("Conv", joined, b.weight(4, channels, 1, 1))
    outcome = check(b.output(end), PASS)
    assert outcome.ops == ["Conv"] * 2 + ["Add"] + ["Conv", "Add"] * (operands - 2)
    assert outcome.remarks == [
        ("Conv 'conv1'", "takes the operands of Concat 'concat1' one by one")
    ]
    assert outcome.graph.outputs[0][1].name == "conv1_out"


def test_taken_apart_products_and_strides() -> None:
    b = Build()
    joined = b.op("Concat", *maps(b, 96, 64), axis=-3)
    assert check(b.output(b.conv(joined, 4, strides=(2, 1))), PASS).ops == ["Conv", "Conv", "Add"]
    b = Build(10)
    joined = b.op("Concat", b.input(64, 96, name="x"), b.input(64, 64, name="y"), axis=1)
    graph = b.output(b.op("Gemm", joined, b.weight(160, 4), b.weight(4)))
    assert check(graph, PASS).ops == ["Gemm", "Gemm", "Add"]


def test_operands_that_are_written_in_place() -> None:
    b = Build()
    parts = [b.op("Relu", b.conv(x, 64, 3)) for x in maps(b, 8, 8)]
    outcome = check(b.output(b.conv(b.op("Concat", *parts, axis=1), 4)), PASS)
    why = "the operands of Concat 'concat1' are written in place"
    assert outcome.missed == [("Conv 'conv3'", why)]


def test_one_map_twice() -> None:
    b = Build()
    (x,) = maps(b, 64)
    outcome = check(b.output(b.conv(b.op("Concat", x, x, axis=1), 4)), PASS)
    assert outcome.ops == ["Conv"]


def assert_prediction(missed: tuple[str, str], label: str, over: str) -> None:
    figure = r"[\d.]+ us"
    text = rf"{re.escape(over)} it is predicted to take {figure}, apart {figure}"
    assert missed[0] == label
    assert re.fullmatch(text, missed[1])


def reasons(graph: Graph, runtime: bool = True) -> list[tuple[str, str]]:
    outcome = check(graph, PASS) if runtime else transform(graph, PASS)
    assert not outcome.remarks
    return outcome.missed


def test_wide_inputs() -> None:
    (missed,) = reasons(shortcut(Build(), 256, 512))
    assert_prediction(missed, "Add 'add1'", "over a Concat of x0 and x1")


def test_readers_and_outputs() -> None:
    b = Build()
    x, y = maps(b, 4, 3)
    first = b.conv(x, 96)
    graph = b.output(b.op("Add", first, b.conv(y, 96)), b.op("Relu", first))
    assert reasons(graph) == [("Add 'add1'", "'conv1_out' is read by 2 nodes")]
    b = Build()
    x, y = maps(b, 4, 3)
    first = b.conv(x, 96)
    graph = b.output(first, b.op("Add", first, b.conv(y, 96)))
    assert reasons(graph) == [("Add 'add1'", "'conv1_out' is an output of the graph")]
    b = Build()
    joined = b.op("Concat", *maps(b, 96, 64), axis=1)
    graph = b.output(b.conv(joined, 4), b.conv(joined, 4))
    assert reasons(graph) == [
        (f"Conv 'conv{i}'", "'concat1_out' is read by 2 nodes") for i in (1, 2)
    ]


def test_sum_that_broadcasts() -> None:
    b = Build()
    x, y = b.input(1, 4, 6, 5, name="x"), b.input(1, 4, 1, 1, name="y")
    graph = b.output(b.op("Add", b.conv(x, 96), b.conv(y, 96)))
    why = "it broadcasts float32[1x96x6x5] and float32[1x96x1x1]"
    assert reasons(graph) == [("Add 'add1'", why)]


def test_strides_in_an_old_operator_set() -> None:
    b = Build(9)
    x, y = b.input(1, 4, 6, 6, name="x"), b.input(1, 4, 3, 3, name="y")
    graph = b.output(b.op("Add", b.conv(x, 96, strides=(2, 2)), b.conv(y, 96)))
    assert reasons(graph) == [("Add 'add1'", "operator set 9 has no Slice with steps")]


def test_pads_groups_and_weights() -> None:
    b = Build()
    x, y = maps(b, 4, 4)
    z, w = b.input(1, 4, 8, 7, name="z"), b.input(8, 4, 1, 1, name="w")
    padded = b.op("Add", b.conv(x, 8, pads=(1, 1, 1, 1)), b.conv(z, 8))
    grouped = b.op("Add", b.conv(x, 8), b.conv(y, 8, group=2))
    dynamic = b.op("Add", b.conv(x, 8), b.op("Conv", y, w))
    assert reasons(b.output(padded, grouped, dynamic)) == [
        ("Add 'add1'", "Conv 'conv1' pads with zeros"),
        ("Add 'add2'", "Conv 'conv4' has 2 groups"),
        ("Add 'add3'", "the weight of Conv 'conv6' is not constant"),
    ]


def test_shared_weight() -> None:
    b = Build()
    x, y = maps(b, 4, 4)
    w = b.weight(96, 4, 1, 1, name="w")
    graph = b.output(b.op("Add", b.op("Conv", x, w), b.op("Conv", y, w)))
    why = (
        "weight 'w' is shared by 2 readers; copies of it would add 1536 bytes, "
        "more than max-growth-bytes=0"
    )
    assert reasons(graph) == [("Add 'add1'", why)]


def test_unknown_shapes() -> None:
    b = Build()
    x, y = b.input(1, 4, "h", 6, name="x"), b.input(1, 4, "h", 6, name="y")
    graph = b.output(b.op("Add", b.conv(x, 96), b.conv(y, 96)))
    why = "the shape of add1_out is not known: float32[1x96xhx6]"
    assert reasons(graph, runtime=False) == [("Add 'add1'", why)]
    b = Build()
    joined = b.op("Concat", *(b.input(1, 64, "h", 6, name=n) for n in "xy"), axis=1)
    why = "the shape of concat1_out is not known: float32[1x128xhx6]"
    assert reasons(b.output(b.conv(joined, 4)), runtime=False) == [("Conv 'conv1'", why)]


def test_concat_of_many() -> None:
    b = Build()
    joined = b.op("Concat", *maps(b, *(32,) * 9), axis=1)
    why = "Concat 'concat1' has 9 operands"
    assert reasons(b.output(b.conv(joined, 4))) == [("Conv 'conv1'", why)]


def test_empty_batch_and_types() -> None:
    b = Build()
    x, y = (b.input(0, 4, 6, 6, name=n) for n in "xy")
    check(b.output(b.op("Add", b.conv(x, 96), b.conv(y, 96))), PASS, runtime=False)
    for dtype in ("float16", "float64"):
        b = Build()
        x, y = (b.input(1, 4, 6, 6, name=n, dtype=dtype) for n in "xy")
        w = [b.graph.constant(np.full((128, 4, 1, 1), i, dtype)) for i in (1, 2)]
        graph = b.output(b.op("Add", b.op("Conv", x, w[0]), b.op("Conv", y, w[1])))
        outcome = transform(graph, PASS)
        assert outcome.ops == ["Concat", "Conv"]
        assert outcome.graph.outputs[0][1].tensor.dtype == dtype


def test_what_is_none_of_it() -> None:
    b = Build()
    x, y = maps(b, 4, 4)
    first = b.conv(x, 4)
    graph = b.output(
        b.op("Add", first, first),
        b.op("Add", b.conv(x, 4), y),
        b.op("Add", b.conv(x, 4), b.conv(y, 4, 3, pads=(1, 1, 1, 1))),
        b.conv(b.op("Concat", x, y, axis=2), 4),
    )
    assert reasons(graph) == []


def test_what_the_target_writes_in_place() -> None:
    b = Build()
    parts = [b.op("Relu", b.conv(x, 64, 3)) for x in maps(b, 8, 8, sizes=(34, 34))]
    graph = b.output(b.op("Add", b.conv(parts[0], 96), b.conv(parts[1], 96)))
    (missed,) = reasons(graph)
    assert_prediction(missed, "Add 'add1'", "over a Concat of relu1_out and relu2_out")
    outcome = check(graph, SumOfPointwise(copies=False))
    assert outcome.ops[-2:] == ["Concat", "Conv"]
