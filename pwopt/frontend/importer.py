"""ONNX to IR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto

from pwopt.errors import FrontendError
from pwopt.frontend import inference, reader
from pwopt.frontend.attributes import (
    captured,
    decode_attribute,
    has_subgraph,
    is_empty_list,
    with_inline_data,
)
from pwopt.frontend.carried import BATCH, KEY, Carried
from pwopt.frontend.external import ExternalData
from pwopt.frontend.interop import converted
from pwopt.frontend.open_batch import batch_shapes
from pwopt.frontend.tensors import declared_type, decode, decode_type, supported
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import UNKNOWN, Type

_SCALARS = {  # attributes of Constant that hold Python values, with the dtype of the result
    **dict.fromkeys(("value_float", "value_floats"), np.float32),
    **dict.fromkeys(("value_int", "value_ints"), np.int64),
    **dict.fromkeys(("value_string", "value_strings"), object),
}


def load(
    source: reader.Source,
    input_shapes: inference.Shapes | None = None,
    *,
    batch: int | None = None,
) -> Graph:
    """Reads an ONNX model.

    Initializers and Constant nodes become constants. That includes initializers which are inputs
    too, so that a caller could override them: before IR version 4 every initializer had to be one,
    and exporters kept the habit. They are no inputs of the graph any more; their names are in
    ``graph.metadata["overridable"]``. Sparse constants stay nodes.

    Args:
        source: a path, a model's bytes, a ``ModelProto``, or one of the objects that
            :func:`pwopt.frontend.converted` takes; it is not changed.
        input_shapes: shapes by input name that take the place of the declared ones; a symbol of
            the declared shape gets its number in the other inputs, too.
        batch: size of the inputs' first dimension where nothing else is open, or the one in
            ``input_shapes``; None leaves it open.

    Raises:
        FrontendError: the model cannot be read, is not valid ONNX, or reaches outside its folder.
        UsageError: ``input_shapes`` does not fit the model.
    """
    model, folder, name = reader.read(converted(source))
    try:
        with no_garbage_collection():
            return _Importer(model, ExternalData(folder), name).run(input_shapes or {}, batch)
    except (TypeError, ValueError) as error:
        # protobuf hands out text that is not UTF-8 as bytes, which nothing after it takes.
        raise FrontendError(f"{name}: not valid ONNX: {inference.one_line(error)}") from error


class _Importer:
    """Reads one model.

    Args:
        model: the parsed file.
        external: reads its external data.
        name: of the file, for messages.
    """

    def __init__(self, model: ModelProto, external: ExternalData, name: str) -> None:
        self._opsets = reader.opsets(model, name)
        self._model = reader.inline_functions(model, name)
        self._external = external
        self._name = name
        self._constants: dict[str, np.ndarray] = {}
        self._opaque_constants: list[NodeProto] = []

    def run(self, input_shapes: inference.Shapes, batch: int | None) -> Graph:
        """The model as a graph."""
        graph = self._model.graph
        self._read_initializers(graph)
        inputs = self._inputs(graph)
        closed = {} if batch is None else batch_shapes(inputs, input_shapes, batch)
        feeds = inference.reshape_inputs(inputs, {**input_shapes, **closed})
        nodes = [with_inline_data(node, self._external) for node in graph.node]
        nodes = self._opaque_constants + nodes
        nodes = reader.ordered(nodes, [*self._constants, *inputs], self._name)
        folded = {id(node): self._constant(node) for node in nodes if _is_constant(node)}
        constants = dict(self._constants)
        for node in nodes:
            array = folded.get(id(node))
            if array is not None:
                constants[node.output[0]] = array
        kept = [node for node in nodes if folded.get(id(node)) is None]
        reshaped = feeds != {v.name: decode_type(v.type) for v in graph.input if v.name in feeds}
        outline = inference.skeleton(self._model, kept, self._opsets, feeds, constants, reshaped)
        inference.check(outline, self._name)
        types = inference.infer(self._model, outline, feeds, constants, reshaped)
        result = self._build(nodes, folded, feeds, types)
        self._carry(result, reshaped)
        if closed:
            result.metadata[BATCH] = {name: inputs[name] for name in closed}
        return result

    def _read_initializers(self, graph: GraphProto) -> None:
        seen: set[str] = set()
        for tensor in graph.initializer:
            where = f"{self._name}: initializer {tensor.name!r}"
            self._once(tensor.name, seen, where)
            if supported(tensor):
                self._constants[tensor.name] = decode(tensor, self._external, where)
            else:
                node = NodeProto(op_type="Constant", output=[tensor.name])
                attribute = node.attribute.add(name="value", type=4)
                attribute.t.CopyFrom(tensor)
                self._opaque_constants.append(with_inline_data(node, self._external))
        for sparse in graph.sparse_initializer:
            where = f"{self._name}: sparse initializer {sparse.values.name!r}"
            self._once(sparse.values.name, seen, where)
            if self._opsets.get("", 1) < 11:
                raise FrontendError(f"{where}: needs operator set 11, the model has an older one")
            node = NodeProto(op_type="Constant", output=[sparse.values.name])
            attribute = node.attribute.add(name="sparse_value", type=11)
            attribute.sparse_tensor.CopyFrom(sparse)
            self._opaque_constants.append(with_inline_data(node, self._external))

    @staticmethod
    def _once(name: str, seen: set[str], where: str) -> None:
        if not name or name in seen:
            raise FrontendError(f"{where}: {'stands twice' if name else 'has no name'}")
        seen.add(name)

    def _inputs(self, graph: GraphProto) -> dict[str, Type]:
        """Types of the inputs that must be fed."""
        initialized = {*self._constants, *(n.output[0] for n in self._opaque_constants)}
        seen: set[str] = set()
        for value in graph.input:
            self._once(value.name, seen, f"{self._name}: input {value.name!r}")
        self._overridable = tuple(v.name for v in graph.input if v.name in initialized)
        return {v.name: declared_type(v) for v in graph.input if v.name not in initialized}

    def _constant(self, node: NodeProto) -> np.ndarray | None:
        """The value of a Constant node, None if it stays a node."""
        attribute = node.attribute[0]
        value = decode_attribute(
            attribute, self._external, f"{self._name}: {reader.describe(node)}"
        )
        if attribute.name == "value":
            return value if isinstance(value, np.ndarray) else None
        if attribute.name not in _SCALARS:
            return None
        dtype = _SCALARS[attribute.name]
        if dtype is object:
            array = np.empty(len(value) if isinstance(value, tuple) else (), object)
            array[...] = list(value) if isinstance(value, tuple) else value
            return array
        return np.asarray(value, dtype)

    def _build(
        self,
        nodes: Sequence[NodeProto],
        folded: dict[int, np.ndarray | None],
        inputs: dict[str, Type],
        types: dict[str, Type],
    ) -> Graph:
        graph = Graph(self._model.graph.name or "graph", self._opsets)
        self._carried = graph.metadata[KEY] = Carried()
        values: dict[str, Value] = {}
        for name, value_type in inputs.items():
            values[name] = graph.add_input(name, value_type)
        for name, array in self._constants.items():
            values[name] = graph.constant(array, name)
        for proto in nodes:
            constant = folded.get(id(proto))
            if constant is not None:
                result = graph.constant(constant, proto.output[0], origin=_origin(proto))
                values[proto.output[0]] = result
                continue
            node = self._add(graph, proto, values, types)
            for index, value_name in enumerate(node.names):
                if value_name:
                    values[value_name] = node[index]
        for output in self._model.graph.output:
            if output.name not in values:
                raise FrontendError(f"{self._name}: nothing produces the output {output.name!r}")
            if output.name in self._carried.outputs:
                raise FrontendError(f"{self._name}: output {output.name!r} stands twice")
            self._carried.outputs[output.name] = output.SerializeToString(deterministic=True)
            graph.add_output(output.name, values[output.name])
        return graph

    def _add(
        self, graph: Graph, proto: NodeProto, values: dict[str, Value], types: dict[str, Type]
    ) -> Node:
        where = f"{self._name}: {reader.describe(proto)}"
        attributes = {a.name: decode_attribute(a, self._external, where) for a in proto.attribute}
        captures = captured(proto.attribute) if has_subgraph(proto) else []
        operands = [values[name] if name else None for name in proto.input]
        node = graph.add(
            proto.op_type,
            [*operands, *(values[name] for name in captures)],
            attributes,
            domain="" if proto.domain == "ai.onnx" else proto.domain,
            types=[types.get(name, UNKNOWN) if name else UNKNOWN for name in proto.output],
            names=proto.output,
            name=proto.name,
            origin=_origin(proto),
            captures=captures,
        )
        self._remember(node, proto)
        return node

    def _remember(self, node: Node, proto: NodeProto) -> None:
        """Keeps of a node what the IR does not express."""
        if not all(node.names):
            self._carried.absent[node] = frozenset(i for i, n in enumerate(node.names) if not n)
        kinds = {a.name: a.type for a in proto.attribute if is_empty_list(node.attributes[a.name])}
        if kinds:
            self._carried.kinds[node] = kinds
        if (
            proto.doc_string
            or proto.overload
            or proto.metadata_props
            or (proto.device_configurations)
        ):
            rest = NodeProto()
            rest.CopyFrom(proto)
            for name in ("input", "output", "attribute", "op_type", "domain", "name"):
                rest.ClearField(name)
            self._carried.nodes[node] = rest.SerializeToString(deterministic=True)

    def _carry(self, graph: Graph, reshaped: bool) -> None:
        """Keeps of the model what the IR does not express."""
        source = self._model
        model = ModelProto(ir_version=source.ir_version)
        for field, value in source.ListFields():
            if field.name in ("graph", "opset_import", "ir_version"):
                continue
            if field.is_repeated:
                getattr(model, field.name).extend(value)
            else:
                setattr(model, field.name, value)
        rest = GraphProto(doc_string=source.graph.doc_string)
        rest.metadata_props.extend(source.graph.metadata_props)
        rest.quantization_annotation.extend(source.graph.quantization_annotation)
        carried = self._carried
        carried.model = model.SerializeToString(deterministic=True)
        carried.graph = rest.SerializeToString(deterministic=True)
        carried.inputs = {
            v.name: v.SerializeToString(deterministic=True) for v in source.graph.input
        }
        carried.reshaped, carried.overridable = reshaped, self._overridable
        graph.metadata.update(
            source=self._name,
            producer=f"{source.producer_name} {source.producer_version}".strip(),
            ir_version=source.ir_version,
            properties={p.key: p.value for p in source.metadata_props},
            overridable=self._overridable,
        )


def _origin(node: NodeProto) -> list[str]:
    """The name that the nodes made of this one remember: the first result's where it has none."""
    return [name for name in (node.name, *node.output) if name][:1]


def _is_constant(node: NodeProto) -> bool:
    return (
        node.op_type == "Constant"
        and node.domain in ("", "ai.onnx")
        and len(node.attribute) == 1
        and len(node.output) == 1
        and bool(node.output[0])
        and not node.input
    )
