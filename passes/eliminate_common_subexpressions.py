"""The pass ``eliminate-common-subexpressions``."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, ONNX_DOMAIN, Graph, Node
from pwopt.passes.rewriting import RANDOM, has_subgraph, in_training_mode
from pwopt.pipeline import Context, Pass

_SHORT_BYTES = 1024  # below, content is compared as it is
_COMMUTATIVE = frozenset({"Add", "And", "Equal", "Mul", "Or", "Xor"})


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Computes once what several nodes compute from the same operands.

    Rewrite:
        Two nodes of one operator with equal operands and attributes → the first of them; two
        constants of equal type and content → the first of them.

    Shapes:
        Any; the declared result types must agree.

    Numerics:
        Exact. Constants are compared bit by bit, so 0.0 and -0.0 differ.

    Misses when:
        Never reported. Operators that draw random numbers, hold subgraphs or are neither ONNX's
        nor pwopt's own stay, as nothing is known of what they do.

    Source:
        Value numbering, Cocke and Schwartz 1970.
    """

    name: ClassVar[str] = "eliminate-common-subexpressions"

    def run(self, graph: Graph, context: Context) -> None:
        sizes = Counter(_outline(node) for node in graph.nodes() if node.is_constant)
        first: dict[Hashable, Node] = {}
        for node in graph.topological():
            if node.is_constant:
                key = _constant_key(node) if sizes[_outline(node)] > 1 else None
            else:
                key = _key(graph, node)
            if key is None:
                continue
            kept = first.setdefault(key, node)
            if kept is not node and context.may_rewrite(self, node):
                self._merge(graph, context, node, kept)

    def _merge(self, graph: Graph, context: Context, node: Node, kept: Node) -> None:
        for index in range(len(node.types)):
            graph.replace_uses(node[index], kept[index])
        if not node.is_constant:
            context.rewritten(self, node, node.label, f"uses the results of {kept.label}")
        graph.erase(node)


def _outline(node: Node) -> Hashable:
    """What equal constants share and what is cheap to compare."""
    array = node.attributes["value"]
    return array.dtype, array.shape


def _constant_key(node: Node) -> Hashable:
    return "Constant", _attribute_key(node.attributes["value"])


def _key(graph: Graph, node: Node) -> Hashable | None:
    if node.domain not in (ONNX_DOMAIN, KERNEL_DOMAIN) or node.op in RANDOM or has_subgraph(node):
        return None
    if node.op == "Dropout" and in_training_mode(graph, node) is not False:
        return None
    operands: list[Hashable] = [
        None if v is None else (v.node.id, v.index) for v in graph.operands(node)
    ]
    if node.domain == ONNX_DOMAIN and node.op in _COMMUTATIVE:
        operands.sort(key=repr)
    attributes = tuple(sorted((k, _attribute_key(v)) for k, v in node.attributes.items()))
    return node.domain, node.op, tuple(operands), attributes, node.types


def _attribute_key(value: Any) -> Hashable:
    """A key that is equal for equal attributes only; sortable never matters, names are unique."""
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return "strings", value.shape, repr(value.tolist())
        data = np.ascontiguousarray(value).view(np.uint8).data if value.size else b""
        if value.nbytes <= _SHORT_BYTES:
            return value.dtype, value.shape, bytes(data)
        return value.dtype, value.shape, hashlib.blake2b(data, digest_size=16).digest()
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, tuple):
        if all(type(each) is int for each in value):
            return "ints", value
        return "tuple", tuple(_attribute_key(each) for each in value)
    if isinstance(value, (str, bytes, int)):
        return type(value).__name__, value
    return type(value).__name__, repr(value)
