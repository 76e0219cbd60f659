"""For every pass a small graph that it rewrites, in whatever situation a builder is in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pwopt.ir.graph import Graph, Value
from tests.passes.building import Build


@dataclass(frozen=True)
class Situation:
    """What is special about a graph.

    Attributes:
        opset: of the graph.
        batch: first dimension of its inputs.
        shared: whether weights of one shape are one, in two copies of the pattern.
        wide: attributes of convolutions with larger kernels.
        narrow: attributes of 1x1 convolutions.
        pool: attributes of pools, besides the kernel's shape.
        group: of every convolution that can have it.
    """

    opset: int = 17
    batch: int | str = 1
    shared: bool = False
    wide: Mapping[str, Any] = field(default_factory=dict)
    narrow: Mapping[str, Any] = field(default_factory=dict)
    pool: Mapping[str, Any] = field(default_factory=dict)
    group: int = 1


class Situated(Build):
    """Builds patterns in a situation."""

    def __init__(self, situation: Situation) -> None:
        super().__init__(situation.opset)
        self.situation = situation
        self._shared: dict[object, Value] = {}

    def weight(self, *shape: int, name: str = "") -> Value:
        return self._once(("weight", shape), lambda: super(Situated, self).weight(*shape))

    def positive(self, *shape: int) -> Value:
        return self._once(("positive", shape), lambda: super(Situated, self).positive(*shape))

    def _once(self, key: object, make: Callable[[], Value]) -> Value:
        if not self.situation.shared:
            return make()
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def conv(self, x: Value, channels: int, kernel: int = 1, **attributes: Any) -> Value:
        situation = self.situation
        special = situation.narrow if kernel == 1 else situation.wide
        if "group" not in attributes:
            attributes["group"] = situation.group
        if "auto_pad" in special or "pads" in special:
            attributes.pop("pads", None)
        return super().conv(x, channels, kernel, **{**attributes, **special})

    def pooled(self, op: str, x: Value, kernel: int = 2) -> Value:
        """A pool of non-overlapping windows, or as the situation has it."""
        attributes = {"strides": (kernel, kernel), **self.situation.pool}
        if op != "AveragePool":
            attributes.pop("count_include_pad", None)
        if self.situation.opset < 10 or (op == "AveragePool" and self.situation.opset < 19):
            attributes.pop("dilations", None)
        if self.situation.opset < 10:
            attributes.pop("ceil_mode", None)
        return self.op(op, x, kernel_shape=(kernel, kernel), **attributes)

    def relu6(self, x: Value) -> Value:
        """Clip in the form of the opset."""
        if self.situation.opset < 11:
            return self.op("Clip", x, min=0.0, max=6.0)
        return self.op("Clip", x, 0.0, 6.0)

    def unsqueezed(self, x: Value, *axes: int) -> Value:
        """Unsqueeze in the form of the opset."""
        if self.situation.opset < 13:
            return self.op("Unsqueeze", x, axes=axes)
        return self.op("Unsqueeze", x, self.shape(*axes))

    def mean(self, x: Value) -> Value:
        """ReduceMean over the pixels in the form of the opset."""
        if self.situation.opset < 18:
            return self.op("ReduceMean", x, axes=(2, 3), keepdims=1)
        return self.op("ReduceMean", x, self.shape(2, 3), keepdims=1)

    def upsampled(self, x: Value) -> Value:
        """Twice the pixels in the form of the opset."""
        scales = self.graph.constant(np.array([1, 1, 2, 2], np.float32))
        if self.situation.opset < 9:
            return self.op("Upsample", x, mode="nearest", scales=(1.0, 1.0, 2.0, 2.0))
        if self.situation.opset < 11:
            return self.op("Upsample" if self.situation.opset < 10 else "Resize", x, scales)
        none = None
        if self.situation.opset < 13:
            none = self.graph.constant(np.zeros(0, np.float32))
        attributes = {
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
            "mode": "nearest",
        }
        return self.op("Resize", x, none, scales, **attributes)


Pattern = Callable[[Situated, Value], Value]


def dead(b: Situated, x: Value) -> Value:
    b.op("Relu", b.conv(x, 4))
    return b.conv(x, 8, 3, pads=(1, 1, 1, 1))


def constant_parts(b: Situated, x: Value) -> Value:
    group = b.situation.group
    w = b.op("Mul", b.weight(8, 8 // group, 1, 1), b.weight(8, 1, 1, 1))
    bias = b.op("Reshape", b.weight(2, 4), b.shape(8))
    x = b.op("Conv", x, w, bias, group=group, **b.situation.narrow)
    batch = b.op("Gather", b.op("Shape", x), b.shape(0), axis=0)
    empty = b.situation.batch == 0  # then -1 would stand for any number
    rest = math.prod(x.shape[1:]) if empty and x.shape else -1
    flat = b.op("Reshape", x, b.op("Concat", batch, b.shape(rest), axis=0))
    return b.op("Add", flat, b.op("Neg", b.number(1.5)))


def nothing_done(b: Situated, x: Value) -> Value:
    x = b.op("Transpose", b.op("Identity", x), perm=(0, 2, 3, 1))
    x = b.op("Transpose", b.op("Mul", x, 1.0), perm=(0, 3, 1, 2))
    x = b.op("Add", b.conv(x, 8), b.number(0.0, 1, 8, 1, 1))
    return b.op("Reshape", b.op("Flatten", x, axis=1), b.shape(0, -1))


def many_spellings(b: Situated, x: Value) -> Value:
    if b.situation.opset < 11:
        x = b.op("Pad", x, pads=(0, 0, 1, 1, 0, 0, 1, 1))
    else:
        x = b.op("Pad", x, b.shape(0, 0, 1, 1, 0, 0, 1, 1))
    x = b.op("Sub", b.op("Div", b.conv(x, 8, 3), b.positive(8, 1, 1)), b.weight(8, 1, 1))
    x = b.op("Sum", b.op("Relu", b.relu6(x)), x, x)
    x = b.mean(b.pooled("AveragePool", x))
    x = b.op("Flatten", x, axis=1)
    return b.op("Gemm", x, b.weight(8, 5), b.weight(5), alpha=0.5, beta=2.0)


def normalized(b: Situated, x: Value) -> Value:
    x = b.batch_norm(b.conv(x, 8, 3, pads=(1, 1, 1, 1)), 8)
    return b.batch_norm(b.conv(b.batch_norm(x, 8), 8), 8)


def scaled(b: Situated, x: Value) -> Value:
    x = b.op("Add", b.op("Mul", x, b.weight(8, 1, 1)), b.weight(1, 8, 1, 1))
    x = b.op("Mul", b.conv(x, 8, 3, pads=(1, 1, 1, 1)), 0.5)
    x = b.op("Relu", b.op("Sub", b.op("Div", x, b.positive(8, 1, 1)), b.weight(1)))
    return b.conv(b.op("Add", x, b.weight(8, 1, 1)), 8)


def repeated(b: Situated, x: Value) -> Value:
    group = b.situation.group
    w, bias = b.weight(8, 8 // group, 1, 1), b.weight(8)
    first, second = (
        b.op("Relu", b.op("Conv", x, w, bias, group=group, **b.situation.narrow)) for _ in "ab"
    )
    return b.op("Mul", first, b.op("Sigmoid", second))


def between_layouts(b: Situated, x: Value) -> Value:
    y = b.op("Transpose", b.conv(x, 8), perm=(0, 2, 3, 1))
    y = b.op("Relu", b.op("Add", y, b.weight(8)))
    return b.conv(b.op("Transpose", y, perm=(0, 3, 1, 2)), 8)


def shuffled(b: Situated, x: Value) -> Value:
    x = b.conv(x, 8, group=1)
    shape = x.tensor.shape
    assert shape is not None
    height, width = shape[2:]
    assert isinstance(height, int)
    assert isinstance(width, int)
    batch = 0 if isinstance(shape[0], str) else shape[0] or 0
    x = b.op("Reshape", x, b.shape(batch, 2, 4, height, width))
    x = b.op("Transpose", x, perm=(0, 2, 1, 3, 4))
    x = b.op("Reshape", x, b.shape(batch, 8, height, width))
    x = b.conv(b.op("Relu", x), 8, 3, pads=(1, 1, 1, 1), group=8)
    return b.conv(x, 8)


def strided(b: Situated, x: Value) -> Value:
    y = b.conv(x, 8, 3, pads=(1, 1, 1, 1))
    y = b.op("Relu", b.op("Add", y, b.conv(x, 8, 3, pads=(1, 1, 1, 1))))
    left, right = (Build.conv(b, y, 8, strides=(2, 2), group=b.situation.group) for _ in range(2))
    return b.op("Concat", left, right, axis=1)


def pooled(b: Situated, x: Value) -> Value:
    x = b.op("Relu", b.pooled("AveragePool", b.conv(x, 32)))
    x = b.op("GlobalAveragePool", b.conv(b.pooled("MaxPool", b.op("Relu", x)), 16))
    return b.op("Flatten", x, axis=1)


def enlarged(b: Situated, x: Value) -> Value:
    x = b.op("Relu", b.conv(b.upsampled(x), 4))
    return b.conv(b.op("Mul", b.upsampled(x), b.weight(4, 1, 1)), 16)


def chained(b: Situated, x: Value) -> Value:
    x = b.conv(b.conv(x, 16), 4)
    x = b.op("Relu", b.conv(b.conv(x, 16, 3, pads=(1, 1, 1, 1)), 4))
    x = b.op(
        "Flatten", b.op("GlobalAveragePool", b.conv(b.conv(x, 64), 4, 3, pads=(1, 1, 1, 1))), axis=1
    )
    x = b.op("Gemm", x, b.weight(4, 9), b.weight(9), alpha=0.5)
    return b.op("Gemm", x, b.weight(3, 9), b.weight(3), transB=1)


def branched(b: Situated, x: Value) -> Value:
    parts = [b.op("Relu", b.conv(x, channels)) for channels in (8, 4, 12)]
    return b.op("Concat", *parts, axis=1)


def added(b: Situated, x: Value) -> Value:
    x = b.op("Relu", b.op("Add", b.conv(x, 8), b.conv(x, 8)))
    other = b.op("Tanh", x)
    y = b.op("Add", b.conv(x, 8), b.conv(other, 8))
    return b.conv(b.op("Concat", y, b.conv(x, 8), axis=1), 8)


def pointwise(b: Situated, x: Value) -> Value:
    group = b.situation.group
    x = b.op("Relu", b.conv(x, 8))
    x = b.conv(x, 8, group=8)
    return b.op("Conv", x, b.weight(16, 8 // group, 1, 1), group=group)


def headed(b: Situated, x: Value) -> Value:
    x = b.conv(x, 4, 3)
    x = b.op("Flatten", x, axis=1)
    width = x.tensor.shape[1] if x.tensor.shape else None
    assert isinstance(width, int)
    x = b.op("Relu", b.op("Gemm", x, b.weight(12, width), b.weight(12), transB=1))
    x = b.op("Add", b.op("MatMul", x, b.weight(12, 7)), b.weight(7))
    return b.op("Gemm", x, b.weight(7, 3), b.weight(1, 3), beta=0.5)


def with_epilogues(b: Situated, x: Value) -> Value:
    y = b.conv(x, 8, 3, pads=(1, 1, 1, 1))
    y = b.op("Mul", y, b.op("Sigmoid", y))
    z = b.op("Relu", b.op("Add", b.conv(y, 8), y)) if _keeps_size(b, y) else b.conv(y, 8)
    gate = b.op("Sigmoid", Build.conv(b, b.op("GlobalAveragePool", z), 8))
    return b.relu6(b.op("Mul", z, gate))


def _keeps_size(b: Situated, x: Value) -> bool:
    return not b.situation.narrow


def elementwise(b: Situated, x: Value) -> Value:
    x = b.batch_norm(b.op("Mul", x, b.op("Sigmoid", x)), 8)
    x = b.op("PRelu", b.op("Sub", x, b.weight(8, 1, 1)), b.weight(8, 1, 1))
    return b.op("Max", b.relu6(b.op("Add", b.op("Abs", x), 1.0)), b.weight(1, 8, 1, 1))


@dataclass(frozen=True)
class Case:
    """A pattern and what it reads."""

    pattern: Pattern
    size: tuple[int, int] = (9, 8)

    def graph(self, situation: Situation) -> Graph:
        """The pattern on one input, or where weights are shared twice on two."""
        b = Situated(situation)
        results = [
            self.pattern(b, b.input(situation.batch, 8, *self.size, name=name))
            for name in ("x", "y")[: 1 + situation.shared]
        ]
        return b.output(*results)


CASES: dict[str, Case] = {
    "canonicalize": Case(many_spellings),
    "collapse-linear-chains": Case(chained, (24, 20)),
    "commute-pooling": Case(pooled, (32, 32)),
    "commute-upsample": Case(enlarged, (16, 16)),
    "convert-fc-head": Case(headed),
    "convert-pointwise": Case(pointwise),
    "eliminate-common-subexpressions": Case(repeated),
    "eliminate-dead-code": Case(dead),
    "eliminate-identity": Case(nothing_done),
    "fold-affine": Case(scaled),
    "fold-batch-norm": Case(normalized),
    "fold-channel-shuffle": Case(shuffled),
    "fold-constants": Case(constant_parts),
    "fuse-elementwise": Case(elementwise),
    "fuse-epilogue": Case(with_epilogues),
    "hoist-stride": Case(strided, (16, 16)),
    "merge-parallel-pointwise": Case(branched, (28, 28)),
    "sink-transpose": Case(between_layouts),
    "sum-of-pointwise": Case(added),
}
