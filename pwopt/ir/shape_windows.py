"""Result types of what slides a window: convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pwopt.errors import IRError
from pwopt.ir.shape_base import Call, Rule, Shape, add, known, product, same
from pwopt.ir.types import Dim, TensorType, Type


def explicit_pads(
    auto_pad: str,
    spatial: Sequence[Dim],
    kernel: Sequence[int],
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
) -> tuple[int, ...] | None:
    """The pads that ``auto_pad`` stands for, in ONNX's order: all begins, then all ends.

    Args:
        auto_pad: NOTSET (or ""), VALID, SAME_UPPER or SAME_LOWER.
        spatial: the input's spatial dimensions.
        kernel: window sizes.
        strides: empty for ones.
        dilations: empty for ones.
        pads: the ``pads`` attribute, empty for zeros; only NOTSET reads it.

    Returns:
        the pads, or None where they depend on a dimension that is not known.
    """
    n = len(kernel)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    if auto_pad in ("", "NOTSET"):
        return tuple(pads) or (0,) * (2 * n)
    if auto_pad == "VALID":
        return (0,) * (2 * n)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise IRError(f"auto_pad {auto_pad!r} is none of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    begins, ends = [], []
    for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
        window = (k - 1) * d + 1
        if isinstance(size, int):
            total = max(0, (-(-size // s) - 1) * s + window - size)
        elif s == 1:
            total = window - 1
        else:
            return None
        small = total // 2
        begins.append(small if auto_pad == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return (*begins, *ends)


def window_output(
    spatial: Sequence[Dim],
    kernel: Sequence[int],
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] | None = (),
    *,
    ceil_mode: bool = False,
) -> Shape:
    """Spatial dimensions after sliding a window.

    Args:
        spatial: the input's spatial dimensions.
        kernel: window sizes.
        strides: empty for ones.
        dilations: empty for ones.
        pads: begins then ends, empty for zeros, None if not known.
        ceil_mode: a last window may hang over the end, if it starts inside the padded input.

    Raises:
        IRError: a window does not fit its padded input.
    """
    n = len(kernel)
    strides, dilations = strides or (1,) * n, dilations or (1,) * n
    if pads is None:
        return (None,) * n
    pads = tuple(pads) or (0,) * (2 * n)
    if len(pads) != 2 * n or len(spatial) != n:
        raise IRError(f"pads {tuple(pads)}, kernel {tuple(kernel)} and {n} axes do not fit")
    result: list[Dim] = []
    for i, (size, k, s, d) in enumerate(zip(spatial, kernel, strides, dilations, strict=True)):
        begin, total, window = pads[i], pads[i] + pads[n + i], (k - 1) * d + 1
        if not isinstance(size, int):
            result.append(size if s == 1 and total == window - 1 else None)
            continue
        room = size + total - window
        if room < 0:
            raise IRError(f"window {window} does not fit spatial size {size} with pads {total}")
        out = room // s + 1
        # The last window must start inside the image or its leading pads, as ONNX defines it.
        if ceil_mode and room % s and out * s < size + begin:
            out += 1
        result.append(out)
    return tuple(result)


def _spatial(call: Call, kernel: Sequence[Dim], shape: Shape) -> Shape:
    """Spatial dimensions of the window result, from the attributes of a convolution or pool."""
    n = len(shape) - 2
    if len(kernel) != n:
        raise IRError(f"kernel {tuple(kernel)} does not fit an input of rank {len(shape)}")
    sizes = tuple(k for k in kernel if isinstance(k, int))
    if len(sizes) != n:
        return (None,) * n
    strides = call.get("strides", ())
    dilations = call.get("dilations", ())
    auto_pad = call.get("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        steps = strides or (1,) * n
        return tuple(
            -(-size // s) if isinstance(size, int) else size if s == 1 else None
            for size, s in zip(shape[2:], steps, strict=True)
        )
    pads = explicit_pads(auto_pad, shape[2:], sizes, strides, dilations, call.get("pads", ()))
    # Before operator set 22 ONNX's text also counted a last window that starts behind the image,
    # but no runtime did.
    ceil = bool(call.get("ceil_mode", 0))
    return window_output(shape[2:], sizes, strides, dilations, pads, ceil_mode=ceil)


def conv(call: Call) -> Sequence[Type]:
    """Conv, standard or internal."""
    x, w = call.shape(0), call.shape(1)
    if x is None or w is None:
        either = x or w
        return call.tensor(None if either is None else _conv_outline(x, w, len(either)))
    if len(x) < 3 or len(x) != len(w):
        raise IRError(f"X {call.type(0)} and W {call.type(1)} differ in rank")
    check_channels(call, x[1], w[0], w[1])
    kernel = call.get("kernel_shape") or w[2:]
    same_kernel = [same(a, b) for a, b in zip(kernel, w[2:], strict=True)]
    return call.tensor((x[0], w[0], *_spatial(call, same_kernel, x)))


def _conv_outline(x: Shape | None, w: Shape | None, rank: int) -> Shape:
    return (x[0] if x else None, w[0] if w else None, *(None,) * (rank - 2))


def check_channels(call: Call, channels: Dim, out_channels: Dim, group_channels: Dim) -> None:
    """Checks that X's and W's channels fit the attribute ``group``."""
    group = call.get("group", 1)
    if group < 1:
        raise IRError(f"group={group}")
    fits = not known(channels, group_channels) or channels == product((group_channels, group))
    if not fits:
        raise IRError(f"X has {channels} channels, W {group_channels} with group={group}")
    if isinstance(out_channels, int) and out_channels % group:
        raise IRError(f"{out_channels} output channels are no multiple of group={group}")


def _conv_transpose(call: Call) -> Sequence[Type]:
    x, w = call.shape(0), call.shape(1)
    if x is None or w is None:
        return call.tensor(None if x is None else (x[0], *(None,) * (len(x) - 1)))
    if len(x) < 3 or len(x) != len(w):
        raise IRError(f"X {call.type(0)} and W {call.type(1)} differ in rank")
    same(x[1], w[0])
    n = len(x) - 2
    channels = w[1] * call.get("group", 1) if isinstance(w[1], int) else None
    output_shape = call.get("output_shape", ())
    if output_shape:
        return call.tensor((x[0], channels, *output_shape[-n:]))
    strides = call.get("strides") or (1,) * n
    dilations = call.get("dilations") or (1,) * n
    extra = call.get("output_padding") or (0,) * n
    pads = call.get("pads") or (0,) * (2 * n)
    auto_pad = call.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = (0,) * (2 * n)
    kernel = call.get("kernel_shape") or w[2:]
    spatial: list[Dim] = []
    for i in range(n):
        size, k, s = x[2 + i], kernel[i], strides[i]
        if auto_pad.startswith("SAME"):
            spatial.append(size * s if isinstance(size, int) else size if s == 1 else None)
        elif not isinstance(k, int):
            spatial.append(None)
        else:
            grow = extra[i] + (k - 1) * dilations[i] + 1 - s - pads[i] - pads[n + i]
            grown = size * s if isinstance(size, int) else size if s == 1 else None
            spatial.append(None if grown is None else add(grown, grow))
    return call.tensor((x[0], channels, *spatial))


def _pool(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    kernel = call.get("kernel_shape")
    known_rank = x is not None and kernel is not None
    shape = (x[0], x[1], *_spatial(call, kernel, x)) if known_rank and x else None
    if call.op == "MaxPool" and call.results == 2:
        return (*call.tensor(shape), TensorType("int64", shape))
    return call.tensor(shape)


def _global_pool(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    return call.tensor(None if x is None else (*x[:2], *(1,) * (len(x) - 2)))


def _depth_to_space(call: Call) -> Sequence[Type]:
    x, block = call.shape(0), call.get("blocksize")
    if x is None or len(x) != 4:
        return call.tensor(None if x is None else (None,) * 4)
    deeper = call.op == "SpaceToDepth"

    def scaled(dim: Dim, up: int, down: int) -> Dim:
        if not isinstance(dim, int):
            return None
        if dim * up % down:
            raise IRError(f"{call.type(0)} does not divide by blocksize={block}")
        return dim * up // down

    if block == 1:
        return call.like()
    area = math.prod((block, block))
    channels = scaled(x[1], area, 1) if deeper else scaled(x[1], 1, area)
    spatial = [scaled(d, 1, block) if deeper else scaled(d, block, 1) for d in x[2:]]
    return call.tensor((x[0], channels, *spatial))


RULES: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth_to_space),
}
