"""Lowering for the CPU: borders, bfloat16 maps, Winograd tiles and bands, beside the common part.

:class:`Placement` says where convolutions want a zero border around what they read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pwopt.cost_model import cost_model
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node, Value
from pwopt.precision import Precision
from pwopt.targets import lowering as common
from pwopt.targets.cpu.bands import in_bands
from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.growth import affordable_sides
from pwopt.targets.cpu.kernels.copy import copy, fill, fill_border
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.map import map_kernel
from pwopt.targets.cpu.kernels.norm import local_response, mean_variance
from pwopt.targets.cpu.kernels.resize import resize, upsample
from pwopt.targets.cpu.kernels.softmax import softmax
from pwopt.targets.cpu.kernels.tiling import Tile, candidates, choose_tile
from pwopt.targets.cpu.narrowing import narrow_values, takes_either
from pwopt.targets.placement import Slice
from pwopt.targets.plan import Step, Tensor, place
from pwopt.targets.schedules import AnySchedule, Schedules
from pwopt.targets.values import element_type, static_shape
from pwopt.targets.views import View, channels_last, image, itemsize

_LINE = 64  # bytes
_SKEWED = 2048

_SIDES: dict[str, tuple[int, ...]] = {"off": (), "f2": (2,), "auto": (2, 4)}

FEW_CHANNELS = 4  # of a row-major input that convolutions read as it lies

_KERNELS: tuple[Callable[..., Any], ...] = (
    *(copy, fill, local_response, map_kernel, mean_variance, resize, softmax, upsample),
)


class Lowering(common.Lowering):
    """Lowers one graph of static shapes.

    Attributes:
        precision: number formats.
    """

    shared_kernels: ClassVar[Mapping[str, Callable[..., Any]]] = {k.__name__: k for k in _KERNELS}

    def __init__(
        self,
        graph: Graph,
        hardware: Hardware,
        threads: int = 1,
        schedules: Schedules | None = None,
        winograd: str = "auto",
        precision: Precision = Precision(),  # noqa: B008 - it is immutable
        max_growth: float = math.inf,
    ) -> None:
        """Prepares the lowering.

        Args:
            graph: is not changed.
            hardware: the processor to generate code for.
            threads: of one run.
            schedules: tuned ones.
            winograd: the tiles that convolutions may use: "off", "f2" or "auto".
            precision: number formats; float32 where the processor lacks bfloat16.
            max_growth: of packed weights over the graph's constants, by Winograd's algorithm.
        """
        super().__init__(graph, schedules)
        self.hardware, self.threads = precision.on(hardware), threads
        self.precision = precision
        model, sides = cost_model(self.hardware, precision), _SIDES[winograd]
        self._sides = affordable_sides(graph, model, sides, max_growth) if sides else {}
        self._narrow = narrow_values(graph) if self.hardware.bf16 else frozenset[Value]()
        self._takes_either = True

    # --- what the CPU decides -------------------------------------------------------------------

    @property
    def machine(self) -> tuple[Any, ...]:
        return (self.hardware, self.threads)

    def begin(self, node: Node, *, fallback: bool = False) -> None:
        self._takes_either = not fallback and takes_either(node)

    def end(self, nodes: Sequence[Node], steps: Sequence[Step]) -> None:
        self._predict(nodes, steps)
        for value in (node.out for node in nodes):
            if value in self.placement.bordered:  # after the kernel that filled the inside
                self.zero_border(self._tensors[value], self.placement.border(value))
        self._takes_either = True

    def finish(self) -> None:
        self._arrange(in_bands(self.plan.steps, self.hardware))

    def stored_dtype(self, value: Value) -> str:
        return BFLOAT16 if self._takes_either and value in self._narrow else element_type(value)

    def writes_into(self, slot: Slice) -> bool:
        return self._takes_either or slot.value not in self._narrow

    def allocate(self, value: Value, dtype: str, order: Sequence[int]) -> Tensor:
        shape = static_shape(value)
        if any(border := self.placement.border(value)):
            self.placement.bordered.add(value)
            return self.bordered(shape, border, tuple(order), value.label, dtype)
        if self.placement.takes_strides(value):
            none = (0,) * (2 * len(shape) - 4)
            return self.bordered(shape, none, tuple(order), value.label, dtype)
        view = View.dense(shape, dtype, order)
        return Tensor(self.workspace(view, value.label), view)

    def tensor(self, value: Value) -> Tensor:
        """Where a value lies; bfloat16 is widened for nodes whose kernels want float32."""
        tensor = super().tensor(value)
        if tensor.view.dtype != BFLOAT16 or self._takes_either:
            return tensor
        wide = View.dense(tensor.view.shape, "float32", tensor.view.order)
        return self.shared_copy((value, "widened"), lambda: self.copied(tensor, wide))

    # --- borders --------------------------------------------------------------------------------

    def with_border(self, value: Value, border: tuple[int, ...]) -> Tensor:
        """An image value with at least this zero border (per spatial axis: before, after)."""
        tensor = self.tensor(value)
        if not any(border):
            return tensor
        few = tensor.view.shape[1] <= FEW_CHANNELS
        if self._has_border(value, border) and (few or tensor.view.strides[1] == 1):
            return tensor
        key = (value, "border", border)
        if key not in self._copies:
            # Few channels, as of a photo: copying rows is cheaper than transposing.
            rank = len(tensor.view.shape)
            keep = few and tensor.view.is_row_major
            order = tuple(range(rank)) if keep else channels_last(rank)
            label, dtype = f"{value.label} padded", tensor.view.dtype
            target = self.bordered(tensor.view.shape, border, order, label, dtype)
            self.copy_into(tensor, target)
            self.zero_border(target, border)
            self._copies[key] = target
        return self._copies[key]

    def bordered(
        self,
        shape: Sequence[int],
        border: tuple[int, ...],
        order: Sequence[int],
        label: str,
        dtype: str = "float32",
    ) -> Tensor:
        """New memory for an image with room for a border (per spatial axis: before, after)."""
        spatial = range(2, len(shape))
        outer = list(shape)
        for i, axis in enumerate(spatial):
            outer[axis] += border[2 * i] + border[2 * i + 1]
        if order[-1] == 1:
            outer[1] = _skewed(outer, itemsize(dtype))
        view = View.dense(outer, dtype, order)
        buffer = self.workspace(view, label)
        view = view.slice(1, 0, shape[1])
        for i, axis in enumerate(spatial):
            view = view.slice(axis, border[2 * i], shape[axis])
        return Tensor(buffer, view)

    def zero_border(self, target: Tensor, border: tuple[int, ...]) -> None:
        pairs = border if len(border) == 4 else (0, 0, *border)
        top, bottom, left, right = pairs
        pointer, view = place(target.with_view(image(target.view)))
        self.emit(fill_border, (view, (top, left, bottom, right), 0.0, self.hardware), (pointer,))

    def _has_border(self, value: Value, border: tuple[int, ...]) -> bool:
        if value not in self.placement.bordered:
            return False
        have = self.placement.border(value)
        return all(h >= b for h, b in zip(have, border, strict=True))

    # --- schedules ------------------------------------------------------------------------------

    @property
    def winograd_sides(self) -> tuple[int, ...]:
        """Sides of the Winograd tiles that the node being lowered may use, in rising order."""
        return self._sides.get(self._node, ()) if self._node is not None else ()

    def schedule(
        self,
        kernel: str,
        rule: Callable[[], AnySchedule],
        candidates: Callable[[], Iterable[AnySchedule]],
    ) -> AnySchedule:
        return super().schedule(f"{kernel}, {self.threads} threads", rule, candidates)

    def tile(self, kind: str, geometry: Geometry, hardware: Hardware) -> Tile:
        """The tile of a kernel over ``geometry``."""
        return self.schedule(
            f"{kind} {geometry}",
            lambda: choose_tile(geometry, hardware),
            lambda: candidates(geometry, hardware),
        )

    def _predict(self, nodes: Sequence[Node], steps: Sequence[Step]) -> None:
        """Notes the predicted time of nodes on the call that does their work."""
        work = [s for s in steps if s.factory not in (copy, fill_border)] or list(steps)
        if work:
            model = cost_model(self.hardware, self.precision)
            work[-1].predicted_us = sum(model.node_us(self.graph, node) for node in nodes)

    def _arrange(self, parts: Sequence[tuple[int, Step]]) -> None:
        """Replaces the steps by parts of them, each with the position of its step."""
        self.plan.steps = [step for _, step in parts]


def _skewed(shape: Sequence[int], item: int) -> int:
    """Channels to lay down per pixel of a channels-last image.

    Pixels a multiple of 2 KB apart fall into two sets of L1. A line between them is worth 8-25 % to
    the convolutions that read them (2048->512 @7x7, 3x3 of 512 channels with stride 2).
    """
    channels, pixels = shape[1], math.prod(shape[2:])
    collide = pixels > 1 and channels * item % _SKEWED == 0
    return channels + _LINE // item if collide else channels
