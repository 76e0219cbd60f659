"""Transposed convolutions as one ordinary convolution for each phase of the stride.

Output pixel ``o = s*q + a`` reads input ``q + c - j`` with tap ``k0 + s*j``, where
``k0 = (a + pad) % s`` and ``c = (a + pad) // s``. So the outputs of one phase ``a`` are a plain
convolution with every s-th tap, written through a view of stride s; nothing is multiplied by zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pwopt.ir.graph import Node
from pwopt.targets.lowering import Lowering
from pwopt.targets.values import Unsupported, require_float, static_shape


@dataclass(frozen=True)
class Phase:
    """The outputs ``start, start + stride, ...`` of one axis as a convolution.

    Attributes:
        start, outputs: where they are and how many.
        taps: indices into the kernel in the order of a correlation.
        pad: elements that the first window starts before the input; may be negative.
    """

    start: int
    outputs: int
    taps: tuple[int, ...]
    pad: int

    def border(self, size: int) -> tuple[int, int]:
        """Zeros wanted before and after an input of ``size`` elements."""
        last = self.outputs - 1 - self.pad + len(self.taps) - 1
        return max(0, self.pad), max(0, last - (size - 1))


@dataclass(frozen=True)
class Transposed:
    """A ConvTranspose.

    Attributes:
        oihw: weights (M, C/G, ...) as of a convolution, taps in ONNX's order.
        bias: (M,) or none.
        groups: of channels.
        phases: of each spatial axis.
    """

    oihw: np.ndarray
    bias: np.ndarray | None
    groups: int
    phases: list[list[Phase]]


def transposed_of(lowering: Lowering, node: Node) -> Transposed:
    """What a ConvTranspose of one or two spatial axes asks for.

    Raises:
        Unsupported: it has dilation, three spatial axes, or a kernel smaller than its stride.
    """
    x = lowering.required(node, 0)
    require_float(x, node.out)
    weight = lowering.constant_array(node, 1, "weight")
    bias = lowering.graph.operand(node, 2)
    bias_array = None if bias is None else lowering.constant_array(node, 2, "bias")
    spatial = weight.ndim - 2
    if spatial not in (1, 2) or any(d != 1 for d in node.get("dilations", ())):
        raise Unsupported("a transposed convolution with dilation or three spatial axes")
    groups, out = node.get("group", 1), static_shape(node.out)
    strides = node.get("strides", (1,) * spatial)
    sizes = static_shape(x)[2:]
    phases = [
        _phases(
            weight.shape[2 + i], strides[i], _pad(node, i, sizes[i], out[2 + i], weight), out[2 + i]
        )
        for i in range(spatial)
    ]
    return Transposed(_as_correlation(weight, groups), bias_array, groups, phases)


def _as_correlation(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights (C, M/G, ...) as a convolution's (M, C/G, ...), taps in ONNX's order."""
    channels, per_group = weight.shape[:2]
    split = weight.reshape(groups, channels // groups, per_group, *weight.shape[2:])
    return split.swapaxes(1, 2).reshape(groups * per_group, channels // groups, *weight.shape[2:])


def _phases(kernel: int, stride: int, pad: int, outputs: int) -> list[Phase]:
    found = []
    for start in range(min(stride, outputs)):
        first, shift = (start + pad) % stride, (start + pad) // stride
        taps = tuple(reversed(range(first, kernel, stride)))
        if not taps:
            raise Unsupported("a kernel smaller than its stride")
        count = -(-(outputs - start) // stride)
        found.append(Phase(start, count, taps, len(taps) - 1 - shift))
    return found


def _pad(node: Node, axis: int, size: int, output: int, weight: np.ndarray) -> int:
    """The padding at the start of an axis, after auto_pad and output_shape."""
    kernel, spatial = weight.shape[2 + axis], weight.ndim - 2
    stride = node.get("strides", (1,) * spatial)[axis]
    auto = node.get("auto_pad", "NOTSET")
    if auto == "NOTSET" and "output_shape" not in node.attributes:
        return int(node.get("pads", (0,) * (2 * spatial))[axis])
    if auto == "VALID":
        return 0
    extra = node.get("output_padding", (0,) * spatial)[axis]
    total: int = max(0, stride * (size - 1) + extra + kernel - output)
    return total // 2 if auto == "SAME_UPPER" else total - total // 2
