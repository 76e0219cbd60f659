"""Rules for convolutions, pointwise convolutions and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pwopt.cost_model import cost_model
from pwopt.hardware import Hardware
from pwopt.ir.graph import KERNEL_DOMAIN, Node, Value
from pwopt.ir.program import Program
from pwopt.targets.cpu.bfloat16 import NEIGHBOURS, PAIR
from pwopt.targets.cpu.kernels.conv import conv, pack_conv
from pwopt.targets.cpu.kernels.depthwise import depthwise, pack_depthwise
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.tiling import Tile, candidates, choose_tile
from pwopt.targets.cpu.kernels.winograd import pack_winograd, winograd
from pwopt.targets.cpu.kernels.winograd_tiling import (
    WinogradTile,
    choose_winograd,
    winograd_candidates,
    workspace_bytes,
)
from pwopt.targets.cpu.kernels.winograd_transforms import transforms_safely
from pwopt.targets.cpu.lowering import FEW_CHANNELS, Lowering
from pwopt.targets.cpu.rules import bf16
from pwopt.targets.cpu.rules.weights import (
    kernel_kind,
    packed_weights,
    weight_dtype,
)
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import Buffer, Pointer, Tensor, place
from pwopt.targets.reading import Convolution, convolution_of
from pwopt.targets.rules import epilogue_operand
from pwopt.targets.values import image_tensor, static_shape
from pwopt.targets.windows import Window


def convolution(lowering: Lowering, node: Node) -> None:
    """Conv of one or two spatial axes, or a pointwise one of up to three, with its epilogue."""
    layer = convolution_of(lowering, node)
    tensor = _input(lowering, node, layer.border, layer.window)
    _emit(lowering, node, tensor, layer)


def _emit(lowering: Lowering, node: Node, x: Tensor, asked: Convolution) -> None:
    weight, bias, extras = asked.weight, asked.bias, asked.extras
    window, groups = asked.window, asked.groups
    if 0 in static_shape(node.out):
        lowering.result(node.out)
        return
    program = asked.program
    bias_array = None if bias is None else lowering.array(bias)
    placed_extras = [place(epilogue_operand(lowering, e, node.out)) for e in extras]
    extra_views = tuple(v for _, v in placed_extras)
    xp, xv = place(image_tensor(x))
    if xv.dtype == NEIGHBOURS:
        xv, weight, window = bf16.by_rows(xv, weight, window)
    yp, yv = place(image_tensor(lowering.result(node.out)))
    channels = weight.shape[0]
    is_depthwise = weight.shape[1] == 1 and groups == channels > 1 and xv.strides[3] == 1
    hardware = lowering.hardware
    if not is_depthwise or channels < 4 * hardware.lanes:
        # Not so wide depthwise ones, which lose as much to shorter loads.
        hardware = hardware.for_channels(channels if is_depthwise else channels // groups)
    layer = _Layer(
        lowering,
        # Nodes that share weights share their packing.
        (lowering.required(node, 1), bias),
        (weight, bias_array),
        Geometry(xv, yv, extra_views, window, groups, hardware.lanes),
        program,
        hardware,
    )
    call = layer.depthwise() if is_depthwise else layer.full()
    pointers = (xp, *call.weights, *(p for p, _ in placed_extras), *call.space, yp)
    in_place = None
    for i, (view, value) in enumerate(zip(extra_views, extras, strict=True)):
        if view == yv and lowering.array(value) is None:
            in_place = (3 + i, len(pointers) - 1)
    lowering.emit(
        call.factory,
        call.arguments,
        pointers,
        writes=range(len(pointers) - 1 - len(call.space), len(pointers)),
        in_place=in_place,
        variant=call.variant,
        **call.keywords,
    )


@dataclass(frozen=True)
class _Call:
    """A kernel for a layer: its arguments, packed weights, workspace if any, and algorithm."""

    factory: Callable[..., Any]
    arguments: tuple[Any, ...]
    weights: tuple[Pointer, Pointer]
    space: tuple[Pointer, ...] = ()
    variant: str = ""
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Layer:
    """A convolution whose operands are placed, and the kernels that can compute it."""

    lowering: Lowering
    key: tuple[Value, Value | None]
    arrays: tuple[np.ndarray, np.ndarray | None]
    geometry: Geometry
    program: Program
    hardware: Hardware

    def depthwise(self) -> _Call:
        """One input channel for each output channel."""
        g, lanes = self.geometry, self.hardware.lanes
        weights = packed_weights(
            self.lowering, (depthwise, *self.key), lambda: pack_depthwise(*self.arrays, lanes)
        )
        arguments = (g.x, g.y, g.window, self.program, g.extras)
        return _Call(depthwise, (*arguments, self.hardware, self.lowering.threads), weights)

    def full(self) -> _Call:
        """Any convolution, directly or by Winograd's algorithm."""
        g, hardware, lowering = self.geometry, self.hardware, self.lowering
        sides = lowering.winograd_sides
        stored = weight_dtype(lowering, g.x, math.prod(g.y.shape[:3]))
        usual = stored in ("float32", PAIR) and g.x.dtype != NEIGHBOURS
        sides = sides if usual and transforms_safely(self.arrays[0]) else ()
        # What Winograd's algorithm, which computes in float32, would read.
        wide = replace(g, x=bf16.elements(g.x)) if g.x.dtype == PAIR else g
        sides = sides if wide.in_channels == self.arrays[0].shape[1] else ()  # no zeros in pairs
        model = cost_model(hardware, lowering.precision)
        streamed = model.weight_level(lowering.graph) == "dram"

        def rule() -> Tile | WinogradTile:
            threads = lowering.threads
            fast = choose_winograd(wide, sides, hardware, threads, streamed=streamed, otherwise=g)
            return fast or choose_tile(g, hardware)

        def tiles() -> Iterator[Tile | WinogradTile]:
            yield from winograd_candidates(wide, sides, hardware, lowering.threads)
            yield from candidates(g, hardware)

        tile = lowering.schedule(f"{kernel_kind('conv', stored)} {g}", rule, tiles)
        if isinstance(tile, WinogradTile):
            return replace(self, geometry=wide)._winograd(tile)
        return self._direct(tile, stored)

    def _direct(self, tile: Tile, stored: str) -> _Call:
        g = self.geometry
        weights = packed_weights(
            self.lowering,
            (conv, *self.key, g.groups, tile.nrv, g.lanes, stored),
            lambda: pack_conv(*self.arrays, g.groups, tile, g.lanes, stored),
        )
        return _Call(conv, self._arguments(tile), weights, keywords={"weights": stored})

    def _winograd(self, tile: WinogradTile) -> _Call:
        lowering, g = self.lowering, self.geometry
        weights = packed_weights(
            lowering,
            (winograd, *self.key, g.groups, tile.m, tile.nrv, g.lanes),
            lambda: pack_winograd(*self.arrays, g.groups, tile, g.lanes),
        )
        size = workspace_bytes(g, tile, lowering.threads)
        space = Pointer(Buffer("workspace", size, f"{self.key[0].label} transformed"))
        variant = tile.variant(g.window)
        return _Call(winograd, self._arguments(tile), weights, (space,), variant)

    def _arguments(self, tile: Tile | WinogradTile) -> tuple[Any, ...]:
        g = self.geometry
        views = (g.x, g.y, g.window, g.groups, self.program, g.extras)
        return (*views, self.hardware, tile, self.lowering.threads)


def _input(lowering: Lowering, node: Node, border: tuple[int, ...], window: Window) -> Tensor:
    """The input with its border, as pairs for bfloat16; else a photo's few channels stay."""
    x = lowering.required(node, 0)
    groups, (batch, outputs, *sizes) = node.get("group", 1), static_shape(node.out)
    channels = static_shape(x)[1]
    if bf16.pays(lowering, channels, batch * math.prod(sizes), groups):
        return bf16.pairs(lowering, x, border, groups)
    if groups == 1 and len(sizes) < 3 and bf16.rows_pay(lowering, channels, outputs, window):
        return bf16.rows(lowering, x, border, window)
    if any(border):
        return lowering.with_border(x, border)
    tensor = lowering.tensor(x)
    return tensor if tensor.view.shape[1] <= FEW_CHANNELS else lowering.channels_last(x)


RULES: dict[tuple[str, str], Rule] = {
    (KERNEL_DOMAIN, "Conv"): convolution,
    ("", "Conv"): convolution,
    (KERNEL_DOMAIN, "Pointwise"): convolution,
}
