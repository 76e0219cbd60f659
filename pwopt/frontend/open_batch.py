"""Models that leave the batch open: the first dimension of their inputs, and nothing else.

Most exporters write such models, and kernels need sizes. So the batch is closed before the passes
run, and the written model has it open again where it computes the same for any batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import ValueInfoProto

from pwopt.errors import IRError
from pwopt.frontend.carried import BATCH, KEY, carried
from pwopt.frontend.inference import Shapes, reshape_inputs
from pwopt.frontend.reader import Source, read
from pwopt.frontend.tensors import decode_type
from pwopt.ir.graph import Graph, Node, Use
from pwopt.ir.retype import retype
from pwopt.ir.types import Dim, TensorType, Type

EXAMPLE = 8  # of another batch, in messages


def batch_shapes(declared: dict[str, Type], given: Shapes, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes for the inputs whose batch is open; none if anything else is open as well.

    Args:
        declared: types of the inputs, by name.
        given: shapes that the user gave; the batch of those counts for the others, too.
        size: of the batch otherwise.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, t in reshape_inputs(declared, given).items():
        shape = t.shape if isinstance(t, TensorType) else None
        rest = tuple(d for d in shape[1:] if isinstance(d, int)) if shape else ()
        if shape is None or len(rest) < len(shape) - 1:
            return {}
        if shape and not isinstance(shape[0], int):
            shapes[name] = (size, *rest)
    batches = {shape[0] for n, shape in given.items() if not isinstance(_first(declared[n]), int)}
    if len(batches) == 1 and isinstance(batch := batches.pop(), int):
        shapes = {name: (batch, *shape[1:]) for name, shape in shapes.items()}
    symbols = {_first(declared[name]) for name, shape in shapes.items() if len(shape) > 1}
    lone = [n for n, s in shapes.items() if len(s) == 1 and _first(declared[n]) not in symbols]
    return {} if lone else shapes  # a vector alone may be a sequence


def _first(t: Type) -> Dim:
    return t.shape[0] if isinstance(t, TensorType) and t.shape else None


def close_batch(graph: Graph, size: int = 1) -> Graph:
    """The graph with its batch closed; itself where that is not all that is open."""
    inputs: dict[str, Type] = {
        n.names[0]: n.types[0] for n in graph.inputs if n.get("default") is None
    }
    shapes = batch_shapes(inputs, {}, size)
    if not shapes:
        return graph
    try:
        made = retyped(graph, {n: _with_shape(inputs[n], s) for n, s in shapes.items()})
    except IRError:
        return graph
    made.metadata[BATCH] = {name: inputs[name] for name in shapes}
    return made


def _with_shape(t: Type, shape: tuple[int, ...]) -> Type:
    return TensorType(t.dtype, shape) if isinstance(t, TensorType) else t


def with_open_batch(source: Source) -> bytes | None:
    """A model that declares empty batches with these open; None for any other.

    Raises:
        FrontendError: it cannot be read.
    """
    model, _, _ = read(source)
    shapes = [v.type.tensor_type.shape.dim for v in model.graph.input]
    if not any(len(s) > 1 and s[0].HasField("dim_value") and s[0].dim_value == 0 for s in shapes):
        return None
    from pwopt.frontend.exporter import export
    from pwopt.frontend.importer import load

    return bytes(export(load(source)).SerializeToString())


def notice(graph: Graph) -> str:
    """What was closed, and how to choose another size; empty where nothing was."""
    found: Mapping[str, Type] = graph.metadata.get(BATCH, {})
    if not found:
        return ""
    types = {n.names[0]: n.out.tensor for n in graph.inputs}
    symbols = {_first(t) for t in found.values()}
    symbol = symbols.pop() if len(symbols) == 1 else None
    names = list(found) if symbol is None else list(found)[:1]
    hints = [
        f"--input-shape {name}:" + "x".join(map(str, (EXAMPLE, *(types[name].shape or ())[1:])))
        for name in names
    ]
    inputs = f"input{'s' * (len(found) > 1)} {', '.join(map(repr, found))}"
    what = "open batch dimension" + (f" {symbol!r}" if symbol else "")
    size = _first(types[names[0]])
    return f"{inputs}: {what} set to {size}; {' '.join(hints)} chooses another"


def retyped(graph: Graph, inputs: Mapping[str, Type]) -> Graph:
    """The graph on inputs of other types, with what it carries of its file.

    Raises:
        IRError: a node does not take what it would get.
    """
    made, nodes = retype(graph, inputs)
    known = carried(graph)
    declared = {
        name: decode_type(ValueInfoProto.FromString(info).type)
        for name, info in known.inputs.items()
    }
    made.metadata[KEY] = replace(
        known,
        reshaped=any(declared.get(node.names[0]) != node.types[0] for node in made.inputs),
        nodes={nodes[n]: each for n, each in known.nodes.items() if n in nodes},
        kinds={nodes[n]: each for n, each in known.kinds.items() if n in nodes},
        absent={nodes[n]: each for n, each in known.absent.items() if n in nodes},
    )
    return made


def without_batch(graph: Graph) -> Graph:
    """A copy whose reshapes and resizes do not name the batch as a number.

    A target shape begins with ONNX's 0 or -1 instead; sizes that are whole multiples of the map's
    become scales, from which they follow exactly.
    """
    graph = graph.copy()
    for node in graph.nodes():
        if node.is_op("Reshape") and graph.opset >= 5 and not node.get("allowzero", 0):
            _free(graph, node)
        elif node.is_op("Resize") and node.arity == 4 and not node.get("axes"):
            _scale(graph, node)
    return graph


def _scale(graph: Graph, node: Node) -> None:
    x, roi, _, target = graph.operands(node)
    sizes = graph.constant_value(target)
    shape = None if x is None else x.shape
    if sizes is None or shape is None or 0 in shape or node.get("keep_aspect_ratio_policy"):
        return
    if any(size % have for size, have in zip(sizes, shape, strict=True)):
        return
    scales = graph.constant((sizes // np.array(shape)).astype(np.float32))
    new = graph.add(
        "Resize",
        [x, roi, scales],
        node.attributes,
        types=node.types,
        names=node.names,
        name=node.name,
        origin=node.origin,
    )
    graph.replace_uses(node.out, new.out)
    graph.erase(node)
    graph.erase_dead([] if target is None else [target.node])


def _free(graph: Graph, node: Node) -> None:
    x, target = graph.operands(node)
    shape = graph.constant_value(target)
    if x is None or not x.tensor.shape or shape is None or not shape.size or shape.flat[0] < 1:
        return
    freed = np.array(shape)
    if x.tensor.shape[0] == shape[0]:
        freed[0] = 0
    elif -1 not in shape:
        freed[0] = -1
    else:
        return
    graph.replace_operand(Use(node, 1), graph.constant(freed))
    graph.erase_dead([target.node] if target is not None else [])
