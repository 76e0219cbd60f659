"""Pools and 1x1 convolutions, max-pools and activations, in the cheaper order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pwopt.cost import graph_macs
from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.ir.types import TensorType
from pwopt.passes.commute_pooling import CommutePooling
from tests.passes.building import Build, Outcome, check, transform

HALF = {"kernel_shape": (2, 2), "strides": (2, 2)}


def average(b: Build, x: Value, **attributes: Any) -> Value:
    return b.op("AveragePool", x, **{**HALF, **attributes})


def reasons(graph: Graph, **options: Any) -> list[str]:
    outcome = check(graph, CommutePooling(), **options)
    assert not outcome.remarks
    return [why for _, why in outcome.missed]


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.conv(b.op("Relu", b.input("batch", 64, 32, 32)), 32)
    x = b.op("Relu", average(b, x))
    x = b.conv(b.op("AveragePool", x, kernel_shape=(3, 3), pads=(1, 1, 1, 1)), 4)
    outcome = transform(b.output(x), CommutePooling())
    golden("commute_pooling", to_text(outcome.graph, hashes=False))


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"count_include_pad": 1},
        {"ceil_mode": 1},
        {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "strides": (2, 3)},
        {"kernel_shape": (3, 3), "auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_average_before_convolution(attributes: dict[str, Any], size: int, group: int) -> None:
    b = Build()
    graph = b.output(average(b, b.conv(b.input(2, 64, size, 31), 64, group=group), **attributes))
    outcome = check(graph, CommutePooling())
    assert outcome.ops == ["AveragePool", "Conv"]
    if not attributes and group == 1 and size == 32:
        assert graph_macs(outcome.graph) == 64 * 64 * 2 * 16 * 15


def test_open_sizes() -> None:
    b = Build()
    graph = b.output(average(b, b.conv(b.input("n", 64, "h", "w"), 64)))
    outcome = check(graph, CommutePooling(), sizes={"n": 2, "h": 17, "w": 16})
    assert outcome.ops == ["AveragePool", "Conv"]


@pytest.mark.parametrize("shape", [(2, 48, 40), (1, 48, 6, 12, 12)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    b, rank = Build(), len(shape) - 2
    x = b.conv(b.input(*shape), 48)
    graph = b.output(b.op("AveragePool", x, kernel_shape=(2,) * rank, strides=(2,) * rank))
    assert check(graph, CommutePooling()).ops == ["AveragePool", "Conv"]


def test_whole_map() -> None:
    b = Build()
    graph = b.output(b.op("GlobalAveragePool", b.conv(b.input(2, 64, 9, 9), 64)))
    assert check(graph, CommutePooling()).ops == ["GlobalAveragePool", "Conv"]
    b = Build()
    graph = b.output(b.op("ReduceMean", b.conv(b.input(2, 64, 9, 9), 64), axes=(-1,)))
    assert check(graph, CommutePooling()).ops == ["ReduceMean", "Conv"]


def test_mean_over_channels_is_another_matter() -> None:
    b = Build()
    graph = b.output(b.op("ReduceMean", b.conv(b.input(2, 64, 9, 9), 64), axes=(1,)))
    assert reasons(graph) == []


def test_weights_that_are_computed() -> None:
    b = Build()
    weight = b.op("Relu", b.input(64, 64, 1, 1, name="w"))
    graph = b.output(average(b, b.op("Conv", b.input(1, 64, 32, 32), weight)))
    assert check(graph, CommutePooling()).ops == ["Relu", "AveragePool", "Conv"]


def test_shared_weights() -> None:
    b = Build()
    weight, x = b.weight(64, 64, 1, 1), b.input(1, 64, 32, 32)
    first = average(b, b.op("Conv", x, weight))
    graph = b.output(first, average(b, b.op("Conv", b.op("Relu", x), weight)))
    outcome = check(graph, CommutePooling())
    assert len(outcome.remarks) == 2
    assert sum(node.is_constant for node in outcome.graph.nodes()) == 1


def test_convolution_before_average() -> None:
    b = Build()
    x = b.op("AveragePool", b.input(2, 96, 14, 14), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    outcome = check(b.output(b.op("Relu", b.conv(x, 16))), CommutePooling())
    assert outcome.ops == ["Conv", "AveragePool", "Relu"]
    assert outcome.remarks == [
        ("Conv 'conv1'", "moved Conv 'conv1' before AveragePool 'averagepool1'")
    ]


def test_bias_does_not_pass_counted_padding() -> None:
    b = Build()
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}
    graph = b.output(average(b, b.conv(b.input(1, 64, 32, 32), 64), **attributes))
    assert reasons(graph) == [
        "AveragePool 'averagepool1' counts its padding, so the bias of Conv 'conv1' does not pass"
    ]
    b = Build()
    x = b.op("Conv", b.input(1, 64, 32, 32), b.weight(64, 64, 1, 1))
    graph = b.output(average(b, x, **attributes))
    assert check(graph, CommutePooling()).ops == ["AveragePool", "Conv"]


def test_bias_and_windows_that_round_up() -> None:
    b = Build()
    x = b.conv(b.input(1, 64, 33, 33), 64)
    graph = b.output(average(b, x, ceil_mode=1, count_include_pad=1))
    assert reasons(graph) == [
        "the last window of AveragePool 'averagepool1' may hang over the end, so the bias of "
        "Conv 'conv1' does not pass"
    ]
    b = Build()
    x = b.conv(b.input(1, 64, 32, 32), 64)
    x = average(b, x, ceil_mode=1, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    assert reasons(b.output(x)) == [
        "a window of AveragePool 'averagepool1' may lie in its pads (1, 1, 1, 1), for it rounds "
        "up, so the bias of Conv 'conv1' does not pass"
    ]


def test_strided_convolution() -> None:
    b = Build()
    graph = b.output(average(b, b.conv(b.input(1, 64, 32, 32), 64, strides=(2, 2))))
    assert reasons(graph) == ["Conv 'conv1' has strides (2, 2)"]


def test_padded_convolution() -> None:
    b = Build()
    graph = b.output(average(b, b.conv(b.input(1, 64, 32, 32), 64, pads=(1, 1, 1, 1))))
    assert reasons(graph) == ["Conv 'conv1' has pads (1, 1, 1, 1)"]


def test_another_reader() -> None:
    b = Build()
    x = b.conv(b.input(1, 64, 32, 32), 64)
    assert reasons(b.output(average(b, x), b.op("Relu", x))) == ["'conv1_out' is read by 2 nodes"]


def test_graph_output() -> None:
    b = Build()
    x = b.conv(b.input(1, 64, 32, 32), 64)
    assert reasons(b.output(average(b, x), x)) == ["'conv1_out' is an output of the graph"]


def test_that_it_would_not_pay() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 32, 32), 64)
    x = b.op("AveragePool", b.conv(x, 4), kernel_shape=(3, 3))
    (why,) = reasons(b.output(x))
    assert why.startswith("it would take ")


def test_zero_size() -> None:
    b = Build()
    graph = b.output(average(b, b.conv(b.input(0, 64, 32, 32), 64)))
    assert transform(graph, CommutePooling()).ops == ["Conv", "AveragePool"]


def test_maximum_does_not_commute_with_a_convolution() -> None:
    b = Build()
    graph = b.output(b.op("MaxPool", b.conv(b.input(1, 64, 32, 32), 64), **HALF))
    assert reasons(graph) == [
        "the maxima of MaxPool 'maxpool1' do not commute with a sum over channels"
    ]
    b = Build()
    graph = b.output(b.conv(b.op("MaxPool", b.input(1, 64, 32, 32), **HALF), 4))
    assert reasons(graph) == []


def activation(b: Build, x: Value, name: str) -> Value:
    match name:
        case "Clip":
            return b.op("Clip", x, 0.0, 6.0)
        case "LeakyRelu":
            return b.op("LeakyRelu", x, alpha=0.2)
    return b.op(name, x)


@pytest.mark.parametrize("name", ["Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh"])
def test_maximum_before_activation(name: str) -> None:
    b = Build()
    x = b.op("Concat", b.input(2, 16, 17, 16), b.input(2, 16, 17, 16, name="x2"), axis=1)
    pooled = b.op("MaxPool", activation(b, x, name), **HALF, pads=(1, 1, 0, 0))
    assert check(b.output(pooled), CommutePooling()).ops == ["Concat", "MaxPool", name]


@pytest.mark.parametrize("name", ["Relu", "Clip", "LeakyRelu"])
def test_activation_into_the_epilogue(name: str) -> None:
    b = Build()
    x = b.op("MaxPool", b.conv(b.input(2, 8, 16, 16), 8, 3), **HALF)
    outcome = check(b.output(activation(b, x, name)), CommutePooling())
    assert outcome.ops == ["Conv", name, "MaxPool"]
    b = Build()
    graph = b.output(
        b.op("MaxPool", activation(b, b.conv(b.input(2, 8, 16, 16), 8, 3), name), **HALF)
    )
    assert check(graph, CommutePooling()).ops == ["Conv", name, "MaxPool"]


def of_falling(alpha: float) -> Outcome:
    b = Build()
    x = b.op("LeakyRelu", b.input(2, 8, 16, 16), alpha=alpha)
    return check(b.output(b.op("MaxPool", x, **HALF)), CommutePooling())


def test_activation_that_falls() -> None:
    assert of_falling(0.5).ops == ["MaxPool", "LeakyRelu"]
    assert of_falling(-0.5).ops == ["LeakyRelu", "MaxPool"]


def test_indices_that_are_read() -> None:
    b = Build()
    x = b.op("Relu", b.input(1, 8, 16, 16))
    kinds = (TensorType("float32", (1, 8, 8, 8)), TensorType("int64", (1, 8, 8, 8)))
    pool = b.graph.add("MaxPool", [x], HALF, types=kinds, names=("y", "indices"), name="pool")
    assert reasons(b.output(pool[0], pool[1])) == ["the indices of MaxPool 'pool' are read"]


def test_windows_of_padding() -> None:
    b = Build()
    x = b.op("MaxPool", b.op("Relu", b.input(1, 8, 16, 16)), **HALF, pads=(2, 2, 0, 0))
    outcome = transform(b.output(x), CommutePooling())
    assert [why for _, why in outcome.missed] == [
        "a window of MaxPool 'maxpool1' may lie in its pads (2, 2, 0, 0)"
    ]
