"""A graph as text, one line an operation, for reading and for golden tests.

::

    graph "net" {opset=17}
      %0: float32[1x3x8x8] = Input()  # x
      @w: float32[4x3x1x1] = 1f0c9a52
      @c0: float32[] = 6
      %1: float32[1x4x8x8] = pwopt.Conv(%0, @w, _) {epilogue=Relu(%0), strides=(1, 1)}  # y
      return y=%1

``_`` is an absent operand and ``%3#1`` the second result of an operation with several. Numbers
follow the order of the text, so they do not depend on what was erased before.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pwopt.ir.graph import GRAPH_DOMAIN, Graph, Node, Opaque, Value
from pwopt.ir.types import of_array

SHOWN_ELEMENTS = 8  # constants of more are shown by their hash

_PLAIN = re.compile(r"[\w.:/\-]+\Z", re.ASCII)


def to_text(graph: Graph, *, hashes: bool = True) -> str:
    """The graph as text that ends with a newline.

    Args:
        graph: any graph without cycle.
        hashes: whether large constants show a hash of their elements; without it, text does not
            depend on rounding.
    """
    order = graph.topological()
    operations = [n for n in order if n.domain != GRAPH_DOMAIN]
    inputs = list(graph.inputs)
    constants = _by_first_use(graph, operations)
    names = _value_names(inputs, constants, operations)
    opsets = {"opset" if d == "" else d: v for d, v in graph.opsets.items()}
    lines = [f"graph {json.dumps(graph.name)} {_attributes(opsets)}"]
    lines += [_input_line(n, names) for n in inputs]
    for node in constants:
        value = _array_text(node.attributes["value"], hashes)
        lines.append(f"  {names[node.id]}: {node.types[0]} = {value}".rstrip())
    lines += [_operation_line(graph, n, names, hashes) for n in operations]
    returned = (f"{_quoted(name)}={_shown(value, names)}" for name, value in graph.outputs)
    lines.append(f"  return {', '.join(returned)}".rstrip())
    return "\n".join(lines) + "\n"


def _by_first_use(graph: Graph, operations: list[Node]) -> list[Node]:
    found: dict[int, Node] = {}
    for node in operations:
        for value in graph.operands(node):
            if value is not None and value.node.is_constant:
                found.setdefault(value.node.id, value.node)
    for _, value in graph.outputs:
        if value.node.is_constant:
            found.setdefault(value.node.id, value.node)
    for node in graph.nodes():
        if node.is_constant:
            found.setdefault(node.id, node)
    return list(found.values())


def _value_names(
    inputs: list[Node], constants: list[Node], operations: list[Node]
) -> dict[int, str]:
    names = {node.id: f"%{i}" for i, node in enumerate([*inputs, *operations])}
    taken: set[str] = set()
    nameless = itertools.count()
    for node in constants:
        wish = "@" + (_quoted(node.out.name) if node.out.name else f"c{next(nameless)}")
        while wish in taken:
            wish += "'"
        taken.add(wish)
        names[node.id] = wish
    return names


def _input_line(node: Node, names: Mapping[int, str]) -> str:
    default = " {default}" if "default" in node.attributes else ""
    return f"  {names[node.id]}: {node.types[0]} = Input(){default}  # {_quoted(node.out.name)}"


def _operation_line(graph: Graph, node: Node, names: Mapping[int, str], hashes: bool) -> str:
    types = ", ".join(map(str, node.types))
    types = types if len(node.types) == 1 else f"({types})"
    operands = [_shown(v, names) for v in graph.operands(node)]
    count = len(operands) - len(node.captures)
    captured = zip(node.captures, operands[count:], strict=True)
    arguments = [*operands[:count], *(f"{_quoted(name)}={value}" for name, value in captured)]
    op = f"{node.domain}.{node.op}" if node.domain else node.op
    attributes = _attributes(node.attributes, hashes)
    line = f"  {names[node.id]}: {types} = {op}({', '.join(arguments)}) {attributes}".rstrip()
    shown = ", ".join(_quoted(name) for name in node.names if name)
    return f"{line}  # {shown}" if shown else line


def _shown(value: Value | None, names: Mapping[int, str]) -> str:
    if value is None:
        return "_"
    several = len(value.node.types) > 1
    return names[value.node.id] + (f"#{value.index}" if several else "")


def _quoted(name: str) -> str:
    """A name from a file: as it is if harmless, else as a JSON string on one line."""
    return name if _PLAIN.match(name) else json.dumps(name)


def _attributes(attributes: Mapping[str, Any], hashes: bool = True) -> str:
    if not attributes:
        return ""
    shown = (f"{_quoted(k)}={_attribute(attributes[k], hashes)}" for k in sorted(attributes))
    return f"{{{', '.join(shown)}}}"


def _attribute(value: Any, hashes: bool) -> str:
    match value:
        case np.ndarray():
            return f"{of_array(value)} {_array_text(value, hashes)}".rstrip()
        case Opaque():
            return f"<{len(value.serialized)} bytes>"
        case float():
            return f"{value:.7g}"
        case tuple():
            items = [_attribute(v, hashes) for v in value]
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
        case str():
            return _quoted(value) if value else '""'
        case bytes():
            return f"<{len(value)} bytes>"
    return str(value)


def _array_text(array: np.ndarray, hashes: bool) -> str:
    if array.size <= SHOWN_ELEMENTS:
        flat = array.reshape(-1).tolist()
        items = [_attribute(v, hashes) for v in flat]
        return items[0] if array.ndim == 0 else f"[{', '.join(items)}]"
    if not hashes:
        return "..."
    data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + data).hexdigest()[:8]
