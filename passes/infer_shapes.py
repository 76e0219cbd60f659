"""The pass ``infer-shapes``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pwopt.errors import IRError
from pwopt.ir.graph import GRAPH_DOMAIN, Graph, Node
from pwopt.ir.shapes import has_rule, infer
from pwopt.ir.types import Dim, TensorType, Type
from pwopt.pipeline import Context, Pass, Remark


@dataclass(frozen=True)
class InferShapes(Pass):
    """Derives result types again from operands whose types have become better known.

    Rewrite:
        A node whose inferred result types say more than the declared ones → the same node with
        those types.

    Shapes:
        Any; what is known stays known.

    Numerics:
        Exact.

    Misses when:
        The operator has no inference rule; never reported.

    Source:
        Common practice.
    """

    name: ClassVar[str] = "infer-shapes"

    def run(self, graph: Graph, context: Context) -> None:
        refined = 0
        for node in graph.topological():
            refined += refine(graph, node) is not node
        if refined:
            text = f"found out more of the result types of {refined} operations"
            context.remarks.append(Remark(self.name, graph.name, True, text))


def refine(graph: Graph, node: Node) -> Node:
    """Puts a node with better known result types in the place of ``node``, if there are any.

    Returns:
        the node that now stands there.
    """
    if node.domain == GRAPH_DOMAIN or _is_known(node) or not has_rule(node.op, node.domain):
        return node
    types = _refined(graph, node)
    return node if types == node.types else _retype(graph, node, types)


def _is_known(node: Node) -> bool:
    return all(
        isinstance(t, TensorType) and t.dtype is not None and t.static_shape is not None
        for t in node.types
    )


def _refined(graph: Graph, node: Node) -> tuple[Type, ...]:
    try:
        inferred = infer(
            graph,
            node.op,
            node.domain,
            node.attributes,
            graph.operands(node),
            results=len(node.types),
        )
    except IRError:  # the verifier's business, with a better message
        return node.types
    extended = [*inferred, *node.types[len(inferred) :]]
    return tuple(_meet(old, new) for old, new in zip(node.types, extended, strict=False))


def _meet(old: Type, new: Type) -> Type:
    """What either type knows; ``old`` where they contradict each other."""
    if not isinstance(old, TensorType) or not isinstance(new, TensorType) or not old.accepts(new):
        return old
    if old.shape is None or new.shape is None:
        return TensorType(old.dtype or new.dtype, old.shape if new.shape is None else new.shape)
    shape = tuple(_meet_dim(a, b) for a, b in zip(old.shape, new.shape, strict=True))
    return TensorType(old.dtype or new.dtype, shape)


def _meet_dim(old: Dim, new: Dim) -> Dim:
    if isinstance(old, int) or new is None:
        return old
    return new if isinstance(new, int) or old is None else old


def _retype(graph: Graph, node: Node, types: Sequence[Type]) -> Node:
    new = graph.add_like(node, graph.operands(node), types)
    for index in range(len(types)):
        graph.replace_uses(node[index], new[index])
    graph.erase(node)
    return new
