"""Operators that onnx.reference computes too slowly, or by a newer definition than the model's.

Plain NumPy in the element type of the inputs, one loop over the window's taps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pwopt.ir.graph import Node
from pwopt.ir.shapes import explicit_pads, window_output

Arrays = Sequence[np.ndarray | None]
Kernel = Callable[[Node, Arrays, int], list[np.ndarray] | None]


def _array(inputs: Arrays, slot: int) -> np.ndarray:
    array = inputs[slot]
    if array is None:
        raise ValueError(f"operand {slot} is absent")
    return array


def _last(*indices: int | slice) -> Any:
    """An index into the last axes."""
    return (..., *indices)


def _optional(inputs: Arrays, slot: int) -> np.ndarray | None:
    return inputs[slot] if slot < len(inputs) else None


class _Window:
    """A sliding window over the spatial axes of an (N, C, ...) array."""

    def __init__(self, node: Node, x: np.ndarray, kernel: Sequence[int]) -> None:
        n = len(kernel)
        self.kernel = tuple(kernel)
        self.strides = tuple(node.get("strides") or (1,) * n)
        self.dilations = tuple(node.get("dilations") or (1,) * n)
        spatial = x.shape[2:]
        auto = node.get("auto_pad", "NOTSET")
        pads = explicit_pads(
            auto, spatial, self.kernel, self.strides, self.dilations, node.get("pads") or ()
        )
        assert pads is not None
        self.begins, self.ends = pads[:n], pads[n:]
        ceil = bool(node.get("ceil_mode", 0)) and not auto.startswith("SAME")
        out = window_output(
            spatial, self.kernel, self.strides, self.dilations, pads, ceil_mode=ceil
        )
        self.out = tuple(int(d or 0) for d in out)
        # What ceil_mode lets the last window hang over.
        self.overhang = tuple(
            max(0, (o - 1) * s + (k - 1) * d + 1 - size - b - e)
            for o, s, k, d, size, b, e in zip(
                self.out, self.strides, self.kernel, self.dilations, spatial, self.begins,
                self.ends, strict=True,
            )
        )  # fmt: skip

    def pad(self, x: np.ndarray, value: float, overhang: float | None = None) -> np.ndarray:
        """The input with its pads, and past them the overhang (the same value unless given)."""
        widths = [(0, 0), (0, 0), *zip(self.begins, self.ends, strict=True)]
        x = np.pad(x, widths, constant_values=value)
        tail = [(0, 0), (0, 0), *((0, o) for o in self.overhang)]
        return np.pad(x, tail, constant_values=value if overhang is None else overhang)

    def taps(self, padded: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Per position in the window: the position, and what all windows hold there."""
        for tap in itertools.product(*map(range, self.kernel)):
            slices = tuple(
                slice(t * d, t * d + (o - 1) * s + 1, s)
                for t, d, o, s in zip(tap, self.dilations, self.out, self.strides, strict=True)
            )
            yield tap, padded[_last(*slices)]


def conv(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """Conv, one matrix product per window position."""
    x, w, bias = _array(inputs, 0), _array(inputs, 1), _optional(inputs, 2)
    group = int(node.get("group", 1))
    window = _Window(node, x, w.shape[2:])
    batch, out_channels = x.shape[0], w.shape[0]
    grouped = w.reshape(group, out_channels // group, *w.shape[1:])
    y = np.zeros((batch, group, out_channels // group, math.prod(window.out)), x.dtype)
    for tap, part in window.taps(window.pad(x, 0)):
        columns = part.reshape(batch, group, w.shape[1], math.prod(window.out))
        filters = grouped[_last(*tap)]
        y += filters * columns if w.shape[1] == 1 else filters @ columns
    result = y.reshape(batch, out_channels, *window.out)
    return [result if bias is None else result + bias.reshape(-1, *(1,) * len(window.out))]


def conv_transpose(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """ConvTranspose: each input element adds its filter to the output."""
    x, w, bias = _array(inputs, 0), _array(inputs, 1), _optional(inputs, 2)
    n, batch, group = x.ndim - 2, x.shape[0], int(node.get("group", 1))
    strides = node.get("strides") or (1,) * n
    dilations = node.get("dilations") or (1,) * n
    extra = node.get("output_padding") or (0,) * n
    full = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)
    ]
    out_channels = w.shape[1] * group
    y = np.zeros((batch, out_channels, *full), x.dtype)
    columns = x.reshape(batch, group, x.shape[1] // group, math.prod(x.shape[2:]))
    filters = np.moveaxis(w.reshape(group, x.shape[1] // group, *w.shape[1:]), 1, 2)
    for tap in itertools.product(*map(range, w.shape[2:])):
        slices = tuple(
            slice(t * d, t * d + (size - 1) * s + 1, s)
            for t, d, size, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        part = filters[_last(*tap)] @ columns
        y[_last(*slices)] += part.reshape(batch, out_channels, *x.shape[2:])
    y = _crop(node, y, [f + e for f, e in zip(full, extra, strict=True)], x.shape[2:], strides)
    return [y if bias is None else y + bias.reshape(-1, *(1,) * n)]


def _crop(
    node: Node,
    y: np.ndarray,
    full: Sequence[int],
    spatial: Sequence[int],
    strides: Sequence[int],
) -> np.ndarray:
    """A transposed convolution's whole result without its pads."""
    n, auto = len(full), node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted or auto.startswith("SAME"):
        wanted = wanted or [size * s for size, s in zip(spatial, strides, strict=True)]
        sizes = list(wanted)[-n:]
        totals = [max(0, f - size) for f, size in zip(full, sizes, strict=True)]
        begins = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    else:
        pads = node.get("pads") if auto != "VALID" else None
        pads = pads or (0,) * (2 * n)
        begins = list(pads[:n])
        sizes = [f - pads[i] - pads[n + i] for i, f in enumerate(full)]
    grow = [
        max(0, b + s - y.shape[2 + i]) for i, (b, s) in enumerate(zip(begins, sizes, strict=True))
    ]
    y = np.pad(y, [(0, 0), (0, 0), *((0, g) for g in grow)])
    index = _last(*(slice(b, b + s) for b, s in zip(begins, sizes, strict=True)))
    return np.asarray(y[index])


def max_pool(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """MaxPool, with the flat indices of the maxima if wanted."""
    x = _array(inputs, 0)
    window = _Window(node, x, node.attributes["kernel_shape"])
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    y = np.full((*x.shape[:2], *window.out), lowest, x.dtype)
    places = np.zeros(y.shape, np.int64)
    order: Any = "F" if node.get("storage_order", 0) else "C"
    plane = np.arange(math.prod(x.shape[2:])).reshape(x.shape[2:], order=order)
    first = np.arange(x.shape[0] * x.shape[1]) * plane.size
    grid = plane + first.reshape(*x.shape[:2], *(1,) * plane.ndim)
    where = window.taps(window.pad(grid, 0))
    for (_, part), (_, place) in zip(window.taps(window.pad(x, lowest)), where, strict=True):
        places = np.where(part > y, place, places)
        y = np.maximum(y, part)
    return [y, places][: len(node.types)]


def average_pool(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """AveragePool; a window's part beyond the pads never counts."""
    x = _array(inputs, 0)
    window = _Window(node, x, node.attributes["kernel_shape"])
    total = sum(part for _, part in window.taps(window.pad(x, 0)))
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    inside = window.pad(ones, float(bool(node.get("count_include_pad", 0))), overhang=0.0)
    return [np.asarray(total / sum(part for _, part in window.taps(inside)), x.dtype)]


def lp_pool(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """LpPool."""
    x, p = _array(inputs, 0), node.get("p", 2)
    window = _Window(node, x, node.attributes["kernel_shape"])
    total = sum(np.abs(part) ** p for _, part in window.taps(window.pad(x, 0)))
    return [np.asarray(total ** (1.0 / p), x.dtype)]


def global_pool(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """GlobalAveragePool, GlobalMaxPool and GlobalLpPool."""
    x, p = _array(inputs, 0), node.get("p", 2)
    axes = tuple(range(2, x.ndim))
    if node.op == "GlobalMaxPool":
        return [x.max(axis=axes, keepdims=True)]
    if node.op == "GlobalAveragePool":
        return [x.mean(axis=axes, keepdims=True)]
    return [np.sum(np.abs(x) ** p, axis=axes, keepdims=True) ** (1.0 / p)]


def batch_norm(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray] | None:
    """BatchNormalization with given statistics."""
    if node.get("training_mode", 0) or len(node.types) > 1:
        return None
    x, *parameters = (_array(inputs, i) for i in range(5))
    # Statistics of shape (C,), or (C, ...) where the old attribute spatial=0 asks for them.
    ones = (1,) * (x.ndim - 1 - parameters[0].ndim)
    scale, bias, mean, variance = (p.reshape(*p.shape, *ones) for p in parameters)
    return [(x - mean) / np.sqrt(variance + node.get("epsilon", 1e-5)) * scale + bias]


def lrn(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """LRN across channels."""
    x, size = _array(inputs, 0), int(node.attributes["size"])
    alpha, beta = node.get("alpha", 1e-4), node.get("beta", 0.75)
    before = (size - 1) // 2
    widths = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
    squares = np.pad(x * x, widths)
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return [np.asarray(x / (node.get("bias", 1.0) + alpha / size * total) ** beta, x.dtype)]


def softmax(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray] | None:
    """Softmax and its kin before operator set 13, which flatten x to a matrix at ``axis``."""
    if opset >= 13:
        return None
    x = _array(inputs, 0)
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    matrix = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    if node.op == "Hardmax":
        result = np.zeros_like(matrix)
        result[np.arange(len(matrix)), matrix.argmax(axis=1)] = 1
        return [result.reshape(x.shape)]
    shifted = matrix - matrix.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    result = np.exp(shifted) / total if node.op == "Softmax" else shifted - np.log(total)
    return [result.reshape(x.shape)]


def div(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray] | None:
    """Div of integers, which truncates; onnx.reference rounds down."""
    a, b = _array(inputs, 0), _array(inputs, 1)
    if a.dtype.kind != "i" or not b.all():
        return None
    return [np.asarray((a - np.fmod(a, b)) // b, a.dtype)]


def erf(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """Erf."""
    x = _array(inputs, 0)
    flat = (math.erf(v) for v in x.reshape(-1).tolist())
    return [np.fromiter(flat, np.float64, x.size).reshape(x.shape).astype(x.dtype)]


def flatten(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """Flatten; onnx.reference leaves a size to NumPy, which cannot tell it where there is none."""
    x = _array(inputs, 0)
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return [x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))]


def gelu(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray]:
    """Gelu, exact or by tanh."""
    x = _array(inputs, 0)
    if node.get("approximate", "none") == "tanh":
        bent = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        (bent,) = erf(node, [x * math.sqrt(0.5)], opset)
    return [np.asarray(0.5 * x * (1 + bent), x.dtype)]


def pad(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray] | None:
    """Pad by a constant where some pads are negative, which crop."""
    x = _array(inputs, 0)
    pads = node.get("pads") if opset < 11 else _array(inputs, 1).tolist()
    if node.get("mode", "constant") != "constant" or min(pads, default=0) >= 0 or len(inputs) > 3:
        return None
    value = node.get("value", 0.0) if opset < 11 else _optional(inputs, 2)
    widths = [(pads[i], pads[x.ndim + i]) for i in range(x.ndim)]
    x = x[
        tuple(slice(max(0, -b), n - max(0, -e)) for n, (b, e) in zip(x.shape, widths, strict=True))
    ]
    grown = [(max(0, b), max(0, e)) for b, e in widths]
    return [np.pad(x, grown, constant_values=0 if value is None else value)]


def quantize(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray] | None:
    """QuantizeLinear and DequantizeLinear of 8-bit integers, per tensor or per axis."""
    x, scale, zero = _array(inputs, 0), _array(inputs, 1), _optional(inputs, 2)
    quantized = x if node.op == "DequantizeLinear" else zero
    dtype = np.dtype(np.uint8) if quantized is None else quantized.dtype
    if dtype.kind not in "iu" or dtype.itemsize > 4 or node.get("block_size", 0):
        return None
    axis = node.get("axis", 1) % max(1, x.ndim)
    ones = (1,) * (x.ndim - axis - 1)
    scale = scale.reshape(-1, *ones) if scale.ndim else scale
    zero = np.zeros((), dtype) if zero is None else zero
    zero = (zero.reshape(-1, *ones) if zero.ndim else zero).astype(np.int64)
    if node.op == "DequantizeLinear":
        return [(x.astype(np.int64) - zero) * scale]
    # In float32, as the runtimes divide: the quotient decides which way a tie rounds.
    limits = np.iinfo(dtype)
    rounded = np.rint(x.astype(np.float32) / scale.astype(np.float32)) + zero
    return [np.clip(rounded, limits.min, limits.max).astype(dtype)]
