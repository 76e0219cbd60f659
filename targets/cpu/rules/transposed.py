"""Rule for transposed convolutions: one ordinary convolution for each phase of the stride.

Output pixel ``o = s*q + a`` reads input ``q + c - j`` with tap ``k0 + s*j``, where
``k0 = (a + pad) % s`` and ``c = (a + pad) // s``. So the outputs of one phase ``a`` are a plain
convolution with every s-th tap, written through a view of stride s; nothing is multiplied by zero.
Phases that read the same windows (2x2 with stride 2) are channels of one convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pwopt.hardware import Hardware
from pwopt.ir.graph import Node
from pwopt.ir.program import Program
from pwopt.targets.cpu.kernels.conv import conv, pack_conv
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.rules.weights import packed_weights
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import Tensor, place
from pwopt.targets.transposed import Phase, transposed_of
from pwopt.targets.values import image_tensor, static_shape
from pwopt.targets.windows import Window


def conv_transpose(lowering: Lowering, node: Node) -> None:
    """ConvTranspose of one or two spatial axes without dilation."""
    x = lowering.required(node, 0)
    layer = transposed_of(lowering, node)
    oihw, bias_array, groups, phases = layer.oihw, layer.bias, layer.groups, layer.phases
    sizes = static_shape(x)[2:]
    border = tuple(
        max(phase.border(size)[side] for phase in axis)
        for axis, size in zip(phases, sizes, strict=True)
        for side in (0, 1)
    )
    source = lowering.with_border(x, border) if any(border) else lowering.channels_last(x)
    result = lowering.result(node.out)
    together = _together(phases, result, groups, lowering.hardware)
    for chosen in itertools.product(*together):
        _emit(lowering, node, source, result, oihw, bias_array, chosen, groups)


Run = tuple[Phase, ...]  # phases of one axis that one convolution computes, as channels


def _together(
    phases: Sequence[list[Phase]], result: Tensor, groups: int, hardware: Hardware
) -> list[list[Run]]:
    """The phases of each axis, joined where they read the same windows and their results allow.

    Neighbours in a row are then channels of one pixel; rows follow where a vector holds both. So
    the input is read once and not once a phase, and a lone channel does not waste the vector.
    """
    split: list[list[Run]] = [[(phase,) for phase in axis] for axis in phases]
    channels, alike = result.view.shape[1], [_alike(axis) for axis in phases]
    if groups > 1 or not alike[-1] or result.view.strides[-1] != channels:
        return split
    joined = [*split[:-1], [tuple(phases[-1])]]
    if len(phases) > 1 and alike[0] and result.view.dtype == "float32":
        channels *= len(phases[-1]) * len(phases[0])
        if channels <= hardware.for_channels(channels).lanes:
            joined[0] = [tuple(phases[0])]
    return joined


def _alike(axis: Sequence[Phase]) -> bool:
    return len({(p.outputs, len(p.taps), p.pad) for p in axis}) == 1


def _emit(
    lowering: Lowering,
    node: Node,
    source: Tensor,
    result: Tensor,
    oihw: np.ndarray,
    bias: np.ndarray | None,
    runs: tuple[Run, ...],
    groups: int,
) -> None:
    """One convolution: the phases of each axis in ``runs`` at once."""
    view, strides = result.view, node.get("strides", (1,) * len(runs))
    for axis, (run, stride) in enumerate(zip(runs, strides, strict=True)):
        view = view.slice(2 + axis, run[0].start, run[0].outputs, stride)
    (xp, xv), (yp, yv) = place(image_tensor(source)), place(image_tensor(result.with_view(view)))
    pads = tuple(run[0].pad for run in runs)
    weight = np.concatenate(
        [
            oihw[np.ix_(range(oihw.shape[0]), range(oihw.shape[1]), *(p.taps for p in phases))]
            for phases in itertools.product(*runs)
        ]
    )
    if len(runs) == 1:
        weight, pads = weight[:, :, None, :], (0, *pads)
    count = weight.shape[0] // oihw.shape[0]
    bias = None if bias is None else np.tile(bias, count)
    yv = replace(yv, shape=(*yv.shape[:3], weight.shape[0]))
    folded: dict[str, Any] = {}
    if len(runs) > 1 and len(runs[0]) > 1:
        folded["folded"] = (weight.shape[0] // len(runs[0]), result.view.strides[2])
    window = Window((weight.shape[2], weight.shape[3]), pads=(pads[0], pads[1]))
    hardware = lowering.hardware.for_channels(weight.shape[0] // groups)
    geometry = Geometry(xv, yv, (), window, groups, hardware.lanes)
    tile = lowering.tile("conv", geometry, hardware)
    w, b = packed_weights(
        lowering,
        (conv_transpose, node.out, runs),
        lambda: pack_conv(weight, bias, groups, tile, hardware.lanes),
    )
    arguments = (xv, yv, window, groups, Program(), (), hardware, tile, lowering.threads)
    lowering.emit(conv, arguments, (xp, w, b, yp), **folded)


RULES: dict[tuple[str, str], Rule] = {("", "ConvTranspose"): conv_transpose}
