"""Checks a model and infers its types on a skeleton: the model without its weights' data.

The skeleton has the nodes and the small constants that shapes are computed from; larger ones stand
in as inputs of the same type. So neither the checker nor inference copies weights, and neither sees
a size that was only declared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from pwopt.errors import FrontendError, IRError, UsageError, nearest
from pwopt.frontend import bounds
from pwopt.frontend.reader import has_schema
from pwopt.frontend.tensors import decode_type, encode, encode_type
from pwopt.ir.shape_windows import window_output
from pwopt.ir.types import UNKNOWN, Dim, TensorType, Type, of_array

SMALL = 1024  # elements; shapes, axes and pads are far below
_GENERATED = re.compile(r"unk__\d+")  # inference's own names for unknown dimensions

Shapes = Mapping[str, Sequence[Dim]]


def reshape_inputs(inputs: dict[str, Type], shapes: Shapes) -> dict[str, Type]:
    """The inputs' types with the user's shapes put in; a symbol gets its number everywhere.

    Raises:
        UsageError: a shape that fits no input.
    """
    symbols: dict[str, Dim] = {}
    result = dict(inputs)
    for name, shape in shapes.items():
        declared = inputs.get(name)
        if declared is None:
            raise UsageError(
                f"input shape for {name!r}: no such input{nearest(name, inputs)}; the model has "
                f"{', '.join(map(repr, inputs)) or 'none'}"
            )
        given = tuple(shape)
        where = f"input shape {_text(given)} for {name!r}"
        if not isinstance(declared, TensorType):
            raise UsageError(f"{where}: the input is not a tensor")
        if declared.rank is not None and declared.rank != len(given):
            raise UsageError(f"{where}: the model declares {declared}, of rank {declared.rank}")
        for old, new in zip(declared.shape or (), given, strict=False):
            if isinstance(old, str) and symbols.setdefault(old, new) != new:
                raise UsageError(f"{where}: dimension {old!r} is {symbols[old]} elsewhere")
        for dim in given:
            if isinstance(dim, bool) or (isinstance(dim, int) and dim < 0):
                raise UsageError(f"{where}: {dim} is not a size")
        result[name] = TensorType(declared.dtype, given)
    return {n: _substitute(t, symbols) for n, t in result.items()}


def _text(shape: Iterable[Dim]) -> str:
    return "x".join("?" if d is None else str(d) for d in shape)


def _substitute(value_type: Type, symbols: Mapping[str, Dim]) -> Type:
    if not isinstance(value_type, TensorType) or value_type.shape is None:
        return value_type
    shape = tuple(symbols.get(d, d) if isinstance(d, str) else d for d in value_type.shape)
    return TensorType(value_type.dtype, shape)


def skeleton(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    opsets: dict[str, int],
    inputs: Mapping[str, Type],
    constants: Mapping[str, np.ndarray],
    reshaped: bool,
) -> ModelProto:
    """The model without its large constants.

    Args:
        model: the model.
        nodes: its nodes in order, without those whose result is in ``constants``.
        opsets: operator set versions by domain.
        inputs: types of the inputs that must be fed.
        constants: arrays by value name.
        reshaped: whether the inputs' shapes are not the declared ones.
    """
    result = ModelProto(ir_version=max(model.ir_version, 4))
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    graph = result.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(nodes)
    for name, value_type in inputs.items():
        graph.input.append(ValueInfoProto(name=name, type=encode_type(value_type)))
    for name, array in constants.items():
        if array.size <= SMALL:
            graph.initializer.append(encode(array, name))
        else:
            graph.input.append(ValueInfoProto(name=name, type=encode_type(of_array(array))))
    graph.output.extend(model.graph.output)
    # A stale value_info would stop inference; it is all there is for unknown operators' results.
    unknown = {o for node in nodes if not has_schema(node, opsets) for o in node.output}
    outputs = {value.name for value in graph.output}
    for value in model.graph.value_info:
        if value.name in unknown and value.name not in outputs:
            known = _declared(value, reshaped)
            graph.value_info.append(ValueInfoProto(name=value.name, type=encode_type(known)))
    return result


def _declared(value: ValueInfoProto, reshaped: bool) -> Type:
    """What the file says of a value; no sizes if they were for other inputs."""
    declared = decode_type(value.type)
    if reshaped and isinstance(declared, TensorType) and declared.shape is not None:
        return TensorType(declared.dtype, (None,) * len(declared.shape))
    return declared


def check(outline: ModelProto, name: str) -> None:
    """Runs ONNX's checker.

    Raises:
        FrontendError: the model is not valid ONNX.
    """
    # The checker asks for shapes at the graph's ends, which runtimes do not and many files lack.
    missing = [
        value.type.tensor_type
        for value in (*outline.graph.input, *outline.graph.output)
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    for tensor in missing:
        tensor.shape.SetInParent()
    try:
        onnx.checker.check_model(outline)
    except Exception as error:
        # A ValidationError as a rule, but other exceptions of the C++ side come through as well.
        raise FrontendError(f"{name}: not valid ONNX: {one_line(error)}") from error
    for tensor in missing:
        tensor.ClearField("shape")


def one_line(error: object, limit: int = 400) -> str:
    """An error's text on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " ..."


def infer(
    model: ModelProto,
    outline: ModelProto,
    inputs: Mapping[str, Type],
    constants: Mapping[str, np.ndarray],
    reshaped: bool,
) -> dict[str, Type]:
    """Types by value name, as far as they can be known; never fails.

    Args:
        model: the model, whose own declarations fill the gaps.
        outline: its :func:`skeleton`; changed.
        inputs: types of the inputs that must be fed.
        constants: arrays by value name.
        reshaped: whether the inputs' shapes are not the declared ones.
    """
    declared = {
        v.name: _declared(v, reshaped) for v in (*model.graph.value_info, *model.graph.output)
    }
    for value in outline.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    inferred = _inferred(outline, inputs, constants, [*inputs.values(), *declared.values()])
    # In a model of fixed shapes the declared numbers hold; in any other they may be one example's.
    trusted = all(isinstance(t, TensorType) and t.static_shape is not None for t in inputs.values())
    for name, value_type in declared.items():
        inferred[name] = fill(inferred.get(name, UNKNOWN), value_type, numbers=trusted)
    return inferred


def _inferred(
    outline: ModelProto,
    inputs: Mapping[str, Type],
    constants: Mapping[str, np.ndarray],
    declared: Iterable[Type],
) -> dict[str, Type]:
    symbols = _symbols(declared)
    nodes = list(outline.graph.node)
    tame = bounds.without_long_slices(nodes, constants)
    if len(tame) < len(nodes):
        outline = _with_nodes(outline, tame)
    if outline.functions:
        # A function's body may hold anything, and those that could be inlined are gone.
        outline = _without_functions(outline)
    types = _run(outline, symbols, data_prop=False)
    if not bounds.propagation_is_useful(nodes, constants):
        return types
    if bounds.propagation_is_bounded(outline, {**inputs, **types}, constants):
        return _run(outline, symbols, data_prop=True) or types
    return types


def _with_nodes(outline: ModelProto, nodes: Sequence[NodeProto]) -> ModelProto:
    """The outline with some nodes left out."""
    result = ModelProto()
    result.CopyFrom(outline)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _without_functions(outline: ModelProto) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(outline)
    del result.functions[:]
    return result


def _run(outline: ModelProto, symbols: set[str], *, data_prop: bool) -> dict[str, Type]:
    try:
        graph = onnx.shape_inference.infer_shapes(outline, data_prop=data_prop).graph
    except Exception:  # types stay unknown then, which is no reason to refuse a model
        return {}
    types = _decoded(graph, symbols)
    corrected = _overcounted_pools(outline, types)
    if not corrected:
        return types
    result = _with_nodes(outline, [n for n in outline.graph.node if n.output[0] not in corrected])
    for name, value_type in corrected.items():  # so that the types after it are right as well
        result.graph.input.append(ValueInfoProto(name=name, type=encode_type(value_type)))
    return {**_run(result, symbols, data_prop=data_prop), **corrected}


def _overcounted_pools(outline: ModelProto, types: Mapping[str, Type]) -> dict[str, Type]:
    """Types of pools for which ONNX before operator set 22 counts a window that no runtime does.

    It is the window that ``ceil_mode`` adds, where it starts behind the image and its leading pads.
    """
    if any(o.version >= 22 for o in outline.opset_import if o.domain in ("", "ai.onnx")):
        return {}
    result: dict[str, Type] = {}
    known = {v.name: decode_type(v.type) for v in outline.graph.input} | dict(types)
    for node in outline.graph.node:
        if node.op_type not in ("MaxPool", "AveragePool") or node.domain not in ("", "ai.onnx"):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        x = known.get(node.input[0])
        if not attributes.get("ceil_mode") or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        if not isinstance(x, TensorType) or not x.shape:
            continue
        window = [attributes.get(a, ()) for a in ("kernel_shape", "strides", "dilations", "pads")]
        try:
            shape = (*x.shape[:2], *window_output(x.shape[2:], *window, ceil_mode=True))
        except IRError:
            continue
        for name in filter(None, node.output):
            y = types.get(name)
            if isinstance(y, TensorType) and not TensorType(y.dtype, shape).accepts(y):
                result[name] = TensorType(y.dtype, shape)
    return result


def _decoded(graph: GraphProto, symbols: set[str]) -> dict[str, Type]:
    cache: dict[bytes, Type] = {}
    result: dict[str, Type] = {}
    for value in (*graph.value_info, *graph.output):
        key = value.type.SerializeToString()
        if key not in cache:
            cache[key] = _without_generated(decode_type(value.type), symbols)
        result[value.name] = cache[key]
    return result


def _symbols(types: Iterable[Type]) -> set[str]:
    return {
        d for t in types if isinstance(t, TensorType) for d in t.shape or () if isinstance(d, str)
    }


def _without_generated(value_type: Type, keep: set[str]) -> Type:
    if not isinstance(value_type, TensorType) or value_type.shape is None:
        return value_type
    return TensorType(
        value_type.dtype,
        tuple(
            None if isinstance(d, str) and d not in keep and _GENERATED.fullmatch(d) else d
            for d in value_type.shape
        ),
    )


def fill(known: Type, other: Any, *, numbers: bool = True) -> Type:
    """``known`` with its gaps filled from ``other``, unless the two contradict each other.

    Args:
        known: the type to trust.
        other: the type to ask.
        numbers: whether to take dimensions as numbers from it, and not only symbols.
    """
    if not isinstance(known, TensorType):
        return known
    if not isinstance(other, TensorType):
        return other if known == UNKNOWN else known
    if not known.accepts(other):
        return known
    shape = known.shape if known.shape is not None else (None,) * (other.rank or 0)
    if other.shape is None:
        return TensorType(known.dtype or other.dtype, known.shape)
    merged = tuple(
        b if a is None and (numbers or isinstance(b, str)) else a
        for a, b in zip(shape, other.shape, strict=True)
    )
    return TensorType(known.dtype or other.dtype, merged)
