"""A shuffle of channels goes into the weights beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.fold_channel_shuffle import FoldChannelShuffle
from tests.passes.building import Build, check, transform

SAME: dict[str, Any] = {"pads": (1, 1, 1, 1)}


def shuffle(b: Build, x: Value, split: Sequence[int], perm: Sequence[int]) -> Value:
    sizes = [d if isinstance(d, int) else -1 for d in x.tensor.shape or ()]
    y = b.op("Transpose", b.op("Reshape", x, b.shape(*split)), perm=tuple(perm))
    return b.op("Reshape", y, b.shape(*sizes))


def by_groups(b: Build, x: Value, groups: int) -> Value:
    n, c, *spatial = (d if isinstance(d, int) else -1 for d in x.tensor.shape or ())
    perm = (0, 2, 1, *range(3, 3 + len(spatial)))
    return shuffle(b, x, (n, groups, c // groups, *spatial), perm)


def reasons(graph: Graph) -> list[str]:
    outcome = check(graph, FoldChannelShuffle())
    assert not outcome.remarks
    return [why for _, why in outcome.missed]


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = by_groups(b, b.conv(b.input("batch", 6, 4, 3), 6, group=3), 3)
    x = b.conv(b.conv(x, 6, 3, group=6, **SAME), 2)
    golden(
        "fold_channel_shuffle",
        to_text(transform(b.output(x), FoldChannelShuffle()).graph, hashes=False),
    )


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("batch", [2, "n"])
def test_into_the_convolution_after(groups: int, kernel: int, batch: int | str) -> None:
    b = Build()
    x = b.op("Relu", by_groups(b, b.input(batch, 12, 5, 4), groups))
    outcome = check(b.output(b.conv(x, 7, kernel)), FoldChannelShuffle(), sizes={"n": 3})
    assert outcome.ops == ["Relu", "Conv"]
    assert outcome.remarks == [
        ("Reshape 'reshape2'", "folded Reshape 'reshape2' into Conv 'conv1'")
    ]


def test_into_several_convolutions() -> None:
    b = Build()
    x = by_groups(b, b.input(1, 12, 5, 4), 3)
    graph = b.output(b.conv(x, 7), b.conv(x, 7, 3))
    assert check(graph, FoldChannelShuffle()).ops == ["Conv", "Conv"]


@pytest.mark.parametrize("groups", [2, 3])
def test_past_a_depthwise_convolution(groups: int) -> None:
    b = Build()
    x = b.op("Relu", by_groups(b, b.input(2, 12, 6, 5), groups))
    x = b.conv(x, 12, 3, group=12, strides=(2, 2), **SAME)
    graph = b.output(b.conv(b.op("Clip", x, 0.0, 6.0), 7))
    outcome = check(graph, FoldChannelShuffle())
    assert outcome.ops == ["Relu", "Conv", "Clip", "Conv"]


@pytest.mark.parametrize("bias", [True, False])
def test_into_the_convolution_before(bias: bool) -> None:
    b = Build()
    x = b.input(2, 5, 6, 5)
    x = b.conv(x, 12) if bias else b.op("Conv", x, b.weight(12, 5, 1, 1))
    x = b.conv(b.op("Relu", x), 12, 3, group=12)
    graph = b.output(b.op("Exp", by_groups(b, b.op("Relu", x), 4)))
    assert check(graph, FoldChannelShuffle()).ops == ["Conv", "Relu", "Conv", "Relu", "Exp"]


def test_graph_output_after() -> None:
    b = Build()
    graph = b.output(by_groups(b, b.conv(b.input(2, 5, 6, 5), 12), 4))
    assert check(graph, FoldChannelShuffle()).ops == ["Conv"]


def test_groups_that_are_not_mixed() -> None:
    b = Build()
    x = shuffle(b, b.input(2, 12, 4, 3), (2, 2, 2, 3, 12), (0, 1, 3, 2, 4))
    outcome = check(b.output(b.conv(x, 8, 3, group=2)), FoldChannelShuffle())
    assert outcome.ops == ["Conv"]


def test_three_factors() -> None:
    b = Build()
    x = shuffle(b, b.input(2, 24, 5, 4), (2, 2, 3, 4, 5, 4), (0, 3, 1, 2, 4, 5))
    assert check(b.output(b.conv(x, 8)), FoldChannelShuffle()).ops == ["Conv"]


def test_groups_that_are_mixed() -> None:
    b = Build()
    x = by_groups(b, b.conv(b.input(1, 12, 5, 4), 12, group=3), 3)
    graph = b.output(b.conv(b.conv(x, 12, 3, group=12), 12, group=3))
    assert reasons(graph) == [
        "Conv 'conv3' has 3 groups, which the shuffle mixes; "
        "Conv 'conv1' has 3 groups, which the shuffle mixes"
    ]


def test_another_reader() -> None:
    b = Build()
    x = b.conv(b.input(1, 12, 5, 4), 12)
    y = by_groups(b, x, 3)
    graph = b.output(b.op("Add", b.conv(y, 12), y), b.op("Exp", x))
    assert reasons(graph) == ["Add 'add1' reads 'reshape2_out'; 'conv1_out' is read by 2 nodes"]


def test_graph_outputs() -> None:
    b = Build()
    x = b.conv(b.input(1, 12, 5, 4), 12)
    y = by_groups(b, x, 3)
    assert reasons(b.output(x, y, b.conv(y, 4))) == [
        "'reshape2_out' is an output of the graph; 'conv1_out' is an output of the graph"
    ]


def test_weights_that_are_computed() -> None:
    b = Build()
    x = by_groups(b, b.input(1, 12, 5, 4), 3)
    graph = b.output(b.op("Conv", x, b.op("Relu", b.input(4, 12, 1, 1, name="w"))))
    assert reasons(graph) == ["the weights of Conv 'conv1' are not constant"]


def test_shared_weights() -> None:
    b = Build()
    x, weight = b.input(1, 12, 5, 4), b.weight(4, 12, 1, 1, name="w")
    graph = b.output(b.op("Conv", x, weight), b.op("Conv", by_groups(b, x, 3), weight))
    assert check(graph, FoldChannelShuffle()).ops == ["Conv", "Conv"]
    outcome = transform(graph, FoldChannelShuffle(max_growth_bytes=100))
    assert [why for _, why in outcome.missed] == [
        "weight 'w' is shared by 2 readers; copies of it would add 192 bytes, more than "
        "max-growth-bytes=100"
    ]


def test_no_convolution() -> None:
    b = Build()
    assert reasons(b.output(b.op("Exp", by_groups(b, b.input(1, 12, 5, 4), 3)))) == [
        "'exp1_out' is an output of the graph"
    ]


@pytest.mark.parametrize(
    ("split", "perm"),
    [
        ((4, 2, 3, 5, 4), (0, 2, 1, 3, 4)),
        ((2, 3, 4, 5, 4), (0, 2, 1, 4, 3)),
        ((2, 3, 4, 20), (1, 0, 2, 3)),
    ],
)
def test_what_is_no_shuffle(split: Sequence[int], perm: Sequence[int]) -> None:
    b = Build()
    x = shuffle(b, b.input(2, 12, 5, 4), split, perm)
    assert reasons(b.output(b.conv(x, 4))) == []


def test_zero_size() -> None:
    b = Build()
    x = b.input(0, 12, 5, 4)
    y = b.op("Reshape", x, b.shape(0, 3, 4, 5, 4))
    y = b.op("Reshape", b.op("Transpose", y, perm=(0, 2, 1, 3, 4)), b.shape(0, 12, 5, 4))
    assert reasons(b.output(b.conv(y, 4))) == []
