"""The cost model: orderings that hold whatever the constants, and the table they were fitted to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pwopt.bench.calibrate import cases
from pwopt.cost_model import CostModel
from pwopt.hardware import AVX2, AVX512, ZEN4, host
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.program import Program
from pwopt.ir.types import TensorType
from pwopt.pipeline import Context
from pwopt.precision import Precision
from tests.counting import assert_linear

BF16 = Precision("bf16")
MODEL = CostModel(AVX512)
DIRECT = CostModel(AVX512, winograd=False)
# The table knows direct kernels only.
CALIBRATED = CostModel(replace(AVX512, l2_bytes=1024 * 1024, l3_bytes=36608 * 1024), winograd=False)

# Microseconds that `pwopt bench calibrate` measured on the machine of hardware.py.
MEASURED = {
    "1x1 64->64 @56": 232,
    "1x1 64->256 @56": 842,
    "1x1 256->64 @56": 821,
    "1x1 128->512 @28": 732,
    "1x1 1024->256 @14": 723,
    "1x1 512->2048 @7": 792,
    "1x1 16->96 @112": 621,
    "1x1 96->24 @56": 160,
    "1x1 320->1280 @7": 304,
    "1x1 64->20 @56": 104,
    "3x3 3->32 @224 /2": 217,
    "7x7 3->64 @224 /2": 1976,
    "3x3 64->64 @56 /1": 1623,
    "3x3 128->128 @28 /1": 1592,
    "3x3 512->512 @7 /1": 2254,
    "3x3 32->128 @28 /1": 386,
    "3x3 256->256 @28 /2": 1777,
    "3x3 16->64 @56 /1": 398,
    "depthwise 3x3 32 @112 /1": 151,
    "depthwise 3x3 96 @112 /2": 575,
    "depthwise 3x3 144 @56 /1": 258,
    "depthwise 5x5 192 @28 /1": 127,
    "depthwise 3x3 960 @7 /1": 17,
    "group of 2: 3x3 96 @27": 405,
    "linear 2048->1000, 1 rows": 355,
    "linear 9216->4096, 1 rows": 12904,
    "linear 256->256, 1 rows": 3.6,
    "linear 256->256, 64 rows": 56,
    "MaxPool 3x3 64 @112 /2": 193,
    "MaxPool 3x3 256 @28 /1": 74,
    "AveragePool 2x2 128 @56 /2": 82,
    "AveragePool 3x3 192 @35 /1": 87,
    "global pool 2048 @7": 5.6,
    "global pool 1000 @13": 17.5,
    "global pool 64 @56": 23.7,
    "softmax 1000": 0.7,
    "Relu 64 @56": 23,
    "Sigmoid 64 @56": 99,
    "Tanh 64 @56": 77,
    "Exp 64 @56": 91,
    "HardSwish 64 @56": 28.9,
    "Relu 256 @112": 1078,
    "1x1 64->64 @56, sigmoid": 289,
}


# Milliseconds of Winograd kernels on an EPYC (Zen 4): inputs, outputs, side, kernel.
WINOGRAD = {
    (64, 64, 56, 3): 0.656,
    (64, 64, 112, 3): 2.60,
    (128, 128, 28, 3): 0.621,
    (256, 256, 14, 3): 0.741,
    (512, 512, 14, 3): 2.95,
    (512, 512, 7, 3): 1.25,
    (16, 64, 56, 3): 0.187,
    (96, 128, 27, 3): 0.520,
    (192, 384, 13, 3): 0.896,
    (32, 32, 28, 3): 0.048,
    (32, 96, 28, 5): 0.464,
    (16, 48, 14, 5): 0.033,
}


def image(graph: Graph, channels: int = 64, side: int = 28, name: str = "x") -> Value:
    return graph.add_input(name, TensorType("float32", (1, channels, side, side)))


def pointwise(graph: Graph, x: Value, outputs: int) -> Node:
    shape = x.shape
    assert shape is not None
    weight = graph.constant(np.zeros((outputs, shape[1]), np.float32))
    return graph.add("Pointwise", [x, weight], domain=KERNEL_DOMAIN)


# The same of `pwopt bench calibrate --precision bf16` on Zen 4, where it is about products.
MEASURED_BF16 = {
    "1x1 64->64 @56": 117,
    "1x1 64->256 @56": 459,
    "1x1 256->64 @56": 441,
    "1x1 128->512 @28": 447,
    "1x1 1024->256 @14": 437,
    "1x1 512->2048 @7": 440,
    "1x1 96->24 @56": 65,
    "1x1 320->1280 @7": 172,
    "1x1 64->20 @56": 43,
    "3x3 3->32 @224 /2": 160,
    "7x7 3->64 @224 /2": 1081,
    "3x3 64->64 @56 /1": 575,
    "3x3 128->128 @28 /1": 568,
    "3x3 512->512 @7 /1": 984,
    "3x3 32->128 @28 /1": 146,
    "3x3 256->256 @28 /2": 984,
    "3x3 16->64 @56 /1": 173,
    "depthwise 3x3 32 @112 /1": 74,
    "depthwise 3x3 144 @56 /1": 84,
    "depthwise 5x5 192 @28 /1": 68,
    "depthwise 3x3 960 @7 /1": 8.6,
    "group of 2: 3x3 96 @27": 169,
    "linear 2048->1000, 1 rows": 41,
    "linear 9216->4096, 1 rows": 2465,
    "linear 256->256, 1 rows": 1.3,
    "linear 256->256, 64 rows": 36.5,
}


def conv(
    graph: Graph, x: Value, outputs: int, size: int = 3, group: int = 1, **attributes: Any
) -> Node:
    shape = x.shape
    assert shape is not None
    weight = graph.constant(np.zeros((outputs, shape[1] // group, size, size), np.float32))
    pads = (size // 2,) * 4
    return graph.add("Conv", [x, weight], {"pads": pads, "group": group, **attributes})


def test_measured_kernels_are_predicted_within_a_factor() -> None:
    ratios = {}
    for case in cases():
        graph, node = case.graph()
        ratios[case.name] = CALIBRATED.node_us(graph, node) / MEASURED[case.name]
    assert ratios.keys() == MEASURED.keys()
    assert all(0.5 < r < 2.0 for r in ratios.values()), ratios
    close = [name for name, r in ratios.items() if 0.75 < r < 1.33]
    assert len(close) >= 0.75 * len(ratios), sorted(set(ratios) - set(close))


def test_measured_products_of_bfloat16_are_predicted() -> None:
    model, ratios = CostModel(ZEN4, BF16), {}
    for case in cases():
        if case.name in MEASURED_BF16:
            graph, node = case.graph()
            ratios[case.name] = model.node_us(graph, node) / MEASURED_BF16[case.name]
    assert ratios.keys() == MEASURED_BF16.keys()
    assert all(0.7 < r < 1.4 for r in ratios.values()), ratios
    close = [name for name, r in ratios.items() if 0.88 < r < 1.14]
    assert len(close) >= 0.8 * len(ratios), sorted(set(ratios) - set(close))


def test_bfloat16_is_predicted_only_where_the_machine_has_it() -> None:
    graph = Graph("formats")
    node = conv(graph, image(graph, 64), 64, 1)
    assert CostModel(AVX2, BF16).node_us(graph, node) == CostModel(AVX2).node_us(graph, node)
    assert CostModel(ZEN4, BF16).node_us(graph, node) < 0.6 * CostModel(ZEN4).node_us(graph, node)
    twice = CostModel(replace(ZEN4, bf16_gain=1.0), BF16)
    assert twice.node_us(graph, node) > 1.9 * CostModel(ZEN4, BF16).node_us(graph, node)


def test_smaller_weights_of_one_row_are_predicted() -> None:
    graph = Graph("head")
    x = graph.add_input("x", TensorType("float32", (1, 9216)))
    weight = graph.constant(np.zeros((9216, 4096), np.float32))
    node = graph.add("MatMul", [x, weight])
    forms = [Precision("fp32", form) for form in ("fp32", "bf16")]
    wide, narrow = (CostModel(ZEN4, form).node_us(graph, node) for form in forms)
    assert wide == pytest.approx(2 * narrow, rel=0.05)


def test_winograd_saves_less_beside_dot_products() -> None:
    graph = Graph("saves")
    node = conv(graph, image(graph, 64, 56), 64)
    wide, narrow = (
        {m: us for m, us, _ in CostModel(ZEN4, p).winograd_tiles(graph, node)}
        for p in (Precision(), BF16)
    )
    assert 0 < narrow[4] < wide[4]
    assert narrow[2] < 0 < wide[2]


@pytest.mark.parametrize("size", WINOGRAD, ids=str)
def test_winograd_kernels_are_predicted_within_a_factor(size: tuple[int, int, int, int]) -> None:
    graph = Graph("winograd")
    node = conv(graph, image(graph, size[0], size[2]), size[1], size[3])
    assert CostModel(ZEN4).node_us(graph, node) == pytest.approx(1e3 * WINOGRAD[size], rel=0.25)


def test_winograd_is_for_stride_1_and_more_channels_than_a_photo_has() -> None:
    with_it, without = CostModel(ZEN4), CostModel(ZEN4, winograd=False)

    def gain(channels: int, size: int = 3, **attributes: Any) -> float:
        graph = Graph("gain")
        node = conv(graph, image(graph, channels), 64, size, **attributes)
        return without.node_us(graph, node) / with_it.node_us(graph, node)

    assert gain(64) > 2
    assert gain(64, 5) > 1.5
    assert gain(3) == gain(64, 7) == gain(64, 1) == 1
    assert gain(64, strides=(2, 2)) == gain(64, dilations=(2, 2)) == 1


def test_more_work_takes_longer() -> None:
    times = []
    for channels in (16, 64, 256, 1024):
        graph = Graph()
        times.append(MODEL.node_us(graph, pointwise(graph, image(graph), channels)))
    assert times == sorted(set(times))
    sides = []
    for side in (7, 14, 28, 56):
        graph = Graph()
        sides.append(MODEL.node_us(graph, conv(graph, image(graph, side=side), 64)))
    assert sides == sorted(set(sides))


def test_idle_lanes_cost_as_much_as_used_ones() -> None:
    graph = Graph()
    x = image(graph, 256)
    few, many = pointwise(graph, x, 17), pointwise(graph, x, 32)
    assert MODEL.node_us(graph, few) == pytest.approx(MODEL.node_us(graph, many), rel=0.05)
    narrow = CostModel(AVX2)
    assert narrow.node_us(graph, few) < 0.85 * narrow.node_us(graph, many)


def test_orderings() -> None:
    graph = Graph()
    x = image(graph)
    assert DIRECT.node_us(graph, conv(graph, x, 64)) > 5 * DIRECT.node_us(
        graph, pointwise(graph, x, 64)
    )
    depthwise = DIRECT.node_us(graph, conv(graph, x, 64, group=64))
    assert depthwise < 0.2 * DIRECT.node_us(graph, conv(graph, x, 64))
    # A multiply-add of a depthwise convolution is dearer than one of a full one.
    assert 64 * depthwise > 2 * DIRECT.node_us(graph, conv(graph, x, 64))


def test_views_are_free_and_copies_elsewhere() -> None:
    graph = Graph()
    x = image(graph)
    weight = graph.constant(np.zeros((64, 64), np.float32))
    reshape = graph.add("Flatten", [x], {"axis": 3})
    halves = graph.add(
        "Split",
        [x],
        {"axis": 1},
        types=[TensorType("float32", (1, 32, 28, 28))] * 2,
    )
    for node in (reshape, halves, weight.node, x.node):
        assert MODEL.node_us(graph, node) == 0
    copying = CostModel(AVX512, copies=True)
    assert copying.node_us(graph, halves) > copying.node_us(graph, weight.node) == 0


def test_reshapes_that_channels_last_memory_cannot_express_are_copies() -> None:
    graph = Graph()
    x = conv(graph, image(graph), 64).out
    flat = graph.add("Flatten", [x])
    assert MODEL.node_us(graph, flat) > 1
    pixel = graph.add("GlobalAveragePool", [x]).out
    assert MODEL.node_us(graph, graph.add("Flatten", [pixel])) == 0
    groups = graph.constant(np.array([1, 4, 16, 28, 28]))
    split = graph.add("Reshape", [x, groups])
    swapped = graph.add("Transpose", [split.out], {"perm": (0, 2, 1, 3, 4)})
    back = graph.add("Reshape", [swapped.out, graph.constant(np.array([1, 64, 28, 28]))])
    assert MODEL.nodes_us(graph, [split, swapped]) == 0
    assert MODEL.node_us(graph, back) > 1


def test_concat_is_free_where_producers_write_their_slice() -> None:
    graph = Graph()
    x = image(graph)
    a, b = pointwise(graph, x, 32).out, pointwise(graph, x, 32).out
    free = graph.add("Concat", [a, b], {"axis": 1})
    assert MODEL.node_us(graph, free) == 0
    assert CostModel(AVX512, copies=True).node_us(graph, free) > 1
    again = graph.add("Concat", [a, x], {"axis": 1})  # a has its place already, x is an input
    assert MODEL.node_us(graph, again) > 1


def test_elementwise_after_a_convolution_costs_its_arithmetic() -> None:
    graph = Graph()
    x, skip = image(graph), image(graph, name="skip")
    product = conv(graph, x, 64)
    relu = graph.add("Relu", [product.out])
    add = graph.add("Add", [relu.out, skip])
    alone = graph.add("Relu", [x])
    assert MODEL.node_us(graph, relu) < 0.5 * MODEL.node_us(graph, alone)
    assert MODEL.node_us(graph, relu) < MODEL.node_us(graph, add)  # which reads the other map
    graph.add_output("y", product.out)
    assert MODEL.node_us(graph, relu) == MODEL.node_us(graph, alone)


def test_an_epilogue_costs_what_its_operators_cost() -> None:
    graph = Graph()
    x = image(graph)
    weight = graph.constant(np.zeros((64, 64), np.float32))
    plain = graph.add("Pointwise", [x, weight], domain=KERNEL_DOMAIN)
    sigmoid = {"epilogue": Program().then("Sigmoid")}
    fused = graph.add("Pointwise", [x, weight], sigmoid, domain=KERNEL_DOMAIN)
    assert MODEL.node_us(graph, fused) > MODEL.node_us(graph, plain)


def test_bottlenecks() -> None:
    graph = Graph()
    x = image(graph, 256)
    row = graph.add_input("row", TensorType("float32", (1, 9216)))
    weight = graph.constant(np.zeros((4096, 9216), np.float32))
    product = graph.add("Linear", [row, weight], domain=KERNEL_DOMAIN)
    assert MODEL.bottleneck(graph, conv(graph, x, 256)) == "compute"
    assert MODEL.bottleneck(graph, product) == "dram"
    tiny = graph.add_input("t", TensorType("float32", (1, 4)))
    assert MODEL.bottleneck(graph, graph.add("Relu", [tiny])) == "launch"
    assert MODEL.bottleneck(graph, graph.add("Relu", [image(graph, 64, name="z")])) == "l2"
    assert 0.5 < DIRECT.peak_share(graph, conv(graph, x, 256)) <= 1.0
    assert MODEL.peak_share(graph, conv(graph, x, 256)) > 2.0
    assert MODEL.peak_share(graph, graph.add("Relu", [x])) == 0


def test_weights_of_a_large_model_come_from_memory() -> None:
    graph = Graph()
    x = image(graph, 1024, side=7)
    node = pointwise(graph, x, 1024)
    small = CostModel(AVX512)
    before = small.node_us(graph, node)
    graph.constant(np.zeros(64 << 20, np.float32))
    assert small.weight_level(graph) == "dram"
    assert small.node_us(graph, node) > before


def test_unknown_shapes_and_operators() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType("float32", ("n", 8, None, None)))
    assert MODEL.node_us(graph, graph.add("Relu", [x])) == AVX512.launch_us
    other = graph.add("Mystery", [x], domain="custom", types=[TensorType()])
    assert MODEL.node_us(graph, other) == AVX512.launch_us
    batch = graph.add_input("b", TensorType("float32", ("n", 8, 4, 4)))
    assert MODEL.node_us(graph, pointwise_open(graph, batch)) > AVX512.launch_us


def pointwise_open(graph: Graph, x: Value) -> Node:
    weight = graph.constant(np.zeros((64, 8), np.float32))
    return graph.add("Pointwise", [x, weight], domain=KERNEL_DOMAIN)


def test_product_of_two_vectors() -> None:
    graph = Graph()
    x, y = (graph.add_input(name, TensorType("float32", (300,))) for name in "xy")
    graph.add_output("z", graph.add("MatMul", [x, y]).out)
    assert MODEL.graph_us(graph) > 0


def test_context_has_one_model_per_machine() -> None:
    assert Context().cost_model is Context().cost_model
    assert Context(hardware=AVX2).cost_model.hardware == AVX2
    assert Context().cost_model.hardware == host()


def test_helpers_agree_with_nodes() -> None:
    graph = Graph()
    x = image(graph, 64, side=56)
    node = pointwise(graph, x, 256)
    level = MODEL.weight_level(graph)
    assert MODEL.matrix_us(56 * 56, 64, 256, weights=level) == pytest.approx(
        MODEL.node_us(graph, node)
    )
    assert MODEL.copy_us(1 << 22) > MODEL.copy_us(1 << 12) > 0


def test_work_grows_with_the_number_of_nodes() -> None:
    def predict(length: int) -> None:
        graph = Graph()
        x = image(graph)
        for _ in range(length):
            relu = graph.add("Relu", [conv(graph, x, 64, size=1).out], types=x.node.types)
            x = graph.add("Add", [x, relu.out], types=x.node.types).out
        graph.add("Concat", [x] * length, {"axis": 1})
        MODEL.graph_us(graph)

    assert_linear(predict, 50)
