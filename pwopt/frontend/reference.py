"""The independent reference: a graph computed node by node in float64.

It shares nothing with the passes and the targets, except for what ONNX itself defines. Most
operators run in onnx.reference; :mod:`pwopt.frontend.reference_kernels` holds the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto
from onnx.reference import ReferenceEvaluator

from pwopt.errors import FrontendError
from pwopt.frontend import reference_kernels as kernels
from pwopt.frontend.attributes import encode_attribute, schema_kinds
from pwopt.frontend.reference_resize import resize
from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Opaque, Value
from pwopt.ir.internal import expand
from pwopt.ir.types import NUMPY_DTYPES, TensorType, Type

FLOATS = frozenset({"bfloat16", "float16", "float32", "float64"})

_KERNELS: dict[str, kernels.Kernel] = {
    "AveragePool": kernels.average_pool,
    "BatchNormalization": kernels.batch_norm,
    "Conv": kernels.conv,
    "ConvTranspose": kernels.conv_transpose,
    "DequantizeLinear": kernels.quantize,
    "Div": kernels.div,
    "Erf": kernels.erf,
    "Flatten": kernels.flatten,
    "Gelu": kernels.gelu,
    "GlobalAveragePool": kernels.global_pool,
    "GlobalLpPool": kernels.global_pool,
    "GlobalMaxPool": kernels.global_pool,
    "Hardmax": kernels.softmax,
    "LRN": kernels.lrn,
    "LogSoftmax": kernels.softmax,
    "LpPool": kernels.lp_pool,
    "MaxPool": kernels.max_pool,
    "Pad": kernels.pad,
    "QuantizeLinear": kernels.quantize,
    "Resize": resize,
    "Softmax": kernels.softmax,
    "Upsample": resize,
}


def evaluate(
    graph: Graph, feeds: Mapping[str, np.ndarray], dtype: str | None = "float64"
) -> dict[str, np.ndarray]:
    """The outputs of a graph by name.

    Args:
        graph: any graph; internal ops are expanded.
        feeds: arrays by input name; an input with a default may be left out.
        dtype: what every floating-point constant, feed and result is computed in, and returned
            as; None for the graph's own types.

    Raises:
        FrontendError: an input is missing, or a node cannot be computed; names it.
    """
    return ReferenceModel(graph, dtype).outputs(feeds)


class ReferenceModel:
    """A graph ready to be run by the reference.

    Attributes:
        graph: the graph with internal ops expanded.
        dtype: see :func:`evaluate`.
    """

    def __init__(self, graph: Graph, dtype: str | None = "float64") -> None:
        """Expands the graph."""
        self.graph = expand(graph)
        self.dtype = dtype
        self._order = self.graph.topological()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, in the types that the graph declares for them."""
        results = self.outputs(feeds)
        return {name: _as(results[name], value.type) for name, value in self.graph.outputs}

    def outputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, in :attr:`dtype` where they are floating-point."""
        results: dict[Value, Any] = {}
        readers = self._readers()
        for node in self._order:
            operands = self.graph.operands(node)
            for index, result in enumerate(self._compute(node, operands, results, feeds)):
                results[node[index]] = result
            for value in {v for v in operands if v is not None}:
                readers[value] -= 1
                if not readers[value]:
                    del results[value]
        return {name: results[value] for name, value in self.graph.outputs}

    def _readers(self) -> dict[Value, int]:
        """How many nodes read each value; a graph output counts as one more."""
        readers: dict[Value, int] = {}
        for node in self._order:
            for value in {v for v in self.graph.operands(node) if v is not None}:
                readers[value] = readers.get(value, 0) + 1
        for _, value in self.graph.outputs:
            readers[value] = readers.get(value, 0) + 1
        return readers

    def _compute(
        self,
        node: Node,
        operands: Sequence[Value | None],
        results: Mapping[Value, Any],
        feeds: Mapping[str, np.ndarray],
    ) -> list[Any]:
        if node.is_constant:
            return [self._promoted(node.attributes["value"])]
        if node.is_input:
            array = feeds.get(node.out.name, node.get("default"))
            if array is None:
                raise FrontendError(f"input {node.out.name!r} is not fed")
            return [self._promoted(array)]
        inputs = [None if v is None else results[v] for v in operands]
        try:
            with np.errstate(all="ignore"):
                return [self._promoted(r) for r in self._run(node, operands, inputs)]
        except Exception as error:  # onnx.reference raises anything
            raise FrontendError(
                f"{node.label}: the reference cannot compute it: {type(error).__name__}: {error}"
            ) from error

    def _run(
        self, node: Node, operands: Sequence[Value | None], inputs: Sequence[Any]
    ) -> Sequence[Any]:
        if self.dtype is None:
            return evaluate_node(node, inputs, self.graph.opset, opsets=self.graph.opsets)
        if (
            node.is_op("Cast", "CastLike")
            and _floating(inputs[0])
            and _floating_type(node.types[0])
        ):
            return [inputs[0]]  # rounding is what float64 is to avoid
        narrow = [_as(a, v.type) if v else a for a, v in zip(inputs, operands, strict=True)]
        if any(isinstance(a, Opaque) for a in node.attributes.values()):
            # A subgraph holds float32 constants of its own.
            return _reference(node, narrow, self.graph.opsets)
        try:
            return _dispatch(node, inputs, self.graph.opsets)
        except Exception:  # an operator that takes no float64
            return _dispatch(node, narrow, self.graph.opsets)

    def _promoted(self, array: Any) -> Any:
        if self.dtype is None or not _floating(array):
            return array
        return array.astype(NUMPY_DTYPES[self.dtype], copy=False)


def evaluate_node(
    node: Node,
    inputs: Sequence[np.ndarray | None],
    opset: int,
    *,
    opsets: Mapping[str, int] | None = None,
    max_bytes: int | None = None,
) -> list[np.ndarray]:
    """The results of one standard operator in its own element types.

    Args:
        node: the operator.
        inputs: its operands by slot, None where absent.
        opset: version of ONNX's operator set.
        opsets: versions of other domains as well.
        max_bytes: bound on the declared size of the results; None for none.

    Raises:
        FrontendError: the results are larger, or of a size not known, than ``max_bytes`` allows.
        Exception: whatever onnx.reference raises.
    """
    if max_bytes is not None:
        sizes = [t.bytes if isinstance(t, TensorType) else None for t in node.types]
        if None in sizes or sum(s or 0 for s in sizes) > max_bytes:
            raise FrontendError(f"{node.label}: results {node.types} exceed {max_bytes} bytes")
    versions = {**(opsets or {}), ONNX_DOMAIN: opset}
    wide = inputs
    if node.domain == ONNX_DOMAIN and node.op in _KERNELS:
        wide = [a.astype(np.float64) if a is not None and _floating(a) else a for a in inputs]
    with np.errstate(all="ignore"):
        results = _dispatch(node, wide, versions)
    if wide is inputs:
        return results
    return [_as(r, t) for r, t in zip(results, node.types, strict=False)]


def _dispatch(
    node: Node, inputs: Sequence[np.ndarray | None], opsets: Mapping[str, int]
) -> list[Any]:
    kernel = _KERNELS.get(node.op) if node.domain == ONNX_DOMAIN else None
    if kernel is not None:
        results = kernel(node, inputs, opsets.get(ONNX_DOMAIN, 1))
        if results is not None:
            return results
    return _reference(node, inputs, opsets)


def _reference(node: Node, inputs: Sequence[Any], opsets: Mapping[str, int]) -> list[Any]:
    """onnx.reference's implementation."""
    count = len(inputs) - len(node.captures)
    names = ["" if a is None else f"x{i}" for i, a in enumerate(inputs[:count])]
    outputs = [f"y{i}" for i in range(len(node.types))]
    proto = NodeProto(op_type=node.op, domain=node.domain, input=names, output=outputs)
    kinds = schema_kinds(node.op, node.domain, opsets.get(node.domain, 1))
    for name, value in node.attributes.items():
        proto.attribute.append(encode_attribute(name, value, kinds.get(name, 0)))
    feeds = {n: a for n, a in zip(names, inputs[:count], strict=True) if n}
    feeds.update(zip(node.captures, inputs[count:], strict=True))
    graph = GraphProto(
        name="node",
        node=[proto],
        input=[ValueInfoProto(name=n) for n in feeds],
        output=[ValueInfoProto(name=n) for n in outputs],
    )
    versions = {node.domain: 1, **opsets}
    results = ReferenceEvaluator(graph, opsets=versions).run(None, feeds)
    return [r if isinstance(r, list | None) else np.asarray(r) for r in results]


def _floating(array: Any) -> bool:
    return isinstance(array, np.ndarray) and str(array.dtype) in FLOATS


def _floating_type(value_type: Type) -> bool:
    return isinstance(value_type, TensorType) and value_type.dtype in FLOATS


def _as(array: Any, value_type: Type) -> Any:
    """A floating-point array in a declared floating-point type."""
    if not _floating(array) or not _floating_type(value_type):
        return array
    assert isinstance(value_type, TensorType)
    return array.astype(NUMPY_DTYPES[value_type.dtype or "float64"], copy=False)
