"""Fuses what follows a convolution or fully connected layer elementwise into its epilogue."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.internal import FIRST_EXTRA, epilogue, extras, is_internal
from pwopt.ir.program import Program
from pwopt.passes import convolution as convolutions
from pwopt.passes.affine import labels
from pwopt.passes.elementwise import (
    Elementwise,
    Operand,
    ProgramBuilder,
    as_value,
    broadcasts,
    known,
    read,
    reference,
    scalar,
)
from pwopt.passes.idioms import recognise
from pwopt.pipeline import Context, Pass, Remark

Member = tuple[Node, Elementwise]


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """Fuses elementwise operators into the convolution or GEMM that feeds them.

    Rewrite:
        ``Relu(Add(Conv(X, W, B), R))`` → ``pwopt.Conv(X, W, B, R){epilogue=Relu(Add(%0, %1))}``;
        the same for ``pwopt.Pointwise`` and ``pwopt.Linear``. Operators are taken along as long as
        all paths from the result meet again in one value: ``Mul(y, Sigmoid(y))`` counts, and so
        does any other spelling of an activation. Activations spelt out become
        one instruction. A standard Conv that nothing follows becomes a ``pwopt.Conv`` too.
        Of two convolutions that are added, the later one takes the Add.
    Shapes:
        the result's shape is the convolution's, every dimension a number or a symbol; further
        operands broadcast to it: a residual, a vector over channels, a squeeze-excite scale.
    Numerics:
        exact up to the constants of spelt-out activations (one part in a million) and the
        rounding of a BatchNormalization's factor and summand to float32.
    Misses when:
        a value between is a graph output, or has readers that are not elementwise; an operand
        widens the shape; more than ``max_extras`` further operands or ``max_steps``
        instructions; weights are not constant; not float32.
    Source:
        operators' definitions; the order "later one takes the Add" as in ONNX Runtime's ConvAdd
        fusion.
    """

    max_extras: int = 6
    max_steps: int = 32

    name: ClassVar[str] = "fuse-epilogue"
    lowers: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> None:
        order = graph.topological()
        position = {node.id: i for i, node in enumerate(order)}
        for node in reversed(order):  # the later convolution takes a shared Add
            standard = node.is_op("Conv")
            if not standard and not is_internal(node, "Conv", "Pointwise", "Linear"):
                continue
            if not context.may_rewrite(self, node):
                continue
            anchor = _anchor(graph, node)
            if isinstance(anchor, str):
                context.remarks.append(Remark(self.name, node.label, False, anchor))
                continue
            region = _Region(self, graph, anchor, position)
            reason = region.grow()
            members = region.members[: region.accepted]
            if members or standard:
                _fuse(graph, anchor, members)
                nodes = [each for each, _ in members]
                what = f"fused {labels(nodes)}" if members else "made a kernel without epilogue"
                context.rewritten(self, node, node.label, what)
            if reason is not None:
                context.remarks.append(Remark(self.name, node.label, False, reason))


@dataclass(frozen=True)
class _Anchor:
    """A convolution or GEMM as the internal op that it is or becomes."""

    node: Node
    op: str
    operands: tuple[Value | None, ...]  # X, W, B
    attributes: dict[str, Any]  # without the epilogue
    extras: tuple[Value, ...] = ()
    epilogue: Program = field(default_factory=Program)


def _anchor(graph: Graph, node: Node) -> _Anchor | str:
    if node.domain == KERNEL_DOMAIN:
        operands = graph.operands(node)[:FIRST_EXTRA]
        attributes = {k: v for k, v in node.attributes.items() if k != "epilogue"}
        return _Anchor(node, node.op, operands, attributes, extras(graph, node), epilogue(node))
    found = convolutions.read(graph, node)
    if isinstance(found, str):
        return found
    return _Anchor(node, "Conv", (found.x, found.weight, found.bias), found.attributes)


class _Region:
    """The elementwise operators behind an anchor, found in topological order.

    Attributes:
        members: operators taken so far.
        accepted: the first so many of them are such that one value alone leaves them.
    """

    def __init__(
        self, options: FuseEpilogue, graph: Graph, anchor: _Anchor, position: dict[int, int]
    ) -> None:
        self.members: list[Member] = []
        self.accepted = 0
        self._options = options
        self._graph = graph
        self._anchor = anchor
        self._position = position
        self._shape = anchor.node.out.tensor.shape
        self._unread: dict[Value, int] = {}  # of values taken: readers that are not
        self._waiting: list[tuple[int, Node]] = []
        self._steps = len(anchor.epilogue.instructions)
        self._operands: set[object] = set(anchor.extras)

    def grow(self) -> str | None:
        """Takes operators until none fits; returns why the next one does not."""
        value = self._anchor.node.out
        while True:
            reason = self._open(value)
            if reason is not None:
                return reason
            if not self._waiting:
                return None
            _, node = heapq.heappop(self._waiting)
            found = self._fitting(node)
            if not isinstance(found, Elementwise):
                return self._why(node, found)
            self._take(node, found)
            value = node.out
            reason = self._beyond(node)
            if reason is not None:
                return reason
            if not self._unread:
                self.accepted = len(self.members)

    def _beyond(self, node: Node) -> str | None:
        """Why the epilogue with ``node`` would be larger than the options allow."""
        options = self._options
        if self._steps <= options.max_steps and len(self._operands) <= options.max_extras:
            return None  # what is equal or spelt out makes it only smaller
        program, further = _epilogue(self._graph, self._anchor, self.members)
        steps, operands = len(program.instructions), len(further)
        if steps > options.max_steps:
            return f"{node.label}: {steps} instructions, more than max-steps={options.max_steps}"
        if operands > options.max_extras and not self._unread:
            return f"{node.label}: {operands} operands, more than max-extras={options.max_extras}"
        return None

    def _open(self, value: Value) -> str | None:
        """Queues the readers of a value."""
        uses = self._graph.uses(value)
        readers = dict.fromkeys(use.node for use in uses)
        if self._graph.is_output(value):
            fitting = (each for each in readers if isinstance(self._fitting(each), Elementwise))
            first = next(fitting, None)
            if self._unread or first is not None:
                behind = f", so {first.label} stays" if first else ""
                return f"{value.label} is a graph output{behind}"
            self._waiting.clear()
            return None
        if not uses:
            self._waiting.clear()
            return None
        queued = {node for _, node in self._waiting}
        for node in readers:
            if node not in queued:
                heapq.heappush(self._waiting, (self._position.get(node.id, node.id), node))
        self._unread[value] = len(uses)
        return None

    def _take(self, node: Node, found: Elementwise) -> None:
        self.members.append((node, found))
        self._steps += len(found.program.instructions)
        for part in found.operands:
            if not isinstance(part, Value):
                self._operands.add(id(part))
            elif part not in self._unread:
                self._operands.add(part)
        for operand in self._graph.operands(node):
            if operand is not None and operand in self._unread:
                self._unread[operand] -= 1
                if not self._unread[operand]:
                    del self._unread[operand]

    def _fitting(self, node: Node) -> Elementwise | str | None:
        """What an operator computes, why it cannot be taken, or None if it is not elementwise."""
        found = read(self._graph, node)
        if not isinstance(found, Elementwise):
            return found
        shape = self._shape
        if not known(shape):
            return "the shape is not known"
        assert shape is not None
        if node.out.tensor.shape != shape:
            return f"its result {node.out.tensor} is wider than {self._anchor.node.out.tensor}"
        for operand in found.operands:
            if not broadcasts(operand, shape):
                return "the shape of an operand is not known"
        return found

    def _why(self, node: Node, found: str | None) -> str | None:
        for value in self._unread:
            readers = dict.fromkeys(use.node for use in self._graph.uses(value))
            if len(readers) > 1:
                fitting = [n for n in readers if isinstance(self._fitting(n), Elementwise)]
                if not fitting:
                    return None
                return f"{labels(fitting)}: not the only reader of {value.label}"
        return None if found is None else f"{node.label}: {found}"


def _epilogue(
    graph: Graph, anchor: _Anchor, members: Sequence[Member]
) -> tuple[Program, list[Operand]]:
    """The epilogue of anchor and members, and its arguments after the accumulator."""
    builder = ProgramBuilder()
    own = [builder.reserve(), *map(builder.argument, anchor.extras)]
    registers: dict[Value, int] = {anchor.node.out: builder.call(anchor.epilogue, own)}
    for node, found in members:
        arguments = [reference(builder, registers, operand) for operand in found.operands]
        registers[node.out] = builder.call(found.program, arguments)
    constants = [None if a is None else scalar(graph, a) for a in builder.arguments]
    program, kept = recognise(builder.program(), constants, pinned=1)
    further = [builder.arguments[i] for i in kept[1:]]
    return program, [operand for operand in further if operand is not None]


def _fuse(graph: Graph, anchor: _Anchor, members: Sequence[Member]) -> None:
    program, further = _epilogue(graph, anchor, members)
    last = members[-1][0] if members else anchor.node
    new = graph.add(
        anchor.op,
        (*_filled(anchor.operands), *(as_value(graph, operand) for operand in further)),
        {**anchor.attributes, "epilogue": program},
        domain=KERNEL_DOMAIN,
        types=last.types,
        names=last.names,
        name=anchor.node.name,
        origin=[name for node in (anchor.node, *(n for n, _ in members)) for name in node.origin],
    )
    graph.replace_uses(last.out, new.out)
    graph.erase_dead([last])


def _filled(operands: Sequence[Value | None]) -> tuple[Value | None, ...]:
    return (*operands, *(None,) * (FIRST_EXTRA - len(operands)))
