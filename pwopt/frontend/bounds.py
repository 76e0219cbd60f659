"""Which models ONNX's shape inference can be trusted with.

With data propagation it spells out every one-dimensional value that an integer operator reads,
element by element (onnx 1.23: half a second and 150 MB per million declared elements), and Slice
does so for its ``starts`` even without. A file of a hundred bytes can declare any length, directly
or by arithmetic on shapes, so lengths and magnitudes are bounded here first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from pwopt.frontend.attributes import has_subgraph, subgraphs
from pwopt.ir.types import TensorType, Type

LENGTH = 2**16  # elements of a one-dimensional value that may be spelled out
MAGNITUDE = 2**20  # of a computed shape's entries

# Operators that data propagation follows.
_FOLLOWED = frozenset(
    {
        *("Add", "Cast", "Concat", "Gather", "Identity", "Mul"),
        *("Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze"),
    }
)
_SHAPED = frozenset(  # operators whose result is as large as the values of an operand say
    {"ConstantOfShape", "Expand", "Pad", "Range", "Reshape", "Resize", "Tile", "Upsample"}
)


def without_long_slices(
    nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]
) -> list[NodeProto]:
    """The nodes but those that slice, at any depth, by values that are no constants."""
    return [node for node in nodes if not _slices_by_values(node, constants)]


def _slices_by_values(node: NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    if has_subgraph(node):
        return any(
            _slices_by_values(inner, {}) for g in subgraphs(node.attribute) for inner in g.node
        )
    return node.op_type == "Slice" and any(
        name and (name not in constants or constants[name].size > LENGTH) for name in node.input[1:]
    )


def propagation_is_useful(nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray]) -> bool:
    """Whether any shape is computed from other shapes or by arithmetic on constants."""
    return any(
        node.op_type in ("Shape", "Size")
        or (node.op_type in _FOLLOWED and all(name in constants for name in node.input if name))
        for node in nodes
    )


def propagation_is_bounded(
    outline: ModelProto, types: Mapping[str, Type], constants: Mapping[str, np.ndarray]
) -> bool:
    """Whether data propagation stays cheap.

    Args:
        outline: the model's skeleton.
        types: of the inputs, and what inference without data propagation found.
        constants: arrays by value name.
    """
    if outline.functions or any(has_subgraph(node) for node in outline.graph.node):
        return False
    known = [t.static_shape for t in types.values() if isinstance(t, TensorType)]
    if any(shape and len(shape) == 1 and shape[0] > LENGTH for shape in known):
        return False
    dims = max((d for shape in known if shape for d in shape), default=1)
    lengths = {name: array.size for name, array in constants.items()}
    sizes = {name: _magnitude(array) for name, array in constants.items()}
    for node in outline.graph.node:
        values = [sizes.get(name, 0.0) for name in node.input if name not in constants]
        if node.op_type in _SHAPED and max(values, default=0.0) > MAGNITUDE:
            return False
        if node.op_type not in _FOLLOWED:
            continue
        long = [lengths.get(name, 0) for name in node.input]
        length = sum(long) if node.op_type == "Concat" else max(long, default=0)
        if length > LENGTH and any(name not in constants for name in node.input):
            return False
        for output in node.output:
            lengths[output] = length
            sizes[output] = _result(node, [sizes.get(name, 0.0) for name in node.input], dims)
    return True


def _magnitude(array: np.ndarray) -> float:
    if array.dtype.kind not in "iu" or not 0 < array.size <= LENGTH:
        return 0.0
    return float(np.abs(array.astype(np.float64)).max())


def _result(node: NodeProto, operands: list[float], dims: int) -> float:
    match node.op_type:
        case "Shape":
            return float(dims)
        case "Size":
            return float(dims) ** 4
        case "Mul":
            return math.prod(operands)
        case "Add" | "Sub":
            return sum(operands)
        case "Concat":
            return max(operands, default=0.0)
    return operands[0] if operands else 0.0
