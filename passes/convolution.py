"""What a standard Conv says once its defaults are filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import Dim
from pwopt.passes.rewriting import text

DTYPE = "float32"


@dataclass(frozen=True)
class Convolution:
    """A convolution with constant weights and explicit pads.

    Attributes:
        x: (N, C, *spatial).
        weight: the constant (M, C/group, *kernel), ``kernel`` its array.
        bias: the constant (M), or None.
        strides, dilations: one per spatial axis.
        pads: begins, then ends.
        group: number of groups.
    """

    x: Value
    weight: Value
    kernel: np.ndarray
    bias: Value | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the internal ``Conv``, its epilogue left out."""
        return {
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": self.pads,
            "group": self.group,
        }


def read(graph: Graph, node: Node) -> Convolution | str:
    """The convolution that a standard Conv stands for, or why it is none that kernels compute."""
    x, weight, *rest = graph.operands(node)
    bias = rest[0] if rest else None
    assert x is not None
    assert weight is not None
    kernel = graph.constant_value(weight)
    if x.tensor.dtype != DTYPE:
        return f"its element type is {x.tensor.dtype or 'unknown'}"
    if kernel is None:
        return "its weights are not constant"
    if bias is not None and graph.constant_value(bias) is None:
        return "its bias is not constant"
    if kernel.size == 0:
        return "its weights are empty"
    rank = kernel.ndim - 2
    strides = tuple(node.get("strides", (1,) * rank))
    dilations = tuple(node.get("dilations", (1,) * rank))
    pads = _pads(node, x.tensor.shape, kernel.shape[2:], strides, dilations)
    if isinstance(pads, str):
        return pads
    return Convolution(x, weight, kernel, bias, strides, dilations, pads, node.get("group", 1))


def _pads(
    node: Node,
    shape: tuple[Dim, ...] | None,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...] | str:
    auto = text(node, "auto_pad", "NOTSET")
    if auto == "NOTSET":
        return tuple(node.get("pads", (0,) * (2 * len(kernel))))
    if auto == "VALID":
        return (0,) * (2 * len(kernel))
    begins, ends = [], []
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = None if shape is None else shape[2 + axis]
        extent = (k - 1) * dilation + 1
        if k == 1:
            total = 0
        elif stride == 1:
            total = extent - 1
        elif isinstance(size, int):
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        else:
            return f"auto_pad {auto} needs the size of {node.label}'s input"
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return (*begins, *ends)
