"""What follows several pointwise operators alike, and can be computed on them side by side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.matrix import Matrix, origins

# Elementwise operators of one tensor; what else they read must be equal scalars.
UNARY = frozenset(
    {
        *("Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish"),
        *("Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus"),
        *("Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One operator of a tail.

    Attributes:
        node: the operator.
        key: equal for those that can be computed as one.
        vector: the constant that it adds per channel, or None.
    """

    node: Node
    key: Hashable
    vector: np.ndarray | None = None


def tail(graph: Graph, part: Matrix) -> list[Link]:
    """The operators that follow one after another, each the only reader of the one before."""
    links: list[Link] = []
    value = part.node.out
    while (link := _link(graph, part, value)) is not None:
        links.append(link)
        value = link.node.out
    return links


def tail_on(graph: Graph, x: Value, links: Sequence[Link]) -> Node:
    """Adds one operator on ``x`` that does what the links do side by side."""
    first = links[0].node
    rest = list(graph.operands(first)[1:])
    vectors = [link.vector for link in links if link.vector is not None]
    if vectors:
        rest = [graph.constant(np.concatenate(vectors))]
    origin = origins(link.node for link in links)
    return graph.add(first.op, [x, *rest], first.attributes, origin=origin)


def _link(graph: Graph, part: Matrix, value: Value) -> Link | None:
    use = graph.only_use(value)
    if use is None:
        return None
    node = use.node
    if node.is_op("Add") and part.node.op == "MatMul" and graph.opset >= 7:
        vector = graph.constant_value(graph.operand(node, 1 - use.slot))
        if vector is None or vector.size != part.outputs or vector.shape[-1] != part.outputs:
            return None
        if vector.ndim > (value.tensor.rank or 0):
            return None
        return Link(node, "Add", vector.reshape(-1))
    if not node.is_op(*UNARY) or use.slot != 0:
        return None
    operands = [_scalar(graph, operand) for operand in graph.operands(node)[1:]]
    if any(isinstance(operand, Value) and operand == value for operand in operands):
        return None
    return Link(node, (node.op, tuple(sorted(node.attributes.items())), tuple(operands)))


def _scalar(graph: Graph, value: Value | None) -> Hashable:
    array = graph.constant_value(value)
    return value if array is None or array.size > 1 else (str(array.dtype), array.item())
