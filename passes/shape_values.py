"""What is known of small integer tensors that are computed from shapes.

The chains that exporters write for ``x.view(x.size(0), -1)`` compute with shapes: Shape, Gather,
Concat, Reshape. Entry by entry such a tensor is a number, or one dimension of some value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.rewriting import int_list

MAX_ENTRIES = 256


@dataclass(frozen=True, slots=True)
class Symbol:
    """A dimension that is only known at run time: the model's symbol, or an axis of a value."""

    name: str | tuple[int, int, int]


Entry = int | Symbol | None


@dataclass(frozen=True, slots=True)
class Ints:
    """An integer scalar or vector, entry by entry."""

    entries: tuple[Entry, ...]
    scalar: bool = False

    @property
    def numbers(self) -> list[int] | None:
        """The entries if all are numbers."""
        numbers = [e for e in self.entries if isinstance(e, int)]
        return numbers if len(numbers) == len(self.entries) else None


def dim_entry(value: Value, axis: int) -> Entry:
    """One dimension of a value as an entry."""
    shape = value.tensor.shape
    dim = None if shape is None else shape[axis]
    if isinstance(dim, int):
        return dim
    return Symbol(dim or (value.node.id, value.index, axis))


class ShapeValues:
    """Collects what is known of a graph's integer tensors; visit nodes operands first."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[tuple[int, int], Ints] = {}

    def of(self, value: Value | None) -> Ints | None:
        """What is known of a value."""
        if value is None:
            return None
        array = self.graph.constant_value(value)
        if array is None:
            return self._known.get((value.node.id, value.index))
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > MAX_ENTRIES:
            return None
        return Ints(tuple(int(i) for i in array.reshape(-1)), array.ndim == 0)

    def visit(self, node: Node) -> Ints | None:
        """Learns about a node's first result from what is known of its operands."""
        rule = _RULES.get(node.op) if node.domain == "" else None
        if rule is None or len(node.types) != 1 or node.out.tensor.dtype not in ("int64", "int32"):
            return None
        known = rule(self, node, self.graph.operands(node))
        if known is None or len(known.entries) > MAX_ENTRIES:
            return None
        self._known[node.id, 0] = known
        return known


Operands = Sequence[Value | None]


def _shape(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    x = operands[0]
    if x is None or x.tensor.shape is None:
        return None
    axes = range(len(x.tensor.shape))[slice(node.get("start", 0), node.get("end"))]
    return Ints(tuple(dim_entry(x, a) for a in axes))


def _size(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    elements = None if operands[0] is None else operands[0].tensor.elements
    return None if elements is None else Ints((elements,), scalar=True)


def _gather(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    data, at = state.of(operands[0]), state.of(operands[1])
    if data is None or at is None or data.scalar or at.numbers is None:
        return None
    size = len(data.entries)
    if any(not -size <= i < size for i in at.numbers):
        return None
    return Ints(tuple(data.entries[i] for i in at.numbers), at.scalar)


def _slice(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    data = state.of(operands[0])
    starts = int_list(state.graph, node, 1, "starts")
    ends = int_list(state.graph, node, 2, "ends")
    if data is None or data.scalar or not starts or not ends or len(starts) != 1:
        return None
    step: tuple[int, ...] = (1,)
    if len(operands) > 4 and operands[4] is not None:
        step = int_list(state.graph, node, 4, "steps") or (0,)
    return Ints(data.entries[slice(starts[0], ends[0], step[0])]) if step[0] else None


def _concat(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    parts = [state.of(v) for v in operands]
    entries: list[Entry] = []
    for part in parts:
        if part is None or part.scalar:
            return None
        entries.extend(part.entries)
    return Ints(tuple(entries))


def _unsqueeze(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    data = state.of(operands[0])
    axes = int_list(state.graph, node, 1, "axes")
    return Ints(data.entries) if data and data.scalar and axes in ((0,), (-1,)) else None


def _squeeze(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    data = state.of(operands[0])
    one = data is not None and not data.scalar and len(data.entries) == 1
    return Ints(data.entries, scalar=True) if data and one else None


def _same(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    return state.of(operands[0])


def _reshape(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
    data, shape = state.of(operands[0]), node.out.shape
    if data is None or shape is None or len(shape) > 1:
        return None
    return Ints(data.entries, scalar=not shape)


def _arithmetic(function: Callable[[int, int], int]) -> Rule:
    def rule(state: ShapeValues, node: Node, operands: Operands) -> Ints | None:
        a, b = state.of(operands[0]), state.of(operands[1])
        if a is None or b is None:
            return None
        size = max(len(a.entries), len(b.entries))
        if any(len(v.entries) not in (1, size) for v in (a, b)) or not size:
            return None
        left = a.entries * (size if len(a.entries) == 1 else 1)
        right = b.entries * (size if len(b.entries) == 1 else 1)
        entries: list[Entry] = []
        for i, j in zip(left, right, strict=True):
            both = isinstance(i, int) and isinstance(j, int)
            entries.append(function(i, j) if both else None)  # type: ignore[arg-type]
        return Ints(tuple(entries[:MAX_ENTRIES]), a.scalar and b.scalar)

    return rule


Rule = Callable[[ShapeValues, Node, Operands], Ints | None]

# Div is left out: with negative numbers and zero it is the evaluator's business.
_RULES: dict[str, Rule] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Cast": _same,
    "Concat": _concat,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _arithmetic(lambda a, b: a * b),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Unsqueeze": _unsqueeze,
}
