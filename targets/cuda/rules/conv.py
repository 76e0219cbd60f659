"""Rules for convolutions: depthwise, of a few rows, or as a product on tensor cores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, Node
from pwopt.ir.program import Program
from pwopt.targets.cuda.kernels.conv import conv
from pwopt.targets.cuda.kernels.depthwise import depthwise, depthwise_lanes, pack_depthwise
from pwopt.targets.cuda.kernels.gemv import gemv, pack_gemv
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.packing import pack_conv
from pwopt.targets.cuda.kernels.tiling import (
    Tile,
    choose_tile,
    counters,
    cycles,
    ranked,
    workspace_bytes,
)
from pwopt.targets.cuda.kernels.wgmma import wgmma
from pwopt.targets.cuda.kernels.wgmma_tiling import (
    Shape,
    WgmmaTile,
    choose_wgmma,
    pack_wgmma,
    predicted_cycles,
    ranked_wgmma,
    takes,
)
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import Buffer, Pointer, Tensor, place
from pwopt.targets.reading import convolution_of
from pwopt.targets.rules import epilogue_operand
from pwopt.targets.transposed import transposed_of
from pwopt.targets.values import image_tensor
from pwopt.targets.views import View
from pwopt.targets.windows import Window

FEW_ROWS = 4  # of a product that reads its matrix once without tensor cores


@dataclass(frozen=True)
class Filters:
    """What a convolution multiplies by.

    Attributes:
        key: identifies the weights, so that nodes that share them share their packing.
        weight: (M, C/G, height, width).
        bias: (M,) or none.
        window: strides, dilations and padding.
        groups: of channels.
        program: the epilogue.
    """

    key: tuple[Any, ...]
    weight: np.ndarray
    bias: np.ndarray | None
    window: Window
    groups: int = 1
    program: Program = Program()  # noqa: RUF009 - it is immutable

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel has one input channel of its own."""
        return bool(self.weight.shape[1] == 1 and self.groups == self.weight.shape[0] > 1)

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a product over pixels."""
        return self.groups == 1 and self.window == Window()


def convolution(lowering: CudaLowering, node: Node) -> None:
    """Conv of one or two spatial axes, or a pointwise one of up to three, with its epilogue."""
    asked = convolution_of(lowering, node)
    key = (lowering.required(node, 1), asked.bias)
    bias = None if asked.bias is None else lowering.array(asked.bias)
    filters = Filters(key, asked.weight, bias, asked.window, asked.groups, asked.program)
    extras = [epilogue_operand(lowering, e, node.out) for e in asked.extras]
    owned = [lowering.array(e) is None for e in asked.extras]
    result = image_tensor(lowering.result(node.out))
    source = image_tensor(lowering.tensor(lowering.required(node, 0)))
    convolve(lowering, source, filters, result, extras, owned)


def conv_transpose(lowering: CudaLowering, node: Node) -> None:
    """ConvTranspose: one convolution for each phase of its stride."""
    asked = transposed_of(lowering, node)
    source = image_tensor(lowering.tensor(lowering.required(node, 0)))
    result = lowering.result(node.out)
    spatial = len(asked.phases)
    strides = node.get("strides", (1,) * spatial)
    for number, chosen in enumerate(itertools.product(*asked.phases)):
        view = result.view
        for axis, (phase, stride) in enumerate(zip(chosen, strides, strict=True)):
            view = view.slice(2 + axis, phase.start, phase.outputs, stride)
        taps = np.ix_(*map(range, asked.oihw.shape[:2]), *(phase.taps for phase in chosen))
        weight, pads = asked.oihw[taps], tuple(phase.pad for phase in chosen)
        if spatial == 1:
            weight, pads = weight[:, :, None, :], (0, *pads)
        window = Window((weight.shape[2], weight.shape[3]), pads=(pads[0], pads[1]))
        filters = Filters((node.out, number), weight, asked.bias, window, asked.groups)
        target = image_tensor(result.with_view(view))
        convolve(lowering, source, filters, target)


def convolve(
    lowering: CudaLowering,
    x: Tensor,
    filters: Filters,
    result: Tensor,
    extras: Sequence[Tensor] = (),
    owned: Sequence[bool] = (),
) -> None:
    """Calls the kernel, or kernels, of a convolution.

    Args:
        lowering: where to.
        x: the input, as (N, H, W, C).
        filters: what it is multiplied by.
        result: where to write, as (N, H, W, C).
        extras: operands of the epilogue in the result's shape.
        owned: which of them are results of nodes, so that the result may replace them.
    """
    if not result.view.elements:
        return
    call = _Call(lowering, x, filters, result, tuple(extras), tuple(owned))
    if filters.is_depthwise:
        call.depthwise()
    elif (rows := call.rows()) is not None:
        call.few_rows(rows)
    else:
        call.product()


@dataclass(frozen=True)
class _Call:
    """A convolution whose result is placed, and the kernels that can compute it."""

    lowering: CudaLowering
    x: Tensor
    filters: Filters
    result: Tensor
    extras: tuple[Tensor, ...]
    owned: tuple[bool, ...]

    def depthwise(self) -> None:
        """One input channel for each output channel."""
        f = self.filters
        x = self.lowering.aligned(self.x)
        lanes = depthwise_lanes(x.view)
        weights = self.lowering.weights(
            (depthwise, *f.key, lanes), lambda: pack_depthwise(f.weight, f.bias, lanes)
        )
        xp, xv = place(x)
        yp, yv = place(self.result)
        placed = [place(e) for e in self.extras]
        views = tuple(v for _, v in placed)
        self._emit(depthwise, (xv, yv, f.window, f.program, views), xp, weights, placed, (yp, yv))

    def rows(self) -> Tensor | None:
        """The input as a few contiguous rows that a matrix is multiplied by, if it is such."""
        f, view = self.filters, self.x.view
        pixels = math.prod(self.result.view.shape[:3])
        shown = all(_as_matrix(t.view) is not None for t in (self.result, *self.extras))
        if f.groups > 1 or pixels > FEW_ROWS or not shown:
            return None
        whole = f.window.kernel == view.shape[1:3] and self.result.view.shape[1:3] == (1, 1)
        if not f.is_pointwise and (not whole or f.window.pads != (0, 0)):
            return None
        x = self.lowering.aligned(self.x)
        flat = x.view.reshape((pixels, view.elements // pixels))
        return None if flat is None else x.with_view(flat)

    def few_rows(self, rows: Tensor) -> None:
        """A product of a few rows and the matrix of the filters, taps and channels as one axis."""
        f = self.filters

        def pack() -> tuple[np.ndarray, np.ndarray]:
            matrix = f.weight.transpose(2, 3, 1, 0).reshape(-1, f.weight.shape[0])
            return pack_gemv(matrix, f.bias)

        weights = self.lowering.weights((gemv, *f.key), pack)
        xp, xv = place(rows)
        (yp, yv), *placed = (self._matrix(t) for t in (self.result, *self.extras))
        views = tuple(v for _, v in placed)
        self._emit(gemv, (xv, yv, f.program, views), xp, weights, placed, (yp, yv))

    def product(self) -> None:
        """As a product whose rows are pixels."""
        f, lowering = self.filters, self.lowering
        x = lowering.stem(self.x) if self._is_stem else lowering.aligned(self.x)
        xp, xv = place(x)
        yp, yv = place(self.result)
        placed = [place(e) for e in self.extras]
        missing = xv.shape[3] - f.weight.shape[1] * f.groups  # channels of zeros
        weight = np.pad(f.weight, ((0, 0), (0, missing), (0, 0), (0, 0)))
        geometry = Geometry(xv, yv, tuple(v for _, v in placed), f.window, f.groups)
        tile = self._tile(geometry)
        if isinstance(tile, WgmmaTile):
            factory: Any = wgmma
            shape, dtype = Shape(geometry, tile), geometry.x.dtype
            sizes = shape.workspace_bytes, shape.counters
            weights = lowering.weights(
                (wgmma, *f.key, tile.columns, dtype),
                lambda: pack_wgmma(weight, f.bias, tile.columns, dtype),
            )
        else:
            factory, sizes = conv, (workspace_bytes(geometry, tile), counters(geometry, tile))
            weights = lowering.weights(
                (conv, *f.key, str(geometry), tile),
                lambda: pack_conv(weight, f.bias, geometry, tile),
            )
        space: tuple[Pointer, ...] = ()
        if sizes[0]:
            sums = Buffer("workspace", sizes[0], "partial sums")
            zeros = Buffer("workspace", 4 * sizes[1], "counters", cleared=True)
            space = (Pointer(sums), Pointer(zeros))
        self._emit(factory, (geometry, f.program, tile), xp, weights, placed, (yp, yv), space)

    @property
    def _is_stem(self) -> bool:
        """Whether pixels are so small that several of a row are read at once."""
        f, few = self.filters, self.lowering.stem_channels(self.x.view.shape[3])
        return bool(few) and f.groups == 1 and f.window.kernel[1] > 1 == f.window.dilations[1]

    def _tile(self, geometry: Geometry) -> Tile | WgmmaTile:
        lowering = self.lowering
        arch, gpu, cores = lowering.arch, lowering.gpu, lowering.precision != "fp32"

        def rule() -> Tile | WgmmaTile:
            tile = choose_tile(geometry, arch, gpu, tensor_cores=cores)
            if cores and arch.wgmma and takes(geometry):
                other = choose_wgmma(geometry, arch, gpu)
                if predicted_cycles(Shape(geometry, other)) <= cycles(geometry, tile, arch, gpu):
                    return other
            return tile

        def candidates() -> list[Tile | WgmmaTile]:
            tiles = ranked(geometry, arch, gpu, tensor_cores=cores)
            if not cores or not arch.wgmma or not takes(geometry):
                return [*tiles]
            # In turns, because the two estimates are not of one scale.
            turns = itertools.zip_longest(ranked_wgmma(geometry, arch, gpu), tiles)
            return [tile for pair in turns for tile in pair if tile is not None]

        return lowering.schedule(f"conv {geometry}, {lowering.precision}", rule, candidates)

    def _matrix(self, tensor: Tensor) -> tuple[Pointer, View]:
        """An image as (pixels, C)."""
        pointer, view = place(tensor)
        flat = _as_matrix(view)
        assert flat is not None
        return pointer, flat

    def _emit(
        self,
        factory: Any,
        arguments: tuple[Any, ...],
        x: Pointer,
        weights: tuple[Pointer, Pointer],
        extras: Sequence[tuple[Pointer, View]],
        result: tuple[Pointer, View],
        space: tuple[Pointer, ...] = (),
    ) -> None:
        pointers = (x, *weights, *(p for p, _ in extras), result[0], *space)
        at = 3 + len(extras)
        in_place = None
        for i, ((_, view), owned) in enumerate(zip(extras, self.owned, strict=True)):
            if owned and view == result[1]:
                in_place = (3 + i, at)
        writes = range(at, len(pointers))
        self.lowering.emit(factory, arguments, pointers, writes=writes, in_place=in_place)


def _as_matrix(view: View) -> View | None:
    """An image as (pixels, C), where its strides allow."""
    return view.reshape((math.prod(view.shape[:3]), view.shape[3]))


RULES: dict[tuple[str, str], Rule] = {
    (KERNEL_DOMAIN, "Conv"): convolution,
    ("", "Conv"): convolution,
    (KERNEL_DOMAIN, "Pointwise"): convolution,
    ("", "ConvTranspose"): conv_transpose,
}
