"""What the rewrites share: putting a node in the place of another, and reading small operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pwopt.growth import Growth
from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Opaque, Value
from pwopt.ir.types import Type

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
MAX_SMALL = 4096  # elements of an operand that holds axes, pads or a shape

# Operators whose result may differ from call to call.
RANDOM = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    }
)


def replace_node(
    graph: Graph,
    node: Node,
    op: str,
    operands: Sequence[Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    absorbed: Sequence[Node] = (),
    domain: str = ONNX_DOMAIN,
    types: Sequence[Type] | None = None,
    name: str = "",
) -> Node:
    """Puts a new operation in the place of ``node`` and removes what nothing reads any more.

    Args:
        graph: the graph.
        node: what is replaced; every one of its results that is read must exist in the new one.
        op: operator of the new node.
        operands: its operands.
        attributes: its attributes.
        absorbed: further nodes whose work the new one does; for the names that messages show.
        domain: its domain.
        types: its result types; those of ``node`` if left out.
        name: of a node that has none.

    Returns:
        the new node.
    """
    origin = [name for each in (*absorbed, node) for name in each.origin]
    new = graph.add(
        op,
        operands,
        attributes,
        domain=domain,
        types=node.types if types is None else types,
        names=node.names[: len(node.types if types is None else types)],
        name=node.name or name,
        origin=origin,
    )
    for index in range(min(len(node.types), len(new.types))):
        graph.replace_uses(node[index], new[index])
    graph.erase_dead([node, *absorbed])
    return new


def replace_value(graph: Graph, node: Node, value: Value) -> None:
    """Lets the readers of ``node``'s first result read ``value``; removes what is then dead."""
    graph.replace_uses(node.out, value)
    graph.erase_dead([node])


def with_attributes(graph: Graph, node: Node, attributes: Mapping[str, Any]) -> Node:
    """The same operation with other attributes."""
    return replace_node(graph, node, node.op, graph.operands(node), attributes, domain=node.domain)


def int_list(graph: Graph, node: Node, slot: int, attribute: str) -> tuple[int, ...] | None:
    """Integers that one opset gives as an attribute and another as an operand.

    Returns:
        the integers, or None where they are absent; see :func:`is_dynamic` for not constant ones.
    """
    if attribute in node.attributes:
        return tuple(int(i) for i in node.attributes[attribute])
    array = graph.constant_value(graph.operand(node, slot))
    if array is None or array.size > MAX_SMALL:
        return None
    return tuple(int(i) for i in array.reshape(-1))


def is_dynamic(graph: Graph, node: Node, slot: int) -> bool:
    """Whether an operand is present but is no constant of few elements."""
    value = graph.operand(node, slot)
    if value is None:
        return False
    array = graph.constant_value(value)
    return array is None or array.size > MAX_SMALL


def text(node: Node, attribute: str, default: str) -> str:
    """A text attribute, whether it is held as str or as bytes."""
    value = node.get(attribute, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def is_float(value: Value) -> bool:
    """Whether a value is a tensor of a real floating-point type."""
    return value.tensor.dtype in FLOATS


def has_subgraph(node: Node) -> bool:
    """Whether a node carries attributes that pwopt does not look into, or captures values."""
    return bool(node.captures) or any(
        isinstance(attribute, Opaque)
        or (isinstance(attribute, tuple) and any(isinstance(a, Opaque) for a in attribute))
        for attribute in node.attributes.values()
    )


def reads_only_first(graph: Graph, node: Node) -> bool:
    """Whether nothing reads a result of ``node`` besides the first."""
    return not any(
        graph.is_output(node[i]) or graph.uses(node[i]) for i in range(1, len(node.types))
    )


def in_training_mode(graph: Graph, node: Node) -> bool | None:
    """Whether a Dropout or BatchNormalization trains; None where that is only known at run time."""
    if graph.opset < 7:
        return not node.get("is_test", 0)
    if node.op == "BatchNormalization":
        return bool(node.get("training_mode", 0)) or not reads_only_first(graph, node)
    mode = graph.operand(node, 2)
    if mode is None:
        return False
    array = graph.constant_value(mode)
    return None if array is None else bool(np.any(array))


def shared_weight(graph: Graph, weight: Value, growth: Growth) -> str | None:
    """Why a constant may not be replaced by a changed copy for one of its readers.

    The bound is on what the model would grow by if every reader came to ask for its own copy.

    Returns:
        the reason, or None where it may be copied.
    """
    readers = graph.reader_count(weight) + graph.is_output(weight)
    what = f"weight {weight.label!r} is shared by {readers} readers; copies of it"
    return growth.refuse(graph, (weight.tensor.bytes or 0) * (readers - 1), what)
