"""Every lowering rule against ONNX Runtime, on graphs that bend layouts, borders and aliases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.models.blocks import BLOCKS
from tests.targets.kernel_helpers import levels
from tests.targets.lowering_helpers import Arrays, check, model, node, normal

Built = tuple[onnx.ModelProto, Arrays]
CASES: dict[str, Callable[[], Built]] = {}


def case(function: Callable[[], Built]) -> Callable[[], Built]:
    CASES[function.__name__] = function
    return function


def one(
    op: str, shapes: str, constants: Arrays | None = None, opset: int = 17, **attributes: Any
) -> Built:
    """A model of one node; ``shapes``: of the inputs x0, x1 ..., constants follow them."""
    xs = {
        f"x{i}": normal(*(int(e) for e in text.split("x") if e), seed=i)
        for i, text in enumerate(shapes.split())
    }
    names = " ".join([*xs, *(constants or {})])
    return model([node(op, names, "y", **attributes)], xs, "y", constants, opset=opset), xs


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def conv_after(
    nodes: list[onnx.NodeProto], inputs: Arrays, constants: Arrays, channels: int
) -> Built:
    """The nodes, which make ``t``, with a 3x3 convolution behind them."""
    weight = normal(5, channels, 3, 3, seed=9)
    last = node("Conv", "t conv_weight", "y", pads=[1, 1, 1, 1])
    return model([*nodes, last], inputs, "y", {**constants, "conv_weight": weight}), inputs


# --- single nodes ---------------------------------------------------------------------------------


def single(name: str, *args: Any, **keywords: Any) -> None:
    CASES[name] = lambda: one(*args, **keywords)


single("conv_1d", "Conv", "2x5x11", {"w": normal(7, 5, 3)}, pads=[1, 1])
single(
    "conv_few_channels",
    "Conv",
    "2x3x11x9",
    {"w": normal(17, 3, 3, 3)},
    strides=[2, 2],
    pads=[1] * 4,
)
single("conv_grouped", "Conv", "1x6x7x7", {"w": normal(8, 3, 3, 3), "b": normal(8)}, group=2)
single("conv_grouped_few", "Conv", "3x4x7x7", {"w": normal(8, 2, 3, 3)}, group=2, pads=[1] * 4)
single("conv_depthwise", "Conv", "2x19x8x8", {"w": normal(19, 1, 3, 3)}, group=19, pads=[1] * 4)
single("conv_depthwise_few", "Conv", "2x3x8x8", {"w": normal(3, 1, 3, 3)}, group=3, pads=[1] * 4)
single(
    "conv_depth_multiplier", "Conv", "1x6x8x8", {"w": normal(12, 1, 3, 3)}, group=6, pads=[1] * 4
)
single(
    "conv_dilated",
    "Conv",
    "1x5x13x13",
    {"w": normal(6, 5, 3, 3)},
    dilations=[2, 3],
    pads=[2, 3, 2, 3],
)
single(
    "conv_same_upper",
    "Conv",
    "1x5x8x7",
    {"w": normal(6, 5, 4, 4)},
    auto_pad="SAME_UPPER",
    strides=[2, 2],
)
single(
    "conv_same_lower",
    "Conv",
    "1x5x8x7",
    {"w": normal(6, 5, 4, 4)},
    auto_pad="SAME_LOWER",
    strides=[2, 2],
)
single("conv_pads_uneven", "Conv", "1x5x8x7", {"w": normal(6, 5, 3, 3)}, pads=[0, 2, 1, 0])
for stride, pads, output_padding in (
    ([1, 1], [0] * 4, [0, 0]),
    ([2, 2], [1] * 4, [1, 1]),
    ([3, 2], [0, 1, 1, 0], [1, 0]),
):
    single(
        f"conv_transpose_{stride[0]}_{stride[1]}", "ConvTranspose", "2x6x5x4",
        {"w": normal(6, 7, 3, 3), "b": normal(7)},
        strides=stride, pads=pads, output_padding=output_padding,
    )  # fmt: skip
single(
    "conv_transpose_groups",
    "ConvTranspose",
    "1x6x5x4",
    {"w": normal(6, 2, 4, 4)},
    group=3,
    strides=[2, 2],
)
single(
    "conv_transpose_1d", "ConvTranspose", "1x6x5", {"w": normal(6, 2, 4)}, strides=[2], pads=[1, 1]
)
single(
    "conv_transpose_lone_channel",
    "ConvTranspose",
    "1x6x5x4",
    {"w": normal(6, 1, 2, 2)},
    strides=[2, 2],
)
joined: tuple[tuple[str, str, tuple[int, ...], dict[str, Any]], ...] = (
    ("folded", "2x6x5x4", (6, 2, 2, 2), {"strides": [2, 2]}),
    ("folded_three", "1x5x3x7", (5, 1, 3, 3), {"strides": [3, 3]}),
    ("folded_rows", "1x5x3x7", (5, 3, 2, 1), {"strides": [2, 1]}),
    ("folded_padded", "1x5x6x7", (5, 1, 4, 2), {"strides": [2, 2], "pads": [0, 2, 0, 2]}),
    ("joined_columns", "2x6x5x4", (6, 24, 2, 2), {"strides": [2, 2]}),
    ("joined_uneven", "1x6x5x4", (6, 3, 2, 2), {"strides": [2, 2], "output_padding": [1, 0]}),
    ("joined_groups", "1x6x5x4", (6, 2, 2, 2), {"strides": [2, 2], "group": 3}),
    ("joined_1d", "2x6x5", (6, 3, 2), {"strides": [2]}),
)
for name, shape, weight, attributes in joined:  # phases that are channels of one convolution
    single(
        f"conv_transpose_{name}", "ConvTranspose", shape,
        {"w": normal(*weight), "b": normal(weight[1] * attributes.get("group", 1))}, **attributes,
    )  # fmt: skip
single(
    "conv_transpose_output_shape",
    "ConvTranspose",
    "1x6x5x4",
    {"w": normal(6, 2, 3, 3)},
    strides=[2, 2],
    output_shape=[10, 9],
)
for auto in ("SAME_UPPER", "SAME_LOWER"):
    single(
        f"conv_transpose_{auto}",
        "ConvTranspose",
        "1x6x5x4",
        {"w": normal(6, 2, 3, 3)},
        strides=[2, 2],
        auto_pad=auto,
    )
single("matmul_constant", "MatMul", "2x3x5", {"w": normal(5, 7)})
single("matmul_two", "MatMul", "2x1x3x5 4x5x7")
single("matmul_square", "MatMul", "33x17 17x33")
single("gemm", "Gemm", "3x5", {"w": normal(7, 5), "b": normal(7)}, transB=1, alpha=0.5, beta=2.0)
single("gemm_scalar_bias", "Gemm", "3x5", {"w": normal(5, 7), "b": normal(1, 7)})
single("max_pool", "MaxPool", "2x19x9x9", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
single("max_pool_ceil", "MaxPool", "1x5x8x8", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
single("max_pool_1d", "MaxPool", "1x5x8", kernel_shape=[3], strides=[2], dilations=[2])
single("average_pool", "AveragePool", "2x5x9x9", kernel_shape=[3, 3], pads=[1] * 4)
single(
    "average_pool_include",
    "AveragePool",
    "2x5x9x9",
    kernel_shape=[3, 3],
    pads=[1] * 4,
    count_include_pad=1,
)
single(
    "average_pool_ceil",
    "AveragePool",
    "1x5x8x8",
    kernel_shape=[3, 3],
    strides=[2, 2],
    ceil_mode=1,
    count_include_pad=1,
    pads=[1] * 4,
)
single(
    "average_pool_same",
    "AveragePool",
    "1x5x8x8",
    kernel_shape=[3, 3],
    strides=[2, 2],
    auto_pad="SAME_LOWER",
)
single("lp_pool", "LpPool", "1x5x8x8", kernel_shape=[3, 3], strides=[2, 2])
single("global_average", "GlobalAveragePool", "3x19x5x7")
single("global_max_3d", "GlobalMaxPool", "2x5x3x4x2")
for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"):
    if kind not in ("Sum", "LogSumExp"):
        single(f"reduce_{kind}", f"Reduce{kind}", "2x5x4x7", axes=[1, -1], keepdims=0)
single("reduce_all", "ReduceMean", "2x5x4x7", keepdims=0)
single("reduce_sum_operand", "ReduceSum", "2x5x4x7", {"axes": ints(-2, 1)})
single("softmax_last", "Softmax", "2x5x7", axis=-1)
single("softmax_channel", "Softmax", "2x5x4x7", axis=1)
single("softmax_old", "Softmax", "2x5x4x7", opset=11, axis=2)
single("softmax_old_default", "Softmax", "2x5x4", opset=11)
single("log_softmax", "LogSoftmax", "3x33", axis=1)
single("lrn", "LRN", "2x9x5x5", size=5, alpha=0.1, beta=0.6, bias=2.0)
single("instance_norm", "InstanceNormalization", "2x5x4x7", {"s": normal(5), "b": normal(5)})
single("layer_norm", "LayerNormalization", "2x5x33", {"s": normal(33), "b": normal(33)})
single("layer_norm_two_axes", "LayerNormalization", "2x5x33", {"s": normal(5, 33)}, axis=1)
STATISTICS = {n: np.abs(normal(5, seed=i)) + 0.1 for i, n in enumerate("sbmv")}
single("batch_norm", "BatchNormalization", "2x5x4x4", STATISTICS)
single("batch_norm_2d", "BatchNormalization", "3x5", STATISTICS)
for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Erf", "HardSwish", "Softplus", "Abs", "Neg", "Floor"):
    single(f"unary_{op}", op, "3x7")
single("leaky", "LeakyRelu", "3x7", alpha=0.3)
single("clip", "Clip", "3x7", {"low": np.float32(-0.5), "high": np.float32(0.5)})
single("clip_old", "Clip", "3x7", opset=9, min=-0.5, max=0.5)
single("prelu", "PRelu", "2x5x4x4", {"slope": normal(5, 1, 1)})
single("add_broadcast", "Add", "2x1x4x7 5x1x7")
single("add_constant", "Add", "2x5x4x7", {"c": normal(5, 1, 1)})
single("sub_scalar", "Sub", "2x5 1")
single("sum_three", "Sum", "2x5 5 2x1")
single("max_two", "Max", "2x5 5")
single("transpose", "Transpose", "2x5x4x7", perm=[0, 2, 3, 1])
single("transpose_reverse", "Transpose", "2x5x7")
single(
    "slice_negative",
    "Slice",
    "2x5x9",
    {"s": ints(-1, 7), "e": ints(-9, 0), "a": ints(1, 2), "p": ints(-1, -3)},
)
single("slice_old", "Slice", "2x5x9", opset=9, starts=[1, 2], ends=[2, 100], axes=[0, 2])
single("slice_empty", "Slice", "2x5x9", {"s": ints(3), "e": ints(3), "a": ints(1)})
single("expand", "Expand", "5x1", {"s": ints(2, 5, 7)})
single("expand_smaller", "Expand", "2x5x7", {"s": ints(1, 7)})
single("pad", "Pad", "2x5x4", {"p": ints(1, 0, 2, 0, 3, 0), "v": np.float32(1.5)})
single("pad_crop", "Pad", "2x5x4", {"p": ints(0, -1, 2, 0, -2, -1)})
single("pad_old", "Pad", "2x5x4", opset=9, pads=[0, 1, 0, 0, 0, 2], value=-1.0)
single("gather_scalar", "Gather", "4x5x3", {"i": np.asarray(-1)}, axis=1)
single("gather_range", "Gather", "4x5x3", {"i": ints(3, 2, 1)}, axis=1)
single("gather_scattered", "Gather", "4x5x3", {"i": ints(3, 0, 0, -1)}, axis=1)
single("depth_to_space", "DepthToSpace", "2x12x3x5", blocksize=2)
single("depth_to_space_crd", "DepthToSpace", "2x12x3x5", blocksize=2, mode="CRD")
single("space_to_depth", "SpaceToDepth", "2x3x4x6", blocksize=2)
single("flatten", "Flatten", "2x5x4x7", axis=2)
single("squeeze", "Squeeze", "2x1x4x1", {"a": ints(1, 3)})
single("unsqueeze", "Unsqueeze", "2x4", {"a": ints(0, -1)})
single("reshape", "Reshape", "2x3x4x5", {"s": ints(0, -1, 10)})
single("concat_channels", "Concat", "2x3x4x4 2x5x4x4", axis=1)
single("concat_rows", "Concat", "2x3x4 2x3x1", axis=-1)
single("shape", "Shape", "2x3x4")
for mode, coordinates, nearest in (
    ("nearest", "asymmetric", "floor"),
    ("nearest", "half_pixel", "round_prefer_floor"),
    ("nearest", "align_corners", "ceil"),
    ("linear", "half_pixel", "floor"),
    ("linear", "align_corners", "floor"),
    ("linear", "pytorch_half_pixel", "floor"),
    ("cubic", "half_pixel", "floor"),
):
    for scale in (2.0, 1.5, 0.6):
        single(
            f"resize_{mode}_{coordinates}_{scale}", "Resize", "2x5x6x7",
            {"roi": np.zeros(0, np.float32), "s": np.asarray([1, 1, scale, scale], np.float32)},
            mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=nearest,
        )  # fmt: skip
single("upsample", "Upsample", "1x5x3x3", {"s": np.asarray([1, 1, 2, 3], np.float32)}, opset=9)


# --- views, borders and aliases -------------------------------------------------------------------


@case
def every_other_channel() -> Built:
    x = {"x": normal(1, 16, 6, 6)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Slice", "a s e ax st", "t"),
    ]
    constants = {
        "w1": normal(12, 16, 1, 1),
        "s": ints(0),
        "e": ints(12),
        "ax": ints(1),
        "st": ints(2),
    }
    return conv_after(nodes, x, constants, 6)


@case
def channels_backwards() -> Built:
    x = {"x": normal(2, 16, 6, 6)}
    nodes = [node("Conv", "x w1", "a"), node("Slice", "a s e ax st", "t")]
    constants = {
        "w1": normal(12, 16, 1, 1),
        "s": ints(11),
        "e": ints(-99),
        "ax": ints(1),
        "st": ints(-1),
    }
    return conv_after(nodes, x, constants, 12)


@case
def rows_backwards() -> Built:
    x = {"x": normal(1, 16, 6, 6)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Slice", "a s e ax st", "b"),
        node("MaxPool", "b", "t", kernel_shape=[2, 2]),
    ]
    constants = {
        "w1": normal(12, 16, 1, 1),
        "s": ints(5),
        "e": ints(-99),
        "ax": ints(2),
        "st": ints(-1),
    }
    return conv_after(nodes, x, constants, 12)


@case
def expanded_channels() -> Built:
    x = {"x": normal(1, 1, 6, 6)}
    return conv_after([node("Expand", "x shape", "t")], x, {"shape": ints(1, 24, 6, 6)}, 24)


@case
def expanded_pixels() -> Built:
    x = {"x": normal(2, 24, 1, 1)}
    return conv_after([node("Expand", "x shape", "t")], x, {"shape": ints(2, 24, 6, 6)}, 24)


@case
def expanded_then_pooled() -> Built:
    x = {"x": normal(1, 1, 6, 6)}
    nodes = [node("Expand", "x shape", "a"), node("MaxPool", "a", "y", kernel_shape=[2, 2])]
    return model(nodes, x, "y", {"shape": ints(1, 24, 6, 6)}), x


@case
def borders_of_two_widths() -> Built:
    x = {"x": normal(1, 16, 9, 9)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Relu", "a", "t"),
        node("Conv", "t w3", "b", pads=[1] * 4),
        node("Conv", "t w5", "c", pads=[2] * 4),
        node("MaxPool", "t", "d", kernel_shape=[3, 3], pads=[1] * 4),
        node("Add", "b c", "e"),
        node("Add", "e d", "y"),
    ]
    weights = {"w1": normal(16, 16, 1, 1), "w3": normal(16, 16, 3, 3), "w5": normal(16, 16, 5, 5)}
    return model(nodes, x, "y", weights), x


@case
def border_and_transposed_reader() -> Built:
    x = {"x": normal(1, 16, 9, 9)}
    nodes = [
        node("Conv", "x w1", "t"),
        node("Conv", "t w3", "a", pads=[1] * 4),
        node("ConvTranspose", "t wt", "b"),
        node("Transpose", "t", "c", perm=[0, 2, 3, 1]),
    ]
    weights = {"w1": normal(16, 16, 1, 1), "w3": normal(16, 16, 3, 3), "wt": normal(16, 8, 5, 5)}
    return model(nodes, x, "a b c", weights), x


@case
def bordered_value_is_reshaped() -> Built:
    x = {"x": normal(2, 16, 6, 6)}
    nodes = [
        node("Conv", "x w1", "t"),
        node("Conv", "t w3", "a", pads=[1] * 4),
        node("Reshape", "t s1", "b"),
        node("Reshape", "t s2", "c"),
    ]
    weights = {"w1": normal(16, 16, 1, 1), "w3": normal(4, 16, 3, 3)}
    return model(nodes, x, "a b c", {**weights, "s1": ints(2, 16, 36), "s2": ints(-1)}), x


@case
def bordered_row_of_one_axis() -> Built:
    x = {"x": normal(2, 6, 11)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Relu", "a", "t"),
        node("Conv", "t w3", "y", pads=[1, 1]),
    ]
    return model(nodes, x, "y", {"w1": normal(8, 6, 1), "w3": normal(4, 8, 3)}), x


@case
def photo_map_with_border() -> Built:
    x = {"x": normal(2, 3, 9, 9)}
    nodes = [node("Mul", "x s", "t"), node("Conv", "t w", "y", pads=[1] * 4, strides=[2, 2])]
    return model(nodes, x, "y", {"s": normal(3, 1, 1), "w": normal(8, 3, 3, 3)}), x


@case
def row_major_map_with_border() -> Built:
    x = {"x": normal(1, 19, 9, 9)}
    nodes = [node("Sigmoid", "x", "t"), node("Conv", "t w", "y", pads=[1] * 4)]
    return model(nodes, x, "y", {"w": normal(8, 19, 3, 3)}), x


@case
def concat_of_one_thing_twice() -> Built:
    x = {"x": normal(1, 16, 5, 5)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Concat", "a a", "t", axis=1),
    ]
    return conv_after(nodes, x, {"w1": normal(8, 16, 1, 1)}, 16)


@case
def concat_of_input_constant_and_output() -> Built:
    x = {"x": normal(1, 3, 5, 5)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Concat", "x c a x", "b", axis=1),
        node("Relu", "b", "y"),
    ]
    return model(nodes, x, "a b y", {"w1": normal(8, 3, 1, 1), "c": normal(1, 2, 5, 5)}), x


@case
def concat_of_concats() -> Built:
    x = {"x": normal(2, 8, 5, 5)}
    nodes, constants, have = [], {}, "x"
    for i in range(3):
        constants[f"w{i}"] = normal(4, 8 + 4 * i, 3, 3, seed=i)
        nodes += [
            node("Conv", f"{have} w{i}", f"n{i}", pads=[1] * 4),
            node("Concat", f"{have} n{i}", f"h{i}", axis=1),
        ]
        have = f"h{i}"
    nodes.append(node("Relu", have, "y"))
    return model(nodes, x, "y", constants), x


@case
def concat_with_border() -> Built:
    x = {"x": normal(1, 16, 6, 6)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Conv", "x w2", "b"),
        node("Concat", "a b", "t", axis=1),
    ]
    return conv_after(nodes, x, {"w1": normal(8, 16, 1, 1), "w2": normal(5, 16, 1, 1)}, 13)


@case
def concat_along_rows_inside_channels() -> Built:
    x = {"x": normal(1, 8, 6, 6)}
    nodes = [
        node("Relu", "x", "a"),
        node("Conv", "x w1", "b"),
        node("Concat", "a b", "c", axis=2),
        node("Conv", "c w1", "d"),
        node("Concat", "c d", "y", axis=1),
    ]
    return model(nodes, x, "y", {"w1": normal(8, 8, 1, 1)}), x


@case
def concat_with_nothing() -> Built:
    x = {"x": normal(1, 8, 6, 6), "n": np.zeros((1, 0, 6, 6), np.float32)}
    nodes = [node("Relu", "x", "a"), node("Concat", "n a n a", "y", axis=1)]
    return model(nodes, x, "y"), x


@case
def split_into_concat() -> Built:
    x = {"x": normal(1, 12, 6, 6)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Split", "a s", "b c d", axis=1),
        node("Relu", "c", "e"),
        node("Concat", "d e b", "t", axis=1),
    ]
    return conv_after(nodes, x, {"w1": normal(12, 12, 1, 1), "s": ints(3, 4, 5)}, 12)


@case
def channel_shuffle() -> Built:
    x = {"x": normal(2, 12, 6, 6)}
    nodes = [
        node("Conv", "x w1", "a"),
        node("Reshape", "a s1", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "c s2", "t"),
    ]
    constants = {"w1": normal(12, 12, 1, 1), "s1": ints(2, 3, 4, 6, 6), "s2": ints(2, 12, 6, 6)}
    return conv_after(nodes, x, constants, 12)


@case
def operand_added_to_itself() -> Built:
    x = {"x": normal(1, 8, 4, 4)}
    nodes = [
        node("Conv", "x w", "a"),
        node("Add", "a a", "b"),
        node("Mul", "b a", "c"),
        node("Conv", "c w", "d"),
        node("Add", "d c", "y"),
    ]
    return model(nodes, x, "y", {"w": normal(8, 8, 1, 1)}), x


@case
def in_place_chain_with_late_reader() -> Built:
    x = {"x": normal(1, 8, 4, 4)}
    nodes = [
        node("Conv", "x w", "a"),
        node("Sigmoid", "a", "b"),
        node("Softmax", "b", "c", axis=1),
        node("Tanh", "c", "d"),
        node("Transpose", "b", "e", perm=[0, 1, 3, 2]),
        node("Add", "d e", "y"),
    ]
    return model(nodes, x, "y", {"w": normal(8, 8, 1, 1)}), x


@case
def outputs_that_are_inputs_and_constants() -> Built:
    x = {"x": normal(2, 3), "unused": normal(4)}
    nodes = [
        node("Identity", "x", "a"),
        node("Identity", "x", "b"),
        node("Transpose", "x", "c"),
        node("Identity", "k", "d"),
        node("Reshape", "k s", "e"),
        node("Relu", "x", "f"),
        node("Identity", "f", "g"),
        node("Reshape", "f s", "h"),
    ]
    constants = {"k": normal(2, 3, seed=3), "s": ints(3, 2)}
    return model(nodes, x, "a b c d e f g h", constants), x


@case
def dropout_mask_is_an_output() -> Built:
    x = {"x": normal(2, 3)}
    return model([node("Relu", "x", "a"), node("Dropout", "a", "y mask")], x, "y mask"), x


@case
def pooling_indices_are_an_output() -> Built:
    x = {"x": normal(1, 3, 4, 4)}
    return model([node("MaxPool", "x", "y i", kernel_shape=[2, 2])], x, "y i"), x


@case
def transposed_factors() -> Built:
    x = {"a": normal(2, 7, 5), "b": normal(2, 33, 7)}
    nodes = [
        node("Transpose", "a", "ta", perm=[0, 2, 1]),
        node("Transpose", "b", "tb", perm=[0, 2, 1]),
        node("MatMul", "ta tb", "y"),
        node("MatMul", "ta w", "z"),
    ]
    return model(nodes, x, "y z", {"w": normal(7, 9)}), x


@case
def normalised_after_convolution() -> Built:
    x = {"x": normal(2, 8, 4, 4)}
    nodes = [
        node("Conv", "x w", "a"),
        node("InstanceNormalization", "a s b", "c"),
        node("LRN", "c", "d", size=3),
        node("Softmax", "d", "e", axis=1),
        node("ReduceMean", "e", "f", axes=[2, 3], keepdims=0),
        node("LogSoftmax", "f", "y", axis=-1),
    ]
    return model(nodes, x, "y", {"w": normal(8, 8, 3, 3), "s": normal(8), "b": normal(8)}), x


@case
def data_moves_of_other_types() -> Built:
    kinds = ("float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
    rng = np.random.default_rng(0)
    x = {f"x_{k}": rng.integers(0, 2, (2, 3, 4, 4)).astype(k) for k in kinds}
    nodes = []
    for k in kinds:
        nodes += [
            node("Transpose", f"x_{k}", f"t_{k}", perm=[0, 2, 3, 1]),
            node("Slice", f"t_{k} s e a st", f"s_{k}"),
            node("Concat", f"s_{k} t_{k} s_{k}", f"c_{k}", axis=1),
            node("Gather", f"c_{k} i", f"g_{k}", axis=2),
            node("Reshape", f"g_{k} r", f"y_{k}"),
        ]
    constants = {
        "s": ints(3),
        "e": ints(0),
        "a": ints(1),
        "st": ints(-2),
        "i": ints(2, 0, 2),
        "r": ints(-1, 6),
    }
    return model(nodes, x, " ".join(f"y_{k}" for k in kinds), constants), x


@case
def scalars() -> Built:
    x = {"x": np.asarray(0.5, np.float32)}
    nodes = [
        node("Sigmoid", "x", "a"),
        node("Add", "a x", "b"),
        node("Expand", "b s", "c"),
        node("ReduceMean", "c", "d", keepdims=0),
        node("Mul", "d a", "y"),
    ]
    return model(nodes, x, "y c", {"s": ints(2, 3)}), x


@case
def nothing_at_all() -> Built:
    x = {"x": np.zeros((0, 8, 4, 4), np.float32)}
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b w", "c", pads=[1] * 4),
        node("MaxPool", "c", "d", kernel_shape=[2, 2]),
        node("Concat", "d d", "e", axis=1),
        node("Transpose", "e", "f", perm=[0, 2, 3, 1]),
        node("Reshape", "f s", "g"),
        node("Softmax", "g", "h", axis=1),
        node("Gemm", "h k", "y"),
    ]
    return model(
        nodes, x, "y e", {"w": normal(8, 8, 3, 3), "s": ints(0, 144), "k": normal(144, 3)}
    ), x


@case
def three_spatial_axes() -> Built:
    x = {"x": normal(1, 6, 3, 4, 5)}
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "b"),
        node("Conv", "b v", "c", pads=[1] * 6),
        node("Add", "c b", "y"),
    ]
    return model(nodes, x, "y", {"w": normal(8, 6, 1, 1, 1), "v": normal(8, 8, 3, 3, 3)}), x


# Operators that may run elsewhere in a case, for want of a kernel.
ELSEWHERE = {
    "dropout_mask_is_an_output": ("Dropout",),
    "pooling_indices_are_an_output": ("MaxPool",),
    "three_spatial_axes": ("Conv", "Add", "Relu"),
    "nothing_at_all": ("Conv", "Relu", "MaxPool", "Softmax", "Gemm", "Concat"),
}


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", CASES)
def test_case(name: str, optimized: bool) -> None:
    source, inputs = CASES[name]()
    check(source, inputs, optimized=optimized, fallback=ELSEWHERE.get(name, ()))


@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("name", [n for n in BLOCKS if n != "chain"])
def test_blocks(name: str, optimized: bool, processor: Hardware) -> None:
    source = BLOCKS[name]()
    shape = [d.dim_value for d in source.graph.input[0].type.tensor_type.shape.dim]
    check(source, {"input": normal(*shape)}, optimized=optimized, hardware=processor)


@pytest.mark.parametrize("name", ["bottleneck", "inverted_residual", "dense_block", "fpn_head"])
def test_blocks_of_a_batch_with_two_threads(name: str) -> None:
    source = BLOCKS[name](size=16)
    dims = source.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value = 3
    for output in source.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 3
    x = normal(*(d.dim_value for d in dims))
    check(source, {"input": x}, optimized=True, threads=2)


@pytest.mark.parametrize("channels", [8, 24, 40, 5, 21])
def test_half_vectors_of_channels(channels: int) -> None:
    """Processors that split vectors get narrower ones where the last would be half empty."""
    halving = dataclasses.replace(levels()[0], splits=True)
    weights = {
        "a": normal(channels, 16, 1, 1) / 4,
        "b": normal(channels),
        "d": normal(channels, 1, 3, 3) / 3,
        "k": normal(channels * 3, channels, 3, 3) / 9,
        "g": normal(channels * 3, channels, 1, 1) / 4,
        "t": normal(channels * 3, channels, 2, 2) / 4,
        "f": normal(channels, channels) / 4,
    }
    nodes = [
        node("Conv", "x a b", "p"),
        node("Relu", "p", "q"),
        node("Conv", "q d", "r", pads=[1, 1, 1, 1], group=channels),
        node("Add", "r q", "s"),
        node("Conv", "s k", "u", pads=[1, 1, 1, 1]),
        node("Conv", "u g", "v", group=3),
        node("ConvTranspose", "v t", "y", strides=[2, 2]),
        node("GlobalAveragePool", "s", "h"),
        node("Flatten", "h", "i"),
        node("Gemm", "i f", "z"),
    ]
    inputs = {"x": normal(1, 16, 9, 11)}
    for optimized in (False, True):
        check(model(nodes, inputs, "y z", weights), inputs, optimized=optimized, hardware=halving)


@pytest.mark.parametrize("name", ["concat_of_concats", "borders_of_two_widths", "scalars"])
@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
def test_two_threads(name: str, processor: Hardware) -> None:
    source, inputs = CASES[name]()
    check(source, inputs, optimized=True, threads=2, hardware=processor)


def test_each_level_is_tested() -> None:
    assert hardware.host().lanes < 8 or hardware.AVX2 in levels()


@pytest.mark.parametrize("channels", [1, 5, 24])
@pytest.mark.parametrize("shared", [False, True])
def test_map_reads_the_small_image(channels: int, shared: bool) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("GlobalAveragePool", "c", "p"),
        node("Resize", "s _ f", "u", mode="nearest", coordinate_transformation_mode="asymmetric",
             nearest_mode="floor"),
        node("Mul", "c p", "m"),
        node("Add", "m u", "a"),
        node("Conv", "a k", "y", pads=[1, 1, 1, 1]),
        *([node("Relu", "u", "z")] if shared else []),
    ]  # fmt: skip
    inputs = {"x": normal(2, 3, 6, 15), "s": normal(2, channels, 3, 5, seed=1)}
    constants = {
        "w": normal(channels, 3, 1, 1, seed=2),
        "k": normal(4, channels, 3, 3, seed=3),
        "f": np.asarray([1, 1, 2, 3], np.float32),
    }
    source = model(nodes, inputs, "y z" if shared else "y", constants)
    kernels = [k["kernel"] for k in check(source, inputs, optimized=True).report["kernels"]]
    assert ("upsample" in kernels) == (shared or channels == 1)
