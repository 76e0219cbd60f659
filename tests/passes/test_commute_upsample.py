"""1x1 convolutions and elementwise operators go where the map is smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pwopt.cost import graph_macs
from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.commute_upsample import CommuteUpsample
from tests.passes.building import Build, check, transform

FLOOR: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def scales(b: Build, *factors: float) -> Value:
    return b.graph.constant(np.array(factors, np.float32))


def resize(b: Build, x: Value, factors: tuple[float, ...] = (2, 2), **attributes: Any) -> Value:
    return b.op("Resize", x, None, scales(b, 1, 1, *factors), **attributes)


def reasons(graph: Graph, **options: Any) -> list[str]:
    outcome = check(graph, CommuteUpsample(), **options)
    assert not outcome.remarks
    return [why for _, why in outcome.missed]


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.conv(resize(b, b.input("batch", 64, 16, 16), mode="nearest", **FLOOR), 32)
    x = b.conv(resize(b, b.op("Relu", x), mode="linear"), 8)
    golden(
        "commute_upsample", to_text(transform(b.output(x), CommuteUpsample()).graph, hashes=False)
    )


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("factors", [(2, 2), (1.5, 2.25), (3, 1)])
@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest", **FLOOR},
        {"mode": "nearest"},
        {"mode": "linear"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"mode": "cubic"},
    ],
    ids=str,
)
def test_convolution_first(
    attributes: dict[str, Any], factors: tuple[float, float], group: int
) -> None:
    b = Build()
    x = resize(b, b.input(2, 64, 12, 8), factors, **attributes)
    graph = b.output(b.conv(x, 64, group=group))
    outcome = check(graph, CommuteUpsample())
    assert outcome.ops == ["Conv", "Resize"]
    assert graph_macs(outcome.graph) == 64 * 64 // group * 2 * 12 * 8


@pytest.mark.parametrize("opset", [9, 10])
def test_older_spellings(opset: int) -> None:
    b = Build(opset)
    op = "Upsample" if opset == 9 else "Resize"
    x = b.op(op, b.input(1, 32, 8, 8), scales(b, 1, 1, 2, 2), mode="nearest")
    assert check(b.output(b.op("Relu", b.conv(x, 32))), CommuteUpsample()).ops == [
        "Conv",
        "Relu",
        op,
    ]


def test_sizes_count_the_channels() -> None:
    b = Build()
    x = b.op("Resize", b.input(1, 64, 8, 8), None, None, b.shape(1, 64, 17, 19), mode="nearest")
    outcome = check(b.output(b.conv(x, 24)), CommuteUpsample())
    assert outcome.ops == ["Conv", "Resize"]


def test_axes() -> None:
    b = Build(opset=18)
    x = b.input(1, 64, 8, 8)
    x = b.op("Resize", x, None, scales(b, 2, 2), axes=(2, 3), mode="nearest")
    assert check(b.output(b.conv(x, 24)), CommuteUpsample()).ops == ["Conv", "Resize"]


def test_open_sizes() -> None:
    b = Build()
    x = resize(b, b.input("n", 64, "h", "w"), mode="nearest", **FLOOR)
    outcome = check(b.output(b.conv(x, 32)), CommuteUpsample(), sizes={"n": 2, "h": 5, "w": 7})
    assert outcome.ops == ["Conv", "Resize"]


def test_shrinking() -> None:
    b = Build()
    x = resize(b, b.conv(b.input(1, 64, 32, 32), 64), (0.5, 0.5), mode="nearest", **FLOOR)
    assert check(b.output(x), CommuteUpsample()).ops == ["Resize", "Conv"]
    b = Build()
    x = b.conv(resize(b, b.input(1, 64, 32, 32), (0.5, 0.5), mode="linear"), 64)
    assert check(b.output(x), CommuteUpsample()).ops == ["Resize", "Conv"]


def test_elementwise() -> None:
    b = Build()
    x, gate = b.input(2, 8, 6, 5), b.input(2, 8, 1, 1, name="gate")
    x = resize(b, x, mode="nearest", **FLOOR)
    x = b.op("Add", b.op("Mul", gate, x), b.weight(8, 1, 1))
    x = b.op("Clip", b.op("LeakyRelu", x), -1.0, 1.0)
    outcome = check(b.output(x), CommuteUpsample())
    assert outcome.ops == ["Mul", "Add", "LeakyRelu", "Clip", "Resize"]


def test_elementwise_that_stays() -> None:
    for mode, op in (("linear", "Relu"), ("nearest", "Softmax")):
        b = Build()
        x = resize(b, b.input(2, 8, 6, 5), mode=mode)
        assert reasons(b.output(b.op(op, x))) == []
    b = Build()
    x = resize(b, b.input(2, 8, 6, 5), mode="nearest")
    assert reasons(b.output(b.op("Mul", x, b.weight(12, 10)))) == []


def test_linear_and_activation_that_would_not_pay() -> None:
    b = Build()
    x = b.conv(resize(b, b.input(1, 2, 32, 32), mode="linear"), 64)
    assert reasons(b.output(b.op("Relu", x))) == []


def test_another_reader() -> None:
    b = Build()
    x = resize(b, b.input(1, 64, 16, 16), mode="nearest", **FLOOR)
    graph = b.output(b.conv(x, 64), b.op("Exp", x))
    assert reasons(graph) == ["'resize1_out' is read by 2 nodes"] * 2


def test_graph_output() -> None:
    b = Build()
    x = resize(b, b.input(1, 64, 16, 16), mode="nearest", **FLOOR)
    assert reasons(b.output(b.conv(x, 64), x)) == ["'resize1_out' is an output of the graph"]


def test_channels_that_are_resized() -> None:
    b = Build()
    x = b.op("Resize", b.input(1, 8, 8, 8), None, scales(b, 1, 2, 2, 2), mode="nearest", **FLOOR)
    assert reasons(b.output(b.conv(x, 8))) == ["Resize 'resize1' resizes batch or channels by 1, 2"]


def test_factors_that_are_computed() -> None:
    b = Build()
    x = b.op("Resize", b.input(1, 8, 8, 8), None, b.input(4, name="factors"), mode="nearest")
    graph = b.graph
    graph.add_output("y", b.op("Conv", x, b.weight(8, 8, 1, 1)))
    outcome = transform(graph, CommuteUpsample())
    assert [why for _, why in outcome.missed] == [
        "the factors of Resize 'resize1' are not constant"
    ]


def test_cropping() -> None:
    b = Build()
    roi = scales(b, 0, 0, 0, 0, 1, 1, 2, 2)
    mode = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    x = b.op("Resize", b.input(1, 8, 8, 8), roi, scales(b, 1, 1, 2, 2), **mode)
    graph = b.output(b.conv(x, 8))
    assert reasons(graph) == ["Resize 'resize1' crops"]


def test_strided_convolution() -> None:
    b = Build()
    x = resize(b, b.input(1, 64, 16, 16), mode="nearest", **FLOOR)
    graph = b.output(b.conv(x, 64, strides=(2, 2)))
    assert reasons(graph) == ["Conv 'conv1' has strides (2, 2)"]


def test_zero_size() -> None:
    b = Build()
    x = resize(b, b.input(0, 64, 16, 16), mode="nearest")
    assert transform(b.output(b.conv(x, 64)), CommuteUpsample()).ops == ["Resize", "Conv"]
