"""Operands of convolutions and matrix products as pairs of bfloat16 channels."""

from __future__ import annotations

from pwopt.ir.graph import Value
from pwopt.targets.cpu.bfloat16 import DTYPE, PAIR
from pwopt.targets.cpu.kernels.copy import fill
from pwopt.targets.cpu.lowering import FEW_CHANNELS, Lowering, static_shape
from pwopt.targets.cpu.plan import Tensor, place
from pwopt.targets.cpu.views import View, channels_last


def pays(lowering: Lowering, channels: int, pixels: int, groups: int = 1) -> bool:
    """Whether a product over so many input channels is worth computing from pairs.

    The few channels of a photo would mostly be multiplied by zeros, and have to be reordered.

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
        view = _as_pairs(tensor.view, groups)
        if view is not None:
            return tensor.with_view(view)
    return lowering.shared_copy(
        (value, "pairs", border, groups), lambda: _copied(lowering, value, border, groups)
    )


def elements(view: View) -> View:
    """Pairs of an (N, H, W, C / 2) view as the bfloat16 elements that they are."""
    *outer, channels = view.shape
    strides = (*(2 * s for s in view.strides[:3]), 1)
    return View((*outer, 2 * channels), strides, 2 * view.offset, DTYPE)


def row_pairs(lowering: Lowering, tensor: Tensor) -> Tensor:
    """A matrix (M, K) as pairs (M, K / 2, rounded up) along its rows."""
    rows, depth = tensor.view.shape
    view = _as_pairs(tensor.view, 1) if tensor.view.dtype == DTYPE else None
    if view is None:
        even = View.dense((rows, depth + depth % 2), DTYPE)
        made = Tensor(lowering.workspace(even, f"{tensor.buffer.label} as bfloat16"), even)
        _clear(lowering, made, depth % 2)
        lowering.copy_into(tensor, made.with_view(made.view.slice(1, 0, depth)))
        tensor, view = made, _as_pairs(even, 1)
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
    view = _as_pairs(target.view, groups)
    assert view is not None
    return target.with_view(view)


def _clear(lowering: Lowering, tensor: Tensor, odd: int) -> None:
    if odd:
        pointer, view = place(tensor)
        lowering.emit(fill, (view, 0.0, lowering.hardware, lowering.threads), (pointer,))


def _as_pairs(view: View, groups: int) -> View | None:
    """A channels-last view with neighbouring channels as one element, where that can be."""
    shape, strides = list(view.shape), list(view.strides)
    if strides[1] != 1 or shape[1] // groups % 2:
        return None
    if view.offset % 2 or any(s % 2 for a, s in enumerate(strides) if a != 1):
        return None
    shape[1] //= 2
    halves = [1 if a == 1 else s // 2 for a, s in enumerate(strides)]
    return View(tuple(shape), tuple(halves), view.offset // 2, PAIR)
