"""What a graph consists of: immutable operations, the values that they compute, and their uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pwopt.ir.types import UNKNOWN, TensorType, Type

CONSTANT = "Constant"
INPUT = "Input"
ONNX_DOMAIN = ""
GRAPH_DOMAIN = "pwopt.graph"  # of the nodes that stand for constants and inputs
KERNEL_DOMAIN = "pwopt"  # of internal ops; export expands them


@dataclass(frozen=True, slots=True)
class Opaque:
    """An attribute that is carried along as ONNX's protobuf bytes (a subgraph, a sparse tensor)."""

    serialized: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An operation. Immutable; compared by identity.

    Attributes:
        id: position in order of creation, unique within a graph.
        op: operator name, e.g. ``Conv``.
        domain: operator domain; ``""`` is ONNX's own.
        attributes: name to int, float, str, bytes, tuple of these, numpy array, Program or Opaque.
        types: one type per result.
        names: one name per result, the ONNX value names where they come from a file; "" for none.
        name: ONNX node name, for messages.
        origin: names of the ONNX nodes that this one descends from, of the first result where a
            node has none.
        arity: number of operand slots; an absent optional operand is a slot without edge.
        captures: names under which the last operands are known inside this node's subgraphs.
    """

    id: int
    op: str
    domain: str = ONNX_DOMAIN
    attributes: Mapping[str, Any] = field(default_factory=dict)
    types: tuple[Type, ...] = ()
    names: tuple[str, ...] = ()
    name: str = ""
    origin: tuple[str, ...] = ()
    arity: int = 0
    captures: tuple[str, ...] = ()

    def __getitem__(self, index: int) -> Value:
        """The value of result ``index``."""
        return Value(self, index)

    @property
    def out(self) -> Value:
        """The first result."""
        return Value(self, 0)

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or ``default``."""
        return self.attributes.get(attribute, default)

    def is_op(self, *ops: str) -> bool:
        """Whether this is one of these operators of ONNX's own domain."""
        return self.domain == ONNX_DOMAIN and self.op in ops

    @property
    def is_constant(self) -> bool:
        return self.domain == GRAPH_DOMAIN and self.op == CONSTANT

    @property
    def is_input(self) -> bool:
        return self.domain == GRAPH_DOMAIN and self.op == INPUT

    @property
    def label(self) -> str:
        """How messages name the node: the user's own names where there are any."""
        shown = self.name or (self.origin[0] if self.origin else "") or next(iter(self.names), "")
        return f"{self.op} {shown!r}" if shown else f"{self.op} #{self.id}"


class Value(NamedTuple):
    """One result of a node."""

    node: Node
    index: int = 0  # type: ignore[assignment]  # hides tuple.index, which nothing here needs

    @property
    def type(self) -> Type:
        return self.node.types[self.index]

    @property
    def tensor(self) -> TensorType:
        """The type as a tensor type; of unknown dtype and shape where it is none."""
        t = self.type
        return t if isinstance(t, TensorType) else UNKNOWN

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The static shape, or None."""
        return self.tensor.static_shape

    @property
    def name(self) -> str:
        names = self.node.names
        return names[self.index] if self.index < len(names) else ""

    @property
    def label(self) -> str:
        return self.name or f"{self.node.label}:{self.index}"


class Use(NamedTuple):
    """One operand slot that reads a value."""

    node: Node
    slot: int
