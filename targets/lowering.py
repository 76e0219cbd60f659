"""Lowering, whatever the target: one node becomes one kernel call (few need two).

Image tensors are channels last inside. Before any node is lowered, :class:`Placement` looks at the
whole graph and decides where results go: into their channel slice of a concatenation, or straight
into a graph output. A target derives a class from :class:`Lowering` that says how values are stored
and copied, and has rules that call its kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from pwopt.cost import node_macs
from pwopt.ir.graph import Graph, Node, Value
from pwopt.targets.placement import Placement, Slice
from pwopt.targets.plan import Buffer, Plan, Pointer, Step, Tensor, place
from pwopt.targets.schedules import AnySchedule, Schedules
from pwopt.targets.values import (
    DTYPES,
    Unsupported,
    dense_view,
    element_type,
    memory_dtype,
    static_shape,
)
from pwopt.targets.views import View, channels_last

Rule = Callable[[Any, Node], None]  # of a target's own lowering


class Lowering(ABC):
    """Lowers one graph of static shapes.

    Attributes:
        graph: is not changed.
        plan: the steps so far.
        notes: of the nodes that the fallback was asked to lower, why no rule did.
        placement: where results go.
        schedules: that kernels get.
        shared_kernels: by name those that :meth:`call` is asked for.
        enlarged: images that their reader enlarges, as (N, H, W, C), with the factors.
    """

    shared_kernels: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    def __init__(self, graph: Graph, schedules: Schedules | None = None) -> None:
        self.graph = graph
        self.schedules = schedules or Schedules()
        self.plan = Plan()
        self.notes: dict[Node, str] = {}
        self.placement = Placement(graph)
        self.enlarged: dict[Value, tuple[Tensor, tuple[int, int]]] = {}
        self._tensors: dict[Value, Tensor] = {}
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        self._constants: dict[Any, Buffer] = {}
        self._node: Node | None = None
        self._kernel = ""  # that the present node's rule chose a schedule for
        self._also: tuple[Node, ...] = ()  # what the present node's kernel computes besides
        for node in graph.inputs:
            buffer = self._external("input", node.out, len(self.plan.inputs))
            self.plan.inputs.append((node.names[0], buffer, dense_view(node.out)))
            self._tensors[node.out] = Tensor(buffer, dense_view(node.out))
        for name, value in graph.outputs:
            buffer = self._external("output", value, len(self.plan.outputs))
            self.plan.outputs.append((name, buffer, dense_view(value)))

    # --- what a target decides ------------------------------------------------------------------

    @property
    def machine(self) -> tuple[Any, ...]:
        """What the target's kernels take behind their other arguments."""
        return ()

    @abstractmethod
    def allocate(self, value: Value, dtype: str, order: Sequence[int]) -> Tensor:
        """New memory for a result, of its own shape, axes in ``order`` (outermost first)."""

    def stored_dtype(self, value: Value) -> str:
        """The dtype in memory of what the present node computes."""
        return element_type(value)

    def writes_into(self, slot: Slice) -> bool:
        """Whether the present node can write its result into a slice of a concatenation."""
        return True

    def begin(self, node: Node, *, fallback: bool = False) -> None:
        """Called before a node is lowered by its rule, or by the fallback."""

    def end(self, nodes: Sequence[Node], steps: Sequence[Step]) -> None:
        """Called after a node, with those that its kernel computes besides, became these steps."""

    def finish(self) -> None:
        """Called when every node is lowered and the outputs are written."""

    # --- the whole graph ------------------------------------------------------------------------

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
        done: set[Node] = set()
        for node in self.graph.topological():
            if node.is_input or node.is_constant or node in done:
                continue
            rule = rules.get((node.domain, node.op))
            self._node, self._also = node, ()
            self.begin(node)
            reason = self._attempt(rule, node, f"no kernel for {node.op}")
            if reason and fallback is not None:
                self.notes[node] = reason
                self.begin(node, fallback=True)
                refused = self._attempt(fallback, node)
                reason = refused and f"{reason}; {refused}"
            if reason:
                rejected[node] = reason
                self._stand_in(node)
            done.update(self._also)
        self._node = None
        if not rejected:
            self._write_outputs()
            self.finish()
        return rejected

    def _attempt(self, rule: Rule | None, node: Node, otherwise: str = "") -> str:
        """Lowers a node by a rule; where that fails, undoes it and returns the reason."""
        steps, copies = len(self.plan.steps), len(self._copies)
        try:
            if rule is None:
                return otherwise
            rule(self, node)
            self.end((node, *self._also), self.plan.steps[steps:])
        except Unsupported as reason:
            del self.plan.steps[steps:]
            self._also = ()
            for key in list(self._copies)[copies:]:  # of steps that are gone
                del self._copies[key]
            return str(reason)
        return ""

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
        """Where a value lies; constants are laid down on first use."""
        if value not in self._tensors:
            array = self.array(value)
            if array is None:
                raise Unsupported(f"{value.label} has not been lowered")
            self._tensors[value] = self.constant(array, key=value)
        return self._tensors[value]

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

    def reshaped(self, value: Value, shape: Sequence[int]) -> Tensor:
        """A value seen under another shape in axis order, copied where its layout forbids that."""
        tensor = self.tensor(value)
        view = tensor.view.reshape(shape)
        if view is None:
            tensor = self.dense(value)
            view = tensor.view.reshape(shape)
            assert view is not None
        return tensor.with_view(view)

    def channels_last(self, value: Value) -> Tensor:
        """An image value with unit channel stride (or a single channel), copied if need be."""
        tensor = self.tensor(value)
        rank = len(tensor.view.shape)
        if rank < 2 or tensor.view.strides[1] == 1 or tensor.view.shape[1] == 1:
            return tensor
        return self.ordered(value, channels_last(rank), unit=True)

    # --- values out -----------------------------------------------------------------------------

    def result(self, value: Value, order: Sequence[int] | None = None) -> Tensor:
        """Memory for a node's result; ``order`` as of :meth:`ordered`, default channels last."""
        shape = static_shape(value)
        if order is None:
            order = channels_last(len(shape))
        slot = self.placement.slice_of(value)
        if slot is not None and self.writes_into(slot):
            whole = self.result_of_concat(slot.value)
            tensor = whole.with_view(whole.view.slice(1, slot.start, shape[1]))
        elif (index := self.placement.output_of(value)) is not None and View.dense(
            shape, order=order
        ).is_row_major:
            _, buffer, view = self.plan.outputs[index]
            tensor = Tensor(buffer, view)
        else:
            tensor = self.allocate(value, self.stored_dtype(value), order)
        self._tensors[value] = tensor
        return tensor

    def replaceable(
        self, values: Sequence[Value | None], views: Sequence[View]
    ) -> tuple[int, int] | None:
        """Positions of the first operand that the result may replace, and of the result, or None.

        Args:
            values: the operands.
            views: of the operands and, last, of the result.
        """
        result = len(views) - 1
        for i, (view, value) in enumerate(zip(views[:-1], values, strict=True)):
            if self.array(value) is None and view == views[result]:
                return (i, result)
        return None

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
        also: Sequence[Node] = (),
        **keywords: Any,
    ) -> None:
        """Appends a kernel call on behalf of the node being lowered: see :class:`Step`.

        The call computes the nodes ``also`` besides; these are not lowered any more.
        """
        node, count = self._node, len(pointers)
        self._also += tuple(also)
        nodes = (node, *also) if node else ()
        self.plan.steps.append(
            Step(
                factory=factory,
                arguments=tuple(arguments),
                pointers=tuple(pointers),
                writes=tuple(w % count for w in writes),
                keywords=tuple(sorted(keywords.items())),
                in_place=in_place,
                label=node.label if node else "",
                origin=tuple(dict.fromkeys(name for each in nodes for name in each.origin)),
                macs=sum(node_macs(self.graph, each) for each in nodes),
                variant=variant,
            )
        )

    def call(
        self,
        kernel: str,
        arguments: Sequence[Any],
        pointers: Sequence[Pointer],
        **keywords: Any,
    ) -> None:
        """Appends a call of a kernel that every target has, given by its name; see :meth:`emit`."""
        self.emit(self.shared_kernels[kernel], (*arguments, *self.machine), pointers, **keywords)

    def copy_into(self, source: Tensor, target: Tensor) -> None:
        """Copies a tensor into memory of its own, whatever the layouts and number formats."""
        if source.view.elements:
            (sp, sv), (tp, tv) = place(source), place(target)
            self.call("copy", (sv, tv), (sp, tp))

    def fill(self, target: Tensor, value: float) -> None:
        """Sets every element of a tensor."""
        pointer, view = place(target)
        if view.elements:
            self.call("fill", (view, value), (pointer,))

    def schedule(
        self,
        kernel: str,
        rule: Callable[[], AnySchedule],
        candidates: Callable[[], Iterable[AnySchedule]],
    ) -> AnySchedule:
        """The schedule of the next kernel call: see :meth:`Schedules.choose`."""
        self._kernel = kernel
        return self.schedules.choose(kernel, rule, candidates)

    # --- inside ---------------------------------------------------------------------------------

    def _external(self, kind: Any, value: Value, index: int) -> Buffer:
        view = dense_view(value)
        return Buffer(kind, view.elements * view.itemsize, value.label, index=index)

    def _write_outputs(self) -> None:
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
