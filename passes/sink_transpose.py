"""The pass ``sink-transpose``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.types import TensorType
from pwopt.passes.axes import BY_AXIS, Perm, before_transpose
from pwopt.passes.estimate import constant_growth
from pwopt.passes.mixing import UNARY
from pwopt.passes.rewriting import int_list, is_dynamic
from pwopt.pipeline import Applied, Context, Missed, Rewrite

_BINARY = ("Add", "Div", "Max", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum")
_PLAIN = (*UNARY, *_BINARY, "Cast", "Identity", "Sqrt")
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
MAX_REGION = 1024  # operators that one rewrite passes


@dataclass(frozen=True)
class SinkTranspose(Rewrite):
    """Moves Transposes down through elementwise operators where that lets them cancel.

    Rewrite:
        ``Transpose⁻¹(Relu(Add(Transpose(x), Transpose(y))))`` → ``Relu(Add(x, y))``; Concat over
        any axis, reductions over known axes, Pad, Slice and Resize are passed too, and a reduction
        after which the order of the remaining axes does not matter ends a Transpose.

    Shapes:
        Constants broadcast as before: they are transposed themselves. The ranks must be known.

    Numerics:
        Exact: no value changes; sums of reductions may change their order.

    Misses when:
        As many elements would be transposed as before.

    Source:
        Exporters of channels-last frameworks, which wrap every convolution in two Transposes.
    """

    name: ClassVar[str] = "sink-transpose"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset({(ONNX_DOMAIN, "Transpose")})

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        perm = _perm(node)
        if perm is None:
            return None
        region = _Region(graph, node, perm)
        if not region.inner:
            return None
        if not region.saves():
            return Missed("as many elements would be transposed behind what follows as before")
        what = f"transposed constants behind {node.label}"
        if (why := context.growth().refuse(graph, region.added(), what)) is not None:
            return Missed(why)
        label = node.label
        region.write()
        return Applied(f"moved {label} and those beside it down through {len(region.inner)} nodes")


def _perm(node: Node) -> Perm | None:
    """The permutation of a Transpose, None for any other node."""
    rank = node.out.tensor.rank if node.is_op("Transpose") else None
    if rank is None:
        return None
    return tuple(node.get("perm") or range(rank)[::-1])


def _is_identity(perm: Perm) -> bool:
    return perm == tuple(range(len(perm)))


@dataclass
class _Region:
    """Operators that read nothing but equally transposed values and constants.

    Attributes:
        perms: by value, the Transpose that gives it once the region is written.
        inner: the operators in topological order.
    """

    graph: Graph
    first: Node
    perm: Perm
    perms: dict[Value, Perm] = field(default_factory=dict)
    inner: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        taken: set[Node] = set()
        self.perms[self.first.out] = self.perm
        pending = [self.first.out]
        while pending and len(self.inner) < MAX_REGION:
            for use in self.graph.uses(pending.pop()):
                node = use.node
                after = None if node in taken else self._passes(node)
                if after is not None:
                    taken.add(node)
                    self.inner.append(node)
                    self.perms[node.out] = after
                    pending.append(node.out)

    def _passes(self, node: Node) -> Perm | None:
        """The permutation of a node's result, None where a Transpose does not pass it."""
        graph = self.graph
        operands = graph.operands(node)
        if node.domain != ONNX_DOMAIN or len(node.types) != 1 or node.out.tensor.rank is None:
            return None
        found = {self._of(v) for v in self._moved(node)}
        perm = found.pop() if len(found) == 1 else None
        if perm is None:
            return None
        if node.op in _REDUCTIONS:
            return _after_reduction(graph, node, perm)
        if node.op in BY_AXIS:
            return None if before_transpose(graph, node, perm) is None else perm
        if node.op == "Concat":
            every = all(v is not None and not v.node.is_constant for v in operands)
            return perm if every else None
        if not node.is_op(*_PLAIN) or node.out.tensor.rank != len(perm):
            return None
        return perm if node.op not in _BINARY or graph.opset >= 7 else None

    def _moved(self, node: Node) -> Iterator[Value]:
        """The operands that would have to be transposed values."""
        operands = self.graph.operands(node)
        if node.op in _REDUCTIONS or node.op in UNARY or node.op in BY_AXIS:
            operands = operands[:1]
        for value in operands:
            if value is not None and not value.node.is_constant:
                yield value

    def _of(self, value: Value) -> Perm | None:
        if value in self.perms:
            return self.perms[value]
        perm = _perm(value.node)
        if perm is not None:
            self.perms[value] = perm
        return perm

    def saves(self) -> bool:
        """Whether fewer elements are transposed than before."""
        graph, inside = self.graph, set(self.inner)
        balance = 0
        for value in dict.fromkeys(v for node in self.inner for v in self._moved(node)):
            if value.node in inside:
                continue
            source = graph.operand(value.node, 0)
            if source is not None and source.node in inside:
                return False  # a Transpose in the midst of the region
            if not graph.is_output(value) and all(u.node in inside for u in graph.uses(value)):
                balance -= _elements(value)
        for node in self.inner:
            value, perm = node.out, self.perms[node.out]
            outside = [use.node for use in graph.uses(value) if use.node not in inside]
            for reader in outside:
                other = _perm(reader)
                if other is not None and _is_identity(tuple(perm[i] for i in other)):
                    balance -= _elements(value)
            if graph.is_output(value) or any(_perm(reader) is None for reader in outside):
                balance += 0 if _is_identity(perm) else _elements(value)
        return balance < 0

    def added(self) -> int:
        """Bytes by which the constants grow, where others read them, too."""
        new = 0
        for node in self.inner:
            if node.is_op(*_BINARY):
                arrays = map(self.graph.constant_value, self.graph.operands(node))
                new += sum(a.nbytes for a in arrays if a is not None and a.size > 1)
        return constant_growth(self.graph, self.inner, new)

    def write(self) -> None:
        """Puts the region on the values before the Transposes."""
        graph, inside = self.graph, set(self.inner)
        new: dict[Value, Value] = {}
        for node in self.inner:
            for value in self._moved(node):
                if value not in new:
                    source = graph.operand(value.node, 0)
                    assert source is not None
                    new[value] = source
            new[node.out] = self._again(node, new)
        for node in self.inner:
            value, perm = node.out, self.perms[node.out]
            outside = [use.node for use in graph.uses(value) if use.node not in inside]
            for reader in outside:
                other = _perm(reader)
                if other is None:
                    continue
                both = tuple(perm[i] for i in other)
                graph.replace_uses(reader.out, self._transposed(new[value], both, reader))
                graph.erase_dead([reader])
            if graph.is_output(value) or any(_perm(reader) is None for reader in outside):
                graph.replace_uses(value, self._transposed(new[value], perm, node))
        graph.erase_dead(self.inner[::-1])

    def _transposed(self, value: Value, perm: Perm, like: Node) -> Value:
        """``value`` in the order of ``like``'s result."""
        if _is_identity(perm):
            return value
        attributes = {"perm": perm}
        return self.graph.add(
            *("Transpose", [value], attributes),
            types=like.types,
            names=like.names,
            origin=like.origin,
        ).out

    def _again(self, node: Node, new: dict[Value, Value]) -> Value:
        graph, attributes = self.graph, dict(node.attributes)
        operands: list[Value | None] = []
        before = self.perms[next(self._moved(node))]
        placed = before_transpose(graph, node, before)
        if placed is not None:
            rest, attributes = placed
            arrays = [graph.constant(v) if isinstance(v, np.ndarray) else v for v in rest]
            kind = _type_before(node.out.tensor, self.perms[node.out])
            operands = [new[next(self._moved(node))], *arrays]
            return graph.add(
                node.op, operands, attributes, types=[kind], name=node.name, origin=node.origin
            ).out
        for slot, value in enumerate(graph.operands(node)):
            keep = slot > 0 and (node.op in _REDUCTIONS or node.op in UNARY)
            if value is None or keep:
                operands.append(value)
            elif value.node.is_constant:
                operands.append(_constant_before(graph, value, before))
            else:
                operands.append(new[value])
        if node.op == "Concat":
            attributes["axis"] = before[attributes["axis"]]
        elif node.op in _REDUCTIONS:
            axes = tuple(before[a] for a in int_list(graph, node, 1, "axes") or ())
            if "axes" in attributes:
                attributes["axes"] = axes
            else:
                operands[1] = graph.constant(np.array(axes, np.int64))
        kind = _type_before(node.out.tensor, self.perms[node.out])
        return graph.add(
            node.op, operands, attributes, types=[kind], name=node.name, origin=node.origin
        ).out


def _after_reduction(graph: Graph, node: Node, perm: Perm) -> Perm | None:
    if is_dynamic(graph, node, 1):
        return None
    axes = int_list(graph, node, 1, "axes")
    if not axes:
        return None
    if node.get("keepdims", 1):
        return perm
    gone = {a % len(perm) for a in axes}
    kept = [p for k, p in enumerate(perm) if k not in gone]
    return tuple(sorted(kept).index(p) for p in kept)


def _constant_before(graph: Graph, value: Value, perm: Perm) -> Value:
    """The constant that a Transpose by ``perm`` gives back, once it has all axes."""
    array = graph.constant_value(value)
    assert array is not None
    if array.size == 1:
        return value
    wide = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
    back = np.ascontiguousarray(wide.transpose(np.argsort(perm)))
    return graph.constant(back, "", origin=value.node.origin)


def _type_before(tensor: TensorType, perm: Perm) -> TensorType:
    if tensor.shape is None:
        return tensor
    shape = [tensor.shape[perm.index(axis)] for axis in range(len(perm))]
    return TensorType(tensor.dtype, tuple(shape))


def _elements(value: Value) -> int:
    """Number of elements, an open dimension counted as ten."""
    result = 1
    for d in value.tensor.shape or ():
        result *= d if isinstance(d, int) else 10
    return result
