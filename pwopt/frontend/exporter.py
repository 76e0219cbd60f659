"""IR to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from pwopt.errors import FrontendError
from pwopt.frontend.attributes import (
    all_names,
    encode_attribute,
    is_empty_list,
    rename_captured,
    schema_kinds,
    subgraphs,
)
from pwopt.frontend.carried import LEAN, OPEN, carried
from pwopt.frontend.inference import fill
from pwopt.frontend.names import Names
from pwopt.frontend.open_batch import retyped, without_batch
from pwopt.frontend.tensors import decode_type, encode, encode_type, header
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import GRAPH_DOMAIN, KERNEL_DOMAIN, Graph, Node, Opaque, Value
from pwopt.ir.types import UNKNOWN, OpaqueType, TensorType, Type

OLDEST_IR = 4  # from here on initializers need not be inputs
DEFAULT_IR = 8
_IR_OF_DTYPE = {  # the IR version that brought an element type
    **dict.fromkeys(("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"), 9),
    **dict.fromkeys(("int4", "uint4"), 10),
    "float4e2m1": 11,
    "float8e8m0": 12,
    **dict.fromkeys(("int2", "uint2"), 13),
}

Weights = Callable[[np.ndarray, str], TensorProto]


def export(graph: Graph) -> ModelProto:
    """The graph as a standard ONNX model; equal graphs give equal bytes.

    Internal ops are expanded. Inputs and outputs keep their names, order and types (sizes are open
    where the metadata's :data:`OPEN` says so), values their names where these are unique. An output
    that is an input, a constant or another output as well gets an Identity.

    Raises:
        FrontendError: an attribute has no ONNX form.
        IRError: the graph has a cycle, or an internal op has no equivalent in its operator set.
    """
    return build(graph, encode)


def build(graph: Graph, weights: Weights) -> ModelProto:
    """Like :func:`export`, with constants written by ``weights(array, name)``."""
    found = outline(graph)
    model = ModelProto()
    model.CopyFrom(found.model)
    for tensor, array in zip(model.graph.initializer, found.arrays, strict=True):
        tensor.CopyFrom(weights(array, tensor.name))
    return model


class Outline(NamedTuple):
    """A model whose initializers have no data, and the data of each."""

    model: ModelProto
    arrays: list[np.ndarray]


# Of graphs that were exported: a graph is checked, measured and written in turn.
_outlines: WeakKeyDictionary[Graph, tuple[object, Outline]] = WeakKeyDictionary()


def outline(graph: Graph) -> Outline:
    """The graph as a model without its weights, not to be changed; remembered while it holds."""
    state, known = graph.state, _outlines.get(graph)
    if known is None or known[0] != state:
        known = _outlines[graph] = (state, _written(graph))
    return known[1]


@no_garbage_collection()
def _written(graph: Graph) -> Outline:
    if any(node.domain == KERNEL_DOMAIN for node in graph.nodes()):
        from pwopt.ir.internal import expand

        graph = expand(graph)
    if OPEN in graph.metadata:
        graph = retyped(without_batch(graph), graph.metadata[OPEN])
    return _Exporter(graph).run()


class _Exporter:
    """Writes one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._arrays: list[np.ndarray] = []
        self._carried = carried(graph)
        self._order = graph.topological()
        self._model = ModelProto()
        self._model.ParseFromString(self._carried.model)
        self._proto = self._model.graph
        self._proto.MergeFrom(GraphProto.FromString(self._carried.graph))
        self._proto.name = graph.name or "graph"
        self._opsets = {d: v for d, v in graph.opsets.items() if d not in (KERNEL_DOMAIN,)}
        self._direct: dict[tuple[int, int], str] = {}  # outputs that a node writes itself
        self._copied: list[tuple[str, Value]] = []  # outputs that need an Identity
        self._dtypes: set[str] = set()
        self._lean = bool(graph.metadata.get(LEAN))

    def run(self) -> Outline:
        """The model without its weights."""
        opaque = {n: self._opaque(n) for n in self._order if _has_opaque(n)}
        self._plan_outputs()
        inner = (
            name
            for attributes in opaque.values()
            for g in subgraphs(attributes.values())
            for name in all_names(g)
        )
        self._names = Names(self._reserved(), inner)
        for node in self._order:
            self._name_results(node)
        for node in self._graph.inputs:
            self._write_input(node)
        for node in self._order:
            if node.is_constant:
                self._write_weight(node.attributes["value"], self._of(node.out))
                self._note_type(node.types[0])
            elif node.domain != GRAPH_DOMAIN:
                self._write_node(node, opaque.get(node, {}))
        self._write_outputs()
        self._write_header()
        return Outline(self._model, self._arrays)

    # --- names -------------------------------------------------------------------------------

    def _plan_outputs(self) -> None:
        for name, value in self._graph.outputs:
            key = (value.node.id, value.index)
            if value.node.is_input and value.name == name:
                continue
            if value.node.domain == GRAPH_DOMAIN or key in self._direct:
                self._copied.append((name, value))
            else:
                self._direct[key] = name

    def _reserved(self) -> Iterable[str]:
        yield from (node.out.name for node in self._graph.inputs)
        yield from (name for name, _ in self._graph.outputs)

    def _name_results(self, node: Node) -> None:
        absent = self._carried.absent.get(node, frozenset())
        unread = absent and self._unread(node, absent)
        for index in range(len(node.types)):
            key = (node.id, index)
            if node.is_input:
                self._names.fix(key, node.out.name)
            elif key in self._direct:
                self._names.fix(key, self._direct[key])
            elif unread and index in unread:
                self._names.fix(key, "")
            else:
                self._names.choose(key, node[index].name or _fallback(node, index))

    def _unread(self, node: Node, absent: frozenset[int]) -> set[int]:
        return {i for i in absent if not node[i].name and not self._graph.uses(node[i])}

    def _of(self, value: Value) -> str:
        return self._names[value.node.id, value.index]

    # --- the graph's parts -------------------------------------------------------------------

    def _opaque(self, node: Node) -> dict[str, AttributeProto]:
        return {
            name: encode_attribute(name, value, 0)
            for name, value in node.attributes.items()
            if isinstance(value, Opaque)
        }

    def _write_node(self, node: Node, opaque: dict[str, AttributeProto]) -> None:
        proto = self._proto.node.add()
        proto.MergeFromString(self._carried.nodes.get(node, b""))
        proto.op_type = node.op
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        operands = self._graph.operands(node)
        names = ["" if value is None else self._of(value) for value in operands]
        count = node.arity - len(node.captures)
        outer = {
            old: new for old, new in zip(node.captures, names[count:], strict=True) if old != new
        }
        if outer:
            rename_captured(list(opaque.values()), outer)
        while count and not names[count - 1]:
            count -= 1
        proto.input.extend(names[:count])
        proto.output.extend(self._of(node[i]) for i in range(len(node.types)))
        kinds = self._carried.kinds.get(node, {})
        version = self._opsets.get(node.domain, 1)
        for name, value in node.attributes.items():
            if name in opaque:
                proto.attribute.append(opaque[name])
                continue
            kind = kinds.get(name, 0) if is_empty_list(value) else 0
            kind = kind or schema_kinds(node.op, node.domain, version).get(name, 0)
            try:
                proto.attribute.append(encode_attribute(name, value, kind))
            except FrontendError as error:
                raise FrontendError(f"{node.label}: {error}") from error
        self._opsets.setdefault(node.domain, 1)
        self._describe_results(node)

    def _describe_results(self, node: Node) -> None:
        for index, value_type in enumerate(node.types):
            self._note_type(value_type)
            name = self._names[node.id, index]
            known = isinstance(value_type, OpaqueType) or value_type.dtype is not None
            if self._lean and not node.domain:
                continue
            if name and known and (node.id, index) not in self._direct:
                self._proto.value_info.add(name=name, type=encode_type(value_type))

    def _note_type(self, value_type: Type) -> None:
        if isinstance(value_type, TensorType) and value_type.dtype:
            self._dtypes.add(value_type.dtype)

    def _write_input(self, node: Node) -> None:
        name, value_type = node.out.name, node.types[0]
        info = ValueInfoProto.FromString(self._carried.inputs.get(name, b""))
        if decode_type(info.type) != value_type or not info.name:
            info = ValueInfoProto(name=name, type=encode_type(value_type))
        self._proto.input.append(info)
        self._note_type(value_type)
        if "default" in node.attributes:
            self._write_weight(node.attributes["default"], name)

    def _write_weight(self, array: np.ndarray, name: str) -> None:
        self._proto.initializer.append(header(array, name))
        self._arrays.append(array)

    def _write_outputs(self) -> None:
        for name, value in self._copied:
            label = self._names.fresh(f"{name}_copy")
            self._proto.node.append(
                NodeProto(op_type="Identity", name=label, input=[self._of(value)], output=[name])
            )
            self._opsets.setdefault("", 17)
        for name, value in self._graph.outputs:
            info = ValueInfoProto.FromString(self._carried.outputs.get(name, b""))
            declared, known = decode_type(info.type), value.type
            if self._carried.reshaped and isinstance(declared, TensorType):
                # The declared shape was for other inputs; only what is known now holds.
                declared = TensorType(declared.dtype)
            if not info.name or self._carried.reshaped or not _agree(declared, known):
                info = ValueInfoProto(name=name, type=encode_type(fill(known, declared)))
            self._proto.output.append(info)

    def _write_header(self) -> None:
        for domain, version in self._opsets.items():
            self._model.opset_import.append(OperatorSetIdProto(domain=domain, version=version))
        oldest = max([OLDEST_IR, *(_IR_OF_DTYPE.get(d, 0) for d in self._dtypes)])
        if self._model.functions:
            oldest = max(oldest, 8)
        current = self._model.ir_version or max(DEFAULT_IR, self._usual_ir())
        self._model.ir_version = max(current, oldest)
        self._write_properties()
        self._drop_dangling()

    def _write_properties(self) -> None:
        known = {entry.key: entry for entry in self._model.metadata_props}
        for key, value in self._graph.metadata.get("properties", {}).items():
            entry = known.get(key) or self._model.metadata_props.add(key=key)
            entry.value = value

    def _usual_ir(self) -> int:
        return helper.find_min_ir_version_for(self._model.opset_import, ignore_unknown=True)

    def _drop_dangling(self) -> None:
        """Drops annotations of tensors that are gone."""
        tensors = {tensor.name for tensor in self._proto.initializer}
        values = tensors.union(*(node.output for node in self._proto.node))
        values.update(value.name for value in self._proto.input)
        annotations = [
            a
            for a in self._proto.quantization_annotation
            if a.tensor_name in values
            and all(p.value in values for p in a.quant_parameter_tensor_names)
        ]
        del self._proto.quantization_annotation[:]
        self._proto.quantization_annotation.extend(annotations)
        bound = (
            binding.key
            for training in self._model.training_info
            for binding in (*training.initialization_binding, *training.update_binding)
        )
        if not all(name in tensors for name in bound):
            del self._model.training_info[:]


def _agree(declared: Type, known: Type) -> bool:
    if isinstance(declared, TensorType) and isinstance(known, TensorType):
        return declared.accepts(known)
    return declared == known or known == UNKNOWN


def _has_opaque(node: Node) -> bool:
    return any(isinstance(value, Opaque) for value in node.attributes.values())


def _fallback(node: Node, index: int) -> str:
    if node.is_constant:
        return node.origin[0] if node.origin else "constant"
    base = node.name or (node.origin[0] if node.origin else node.op)
    return f"{base}_out{index}" if index else f"{base}_out"
