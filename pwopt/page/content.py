"""What the page shows, as JSON's types; the page carries it, so that it can be written anew.

The graphs become lists of nodes and edges with coordinates. A node of the optimized graph knows the
nodes of the original that it computes, because nodes remember what they descend from; the passes at
a node are those whose remarks name one of these.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pwopt import cost
from pwopt.cost_model import CostModel, cost_model
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node
from pwopt.page.layout import layout
from pwopt.profiling import Profile, original_nodes
from pwopt.report import Compilation, plain_json

if TYPE_CHECKING:
    from pwopt.comparison import Comparison
    from pwopt.driver import Optimized

SCHEMA = 1  # of the content; pages of another one are not read
MAX_NODES = 4000  # of a graph that is drawn: browsers get slow, and nobody finds anything in it
_MAX_FUSED = 5  # nodes in a row that ONNX Runtime makes one of
_MAX_ORIGIN = 200  # nodes of the original that one node names

Content = dict[str, Any]


def of_optimization(made: Optimized) -> Content:
    """The content after an optimization, and the compilation if there was one."""
    report = made.report
    content: Content = {"schema": SCHEMA, "report": report.to_json(), "comparison": None}
    content["passes"] = list(dict.fromkeys(r.spec for r in report.passes if r.changed))
    if made.original is None:
        return content | _without_graphs("the original graph was not kept")
    larger = max(len(made.original), len(made.graph))
    if larger > MAX_NODES:
        reason = f"graphs of up to {MAX_NODES:,} nodes are drawn, and this one has {larger:,}"
        return content | _without_graphs(reason)
    model = cost_model(report.hardware, made.precision)
    before, after = _Drawing(made.original, model), _Drawing(made.graph, model)
    if report.target != "cpu":
        _predict_by_kernels(before, after, report.compilation)
    _link(before, after)
    _add_notes(before, after, report.passes, content["passes"])
    others = _add_times(before, after, report.profile)
    return content | {
        "graphs": {"before": before.to_json(), "after": after.to_json(), "reason": ""},
        "waterfall": _waterfall(before, after, others),
        "peak_gflops": model.peak_gflops if report.target == "cpu" else 0.0,
    }


def of_comparison(table: Comparison, known: Content | None) -> Content:
    """The content after a comparison: what is known of the optimization, and the measurements."""
    empty: Content = {"schema": SCHEMA, "report": None, "passes": []}
    content = known or empty | _without_graphs("no report of the optimization lies beside it")
    return {**content, "comparison": table.to_json()}


def _without_graphs(reason: str) -> Content:
    return {
        "graphs": {"before": None, "after": None, "reason": reason},
        "waterfall": [],
        "peak_gflops": 0.0,
    }


class _Drawing:
    """A graph's operations, inputs and outputs as drawn nodes."""

    def __init__(self, graph: Graph, model: CostModel) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.edges: list[tuple[int, int]] = []
        self.keys: list[frozenset[str]] = []  # names that stand for the node, as remarks write them
        self.of_name: dict[str, int] = {}  # first node of a name or result
        self.labels: list[str] = []
        self.origins: list[tuple[str, ...]] = []
        self.sources: dict[int, list[int]] = defaultdict(list)
        index: dict[Node, int] = {}
        for node in graph.topological():
            if node.is_constant:
                continue
            i = index[node] = len(self.nodes)
            self._add(graph, node, model)
            readable = (v for v in graph.operands(node) if v is not None and v.node in index)
            self.sources[i] = list(dict.fromkeys(index[v.node] for v in readable))
            self.edges += [(j, i) for j in self.sources[i]]
        for name, value in graph.outputs:
            if value.node in index:
                self.edges.append((index[value.node], len(self.nodes)))
                self._port("Output", name, str(value.type))

    def _add(self, graph: Graph, node: Node, model: CostModel) -> None:
        shown = node.name or next(iter(node.origin), "") or next(iter(node.names), "")
        if node.is_input:
            self._port("Input", shown, str(node.types[0]))
            return
        i = len(self.nodes)
        estimate = model.estimate(graph, node)
        self.nodes.append(
            {
                "op": node.op,
                "name": shown,
                "detail": _detail(graph, node),
                "type": ", ".join(str(t) for t in node.types),
                "macs": cost.node_macs(graph, node),
                "ops": model.operations(graph, node),
                "bytes": model.moved_bytes(graph, node),
                "predicted": estimate.total,
                "bound": estimate.bound if estimate.total else "",
                "origin": list(node.origin[:_MAX_ORIGIN]),
            }
        )
        self.labels.append(node.label)
        self.origins.append(node.origin)
        self.keys.append(frozenset(repr(name) for name in (shown, *node.origin) if name))
        for name in (*node.origin, *filter(None, node.names)):
            self.of_name.setdefault(name, i)

    def _port(self, op: str, name: str, kind: str) -> None:
        self.nodes.append({"op": op, "name": name, "type": kind, "predicted": 0.0})
        self.labels.append("")
        self.origins.append(())
        self.keys.append(frozenset())

    def computing(self, i: int, op: str) -> int:
        """The node in front of one that is of an operator; itself where there is none near it.

        ONNX Runtime names what it fused by the last of the nodes.
        """
        at = i
        for _ in range(_MAX_FUSED):
            if self.nodes[at]["op"] == op.removeprefix("Fused"):
                return at
            if not (sources := self.sources[at]):
                break
            at = sources[0]
        return i

    def to_json(self) -> Content:
        """Nodes with coordinates, edges with the x of their bends."""
        placed = layout(len(self.nodes), self.edges)
        for node, x, layer in zip(self.nodes, placed.x, placed.layer, strict=True):
            node |= {"x": round(x, 3), "y": layer}
        edges = [
            [a, b, *(round(x, 3) for x in bends)]
            for (a, b), bends in zip(self.edges, placed.bends, strict=True)
        ]
        plain: Content = plain_json({"nodes": self.nodes, "edges": edges})
        return plain | {"width": round(placed.width, 3), "layers": placed.layers}


def _detail(graph: Graph, node: Node) -> str:
    """The sizes that tell a layer from another of its kind: "3x3 /2, 64 -> 128"."""
    weights = graph.operand(node, 1)
    shape = weights.shape if weights is not None and weights.node.is_constant else None
    kernel = node.get("kernel_shape") or ((shape or ())[2:] if node.op == "Conv" else ())
    parts = ["x".join(map(str, kernel))] if kernel else []
    if any(s != 1 for s in node.get("strides", ())):
        parts.append("/" + "x".join(map(str, dict.fromkeys(node.get("strides")))))
    if shape and node.op in ("Conv", "Pointwise", "Linear") and len(shape) > 1:
        parts.append(f"{shape[1] * int(node.get('group', 1))} → {shape[0]}")
    program = node.get("epilogue") or node.get("program")
    if node.domain == KERNEL_DOMAIN and program is not None:
        parts += re.findall(r"[A-Z]\w+", str(program))
    return " ".join(parts)[:80]


def _link(before: _Drawing, after: _Drawing) -> None:
    """Which nodes of the original a node computes, and where each of them went."""
    into: dict[int, list[int]] = defaultdict(list)
    for i, (node, origin) in enumerate(zip(after.nodes, after.origins, strict=True)):
        found = dict.fromkeys(before.of_name[n] for n in origin if n in before.of_name)
        node["from"] = list(found)[:_MAX_ORIGIN]
        for j in found:
            into[j].append(i)
    for drawing, other in ((before, after), (after, before)):
        ports = {(n["op"], n["name"]): i for i, n in enumerate(other.nodes) if "macs" not in n}
        for node in drawing.nodes:
            if "macs" not in node:
                at = ports.get((node["op"], node["name"]))
                node["from" if drawing is after else "into"] = [] if at is None else [at]
    for j, node in enumerate(before.nodes):
        node.setdefault("into", into.get(j, []))


def _add_notes(
    before: _Drawing, after: _Drawing, passes: Iterable[Any], names: Sequence[str]
) -> None:
    """What the passes did at each node, as pairs of a pass's index and its remark."""
    notes: dict[str, dict[tuple[int, str], None]] = defaultdict(dict)
    for row in passes:
        for remark in row.remarks:
            if remark.applied and row.spec in names:
                key = remark.node.partition(" ")[2]
                notes[key][names.index(row.spec), remark.text] = None
    for drawing in (before, after):
        for node, keys in zip(drawing.nodes, drawing.keys, strict=True):
            found = {note: None for key in sorted(keys) for note in notes.get(key, ())}
            node["notes"] = [list(note) for note in sorted(found)]


def _add_times(before: _Drawing, after: _Drawing, profile: Profile | None) -> dict[str, float]:
    """Measured microseconds; returns those of ONNX Runtime's own operators, by operator."""
    others: dict[str, float] = defaultdict(float)
    if profile is not None and profile.operators:
        names = {name: name for name in before.of_name}
        for each, name in zip(
            profile.operators, original_nodes(profile.operators, names), strict=True
        ):
            if name is None:
                others[each.op] += each.us
            else:
                node = before.nodes[before.computing(before.of_name[name], each.op)]
                node["us"] = node.get("us", 0.0) + each.us
        for node in before.nodes:
            node.setdefault("us", 0.0)
    if profile is not None and profile.kernels:
        _add_kernels(after, profile.kernels)
    return others


def _add_kernels(after: _Drawing, kernels: Sequence[Any]) -> None:
    """Times of kernels at their nodes, those of copies into outputs at the first of these."""
    for each, node in _placed(after, [(each.node, each.origin) for each in kernels], kernels):
        node["us"] = node.get("us", 0.0) + each.us
        if each.predicted_us or "kernel" not in node:
            node["kernel"] = each.kernel
    for node in after.nodes:
        node.setdefault("us", 0.0)


def _predict_by_kernels(before: _Drawing, after: _Drawing, compilation: Compilation | None) -> None:
    """Predictions for a GPU: those of its kernels, and none of the original."""
    for node in (*before.nodes, *after.nodes):
        node |= {"predicted": 0.0, "bound": ""}
    kernels = compilation.kernels if compilation is not None else []
    for each, node in _placed(after, [(k["node"], k["origin"]) for k in kernels], kernels):
        node["predicted"] += each["predicted_us"]


def _placed(
    after: _Drawing, names: Iterable[tuple[str, Sequence[str]]], kernels: Iterable[Any]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Kernels and their nodes, by the labels and origins of what they compute."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(after.labels):
        places[label].append(i)
    outputs = [i for i, node in enumerate(after.nodes) if node["op"] == "Output"]
    for (label, origin), each in zip(names, kernels, strict=True):
        found = places.get(label) if label else outputs
        for at in (found or _of_origin(after, origin))[:1]:
            yield each, after.nodes[at]


def _of_origin(after: _Drawing, origin: Sequence[str]) -> list[int]:
    return [after.of_name[name] for name in origin if name in after.of_name]


def _waterfall(
    before: _Drawing, after: _Drawing, others: Mapping[str, float]
) -> list[dict[str, Any]]:
    """By layer of the optimized graph the time before and after, measured or else predicted."""
    rows = []
    given = set[int]()
    measured = any("us" in node for node in before.nodes)
    for i, node in enumerate(after.nodes):
        mine = [j for j in node.get("from", ()) if j not in given] if "macs" in node else []
        given.update(mine)
        baseline = sum(_time(before.nodes[j], measured) for j in mine)
        took = _time(node, "us" in node)
        if baseline or took:
            rows.append(
                {
                    "node": i,
                    "label": f"{node['op']} {node['name']}",
                    "detail": node.get("detail", ""),
                    "before": baseline,
                    "after": took,
                }
            )
    left = [n for j, n in enumerate(before.nodes) if j not in given and "macs" in n]
    if gone := sum(_time(node, measured) for node in left):
        rows.append({"node": None, "label": "layers that are gone", "before": gone, "after": 0.0})
    for op, us in others.items():
        row = {"node": None, "label": f"{op}, inserted by ONNX Runtime", "before": us}
        rows.append(row | {"after": 0.0})
    return [row for row in rows if math.isfinite(row["before"] + row["after"])]


def _time(node: Mapping[str, Any], measured: bool) -> float:
    return float(node.get("us", 0.0) if measured else node["predicted"])
