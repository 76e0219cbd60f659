"""Operands of convolutions and matrix products as pairs of bfloat16.

Neighbouring channels make pairs. Where there are but a few, as in a photo, a row of the kernel and
its channels, which are adjacent in channels-last memory, are paired as one axis.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pwopt.ir.graph import Value
from pwopt.targets.cpu.bfloat16 import DTYPE, NEIGHBOURS, PAIR
from pwopt.targets.cpu.kernels.copy import fill
from pwopt.targets.cpu.lowering import FEW_CHANNELS, Lowering
from pwopt.targets.plan import Tensor, place
from pwopt.targets.values import static_shape
from pwopt.targets.views import View, channels_last
from pwopt.targets.windows import Window

# Multiply-adds of an input element from which on the copy, measured 0.08 to 0.15 ns an element, is
# less than what dot products save.
_COPY_MACS = 20


def pays(lowering: Lowering, channels: int, pixels: int, groups: int = 1) -> bool:
    """Whether a product over so many input channels is worth computing from pairs of them.

    Args:
        lowering: of the graph.
        channels: of the input, of all groups.
        pixels: of the result. One pixel's weights may be stored in another way.
        groups: of channels.
    """
    if not lowering.hardware.bf16 or (pixels == 1 and lowering.precision.fc_weights != "fp32"):
        return False
    return channels > FEW_CHANNELS and channels // groups > 1


def pairs(lowering: Lowering, value: Value, border: tuple[int, ...], groups: int) -> Tensor:
    """An image value as pairs of the channels of each group, with at least this zero border.

    Returns:
        A tensor of half as many channels as the value has, rounded up in each group.
    """
    if lowering.tensor(value).view.dtype == DTYPE:
        tensor = lowering.with_border(value, border)
        if not any(border):
            tensor = lowering.channels_last(value)
        view = as_pairs(tensor.view, groups)
        if view is not None:
            return tensor.with_view(view)
    return lowering.shared_copy(
        (value, "pairs", border, groups), lambda: _copied(lowering, value, border, groups)
    )


def rows_pay(lowering: Lowering, channels: int, outputs: int, window: Window) -> bool:
    """Whether a convolution of few channels is worth computing from pairs along kernel rows.

    Args:
        lowering: of the graph.
        channels: of the input; there are no groups.
        outputs: channels of the result.
        window: of the convolution.
    """
    if not lowering.hardware.bf16 or channels > FEW_CHANNELS or window.dilations[1] > 1:
        return False
    macs = outputs * math.prod(window.kernel) / math.prod(window.strides)  # of an input element
    return window.kernel[1] * channels > 1 and macs >= _COPY_MACS


def rows(lowering: Lowering, value: Value, border: tuple[int, ...], window: Window) -> Tensor:
    """An image value of few channels, channels last in bfloat16, with at least this zero border.

    A pair that begins with the last element of a kernel row ends with the first one right of it,
    which a zero weight meets: one more column makes sure that it is a number. Where that pixel is
    infinite the result is not.
    """
    shape = static_shape(value)
    border = border or (0,) * (2 * (len(shape) - 2))
    odd = window.kernel[1] * shape[1] % 2
    border = (*border[:-1], border[-1] + odd)

    def make() -> Tensor:
        label, order = f"{value.label} as bfloat16", channels_last(len(shape))
        target = lowering.bordered(shape, border, order, label, DTYPE)
        lowering.copy_into(lowering.tensor(value), target)
        if any(border):
            lowering.zero_border(target, border)
        return target.with_view(replace(target.view, dtype=NEIGHBOURS))

    return lowering.shared_copy((value, "rows", border), make)


def by_rows(x: View, weight: np.ndarray, window: Window) -> tuple[View, np.ndarray, Window]:
    """A convolution of :func:`rows` as one with a kernel of width 1.

    Args:
        x: the image (N, H, W, IC).
        weight: (OC, IC, KH, KW).
        window: of the convolution.

    Returns:
        an image whose channels are the pairs of a kernel row (N, H, W, KW * IC / 2, rounded up),
        weights (OC, KW * IC, KH, 1), and their window.
    """
    outputs, channels, height, width = weight.shape
    taps = width * channels
    view = View((*x.shape[:3], -(-taps // 2)), (*x.strides[:3], 2), x.offset, NEIGHBOURS)
    weight = weight.transpose(0, 3, 1, 2).reshape(outputs, taps, height, 1)
    return view, weight, replace(window, kernel=(height, 1))


def elements(view: View) -> View:
    """Pairs of an (N, H, W, C / 2) view as the bfloat16 elements that they are."""
    *outer, channels = view.shape
    strides = (*(2 * s for s in view.strides[:3]), 1)
    return View((*outer, 2 * channels), strides, 2 * view.offset, DTYPE)


def row_pairs(lowering: Lowering, tensor: Tensor) -> Tensor:
    """A matrix (M, K) as pairs (M, K / 2, rounded up) along its rows."""
    rows, depth = tensor.view.shape
    view = as_pairs(tensor.view, 1) if tensor.view.dtype == DTYPE else None
    if view is None:
        even = View.dense((rows, depth + depth % 2), DTYPE)
        made = Tensor(lowering.workspace(even, f"{tensor.buffer.label} as bfloat16"), even)
        _clear(lowering, made, depth % 2)
        lowering.copy_into(tensor, made.with_view(made.view.slice(1, 0, depth)))
        tensor, view = made, as_pairs(even, 1)
        assert view is not None
    return tensor.with_view(view)


def _copied(lowering: Lowering, value: Value, border: tuple[int, ...], groups: int) -> Tensor:
    """A copy in bfloat16, with a zero beside the last channel of groups of an odd number."""
    tensor = lowering.tensor(value)
    n, channels, *spatial = static_shape(value)
    each = channels // groups
    even = each + each % 2
    border = border or (0,) * (2 * len(spatial))
    shape, order = (n, groups * even, *spatial), channels_last(2 + len(spatial))
    target = lowering.bordered(shape, border, order, f"{value.label} as bfloat16", DTYPE)
    _clear(lowering, target, even - each)
    for group in range(groups if even > each else 1):
        count = each if even > each else channels
        lowering.copy_into(
            tensor.with_view(tensor.view.slice(1, group * each, count)),
            target.with_view(target.view.slice(1, group * even, count)),
        )
    if any(border):
        lowering.zero_border(target, border)
    view = as_pairs(target.view, groups)
    assert view is not None
    return target.with_view(view)


def _clear(lowering: Lowering, tensor: Tensor, odd: int) -> None:
    if odd:
        pointer, view = place(tensor)
        lowering.emit(fill, (view, 0.0, lowering.hardware, lowering.threads), (pointer,))


def as_pairs(view: View, groups: int = 1, axis: int = 1) -> View | None:
    """A view with neighbours along an axis of channels as one element, where that can be."""
    shape, strides = list(view.shape), list(view.strides)
    if strides[axis] != 1 or shape[axis] // groups % 2:
        return None
    if view.offset % 2 or any(s % 2 for a, s in enumerate(strides) if a != axis):
        return None
    shape[axis] //= 2
    halves = [1 if a == axis else s // 2 for a, s in enumerate(strides)]
    return View(tuple(shape), tuple(halves), view.offset // 2, PAIR)
