"""The pass ``fold-constants``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.frontend.reference import evaluate_node
from pwopt.growth import Growth
from pwopt.ir.graph import GRAPH_DOMAIN, ONNX_DOMAIN, Graph, Node
from pwopt.ir.types import NUMPY_DTYPES, TensorType, of_array
from pwopt.passes.infer_shapes import refine
from pwopt.passes.rewriting import (
    FLOATS,
    RANDOM,
    has_subgraph,
    in_training_mode,
    replace_node,
)
from pwopt.passes.shape_values import Ints, ShapeValues, dim_entry
from pwopt.pipeline import Applied, Context, Missed, Pass, Remark

# Operand slots whose constant a compiler needs to see, and operators that only carry it there.
_WEIGHT_SLOTS: dict[str, frozenset[int]] = {
    "BatchNormalization": frozenset({1, 2, 3, 4}),
    "Conv": frozenset({1, 2}),
    "ConvTranspose": frozenset({1, 2}),
    "Gemm": frozenset({1, 2}),
    "InstanceNormalization": frozenset({1, 2}),
    "MatMul": frozenset({0, 1}),
    "PRelu": frozenset({1}),
    **{op: frozenset({0}) for op in ("Cast", "Identity", "Reshape", "Transpose")},
    **{op: frozenset({0}) for op in ("Squeeze", "Unsqueeze")},
}

# Their reference implementations loop in Python, so a large result would take minutes.
_SLOW = frozenset(
    {
        *("AveragePool", "Conv", "ConvTranspose", "DeformConv", "GRU", "GridSample", "LSTM"),
        *("LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "NonMaxSuppression", "RNN", "Resize"),
        *("RoiAlign", "Upsample", "Col2Im", "CenterCropPad", "TfIdfVectorizer", "StringNormalizer"),
        *("ScatterElements", "ScatterND", "GatherND", "Unique", "AffineGrid", "STFT", "DFT"),
    }
)
MAX_SLOW_ELEMENTS = 1 << 14
MAX_TOTAL_GROWTH = 64  # of all constants together, in units of the bound on one


@dataclass
class _Budget:
    """What the constants of one run may still add to the model, in bytes."""

    growth: int
    weights: int


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Evaluates what depends on constants, and on static shapes, alone.

    Rewrite:
        ``Mul(Constant, Constant)`` → ``Constant``; ``Gather(Shape(x), 1)`` → ``Constant`` where
        that dimension is static, even if others are not; ``Reshape(x, Concat(Gather(Shape(x), 0),
        -1))`` → ``Reshape(x, [0, -1])``.

    Shapes:
        Any. Nothing is evaluated whose result type is not known beforehand.

    Numerics:
        Those of the reference evaluator in the operators' own types.

    Misses when:
        A result would take ``max_growth_bytes`` more than the constants that go away with it; a
        result that is read as a weight may, until all constants take ``max_weight_bytes``.
        Operators that draw random numbers, hold subgraphs or are not ONNX's own stay, and so do
        what decides an If: were it constant, ONNX Runtime would put the branch in the place of the
        If and refuse there what it lets pass otherwise (a Range of vectors of one element).

    Source:
        Common practice; the bounds answer models that grew several times over, and files of a few
        bytes that ask for terabytes.

    Attributes:
        max_growth_bytes: growth that one constant may cause; all together 64 times that.
        max_weight_bytes: what all constants of the graph may take before a larger result that is
            read as a weight stays unevaluated.
    """

    name: ClassVar[str] = "fold-constants"

    max_growth_bytes: int = 1 << 20
    max_weight_bytes: int = 1 << 30

    def run(self, graph: Graph, context: Context) -> None:
        held = sum(n.out.tensor.bytes or 0 for n in graph.nodes() if n.is_constant)
        budget = _Budget(
            self.max_growth_bytes * MAX_TOTAL_GROWTH, max(0, self.max_weight_bytes - held)
        )
        values, deciding = ShapeValues(graph), _deciding(graph)
        for node in graph.topological():
            if node.domain != ONNX_DOMAIN or node not in graph:
                continue
            if node in deciding:
                why = f"{node.label} decides an If, and stays for the If's sake"
                context.remarks.append(Remark(self.name, node.label, False, why))
                continue
            if not context.may_rewrite(self, node):
                continue
            label = node.label
            # What was folded above may have settled types here, on which Shape then depends.
            growth = context.growth()
            outcome = self._visit(graph, refine(graph, node), values, budget, growth)
            if isinstance(outcome, Applied):
                context.rewritten(self, node, label, outcome.what)
            elif outcome is not None:
                context.remarks.append(Remark(self.name, label, False, outcome.why))

    def _visit(
        self, graph: Graph, node: Node, values: ShapeValues, budget: _Budget, growth: Growth
    ) -> Applied | Missed | None:
        known = values.visit(node)
        if known is not None and known.numbers is not None:
            return _write_ints(graph, node, known)
        operands = graph.operands(node)
        if not all(v is None or v.node.is_constant for v in operands):
            return _relative_reshape(graph, node, values) if node.op == "Reshape" else None
        if node.op in RANDOM or has_subgraph(node) or not node.types:
            return None
        trains = node.op in ("Dropout", "BatchNormalization") and in_training_mode(graph, node)
        if trains is not False:
            return None
        return self._evaluate(graph, node, budget, growth)

    def _evaluate(
        self, graph: Graph, node: Node, budget: _Budget, growth: Growth
    ) -> Applied | Missed:
        trouble = self._size_trouble(graph, node, budget, growth)
        if trouble is not None:
            return trouble
        inputs = [graph.constant_value(v) for v in graph.operands(node)]
        try:
            results = [np.asarray(r) for r in evaluate_node(node, inputs, graph.opset)]
        except Exception as error:  # the evaluator runs on whatever a model file holds
            return Missed(f"it cannot be evaluated: {type(error).__name__}: {error}")
        for declared, result in zip(node.types, results, strict=False):
            if declared != of_array(result):
                return Missed(f"it evaluates to {of_array(result)} but is declared {declared}")
        if len(results) < len(node.types):
            return Missed(f"it evaluates to {len(results)} of {len(node.types)} results")
        return _write(graph, node, results)

    def _size_trouble(
        self, graph: Graph, node: Node, budget: _Budget, growth: Growth
    ) -> Missed | None:
        """The reason if the results are too large; else takes them out of the budget."""
        size = 0
        for each in node.types:
            shape = each.static_shape if isinstance(each, TensorType) else None
            known = isinstance(each, TensorType) and each.bytes is not None
            if shape is None or not known or min(shape, default=0) < 0:
                return Missed(f"the type {each} of its result is not known well enough")
            size += each.bytes or 0 if isinstance(each, TensorType) else 0
        if node.op in _SLOW and size > MAX_SLOW_ELEMENTS * 4:
            return Missed(f"its result {node.types[0]} is too large for the reference evaluator")
        added = max(0, size - _bytes_freed(graph, node))
        what = f"its result {node.types[0]}"
        if (why := growth.refuse(graph, added, what, node.label)) is not None:
            return Missed(why)
        if added <= min(self.max_growth_bytes, budget.growth):
            budget.growth -= added
            return None
        if added <= budget.weights and _is_weight(graph, node):
            budget.weights -= added
            return None
        return Missed(
            f"{what} would add {added} bytes; "
            f"max-growth-bytes={self.max_growth_bytes}, max-weight-bytes={self.max_weight_bytes}"
        )


def _bytes_freed(graph: Graph, node: Node) -> int:
    """Size of the constants that only ``node`` reads."""
    return sum(
        v.tensor.bytes or 0
        for v in set(graph.operands(node))
        if v is not None and graph.only_use(v) is not None
    )


def _is_weight(graph: Graph, node: Node) -> bool:
    """Whether everything that reads ``node`` takes it for a weight."""
    if len(node.types) != 1 or graph.is_output(node.out) or graph.reader_count(node.out) > 4096:
        return False
    uses = graph.uses(node.out)
    return bool(uses) and all(
        use.node.domain != GRAPH_DOMAIN and use.slot in _WEIGHT_SLOTS.get(use.node.op, ())
        for use in uses
    )


def _deciding(graph: Graph) -> set[Node]:
    """The nodes whose integers or truth values choose the branch of an If."""
    pending = [graph.operand(node, 0) for node in graph.nodes() if node.is_op("If")]
    found: set[Node] = set()
    while pending:
        value = pending.pop()
        if value is not None and value.tensor.dtype not in FLOATS and value.node not in found:
            found.add(value.node)
            pending.extend(graph.operands(value.node))
    return found


def _write(graph: Graph, node: Node, results: Sequence[np.ndarray]) -> Applied:
    for index in range(len(node.types)):
        name = node[index].name
        constant = graph.constant(results[index], name, origin=node.origin)
        graph.replace_uses(node[index], constant)
        if not graph.is_output(constant):
            graph.erase_dead([constant.node])
    label = node.label
    graph.erase_dead([node])
    return Applied(f"evaluated {label}")


def _write_ints(graph: Graph, node: Node, known: Ints) -> Applied:
    dtype = NUMPY_DTYPES[node.out.tensor.dtype or "int64"]
    array = np.array(known.numbers, dtype)
    return _write(graph, node, [array.reshape(()) if known.scalar else array])


def _relative_reshape(graph: Graph, node: Node, values: ShapeValues) -> Applied | None:
    """Writes a target shape that depends on x's own dimensions with ONNX's 0 and -1."""
    if graph.opset < 5 or node.arity != 2 or node.get("allowzero", 0):
        return None
    x, target = graph.operands(node)
    wanted = values.of(target)
    if x is None or target is None or target.node.is_constant or wanted is None:
        return None
    rank = x.tensor.rank or 0
    entries: list[int | None] = []
    for axis, entry in enumerate(wanted.entries):
        if entry == 0 and isinstance(entry, int):
            return None
        if isinstance(entry, int):
            entries.append(entry)
        elif entry is not None and axis < rank and entry == dim_entry(x, axis):
            entries.append(0)
        else:
            entries.append(None)
    unknown = entries.count(None)
    if unknown > 1 or (unknown == 1 and -1 in entries):
        return None
    shape = np.array([-1 if e is None else e for e in entries], np.int64)
    label = node.label
    constant = graph.constant(shape)
    refine(graph, replace_node(graph, node, "Reshape", [x, constant], node.attributes))
    return Applied(f"gave {label} the constant shape {shape.tolist()}")
