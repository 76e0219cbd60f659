"""What a model is made of, and what pwopt would do with it; nothing is changed or written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pwopt import cost
from pwopt.ir.graph import Graph, Node
from pwopt.pipeline import PassReport
from pwopt.report import is_pointwise

# Kinds of layers in the order that they are shown.
KINDS = ("1x1 convolutions", "depthwise", "other convolutions", "fully connected", "others")
_SPELLINGS = ("Identity", "Reshape", "Transpose")  # of a constant that exporters leave undone
_MATRIX = ("Gemm", "MatMul", "Linear")


@dataclass(frozen=True)
class Kind:
    """The layers of a kind together.

    Attributes:
        name: among :data:`KINDS`.
        layers: how many.
        macs: multiply-accumulates.
        parameters: elements of their constant operands; shared ones count once.
    """

    name: str
    layers: int
    macs: int
    parameters: int


@dataclass(frozen=True)
class Step:
    """What a pass would do.

    Attributes:
        name: the pass with its options.
        rewrites: made.
        declined: found, but not made.
        saved_us: predicted microseconds of an inference; None where the graph is too large.
    """

    name: str
    rewrites: int
    declined: int
    saved_us: float | None


def kinds(graph: Graph) -> list[Kind]:
    """The layers by what they compute, kinds without layers left out."""
    layers: dict[str, int] = defaultdict(int)
    macs: dict[str, int] = defaultdict(int)
    parameters: dict[str, int] = defaultdict(int)
    seen: set[Node] = set()
    for node in graph.topological():
        if node.is_constant or node.is_input:
            continue
        kind = _kind(graph, node)
        layers[kind] += 1
        macs[kind] += cost.node_macs(graph, node)
        constants = {v.node for v in graph.operands(node) if v is not None and v.node.is_constant}
        for each in constants - seen:
            parameters[kind] += cost.elements(each.types[0]) or 0
        seen |= constants
    return [Kind(k, layers[k], macs[k], parameters[k]) for k in KINDS if layers[k]]


def _kind(graph: Graph, node: Node) -> str:
    if is_pointwise(graph, node):
        return "1x1 convolutions"
    if node.op.endswith(("Conv", "ConvTranspose", "ConvInteger")):
        weights = graph.operand(node, 3 if node.op == "QLinearConv" else 1)
        shape = weights.shape if weights is not None else None
        depthwise = int(node.get("group", 1)) > 1 and shape is not None and shape[1] == 1
        return "depthwise" if depthwise else "other convolutions"
    return "fully connected" if _is_matrix(graph, node) else "others"


def _is_matrix(graph: Graph, node: Node) -> bool:
    if node.op not in _MATRIX:
        return False
    weights = graph.operand(node, 1)
    while weights is not None and weights.node.op in _SPELLINGS:
        weights = graph.operand(weights.node, 0)
    return weights is not None and weights.node.is_constant


def head(graph: Graph) -> list[str]:
    """The fully connected layers behind the last convolution, by the user's names."""
    found: list[str] = []
    for node in graph.topological():
        if node.op.endswith(("Conv", "ConvTranspose")):
            found = []
        elif _is_matrix(graph, node):
            found.append(node.label)
    return found


def layout(graph: Graph) -> str:
    """How images lie: as ONNX has them, or channels last at the inputs and transposed there."""
    images = [n for n in graph.inputs if n.out.tensor.rank == 4]
    if not images:
        return "no images among the inputs"
    last = [
        n.names[0]
        for n in images
        if any(tuple(r.get("perm", ())) == (0, 3, 1, 2) for r in graph.readers(n.out))
    ]
    return f"NHWC at {', '.join(last)}, transposed to NCHW" if last else "NCHW"


def plan(passes: Sequence[PassReport]) -> list[Step]:
    """What each pass that found something did, its runs together."""
    runs: dict[str, list[PassReport]] = defaultdict(list)
    for row in passes:
        runs[row.spec].append(row)
    steps = []
    for spec, rows in runs.items():
        made = sum(r.applied for row in rows for r in row.remarks)
        declined = len({(r.node, r.text) for row in rows for r in row.remarks if not r.applied})
        pairs = [(row.us_before, row.us_after) for row in rows]
        known = [a - b for a, b in pairs if a is not None and b is not None]
        if made or declined or any(row.changed for row in rows):
            steps.append(Step(spec, made, declined, sum(known) if known else None))
    return steps
