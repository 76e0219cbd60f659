"""Every invariant broken once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from pwopt.errors import VerificationError
from pwopt.ir import verify as module
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Use, Value
from pwopt.ir.program import Program
from pwopt.ir.types import UNKNOWN, OpaqueType, TensorType
from pwopt.ir.verify import verify

FLOAT = TensorType("float32", (1, 4, 5, 5))


def network() -> Graph:
    """Input 0, constant 1, Conv 2, Relu 3, internal Pointwise 5, output."""
    graph = Graph("net")
    x = graph.add_input("x", FLOAT)
    w = graph.constant(np.ones((4, 4, 1, 1), np.float32), "w")
    y = graph.add("Conv", [x, w], names=("y",), name="conv1").out
    y = graph.add("Relu", [y], name="relu1").out
    m = graph.constant(np.ones((4, 4), np.float32), "m")
    attributes = {"epilogue": Program().then("Relu")}
    y = graph.add("Pointwise", [y, m], attributes, domain=KERNEL_DOMAIN, name="pw1").out
    graph.add_output("out", y)
    return graph


def change(graph: Graph, id: int, **changes: Any) -> None:
    """Swaps a node for a changed one behind the graph's back."""
    if "attributes" in changes:
        changes["attributes"] = MappingProxyType(changes["attributes"])
    graph._nodes[id] = dataclasses.replace(graph._nodes[id], **changes)


def wiring(graph: Graph) -> Any:
    return graph._graph


def cycle(graph: Graph) -> None:
    conv, relu = graph.nodes()[2:4]
    graph.replace_operand(Use(conv, 0), relu.out)


def input_not_listed(graph: Graph) -> None:
    graph._inputs = [graph._nodes[2]]


def two_inputs(graph: Graph) -> None:
    graph.add_input("x", FLOAT)


def output_of_another_graph(graph: Graph) -> None:
    graph._outputs = [("out", network().nodes()[0].out)]


def program_of_wrong_arity(graph: Graph) -> None:
    program = Program().then_with_argument("Add")
    graph.add(
        "Map", [graph.inputs[0].out], {"program": program}, domain=KERNEL_DOMAIN, types=[FLOAT]
    )


def pointwise(**changes: Any) -> Callable[[Graph], None]:
    """Adds a Pointwise that is wrong in one respect."""

    def add(graph: Graph) -> None:
        operands = changes.get("operands") or [
            graph.inputs[0].out,
            graph.constant(changes.get("w", np.ones((4, 4), np.float32))),
            graph.constant(changes.get("b", np.ones(4, np.float32))),
        ]
        attributes = changes.get("attributes", {})
        types = changes.get("types", [UNKNOWN])
        op = changes.get("op", "Pointwise")
        graph.add(op, operands, attributes, domain=KERNEL_DOMAIN, types=types, name="bad")

    return add


def pointwise_of_input_weight(graph: Graph) -> None:
    w = graph.add_input("w2", TensorType("float32", (4, 4)))
    pointwise(operands=[graph.inputs[0].out, w])(graph)


BROKEN: list[tuple[int, str, Callable[[Graph], object]]] = [
    (1, "Conv 'conv1'", cycle),
    (2, "Relu 'relu1'", lambda g: wiring(g).add_edge(0, 3, key=5, index=0)),
    (2, "Relu 'relu1'", lambda g: wiring(g).add_edge(0, 3, key=0, index=0)),
    (2, "Relu 'relu1'", lambda g: wiring(g).remove_edge(2, 3, key=0)),
    (2, "Relu 'relu1'", lambda g: g._operands[3].__setitem__(0, g.inputs[0].out)),
    (3, "Relu 'relu1'", lambda g: g._nodes.pop(2)),
    (3, "Relu 'relu1'", lambda g: wiring(g)._succ[2][3].update({0: {"index": 1}})),
    (3, "Relu 'relu1'", lambda g: wiring(g)._succ[2][3].update({0: {"index": -1}})),
    (4, "'w'", lambda g: change(g, 1, types=(TensorType("float32", (4, 4)),))),
    (4, "'w'", lambda g: change(g, 1, types=(UNKNOWN,))),
    (4, "'w'", lambda g: change(g, 1, attributes={})),
    (5, "Relu 'relu1'", lambda g: change(g, 3, types=(TensorType("float16", FLOAT.shape),))),
    (5, "Relu 'relu1'", lambda g: change(g, 3, types=(TensorType("float32", (1, 4, 5)),))),
    (5, "Conv 'conv1'", lambda g: change(g, 2, attributes={"group": 3})),
    (5, "Conv 'conv1'", lambda g: change(g, 2, attributes={"strides": (2, 2)})),
    (6, "output 'out'", output_of_another_graph),
    (6, "output 'out'", lambda g: g._outputs.__setitem__(0, ("out", Value(g._nodes[3], 2)))),
    (6, "output 'out'", lambda g: g._outputs.append(g._outputs[0])),
    (7, "Input 'x'", two_inputs),
    (7, "Input", lambda g: g.add_input("", FLOAT)),
    (7, "Conv 'conv1'", input_not_listed),
    (8, "Relu 'relu1'", lambda g: change(g, 3, names=("a", "b"))),
    (9, "Map", program_of_wrong_arity),
    (9, "Frobnicate 'bad'", pointwise(op="Frobnicate")),
    (9, "Pointwise 'bad'", pointwise(w=np.ones((4, 4, 1), np.float32))),
    (9, "Pointwise 'bad'", pointwise(b=np.ones(3, np.float32))),
    (9, "Pointwise 'bad'", pointwise(b=np.ones((4, 1), np.float32))),
    (9, "Pointwise 'bad'", pointwise(b=np.ones(4, np.float64))),
    (9, "Pointwise 'bad'", pointwise(attributes={"pads": (0, 0, 0, 0)})),
    (9, "Pointwise 'bad'", pointwise(attributes={"strides": (2,)})),
    (9, "Pointwise 'bad'", pointwise(attributes={"epilogue": "Relu"})),
    (9, "Pointwise 'bad'", pointwise(attributes={"epilogue": Program(2)})),
    (9, "Pointwise 'bad'", pointwise(types=[UNKNOWN, UNKNOWN])),
    (9, "Pointwise 'bad'", pointwise_of_input_weight),
    (9, "Conv 'bad'", pointwise(op="Conv", attributes={"auto_pad": "VALID"})),
    (5, "Pointwise 'bad'", pointwise(w=np.ones((4, 3), np.float32))),
    (5, "Linear 'bad'", pointwise(op="Linear")),
]


@pytest.mark.parametrize(("number", "label", "damage"), BROKEN)
def test_broken_invariant(number: int, label: str, damage: Callable[[Graph], object]) -> None:
    graph = network()
    damage(graph)
    with pytest.raises(VerificationError, match=rf"invariant {number}: .*{re.escape(label)}"):
        verify(graph)


def test_valid_graphs() -> None:
    verify(Graph())
    graph = network()
    verify(graph)
    relu = graph.nodes()[3]
    # Names are wishes; unknown parts contradict nothing; unknown operators may be anything.
    graph.add("Relu", [relu.out], names=relu.names)
    graph.add("Relu", [relu.out], types=[UNKNOWN])
    graph.add("Relu", [relu.out], types=[TensorType("float32", ("N", 4, None, 5))])
    graph.add("Frobnicate", [None, relu.out], domain="vendor", types=[OpaqueType(b"")])
    graph.add("NonMaxSuppression", [relu.out], types=[UNKNOWN])
    graph.add_output("x", graph.inputs[0].out)
    verify(graph)


def test_only_what_changed_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    verify(graph)
    seen: list[str] = []
    check = module._check_node

    def spy(graph: Graph, node: Node, operands: Any) -> None:
        seen.append(node.op)
        check(graph, node, operands)

    monkeypatch.setattr(module, "_check_node", spy)
    version = graph.version
    verify(graph, since=version)
    assert seen == []
    new = graph.add("Neg", [graph.inputs[0].out]).out
    conv = graph.nodes()[2]
    graph.replace_uses(conv.out, new)
    graph.erase(conv)
    verify(graph, since=version)
    assert seen == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("number", "damage"),
    [
        (1, cycle),
        (5, lambda g: g.add("Relu", [g.inputs[0].out], types=[TensorType("float32", (7,))])),
        (6, output_of_another_graph),
        (7, two_inputs),
        (9, pointwise(types=[UNKNOWN, UNKNOWN])),
    ],
)
def test_new_faults_are_found(number: int, damage: Callable[[Graph], object]) -> None:
    graph = network()
    version = graph.version
    damage(graph)
    with pytest.raises(VerificationError, match=f"invariant {number}: "):
        verify(graph, since=version)


def test_large_graphs_verify_in_linear_time() -> None:
    """No recursion, no quadratic step: this would take minutes."""
    graph = Graph("long")
    value = graph.add_input("x", FLOAT)
    for _ in range(20_000):
        value = graph.add("Add", [value, value]).out
    graph.add_output("y", value)
    verify(graph)
