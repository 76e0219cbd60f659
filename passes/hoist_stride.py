"""The pass ``hoist-stride``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pwopt.errors import IRError
from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.passes.mixing import UNARY, put
from pwopt.passes.rewriting import in_training_mode, is_float, reads_only_first, text
from pwopt.passes.sketch import Sketch, saving
from pwopt.pipeline import Applied, Context, Missed, Rewrite

_BINARY = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")
_WINDOWS = ("AveragePool", "Conv", "LpPool", "MaxPool")
MAX_REGION = 256  # nodes whose maps one rewrite makes smaller
MAX_READERS = 64  # of what they compute in the end

# Adds an operator in the place of a node: (node, op, operands, attributes) -> result.
_Add = Callable[[Node, str, Sequence[Value | None], Mapping[str, Any]], Value]


@dataclass(frozen=True)
class HoistStride(Rewrite):
    """Moves the stride of 1x1 convolutions up to where the pixels that they skip are computed.

    Rewrite:
        ``Conv1x1[s](Relu(Add(Conv(x), y)))`` → ``Conv1x1(Relu(Add(Conv[s](x), MaxPool1x1[s](y))))``
        where nothing else reads what is skipped: the stride passes elementwise operators and
        Concat over channels, and multiplies that of the convolutions and pools before them. A
        value with other readers, such as ``y``, is subsampled by a 1x1 MaxPool, which copies.

    Shapes:
        Any batch, spatial rank, kernel, group count and strides; open sizes too, but for
        operators of several operands.

    Numerics:
        Exact: the same pixels are computed from the same values.

    Misses when:
        A reader of the convolution's input is no 1x1 convolution of the same strides, or the
        input is an output or has dozens of readers; it would not pay.

    Source:
        ResNet as Caffe has it, with the stride in a block's first 1x1 convolution and in its
        projection: the last layers before would be computed on four times the pixels needed.
    """

    name: ClassVar[str] = "hoist-stride"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({(ONNX_DOMAIN, "Conv")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        strides, x = _subsampling(graph, node), graph.operand(node, 0)
        if strides is None or x is None or _kind(graph, x.node) is None:
            return None
        if (count := graph.reader_count(x)) > MAX_READERS:
            return Missed(f"{x.label!r} is read by {count} nodes")
        readers = graph.readers(x)
        if readers[0] is not node and _subsampling(graph, readers[0]) == strides:
            return None  # that one is the anchor
        if graph.is_output(x):
            return Missed(f"{x.label!r} is an output of the graph")
        other = next((r for r in readers if _subsampling(graph, r) != strides), None)
        if other is not None:
            return Missed(f"{other.label} reads every pixel of {x.label!r}")
        region = _Region(graph, x, readers, strides)
        try:
            before = Sketch(graph).copy([*region.inner, *readers]).us(context)
            after = Sketch(graph)
            region.build(lambda _, op, operands, attributes: after.add(op, operands, attributes))
            why = saving(before, after.us(context))
        except IRError as error:
            why = str(error)
        if why is not None:
            return Missed(why)
        first = [each.label for each in region.inner if _kind(graph, each) == "window"]
        first += [f"a copy of {value.label!r}" for value in region.cut]
        shown = ", ".join(first[:4]) + (f" and {len(first) - 4} more" if len(first) > 4 else "")
        label = ", ".join(reader.label for reader in readers)
        for reader, value in zip(readers, region.build(_adder(graph, readers)), strict=True):
            put(graph, reader, value)
        return Applied(f"moved the strides {strides} of {label} up to {shown}")


def _adder(graph: Graph, readers: Sequence[Node]) -> _Add:
    kept = set(readers)

    def add(
        node: Node, op: str, operands: Sequence[Value | None], attributes: Mapping[str, Any]
    ) -> Value:
        names = node.names if node in kept else ()
        name = node.name if op == node.op else ""
        types = node.types if node in kept else None
        return graph.add(
            op, operands, attributes, types=types, names=names, name=name, origin=node.origin
        ).out

    return add


def _subsampling(graph: Graph, node: Node) -> tuple[int, ...] | None:
    """The strides of a 1x1 convolution that skips pixels; None for any other node."""
    if not node.is_op("Conv"):
        return None
    weight = graph.operand(node, 1)
    kernel = None if weight is None else weight.tensor.shape
    strides = tuple(node.get("strides") or ())
    if kernel is None or any(k != 1 for k in kernel[2:]) or all(s == 1 for s in strides):
        return None
    return None if any(node.get("pads") or ()) or not is_float(node.out) else strides


def _kind(graph: Graph, node: Node) -> str | None:
    """How a stride passes a node: "window" takes it, "pixels" hands it on; None: not at all."""
    if node.is_op(*_WINDOWS):
        plain = text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        if not plain or node.get("ceil_mode", 0) or not reads_only_first(graph, node):
            return None
        return "window"
    if node.is_op("Concat"):
        return "pixels" if node.get("axis") == 1 else None
    if node.is_op("BatchNormalization"):
        return "pixels" if in_training_mode(graph, node) is False else None
    if node.is_op(*_BINARY):
        return "pixels" if graph.opset >= 7 and _aligned(graph, node) is not None else None
    return "pixels" if node.is_op(*UNARY) else None


def _aligned(graph: Graph, node: Node) -> list[int] | None:
    """Slots whose operand has all the result's pixels, the others being the same at each pixel.

    Returns:
        the slots; None where an operand is neither, or that is not known.
    """
    shape = node.out.tensor.shape
    if shape is None or any(d is None for d in shape[2:]):
        return None
    spatial, slots = shape[2:], []
    for slot, value in enumerate(graph.operands(node)):
        own = None if value is None else value.tensor.shape
        if own is None:
            return None
        tail = own[max(0, len(own) - len(spatial)) :]
        if all(d == 1 for d in tail):
            continue
        if len(own) != len(shape) or tail != spatial or (value and value.node.is_constant):
            return None
        slots.append(slot)
    return slots


def _slots(graph: Graph, node: Node) -> list[int]:
    """The operands of a "pixels" node that must be subsampled with it."""
    if node.is_op("Concat"):
        return list(range(node.arity))
    return (_aligned(graph, node) or []) if node.is_op(*_BINARY) else [0]


@dataclass
class _Region:
    """What computes the pixels that are skipped.

    Attributes:
        x: what the strided convolutions read.
        inner: the nodes whose results become smaller, in topological order.
        cut: values that are needed in full elsewhere.
    """

    graph: Graph
    x: Value
    readers: Sequence[Node]
    strides: tuple[int, ...]
    inner: list[Node] = field(default_factory=list)
    cut: list[Value] = field(default_factory=list)

    def __post_init__(self) -> None:
        seen: dict[Value, int] = {}
        pending = [self.x]
        while pending:
            node = pending.pop().node
            self.inner.append(node)
            if _kind(self.graph, node) == "window":
                continue
            operands = self.graph.operands(node)
            for slot in _slots(self.graph, node):
                value = operands[slot]
                assert value is not None
                seen[value] = seen.get(value, 0) + 1
                if self._is_inner(value, seen[value]):
                    pending.append(value)
        self.inner.reverse()
        inside = {node.out for node in self.inner}
        self.cut = [value for value in seen if value not in inside]

    def _is_inner(self, value: Value, readers: int) -> bool:
        """Whether nothing outside reads a value, and the stride passes what computes it."""
        graph = self.graph
        if graph.is_output(value) or _kind(graph, value.node) is None:
            return False
        if len(self.inner) >= MAX_REGION or graph.reader_count(value) > MAX_REGION:
            return False
        return len(graph.uses(value)) == readers

    def build(self, add: _Add) -> list[Value]:
        """Adds the region and its readers with the strides moved; returns the readers' results."""
        ones = (1,) * len(self.strides)
        small = {
            value: add(
                value.node, "MaxPool", [value], {"kernel_shape": ones, "strides": self.strides}
            )
            for value in self.cut
        }
        for node in self.inner:
            operands, attributes = self.graph.operands(node), dict(node.attributes)
            if _kind(self.graph, node) == "window":
                own = node.get("strides") or ones
                attributes["strides"] = tuple(a * b for a, b in zip(own, self.strides, strict=True))
            else:
                slots = set(_slots(self.graph, node))
                operands = tuple(
                    small[v] if v is not None and slot in slots else v
                    for slot, v in enumerate(operands)
                )
            small[node.out] = add(node, node.op, operands, attributes)
        return [
            add(
                reader,
                "Conv",
                [small[self.x], *self.graph.operands(reader)[1:]],
                {**reader.attributes, "strides": ones},
            )
            for reader in self.readers
        ]
