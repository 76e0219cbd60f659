"""Lowering for the CPU: one node becomes one kernel call (few need two); it decides the layout.

Image tensors are channels last inside. Before any node is lowered, :class:`Placement` looks at the
whole graph and decides where results go: into their channel slice of a concatenation, with a zero
border for the convolution that reads them, or straight into a graph output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pwopt.cost import node_macs
from pwopt.cost_model import cost_model
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node, Value
from pwopt.precision import Precision
from pwopt.targets.cpu.bands import in_bands
from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.growth import affordable_sides
from pwopt.targets.cpu.kernels.copy import copy, fill_border
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.tiling import Tile, candidates, choose_tile
from pwopt.targets.cpu.narrowing import narrow_values, takes_either
from pwopt.targets.cpu.placement import Placement
from pwopt.targets.cpu.plan import Buffer, Plan, Pointer, Step, Tensor, place
from pwopt.targets.cpu.schedules import AnySchedule, Schedules
from pwopt.targets.cpu.views import View, channels_last, image, itemsize

DTYPES = {  # element types that move through memory, and the dtype that TVM sees
    "float32": "float32",
    "float64": "float64",
    "float16": "float16",
    "bfloat16": "uint16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint64": "uint64",
    "uint32": "uint32",
    "uint16": "uint16",
    "uint8": "uint8",
    "bool": "uint8",
}

_LINE = 64  # bytes
_SKEWED = 2048

_SIDES: dict[str, tuple[int, ...]] = {"off": (), "f2": (2,), "auto": (2, 4)}

FEW_CHANNELS = 4  # of a row-major input that convolutions read as it lies


class Unsupported(Exception):  # noqa: N818 - says that a node goes elsewhere, is no failure
    """A node for which the CPU target has no kernel; the text says why."""


Rule = Callable[["Lowering", Node], None]


class Lowering:
    """Lowers one graph of static shapes.

    Attributes:
        schedules: that kernels get.
        precision: number formats.
        plan: the steps so far.
        notes: of the nodes that the fallback was asked to lower, why no rule did.
        enlarged: images that their reader enlarges, as (N, H, W, C), with the factors.
    """

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
        self.graph, self.hardware, self.threads = graph, precision.on(hardware), threads
        self.schedules, self.precision = schedules or Schedules(), precision
        model, sides = cost_model(self.hardware, precision), _SIDES[winograd]
        self._sides = affordable_sides(graph, model, sides, max_growth) if sides else {}
        self.plan = Plan()
        self.notes: dict[Node, str] = {}
        self.enlarged: dict[Value, tuple[Tensor, tuple[int, int]]] = {}
        self.placement = Placement(graph)
        self._narrow = narrow_values(graph) if self.hardware.bf16 else frozenset[Value]()
        self._takes_either = True
        self._tensors: dict[Value, Tensor] = {}
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        self._constants: dict[Any, Buffer] = {}
        self._node: Node | None = None
        self._kernel = ""  # that a schedule was chosen for
        for node in graph.inputs:
            buffer = self._external("input", node.out, len(self.plan.inputs))
            self.plan.inputs.append((node.names[0], buffer, dense_view(node.out)))
            self._tensors[node.out] = Tensor(buffer, dense_view(node.out))
        for name, value in graph.outputs:
            buffer = self._external("output", value, len(self.plan.outputs))
            self.plan.outputs.append((name, buffer, dense_view(value)))

    def run(
        self, rules: dict[tuple[str, str], Rule], fallback: Rule | None = None
    ) -> dict[Node, str]:
        """Lowers every node.

        Args:
            rules: by domain and operator.
            fallback: lowers the nodes without a rule, and those that their rule refuses.

        Returns:
            The nodes that could not be lowered, with the reasons.
        """
        rejected: dict[Node, str] = {}
        for node in self.graph.topological():
            if node.is_input or node.is_constant:
                continue
            rule = rules.get((node.domain, node.op))
            self._node, self._takes_either = node, takes_either(node)
            reason = self._attempt(rule, node, f"no kernel for {node.op}")
            if reason and fallback is not None:
                self.notes[node], self._takes_either = reason, False
                refused = self._attempt(fallback, node)
                reason = refused and f"{reason}; {refused}"
            if reason:
                rejected[node] = reason
                self._stand_in(node)
        self._takes_either = True
        if not rejected:
            self._write_outputs()
            self._arrange(in_bands(self.plan.steps, self.hardware))
        return rejected

    def _arrange(self, parts: Sequence[tuple[int, Step]]) -> None:
        """Replaces the steps by parts of them, each with the position of its step."""
        self.plan.steps = [step for _, step in parts]

    def _attempt(self, rule: Rule | None, node: Node, otherwise: str = "") -> str:
        """Lowers a node by a rule; where that fails, undoes it and returns the reason."""
        steps, copies = len(self.plan.steps), len(self._copies)
        try:
            if rule is None:
                return otherwise
            rule(self, node)
            self._predict(node, self.plan.steps[steps:])
            if node.out in self.placement.bordered:  # after the kernel that filled the inside
                self.zero_border(self._tensors[node.out], self.placement.border(node.out))
        except Unsupported as reason:
            del self.plan.steps[steps:]
            for key in list(self._copies)[copies:]:  # of steps that are gone
                del self._copies[key]
            return str(reason)
        return ""

    def _predict(self, node: Node, steps: Sequence[Step]) -> None:
        """Notes the predicted time of a node on the call that does its work."""
        work = [s for s in steps if s.factory not in (copy, fill_border)] or list(steps)
        if work:
            model = cost_model(self.hardware, self.precision)
            work[-1].predicted_us = model.node_us(self.graph, node)

    # --- values in ------------------------------------------------------------------------------

    def operands(self, node: Node) -> tuple[Value | None, ...]:
        """A node's operands by slot."""
        return self.graph.operands(node)

    def required(self, node: Node, slot: int) -> Value:
        """An operand that must be there."""
        value = self.graph.operand(node, slot)
        if value is None:
            raise Unsupported(f"operand {slot} is absent")
        return value

    def is_read(self, value: Value) -> bool:
        """Whether a node reads a value or the graph returns it."""
        return self.graph.is_output(value) or bool(self.graph.uses(value))

    def array(self, value: Value | None) -> np.ndarray | None:
        """A constant operand's array, else None."""
        return self.graph.constant_value(value)

    def constant_array(self, node: Node, slot: int, what: str) -> np.ndarray:
        """The array of an operand that a kernel needs at build time."""
        array = self.array(self.required(node, slot))
        if array is None:
            raise Unsupported(f"its {what} is computed at run time")
        return array

    def tensor(self, value: Value) -> Tensor:
        """Where a value lies; constants are laid down on first use.

        bfloat16 is widened for nodes whose kernels want float32.
        """
        if value not in self._tensors:
            array = self.array(value)
            if array is None:
                raise Unsupported(f"{value.label} has not been lowered")
            self._tensors[value] = self.constant(array, key=value)
        tensor = self._tensors[value]
        if tensor.view.dtype != BFLOAT16 or self._takes_either:
            return tensor
        wide = View.dense(tensor.view.shape, "float32", tensor.view.order)
        return self.shared_copy((value, "widened"), lambda: self.copied(tensor, wide))

    def ordered(self, value: Value, order: Sequence[int], *, unit: bool = False) -> Tensor:
        """A value in the given axis order (outermost first), copied if it lies otherwise.

        Neighbours along the innermost axis are neighbours in memory or, unless ``unit``, the same
        element repeated.
        """
        array = self.array(value)
        if array is not None:
            return self.constant(array, tuple(order), key=value)
        tensor = self.tensor(value)
        wanted = View.dense(tensor.view.shape, tensor.view.dtype, order)
        steps = (1,) if unit else (0, 1)
        if tensor.view.order == wanted.order and tensor.view.innermost_stride in steps:
            return tensor
        return self.shared_copy((value, tuple(order)), lambda: self.copied(tensor, wanted))

    def dense(self, value: Value) -> Tensor:
        """A value in row-major order without gaps, copied if need be."""
        tensor = self.tensor(value)
        if tensor.view.is_row_major:
            return tensor
        dense = View.dense(tensor.view.shape, tensor.view.dtype)
        return self.shared_copy((value, "dense"), lambda: self.copied(tensor, dense))

    def channels_last(self, value: Value) -> Tensor:
        """An image value with unit channel stride (or a single channel), copied if need be."""
        tensor = self.tensor(value)
        rank = len(tensor.view.shape)
        if rank < 2 or tensor.view.strides[1] == 1 or tensor.view.shape[1] == 1:
            return tensor
        return self.ordered(value, channels_last(rank), unit=True)

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

    # --- values out -----------------------------------------------------------------------------

    def result(self, value: Value, order: Sequence[int] | None = None) -> Tensor:
        """Memory for a node's result; ``order`` as of :meth:`ordered`, default channels last."""
        shape, dtype = static_shape(value), self._stored_dtype(value)
        if order is None:
            order = channels_last(len(shape))
        slot = self.placement.slice_of(value)
        if slot is not None and (self._takes_either or slot.value not in self._narrow):
            whole = self.result_of_concat(slot.value)
            tensor = whole.with_view(whole.view.slice(1, slot.start, shape[1]))
        elif (index := self.placement.output_of(value)) is not None and View.dense(
            shape, order=order
        ).is_row_major:
            _, buffer, view = self.plan.outputs[index]
            tensor = Tensor(buffer, view)
        elif any(border := self.placement.border(value)):
            tensor = self.bordered(shape, border, tuple(order), value.label, dtype)
            self.placement.bordered.add(value)
        elif self.placement.takes_strides(value):
            none = (0,) * (2 * len(shape) - 4)
            tensor = self.bordered(shape, none, tuple(order), value.label, dtype)
        else:
            view = View.dense(shape, dtype, order)
            tensor = Tensor(self.workspace(view, value.label), view)
        self._tensors[value] = tensor
        return tensor

    def result_of_concat(self, value: Value) -> Tensor:
        """The whole of a concatenation that several producers write into."""
        if value not in self._tensors:
            self.result(value)
        return self._tensors[value]

    def alias(self, value: Value, tensor: Tensor) -> None:
        """Says that a result is but another view of lowered memory."""
        self._tensors[value] = tensor

    def copied(self, tensor: Tensor, view: View) -> Tensor:
        """A copy of a tensor in a layout of its own."""
        target = Tensor(self.workspace(view, f"{tensor.buffer.label} copied"), view)
        self.copy_into(tensor, target)
        return target

    def shared_copy(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """A copy that ``make`` makes unless one of the same key is there."""
        if key not in self._copies:
            self._copies[key] = make()
        return self._copies[key]

    def workspace(self, view: View, label: str = "") -> Buffer:
        """A new buffer for a dense view."""
        return Buffer("workspace", view.elements * view.itemsize, label)

    def constant(
        self, array: np.ndarray, order: Sequence[int] | None = None, key: Any = None
    ) -> Tensor:
        """A constant laid down in an axis order; ``key`` identifies it, so that it is shared."""
        dtype = memory_dtype(array.dtype.name)
        axes = tuple(order) if order is not None else tuple(range(array.ndim))
        view = View.dense(array.shape, dtype, axes)
        buffer = self.packed(
            (key if key is not None else id(array), axes), lambda: array.transpose(axes)
        )
        return Tensor(buffer, view)

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
        """The schedule of the next kernel call: see :meth:`Schedules.choose`."""
        self._kernel = f"{kernel}, {self.threads} threads"
        return self.schedules.choose(self._kernel, rule, candidates)

    def tile(self, kind: str, geometry: Geometry, hardware: Hardware) -> Tile:
        """The tile of a kernel over ``geometry``."""
        return self.schedule(
            f"{kind} {geometry}",
            lambda: choose_tile(geometry, hardware),
            lambda: candidates(geometry, hardware),
        )

    def packed(self, key: Any, make: Callable[[], np.ndarray]) -> Buffer:
        """A constant made when the plan is built; equal keys share it."""
        if key not in self._constants:
            self._constants[key] = Buffer("constant", 0, "constant", data=make)
        return self._constants[key]

    def emit(
        self,
        factory: Callable[..., Any],
        arguments: Sequence[Any],
        pointers: Sequence[Pointer],
        *,
        writes: Sequence[int] = (-1,),
        in_place: tuple[int, int] | None = None,
        variant: str = "",
        **keywords: Any,
    ) -> None:
        """Appends a kernel call on behalf of the node being lowered."""
        node = self._node
        count = len(pointers)
        self.plan.steps.append(
            Step(
                factory=factory,
                arguments=tuple(arguments),
                pointers=tuple(pointers),
                writes=tuple(w % count for w in writes),
                keywords=tuple(sorted(keywords.items())),
                in_place=in_place,
                label=node.label if node else "",
                origin=node.origin if node else (),
                macs=node_macs(self.graph, node) if node else 0,
                variant=variant,
            )
        )

    # --- inside ---------------------------------------------------------------------------------

    def _has_border(self, value: Value, border: tuple[int, ...]) -> bool:
        if value not in self.placement.bordered:
            return False
        have = self.placement.border(value)
        return all(h >= b for h, b in zip(have, border, strict=True))

    def _external(self, kind: Any, value: Value, index: int) -> Buffer:
        view = dense_view(value)
        return Buffer(kind, view.elements * view.itemsize, value.label, index=index)

    def _stored_dtype(self, value: Value) -> str:
        """The dtype in memory of what the present node computes."""
        return BFLOAT16 if self._takes_either and value in self._narrow else element_type(value)

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

    def copy_into(self, source: Tensor, target: Tensor) -> None:
        """Copies a tensor into memory of its own, whatever the layouts."""
        if not source.view.elements:
            return
        (sp, sv), (tp, tv) = place(source), place(target)
        self.emit(copy, (sv, tv, self.hardware, self.threads), (sp, tp))

    def zero_border(self, target: Tensor, border: tuple[int, ...]) -> None:
        pairs = border if len(border) == 4 else (0, 0, *border)
        top, bottom, left, right = pairs
        pointer, view = place(target.with_view(image(target.view)))
        self.emit(fill_border, (view, (top, left, bottom, right), 0.0, self.hardware), (pointer,))

    def _write_outputs(self) -> None:
        self._node = None
        for index, (_, value) in enumerate(self.graph.outputs):
            _, buffer, view = self.plan.outputs[index]
            tensor = self.tensor(value)
            if tensor.buffer is not buffer:
                self.copy_into(tensor, Tensor(buffer, view))

    def _stand_in(self, node: Node) -> None:
        """Results of a node that could not be lowered, so that the others can be tried."""
        for i in range(len(node.types)):
            value = node[i]
            if value in self._tensors:
                continue
            if value.shape is None or value.tensor.dtype not in DTYPES:
                continue
            view = dense_view(value)
            self._tensors[value] = Tensor(self.workspace(view), view)


def _skewed(shape: Sequence[int], item: int) -> int:
    """Channels to lay down per pixel of a channels-last image.

    Pixels a multiple of 2 KB apart fall into two sets of L1. A line between them is worth 8-25 % to
    the convolutions that read them (2048->512 @7x7, 3x3 of 512 channels with stride 2).
    """
    channels, pixels = shape[1], math.prod(shape[2:])
    collide = pixels > 1 and channels * item % _SKEWED == 0
    return channels + _LINE // item if collide else channels


def memory_dtype(name: str) -> str:
    """The dtype that kernels move a NumPy or ONNX element type as."""
    if name not in DTYPES:
        raise Unsupported(f"element type {name}")
    return DTYPES[name]


def element_type(value: Value) -> str:
    """The dtype of a value in kernels."""
    return memory_dtype(value.tensor.dtype or "unknown")


def static_shape(value: Value) -> tuple[int, ...]:
    """The shape of a value; the CPU target compiles static shapes only."""
    if value.shape is None:
        raise Unsupported(f"the shape of {value.label} is not known at build time")
    return value.shape


def dense_view(value: Value) -> View:
    """The row-major view of a value, as inputs and outputs lie."""
    return View.dense(static_shape(value), element_type(value))


def image_tensor(tensor: Tensor) -> Tensor:
    """The tensor as kernels take images: (N, H, W, C)."""
    try:
        return tensor.with_view(image(tensor.view))
    except ValueError as error:
        raise Unsupported(str(error)) from None


def is_float(value: Value) -> bool:
    """Whether a value is float32, the one type that kernels compute in."""
    return value.tensor.dtype == "float32"


def require_float(*values: Value | None) -> None:
    """Raises Unsupported unless all of these are float32."""
    for value in values:
        if value is not None and not is_float(value):
            raise Unsupported(f"{value.label} is {value.tensor.dtype}, kernels compute in float32")
