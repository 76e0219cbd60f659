"""Which values live in memory as bfloat16, decided on the whole graph before lowering.

Maps between convolutions do: half the traffic, and no conversion for each use. What computes in
float32 widens its loads and rounds its stores. Graph inputs and outputs, constants, and whatever
leads to no convolution or product any more, such as the arithmetic on boxes behind a detector's
last layers, stay in float32.
"""

from __future__ import annotations

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.ir.program import BINARY, UNARY

_PRODUCTS = {
    *((KERNEL_DOMAIN, op) for op in ("Conv", "Pointwise", "Linear")),
    *(("", op) for op in ("Conv", "Gemm")),
}

# Operators whose rules take operands, and give results, of either kind.
_EITHER = {
    *_PRODUCTS,
    (KERNEL_DOMAIN, "Map"),
    *(("", op) for op in (*UNARY, *BINARY, "Sum", "Max", "Min", "BatchNormalization", "LRN")),
    *(("", op) for op in ("MaxPool", "AveragePool", "LpPool", "Resize", "Upsample", "Concat")),
    *(("", op) for op in ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")),
    *(("", op) for op in ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze")),
    *(("", op) for op in ("Transpose", "Slice", "Split", "Expand", "Gather", "Pad")),
    *(("", op) for op in ("DepthToSpace", "SpaceToDepth")),
}


def takes_either(node: Node) -> bool:
    """Whether a node's rule takes and gives values of both kinds."""
    return (node.domain, node.op) in _EITHER


def narrow_values(graph: Graph) -> frozenset[Value]:
    """The results that are better stored as bfloat16."""
    useful: set[Value] = set()  # a product reads it, if only through other operators
    found: set[Value] = set()
    for node in reversed(list(graph.topological())):
        if node.is_input or node.is_constant or not takes_either(node):
            continue
        for value in (node[i] for i in range(len(node.types))):
            readers = [use.node for use in graph.uses(value)]
            if any((r.domain, r.op) in _PRODUCTS or r.out in useful for r in readers):
                useful.add(value)
                everywhere = all(takes_either(r) for r in readers)
                if everywhere and _is_map(value) and not graph.is_output(value):
                    found.add(value)
    return frozenset(found)


def _is_map(value: Value) -> bool:
    shape = value.shape
    return value.tensor.dtype == "float32" and shape is not None and len(shape) > 1
