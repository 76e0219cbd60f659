"""Attributes between ONNX's protobuf and the IR, and the names that subgraphs take from outside."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from pwopt.errors import FrontendError
from pwopt.frontend.tensors import (
    External,
    decode,
    decode_text,
    encode,
    encode_text,
    supported,
)
from pwopt.ir.graph import Opaque

_A = AttributeProto
_GRAPHS = frozenset({_A.GRAPH, _A.GRAPHS})
_TENSORS = frozenset({_A.TENSOR, _A.TENSORS, _A.SPARSE_TENSOR, _A.SPARSE_TENSORS, *_GRAPHS})
_LIST_OF = {
    int(_A.FLOAT): int(_A.FLOATS),
    int(_A.INT): int(_A.INTS),
    int(_A.STRING): int(_A.STRINGS),
    int(_A.TENSOR): int(_A.TENSORS),
}
_LISTS = {_A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors"}


def decode_attribute(proto: AttributeProto, external: External, where: str) -> Any:
    """An attribute's value; whatever Python has no form for becomes :class:`Opaque`."""
    where = f"{where}, attribute {proto.name!r}"
    if isinstance(proto.name, bytes):
        raise FrontendError(f"{where}: the name is not UTF-8")
    if proto.ref_attr_name:
        return _opaque(proto)
    match proto.type:
        case _A.FLOAT:
            return proto.f
        case _A.INT:
            return proto.i
        case _A.STRING:
            return decode_text(proto.s)
        case _A.TENSOR if supported(proto.t):
            return decode(proto.t, external, where)
        case _A.FLOATS | _A.INTS:
            return tuple(getattr(proto, _LISTS[proto.type]))
        case _A.STRINGS:
            return tuple(decode_text(item) for item in proto.strings)
        case _A.TENSORS if all(map(supported, proto.tensors)):
            return tuple(decode(tensor, external, where) for tensor in proto.tensors)
    return _opaque(proto)


def _opaque(proto: AttributeProto) -> Opaque:
    return Opaque(proto.SerializeToString(deterministic=True))


def encode_attribute(name: str, value: Any, kind: int) -> AttributeProto:
    """The reverse of :func:`decode_attribute`.

    Args:
        name: the attribute's name.
        value: its value.
        kind: the AttributeProto type it should get, 0 to derive it from the value.

    Raises:
        FrontendError: the value has no ONNX form.
    """
    if isinstance(value, Opaque):
        proto = AttributeProto()
        proto.ParseFromString(value.serialized)
        proto.name = name
        return proto
    proto = AttributeProto(name=name)
    proto.type = kind or _kind(value)  # type: ignore[assignment]
    try:
        match proto.type:
            case _A.FLOAT:
                proto.f = float(value)
            case _A.INT:
                proto.i = int(value)
            case _A.STRING:
                proto.s = encode_text(value)
            case _A.TENSOR:
                proto.t.CopyFrom(encode(np.asarray(value)))
            case _A.FLOATS:
                proto.floats.extend(float(item) for item in value)
            case _A.INTS:
                proto.ints.extend(int(item) for item in value)
            case _A.STRINGS:
                proto.strings.extend(encode_text(item) for item in value)
            case _A.TENSORS:
                proto.tensors.extend(encode(np.asarray(item)) for item in value)
            case _:
                raise TypeError(f"attributes of kind {proto.type} are opaque")
    except (TypeError, ValueError, KeyError) as error:
        raise FrontendError(f"attribute {name!r} = {value!r} has no ONNX form: {error}") from error
    return proto


def _kind(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return int(_A.TENSOR)
    if isinstance(value, str | bytes):
        return int(_A.STRING)
    if isinstance(value, bool | int | np.integer):
        return int(_A.INT)
    if isinstance(value, float | np.floating):
        return int(_A.FLOAT)
    if isinstance(value, tuple | list):
        kinds = {_kind(item) for item in value} or {int(_A.INT)}
        single = _A.FLOAT if kinds == {_A.FLOAT, _A.INT} else kinds.pop() if len(kinds) == 1 else 0
        return _LIST_OF.get(int(single), 0)
    return 0


@functools.cache
def schema_kinds(op: str, domain: str, opset: int) -> Mapping[str, int]:
    """The kinds of an operator's attributes by name, empty for an unknown operator."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    return {
        name: int(a.type.value)  # type: ignore[attr-defined]
        for name, a in schema.attributes.items()
    }


def is_empty_list(value: Any) -> bool:
    """Whether Python cannot tell the value's kind."""
    return isinstance(value, tuple) and not value


# --- subgraphs -----------------------------------------------------------------------------------


def has_subgraph(node: NodeProto) -> bool:
    """Whether an attribute of the node is a graph."""
    return any(attribute.type in _GRAPHS for attribute in node.attribute)


def subgraphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    """The graphs that attributes hold, nested ones not included."""
    for attribute in attributes:
        if attribute.type in _GRAPHS:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def defined_names(graph: GraphProto) -> set[str]:
    """Names of the values that a graph itself defines."""
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    return names


def all_names(graph: GraphProto) -> set[str]:
    """Names that a graph or a graph inside it defines."""
    names = defined_names(graph)
    for node in graph.node:
        for inner in subgraphs(node.attribute):
            names |= all_names(inner)
    return names


def captured(attributes: Iterable[AttributeProto]) -> list[str]:
    """Names that subgraphs read but do not define, in order of first use."""
    found: dict[str, None] = {}
    for graph in subgraphs(attributes):
        own = defined_names(graph)
        for node in graph.node:
            found.update((n, None) for n in node.input if n and n not in own)
            found.update((n, None) for n in captured(node.attribute) if n not in own)
        found.update((v.name, None) for v in graph.output if v.name not in own)
    return list(found)


def rename_captured(attributes: Iterable[AttributeProto], names: Mapping[str, str]) -> None:
    """Renames what subgraphs read from outside."""
    for graph in subgraphs(attributes):
        own = defined_names(graph)
        outer = {old: new for old, new in names.items() if old not in own}
        if not outer:
            continue
        for node in graph.node:
            for slot, name in enumerate(node.input):
                if name in outer:
                    node.input[slot] = outer[name]
            rename_captured(node.attribute, outer)
        for value in graph.output:
            value.name = outer.get(value.name, value.name)


def with_inline_data(node: NodeProto, external: External) -> NodeProto:
    """The node with external tensors of its subgraphs and attributes read in; a copy if any."""
    held = [attribute for attribute in node.attribute if attribute.type in _TENSORS]
    if not any(t.data_location == TensorProto.EXTERNAL for t in _tensors(held)):
        return node
    copied = NodeProto()
    copied.CopyFrom(node)
    for tensor in _tensors(copied.attribute):
        if tensor.data_location == TensorProto.EXTERNAL:
            data = external(tensor).tobytes()
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = data
    return copied


def _tensors(attributes: Sequence[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.type == _A.TENSOR:
            yield attribute.t
        elif attribute.type == _A.SPARSE_TENSOR:
            yield attribute.sparse_tensor.values
            yield attribute.sparse_tensor.indices
        elif attribute.type in (_A.TENSORS, _A.SPARSE_TENSORS):
            yield from attribute.tensors
            for sparse in attribute.sparse_tensors:
                yield sparse.values
                yield sparse.indices
    for graph in subgraphs(attributes):
        yield from graph.initializer
        for each in graph.sparse_initializer:
            yield each.values
            yield each.indices
        for node in graph.node:
            yield from _tensors(node.attribute)
