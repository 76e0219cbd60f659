"""A graph as GraphViz text. Constants are left out; weights show in their readers' labels."""

from __future__ import annotations

import math

from pwopt.ir.graph import GRAPH_DOMAIN, KERNEL_DOMAIN, Graph, Node, Value

_POINTWISE = "#ffd27f"
_CONVOLUTION = "#cfe2f3"
_END = "#d9ead3"
_OTHER = "#ffffff"
MAX_LABEL = 60  # characters of a name


def to_dot(graph: Graph) -> str:
    """The graph in GraphViz's language: 1x1 convolutions orange, other ones blue."""
    lines = [
        f"digraph {_quoted(graph.name)} {{",
        '  node [shape=box, style="rounded,filled", fontname="sans-serif", fontsize=10];',
        '  edge [fontname="sans-serif", fontsize=8];',
    ]
    for node in graph.topological():
        if node.is_constant and not any(value.node is node for _, value in graph.outputs):
            continue
        label = "\n".join(_label(graph, node))
        lines.append(
            f"  n{node.id} [label={_quoted(label)}, fillcolor={_quoted(_color(graph, node))}];"
        )
        lines += [_edge(v, f"n{node.id}") for v in graph.operands(node) if _is_drawn(v)]
    for index, (name, value) in enumerate(graph.outputs):
        lines.append(
            f"  out{index} [label={_quoted(name)}, shape=oval, fillcolor={_quoted(_END)}];"
        )
        lines.append(_edge(value, f"out{index}"))
    return "\n".join([*lines, "}"]) + "\n"


def _is_drawn(value: Value | None) -> bool:
    return value is not None and not value.node.is_constant


def _edge(value: Value | None, target: str) -> str:
    assert value is not None
    return f"  n{value.node.id} -> {target} [label={_quoted(str(value.type))}];"


def _label(graph: Graph, node: Node) -> list[str]:
    if node.domain == GRAPH_DOMAIN:
        return [_short(node.out.name) or node.op]
    operands = graph.operands(node)
    constants = [str(v.type) for v in operands if v is not None and v.node.is_constant]
    program = node.get("epilogue") or node.get("program")
    shown = [node.op, _short(node.name or next(iter(node.origin), ""))]
    shown += [_short(" ".join(constants))]
    shown += [_short(str(program))] if program is not None else []
    return [line for line in shown if line]


def _color(graph: Graph, node: Node) -> str:
    if node.domain == GRAPH_DOMAIN:
        return _END
    if node.domain == KERNEL_DOMAIN and node.op == "Pointwise":
        return _POINTWISE
    if node.op != "Conv" or node.domain not in ("", KERNEL_DOMAIN):
        return _OTHER
    weight = graph.operand(node, 1)
    shape = weight.shape if weight is not None else None
    return _POINTWISE if shape is not None and math.prod(shape[2:]) == 1 else _CONVOLUTION


def _short(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"


def _quoted(text: str) -> str:
    """A GraphViz string: quotes and backslashes escaped, line breaks as breaks."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ")
    return '"' + escaped.replace("\n", "\\n") + '"'
