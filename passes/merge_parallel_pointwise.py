"""The pass ``merge-parallel-pointwise``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import TensorType
from pwopt.passes.affine import labels, step_at
from pwopt.passes.estimate import MARGIN, constant_growth, sizes, spread
from pwopt.passes.matrix import (
    MATRIX_OPS,
    Matrix,
    add_matrix,
    is_pointwise,
    matrix_at,
    origins,
    own_weights,
)
from pwopt.passes.rewriting import in_training_mode
from pwopt.passes.tails import Link, tail, tail_on
from pwopt.pipeline import Applied, Context, Missed, Rewrite

MAX_READERS = 64  # of one tensor that are looked at


@dataclass(frozen=True)
class MergeParallelPointwise(Rewrite):
    """Computes 1x1 convolutions that read one tensor as one of all their output channels.

    Rewrite:
        ``Relu(Conv(X, W1, B1))``, ``Relu(Conv(X, W2, B2))`` →
        ``Split(Relu(Conv(X, [W1; W2], [B1; B2])))``, and without the Split where the results are
        adjacent operands of one Concat over channels. What follows all of them alike is computed
        once: activations, and a constant bias behind MatMul. Gemm and MatMul with one first
        operand count as convolutions.
    Shapes:
        any rank and batch; equal strides; output widths may differ; a first dimension may be open.
    Numerics:
        exact; every output channel keeps its sum.
    Misses when:
        weights or biases are not constant, or shared beyond ``max_growth_bytes``; pads are not
        zero; several groups; strides differ; two are added, which sum-of-pointwise makes one; a
        normalization or a constant factor behind one is not folded yet; a size is not known; one
        wide operator and its Split are predicted to take longer than the narrow ones.
    Source:
        Jia et al., TASO, SOSP 2019 (merging of operators that share an input).

    Attributes:
        max_growth_bytes: how much a shared weight may grow the model by when its readers each get
            their own copy.
        copies: count a Split as the copy that it is in runtimes of ONNX, not as the view that the
            CPU target makes of it.
    """

    name: ClassVar[str] = "merge-parallel-pointwise"
    ops: ClassVar[frozenset[tuple[str, str]]] = MATRIX_OPS

    max_growth_bytes: int = 0
    copies: bool = True

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        peers = _peers(graph, node)
        if len(peers) < 2:
            return None
        read = [matrix_at(graph, each) for each in peers]
        own = read[peers.index(node)]
        if isinstance(own, str):
            return Missed(own)
        alike = [each for each in read if isinstance(each, Matrix) and each.kind == own.kind]
        if alike[0] is not own:
            return None
        if len(alike) < 2:
            return Missed(_difference(own, read)) if peers[0] is node else None
        growth = context.growth(self.max_growth_bytes)
        if (trouble := own_weights(graph, alike, growth)) is not None:
            return Missed(trouble)
        shape, result = sizes(own.x), sizes(own.node.out)
        if shape is None or result is None:
            return Missed(f"the shape of {own.x.label} is not known: {own.x.tensor}")
        pixels = spread(result, own.axis)
        groups = _groups(graph, alike)
        plans = [self._plan(graph, group, pixels, context) for group in groups]
        best = max(plans, key=lambda plan: plan.before - plan.after)
        margin = MARGIN if best.concat is None else 0.0
        if best.before - best.after <= margin * best.before:
            return Missed(
                f"with {_others(best.parts)} one product is predicted to take {best.after:.1f} us,"
                f" apart they take {best.before:.1f} us"
            )
        folded = next((n for n in (_folds(graph, part) for part in best.parts) if n), None)
        if folded is not None:
            return Missed(f"{folded.label} folds into the weights before it first")
        new = sum(part.matrix.nbytes for part in best.parts)
        if any(part.vector is not None for part in best.parts):
            new += sum(part.outputs for part in best.parts) * own.matrix.itemsize
        added = constant_growth(graph, [part.node for part in best.parts], new)
        if (why := context.growth().refuse(graph, added, "zeros for absent biases")) is not None:
            return Missed(why)
        where = "" if best.concat is None else f" within {best.concat.label}"
        text = f"merged with {_others(best.parts)}{where}"
        _apply(graph, best)
        return Applied(text)

    def _plan(self, graph: Graph, parts: list[Matrix], pixels: int, context: Context) -> _Plan:
        tails = [tail(graph, part) for part in parts]
        common = 0
        for row in zip(*tails, strict=False):
            if len({link.key for link in row}) > 1:
                break
            common += 1
        moved = [links[:common] for links in tails]
        model, inputs = context.cost_model, parts[0].matrix.shape[1]
        level = model.weight_level(graph)
        before = sum(model.matrix_us(pixels, inputs, p.outputs, weights=level) for p in parts)
        outputs = sum(part.outputs for part in parts)
        after = model.matrix_us(pixels, inputs, outputs, weights=level)
        plan = _Plan(parts, moved, None, before, after)
        concat = _concat(graph, plan)
        if concat is None:
            after += self.copies * model.copy_us(model.map_item_bytes * pixels * outputs)
            for part, links in zip(parts, tails, strict=True):
                if len(links) > common:  # no epilogue any more, it reads and writes the part
                    after += model.copy_us(model.map_item_bytes * pixels * part.outputs)
        return _Plan(parts, moved, concat, before, after)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A way to merge.

    Attributes:
        parts: in the order of their channels.
        links: what follows each part and moves along, one list per part, of equal lengths.
        concat: the Concat whose adjacent operands they are, if there is one.
        before, after: predicted microseconds.
    """

    parts: list[Matrix]
    links: list[list[Link]]
    concat: Node | None
    before: float
    after: float

    @property
    def ends(self) -> list[Value]:
        """The values that are replaced."""
        return [
            links[-1].node.out if links else part.node.out
            for part, links in zip(self.parts, self.links, strict=True)
        ]


def _peers(graph: Graph, node: Node) -> list[Node]:
    """The pointwise nodes that read what ``node`` reads, itself included, oldest first."""
    x = graph.operand(node, 0)
    if x is None or x.node.is_constant or not is_pointwise(graph, node):
        return []
    if graph.reader_count(x) > MAX_READERS:
        return []
    readers = (use.node for use in graph.uses(x) if use.slot == 0)
    peers = [n for n in readers if n.op == node.op and is_pointwise(graph, n)]
    return [] if _summed(graph, node, peers) else [n for n in peers if not _summed(graph, n, peers)]


def _summed(graph: Graph, node: Node, peers: Sequence[Node]) -> bool:
    """Whether another peer is added to a node and nothing else read: less work as one of both."""
    use = graph.only_use(node.out)
    if use is None or not use.node.is_op("Add"):
        return False
    other = graph.operand(use.node, 1 - use.slot)
    if other is None or other.node is node or other.node not in peers:
        return False
    alone = graph.only_use(other) is not None
    alike = other.node.get("strides") == node.get("strides") and other.type == node.out.type
    weights = [graph.operand(each, 1) for each in (node, other.node)]
    return alone and alike and all(w is not None and graph.only_use(w) for w in weights)


def _folds(graph: Graph, part: Matrix) -> Node | None:
    """What is behind a part and no part of its weights yet, though fold-* can make it one."""
    use = graph.only_use(part.node.out)
    if use is None or use.slot != 0:
        return None
    node, operands = use.node, graph.operands(use.node)
    if node.is_op("BatchNormalization"):
        constant = all(graph.constant_value(v) is not None for v in operands[1:])
        return node if constant and in_training_mode(graph, node) is False else None
    step = None if part.node.op == "MatMul" else step_at(graph, node)
    return node if step is not None and step.along(part.axis) is not None else None


def _difference(own: Matrix, read: Sequence[Matrix | str]) -> str:
    for each in read:
        if isinstance(each, str):
            return each
    other = next(each for each in read if each is not own)
    assert isinstance(other, Matrix)
    if own.strides != other.strides:
        return (
            f"its strides {list(own.strides)} are not those of {other.node.label}: "
            f"{list(other.strides)}"
        )
    return f"its weights are {own.weight.tensor}, those of {other.node.label} {other.weight.tensor}"


def _groups(graph: Graph, parts: list[Matrix]) -> Iterator[list[Matrix]]:
    """Sets of parts worth merging: adjacent in a Concat, followed by the same, or all."""
    ends: dict[tuple[Node, int], Matrix] = {}
    for part in parts:
        links = tail(graph, part)
        use = graph.only_use(links[-1].node.out if links else part.node.out)
        if use is not None and _joins(use.node, part):
            ends[use.node, use.slot] = part
    ordered = sorted(ends, key=lambda key: (key[0].id, key[1]))
    for _, run in itertools.groupby(enumerate(ordered), lambda p: (p[1][0].id, p[1][1] - p[0])):
        group = [ends[key] for _, key in run]
        if len(group) > 1:
            yield group
    heads: dict[object, list[Matrix]] = {}
    for part in parts:
        heads.setdefault(next((link.key for link in tail(graph, part)), None), []).append(part)
    yield from (group for group in heads.values() if 1 < len(group) < len(parts))
    yield parts


def _joins(node: Node, part: Matrix) -> bool:
    """Whether a node is a Concat along the channels of ``part``."""
    rank = part.node.out.tensor.rank
    axis = node.get("axis", 1)
    return node.is_op("Concat") and axis in (part.axis, part.axis - rank if rank else part.axis)


def _concat(graph: Graph, plan: _Plan) -> Node | None:
    """The Concat of which the ends are adjacent operands, in the order of the parts."""
    uses = [graph.only_use(end) for end in plan.ends]
    first = uses[0]
    if first is None or not _joins(first.node, plan.parts[0]):
        return None
    for i, use in enumerate(uses):
        if use is None or use.node is not first.node or use.slot != first.slot + i:
            return None
    return first.node


def _apply(graph: Graph, plan: _Plan) -> None:
    parts, ends = plan.parts, plan.ends
    vector = None
    if any(part.vector is not None for part in parts):
        vector = np.concatenate(
            [np.zeros(p.outputs, p.matrix.dtype) if p.vector is None else p.vector for p in parts]
        )
    nodes = [part.node for part in parts]
    matrix = np.concatenate([part.matrix for part in parts])
    wide = add_matrix(graph, parts[0], parts[0].x, matrix, vector, absorbed=nodes).out
    for links in zip(*plan.links, strict=True):
        wide = tail_on(graph, wide, links).out
    if plan.concat is None:
        _split(graph, wide, ends, parts[0].axis)
    else:
        _shorten(graph, plan.concat, ends, wide)
    graph.erase_dead([end.node for end in ends])


def _split(graph: Graph, wide: Value, ends: Sequence[Value], axis: int) -> None:
    widths = []
    for end in ends:
        kind = end.type
        assert isinstance(kind, TensorType)
        assert kind.shape is not None
        widths.append(kind.shape[axis])
    if graph.opset >= 13:
        operands, attributes = [graph.constant(np.array(widths, np.int64))], {}
    else:
        operands, attributes = [], {"split": tuple(widths)}
    node = graph.add(
        "Split",
        [wide, *operands],
        {"axis": axis, **attributes},
        types=[end.type for end in ends],
        names=[end.name for end in ends],
        origin=origins(end.node for end in ends),
    )
    for i, end in enumerate(ends):
        graph.replace_uses(end, node[i])


def _shorten(graph: Graph, concat: Node, ends: Sequence[Value], wide: Value) -> None:
    """One operand of a Concat for several; no Concat if it is the only one."""
    operands: list[Value | None] = []
    for value in graph.operands(concat):
        if value == ends[0]:
            operands.append(wide)
        elif value not in ends:
            operands.append(value)
    joined = wide
    if len(operands) > 1:
        joined = graph.add(
            "Concat",
            operands,
            concat.attributes,
            types=concat.types,
            names=concat.names,
            name=concat.name,
            origin=concat.origin,
        ).out
    graph.replace_uses(concat.out, joined)
    graph.erase(concat)


def _others(parts: Sequence[Matrix]) -> str:
    return labels([part.node for part in parts[1:]])
