"""The pass ``sum-of-pointwise``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.affine import labels
from pwopt.passes.estimate import MARGIN, sizes, spread
from pwopt.passes.linear import not_alone
from pwopt.passes.matrix import (
    MATRIX_OPS,
    Matrix,
    add_matrix,
    is_pointwise,
    matrix_at,
    misfit,
    origins,
    own_weights,
)
from pwopt.passes.tails import UNARY
from pwopt.pipeline import Applied, Context, Missed, Rewrite

MAX_OPERANDS = 8  # of a Concat that is taken apart
MAX_READERS = 64  # of an operand that is written into a Concat


@dataclass(frozen=True)
class SumOfPointwise(Rewrite):
    """Adds two 1x1 convolutions up inside one, or takes one over a Concat apart.

    Rewrite:
        ``Add(Conv(A, V, a), Conv(B, W, b))`` → ``Conv(Concat(A, B), [V W], a + b)``, where the
        strides differ over the pixels that are read; ``Add(Conv(X, V, a), Conv(X, W, b))`` →
        ``Conv(X, V + W, a + b)``; and back: ``Conv(Concat(A, B), [V W], c)`` →
        ``Add(Conv(A, V, c), Conv(B, W))``. Gemm and MatMul count as convolutions.
    Shapes:
        any rank and batch; the sum must not broadcast; a first dimension may be open.
    Numerics:
        exact; the sums are taken in another order, biases added in float64.
    Misses when:
        it is not predicted to pay; a Concat that is taken apart counts as a copy only of those
        operands that no target writes in place;
        a result has another reader or is an output; sizes are not known; weights or biases are not
        constant, or shared beyond ``max_growth_bytes``; pads; several groups; strides differ
        before operator set 10, whose Slice is the first with steps.
    Source:
        Jia et al., TASO, SOSP 2019 (concatenation and matrix product).

    Attributes:
        max_growth_bytes: how much a shared weight may grow the model by when its readers each get
            their own copy.
        copies: count a Concat that is made as the copy that it is in runtimes of ONNX, even of what
            the CPU target writes in place.
    """

    name: ClassVar[str] = "sum-of-pointwise"
    ops: ClassVar[frozenset[tuple[str, str]]] = MATRIX_OPS | {("", "Add")}

    max_growth_bytes: int = 0
    copies: bool = True

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        if node.op == "Add":
            return self._join(graph, node, context)
        return self._take_apart(graph, node, context)

    def _join(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        values = [v for v in graph.operands(node) if v is not None]
        if len(values) != 2 or values[0] == values[1]:
            return None
        if not all(is_pointwise(graph, v.node) for v in values):
            return None
        if values[0].node.op != values[1].node.op:
            return None
        for value in values:
            if (missed := not_alone(graph, value)) is not None:
                return missed
        parts: list[Matrix] = []
        for value in values:
            part = matrix_at(graph, value.node)
            if isinstance(part, str):
                return Missed(part)
            parts.append(part)
        if (why := _sum_trouble(graph, node, parts)) is not None:
            return Missed(why)
        if (why := own_weights(graph, parts, context.growth(self.max_growth_bytes))) is not None:
            return Missed(why)
        if parts[0].x == parts[1].x and parts[0].strides == parts[1].strides:
            return _add_weights(graph, node, parts)
        slices = parts[0].strides != parts[1].strides or not _same_pixels(parts)
        if slices and graph.opset < 10:
            return Missed(f"operator set {graph.opset} has no Slice with steps")
        result = sizes(node.out)
        inputs = [sizes(part.x) for part in parts]
        if result is None or inputs[0] is None or inputs[1] is None:
            return Missed(f"the shape of {node.out.label} is not known: {node.out.tensor}")
        pixels = spread(result, parts[0].axis)
        model = context.cost_model
        before = _apart_us(graph, context, parts, pixels)
        depths = [part.matrix.shape[1] for part in parts]
        outputs, level = parts[0].outputs, model.weight_level(graph)
        after = model.matrix_us(pixels, sum(depths), outputs, weights=level)
        read = pixels if slices else spread(inputs[0], parts[0].axis)
        copied = 0
        for part, depth in zip(parts, depths, strict=True):
            strided = slices and any(s != 1 for s in part.strides)
            if self.copies:
                copied += depth * (1 + strided)  # a Slice is another copy
            elif strided or not _fits_in_place(graph, part.x):
                copied += depth
        after += model.copy_us(model.map_item_bytes * read * copied) if copied else 0.0
        if before - after <= MARGIN * before:
            return Missed(
                _prediction(
                    f"over a Concat of {parts[0].x.label} and {parts[1].x.label}",
                    after,
                    "apart",
                    before,
                )
            )
        text = f"made {labels([p.node for p in parts])} one over concatenated channels"
        _concatenate(graph, node, parts, slices)
        return Applied(text)

    def _take_apart(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        x = graph.operand(node, 0)
        if x is None or not x.node.is_op("Concat") or not is_pointwise(graph, node):
            return None
        concat = x.node
        part = matrix_at(graph, node)
        if isinstance(part, str):
            return Missed(part)
        operands = [v for v in graph.operands(concat) if v is not None]
        rank, axis = x.tensor.rank, concat.get("axis", 1)
        along = part.axis
        if rank is None or axis not in (along, along - rank) or len(operands) < 2:
            return None
        if (missed := not_alone(graph, x)) is not None:
            return missed
        if len(operands) > MAX_OPERANDS:
            return Missed(f"{concat.label} has {len(operands)} operands")
        shapes = [sizes(v) for v in operands]
        result = sizes(node.out)
        known = [shape for shape in shapes if shape is not None]
        if result is None or len(known) < len(shapes):
            return Missed(f"the shape of {x.label} is not known: {x.tensor}")
        if graph.opset < 7:
            return Missed(f"operator set {graph.opset} has no Add that needs no attributes")
        if (why := own_weights(graph, [part], context.growth(self.max_growth_bytes))) is not None:
            return Missed(why)
        parts = _columns(part, operands, [shape[along] for shape in known])
        model, pixels = context.cost_model, spread(result, along)
        copies = model.node_us(graph, concat)
        if not copies:
            return Missed(f"the operands of {concat.label} are written in place")
        inputs, level = part.matrix.shape[1], model.weight_level(graph)
        before = copies + model.matrix_us(pixels, inputs, part.outputs, weights=level)
        after = _apart_us(graph, context, parts, pixels)
        if before - after <= MARGIN * before:
            return Missed(_prediction(f"over {concat.label}", before, "apart", after))
        shown = concat.label
        _split_up(graph, parts)
        return Applied(f"takes the operands of {shown} one by one")


def _apart_us(graph: Graph, context: Context, parts: Sequence[Matrix], pixels: int) -> float:
    """Time of the parts one after another, each but the first adding to what is there."""
    model = context.cost_model
    level = model.weight_level(graph)
    return sum(
        model.matrix_us(pixels, p.matrix.shape[1], p.outputs, residual=i > 0, weights=level)
        for i, p in enumerate(parts)
    )


def _fits_in_place(graph: Graph, value: Value) -> bool:
    """Whether a target can write a value into a Concat that it is not an operand of yet."""
    if value.tensor.rank != 4 or value.tensor.dtype != "float32" or graph.is_output(value):
        return False
    if graph.reader_count(value) > MAX_READERS:
        return False
    if any(reader.is_op("Concat") for reader in graph.readers(value)):
        return False
    return value.node.is_op("Conv", "MaxPool", "AveragePool", *UNARY)


def _prediction(one: str, one_us: float, other: str, other_us: float) -> str:
    return f"{one} it is predicted to take {one_us:.1f} us, {other} {other_us:.1f} us"


def _sum_trouble(graph: Graph, node: Node, parts: Sequence[Matrix]) -> str | None:
    """Why the two are not added element by element, or not of one type."""
    a, b = parts
    if a.matrix.dtype != b.matrix.dtype:
        return f"{a.node.label} is of type {a.matrix.dtype}, {b.node.label} of {b.matrix.dtype}"
    shapes = [part.node.out.tensor.shape for part in parts]
    if shapes[0] is None or shapes[1] is None or None in shapes[0] or None in shapes[1]:
        return f"the shape of {node.out.label} is not known: {node.out.tensor}"
    if shapes[0] != shapes[1]:
        return f"it broadcasts {a.node.out.tensor} and {b.node.out.tensor}"
    return None


def _same_pixels(parts: Sequence[Matrix]) -> bool:
    """Whether the inputs agree but for the channels."""
    shapes = []
    for part in parts:
        shape = part.x.tensor.shape
        if shape is None or None in shape:
            return False
        shapes.append([d for i, d in enumerate(shape) if i != part.axis])
    return shapes[0] == shapes[1]


def _vector(parts: Sequence[Matrix]) -> np.ndarray | None:
    vectors = [p.vector.astype(np.float64) for p in parts if p.vector is not None]
    return np.sum(vectors, axis=0) if vectors else None


def _add_weights(graph: Graph, node: Node, parts: Sequence[Matrix]) -> Applied | Missed:
    a, b = parts
    matrix, vector = a.matrix.astype(np.float64) + b.matrix, _vector(parts)
    if (why := misfit(node.label, a.matrix.dtype, matrix, vector)) is not None:
        return Missed(why)
    nodes = [part.node for part in parts]
    shown = labels(nodes)
    add_matrix(graph, a, a.x, matrix, vector, absorbed=nodes, replaces=node)
    return Applied(f"added the weights of {shown}")


def _concatenate(graph: Graph, node: Node, parts: Sequence[Matrix], slices: bool) -> None:
    a = parts[0]
    xs = [_subsampled(graph, part) if slices else part.x for part in parts]
    joined = graph.add("Concat", xs, {"axis": a.axis}, origin=origins([node])).out
    add_matrix(
        graph,
        a,
        joined,
        np.concatenate([part.matrix for part in parts], axis=1),
        _vector(parts),
        absorbed=[part.node for part in parts],
        replaces=node,
        strides=(1,) * len(a.strides) if slices else None,
    )


def _subsampled(graph: Graph, part: Matrix) -> Value:
    """The pixels of its input that a strided convolution reads."""
    if all(s == 1 for s in part.strides):
        return part.x
    rank = len(part.strides)
    bounds = ([0] * rank, [np.iinfo(np.int64).max] * rank, [2 + i for i in range(rank)])
    constants = [graph.constant(np.array(c, np.int64)) for c in (*bounds, list(part.strides))]
    return graph.add("Slice", [part.x, *constants], origin=part.node.origin).out


def _columns(part: Matrix, operands: Sequence[Value], widths: Sequence[int]) -> list[Matrix]:
    """The matrix of each operand of the Concat; the first one has the bias."""
    parts, start = [], 0
    for i, (x, width) in enumerate(zip(operands, widths, strict=True)):
        matrix, vector = part.matrix[:, start : start + width], part.vector if i == 0 else None
        parts.append(replace(part, x=x, matrix=matrix, vector=vector))
        start += width
    return parts


def _split_up(graph: Graph, parts: Sequence[Matrix]) -> None:
    node = parts[0].node
    total: Value | None = None
    for i, part in enumerate(parts):
        product = add_matrix(graph, part, part.x, part.matrix, part.vector, absorbed=[node])
        if total is None:
            total = product.out
            continue
        last = i == len(parts) - 1
        total = graph.add(
            "Add",
            [total, product.out],
            types=node.types,
            names=node.names if last else (),
            name=node.name if last else "",
            origin=node.origin,
        ).out
    assert total is not None
    graph.replace_uses(node.out, total)
    graph.erase_dead([node])
