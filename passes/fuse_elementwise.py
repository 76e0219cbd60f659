"""Fuses groups of elementwise operators into one kernel each."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.internal import is_internal
from pwopt.passes.affine import labels
from pwopt.passes.elementwise import (
    Elementwise,
    Operand,
    ProgramBuilder,
    as_value,
    known,
    read,
    reference,
    scalar,
    shape_of,
)
from pwopt.passes.idioms import recognise
from pwopt.pipeline import Context, Pass, Remark


@dataclass(frozen=True)
class FuseElementwise(Pass):
    """Fuses groups of elementwise operators into one ``Map`` each.

    Rewrite:
        ``Relu(Add(Mul(X, s), t))`` → ``pwopt.Map(X, s, t){program=Relu(Add(Mul(%0, %1), %2))}``.
        A group has one result and grows towards the operands; an operator is taken if the group
        has all its readers. One operator by itself becomes a Map too. Sum, Mean, Max and Min of
        several operands become chains, an inference-mode BatchNormalization Mul and Add; Gelu,
        HardSigmoid and HardSwish spelt out become one instruction.
    Shapes:
        all members have the group's shape, every dimension a number or a symbol; operands from
        outside broadcast.
    Numerics:
        as for fuse-epilogue.
    Misses when:
        not float32; the shape is not known; more than ``max_arguments`` operands.
    Source:
        operators' definitions.
    """

    max_arguments: int = 8
    max_steps: int = 32

    name: ClassVar[str] = "fuse-elementwise"
    lowers: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        order = graph.topological()
        position = {node.id: i for i, node in enumerate(order)}
        readings: dict[int, Elementwise] = {}
        for node in order:
            found = _readable(graph, node)
            if isinstance(found, Elementwise):
                readings[node.id] = found
            elif found is not None:
                context.remarks.append(Remark(self.name, node.label, False, found))
        for node in reversed(order):
            if node.id not in readings or node not in graph:
                continue
            if not context.may_rewrite(self, node):
                continue
            group = _Group(self, graph, node, readings, position)
            group.grow()
            count = len(group.arguments)
            if len(group.members) == 1 and is_internal(node, "Map"):
                continue
            if count > self.max_arguments:
                why = f"{count} operands, more than max-arguments={self.max_arguments}"
                context.remarks.append(Remark(self.name, node.label, False, why))
                continue
            what = f"fused {labels(group.members)}" if len(group.members) > 1 else "made a Map"
            group.replace()
            for member in group.members:
                del readings[member.id]
            context.rewritten(self, node, node.label, what)


def _readable(graph: Graph, node: Node) -> Elementwise | str | None:
    found = read(graph, node)
    if not isinstance(found, Elementwise):
        return found
    values = [v for v in found.operands if isinstance(v, Value)]
    if all(v.node.is_constant for v in values):
        return None  # for fold-constants
    if not known(node.out.tensor.shape):
        return f"the shape of its result {node.out.tensor} is not known"
    return found


class _Group:
    """One group while it grows from its result upwards.

    Attributes:
        members: its operators in topological order.
        arguments: the distinct values that it reads.
    """

    def __init__(
        self,
        options: FuseElementwise,
        graph: Graph,
        sink: Node,
        readings: dict[int, Elementwise],
        position: dict[int, int],
    ) -> None:
        self.members = [sink]
        self.arguments: dict[object, None] = {}
        self._options = options
        self._graph = graph
        self._sink = sink
        self._readings = readings
        self._position = position
        self._steps = 0
        self._take(sink)

    def grow(self) -> None:
        """Takes producers, the latest first, so that all readers of one are decided before it."""
        taken = {self._sink}
        waiting: list[tuple[int, Node]] = []
        queued: set[Node] = set()
        self._queue(self._sink, waiting, queued)
        while waiting:
            _, node = heapq.heappop(waiting)
            if self._graph.reader_count(node.out) > len(taken):
                continue
            if any(reader not in taken for reader in self._graph.readers(node.out)):
                continue
            found = self._readings[node.id]
            merged = {a: None for a in self.arguments if a != node.out}
            merged |= dict.fromkeys(_keys(found))
            steps = self._steps + len(found.program.instructions)
            if len(merged) > self._options.max_arguments or steps > self._options.max_steps:
                continue
            taken.add(node)
            self.members.append(node)
            self.arguments.pop(node.out, None)
            self._take(node)
            self._queue(node, waiting, queued)
        self.members.reverse()

    def replace(self) -> None:
        """Puts a Map in the place of the members."""
        graph, builder = self._graph, ProgramBuilder()
        registers: dict[Value, int] = {}
        for node in self.members:
            found = self._readings[node.id]
            references = [reference(builder, registers, operand) for operand in found.operands]
            registers[node.out] = builder.call(found.program, references)
        arguments = [a for a in builder.arguments if a is not None]
        program, kept = recognise(builder.program(), _scalars(graph, arguments))
        new = graph.add(
            "Map",
            [as_value(graph, arguments[i]) for i in kept],
            {"program": program},
            domain=KERNEL_DOMAIN,
            types=self._sink.types,
            names=self._sink.names,
            name=self._sink.name,
            origin=[name for node in self.members for name in node.origin],
        )
        graph.replace_uses(self._sink.out, new.out)
        graph.erase_dead([self._sink])

    def _take(self, node: Node) -> None:
        found = self._readings[node.id]
        self.arguments |= dict.fromkeys(_keys(found))
        self._steps += len(found.program.instructions)

    def _queue(self, node: Node, waiting: list[tuple[int, Node]], queued: set[Node]) -> None:
        for operand in self._graph.operands(node):
            if operand is None or operand.node in queued:
                continue
            if operand.node.id not in self._readings or self._graph.is_output(operand):
                continue
            if operand.tensor.shape != self._sink.out.tensor.shape:
                continue
            queued.add(operand.node)
            heapq.heappush(waiting, (-self._position[operand.node.id], operand.node))


def _keys(found: Elementwise) -> list[object]:
    return [o if isinstance(o, Value) else id(o) for o in found.operands]


def _scalars(graph: Graph, arguments: list[Operand]) -> list[float | None]:
    """The constants of one element whose absence would not change the result's rank."""
    ranks = [len(shape_of(a) or ()) for a in arguments]
    scalars = [scalar(graph, a) for a in arguments]
    rank = max((r for r, s in zip(ranks, scalars, strict=True) if s is None), default=0)
    return [s if r <= rank else None for r, s in zip(ranks, scalars, strict=True)]
