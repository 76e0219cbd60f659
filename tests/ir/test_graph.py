"""The graph's own operations."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Use, Value, walk_up
from pwopt.ir.types import TensorType
from pwopt.ir.verify import verify

FLOAT = TensorType("float32", (2, 3))


def chain(length: int = 3) -> tuple[Graph, list[Value]]:
    """X → Relu → Relu …, the last one an output."""
    graph = Graph("chain")
    values = [graph.add_input("x", FLOAT)]
    for _ in range(length):
        values.append(graph.add("Relu", [values[-1]]).out)
    graph.add_output("y", values[-1])
    return graph, values


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.topological()]


def test_adding() -> None:
    graph = Graph("g", {"": 17})
    x = graph.add_input("x", FLOAT)
    before = graph.version
    node = graph.add(
        "Clip",
        [x, None, graph.constant(np.array(6, np.float32)), None],
        names=("y",),
        origin=("a", "a", "b"),
    )
    assert graph.version > before
    assert node.arity == 3
    assert [v and v.node.op for v in graph.operands(node)] == ["Input", None, "Constant"]
    assert node.types == (FLOAT,)
    assert node.origin == ("a", "b")
    assert node.out.name == "y"
    assert node in graph
    assert len(graph) == 1
    assert graph.operand(node, 1) is None
    assert graph.operand(node, 7) is None
    with pytest.raises(TypeError):
        node.attributes["min"] = 0  # type: ignore[index]


def test_adding_what_is_not_known() -> None:
    graph, values = chain()
    with pytest.raises(IRError, match="no shape inference rule"):
        graph.add("Frobnicate", [values[0]])
    node = graph.add("Frobnicate", [values[0]], domain="vendor", types=[FLOAT, FLOAT])
    assert node.names == ("", "")
    assert node[1].tensor == FLOAT
    _, others = chain()
    with pytest.raises(IRError, match="operand 0 of Relu"):
        graph.add("Relu", [others[0]])


def test_one_value_in_two_slots() -> None:
    graph, (x, *_) = chain(0)
    node = graph.add("Add", [x, x])
    assert graph.uses(x) == [Use(node, 0), Use(node, 1)]
    assert graph.only_use(x) is None
    one = graph.constant(np.ones((2, 3), np.float32))
    graph.replace_operand(Use(node, 1), one)
    assert graph.operands(node) == (x, one)
    graph.replace_uses(one, x)
    assert graph.operands(node) == (x, x)
    graph.replace_uses(x, one)
    assert graph.operands(node) == (one, one)
    assert graph.outputs == (("y", one),)
    verify(graph)


def test_one_value_as_two_outputs() -> None:
    graph, values = chain()
    graph.add_output("z", values[-1])
    new = graph.add("Neg", [values[0]]).out
    graph.replace_uses(values[-1], new)
    assert graph.outputs == (("y", new), ("z", new))
    assert graph.is_output(new)
    assert not graph.is_output(values[-1])
    with pytest.raises(IRError, match="stands twice"):
        graph.add_output("z", new)


def test_output_that_is_an_input() -> None:
    graph, (x, *_) = chain(0)
    assert graph.outputs == (("y", x),)
    assert graph.only_use(x) is None
    assert graph.erase_dead() == 0
    verify(graph)


def test_replacing_nothing_is_no_change() -> None:
    graph, values = chain()
    before = graph.version
    graph.replace_uses(values[1], values[1])
    assert graph.version == before


def test_uses_of_single_results() -> None:
    graph, (x, *_) = chain(0)
    split = graph.add("Split", [x], {"axis": 0}, types=[TensorType("float32", (1, 3))] * 2)
    first, second = graph.add("Relu", [split[0]]), graph.add("Neg", [split[1]])
    assert graph.uses(split[0]) == [Use(first, 0)]
    assert graph.only_use(split[1]) == Use(second, 0)
    assert graph.reader_count(split[0]) == 1
    graph.replace_uses(split[0], split[1])
    assert graph.uses(split[1]) == [Use(first, 0), Use(second, 0)]
    assert graph.uses(split[0]) == []


def test_erasing() -> None:
    graph, values = chain()
    with pytest.raises(IRError, match="still read"):
        graph.erase(values[1].node)
    with pytest.raises(IRError, match="still read"):
        graph.erase(values[-1].node)
    with pytest.raises(IRError, match="input"):
        graph.erase(values[0].node)
    spare = graph.add("Neg", [values[1]])
    before = graph.version
    graph.erase(spare)
    assert spare not in graph
    assert graph.version > before
    assert len(graph) == 3


def test_erasing_what_is_dead() -> None:
    graph, values = chain()
    weight = graph.constant(np.ones((2, 3), np.float32))
    dead = graph.add("Mul", [graph.add("Neg", [values[1]]).out, weight])
    other = graph.add("Neg", [values[0]])
    assert graph.erase_dead([dead]) == 3
    assert other in graph
    assert graph.erase_dead() == 1
    assert ops(graph) == ["Input", "Relu", "Relu", "Relu"]


def test_order_is_topological_and_stable() -> None:
    graph, values = chain()
    late = graph.add("Neg", [values[0]])
    graph.replace_operand(Use(values[2].node, 0), late.out)
    assert [n.id for n in graph.topological()] == [0, 1, 4, 2, 3]
    graph.replace_operand(Use(late, 0), values[3])
    with pytest.raises(IRError, match="cycle"):
        graph.topological()


def test_copies_are_independent() -> None:
    graph, values = chain()
    graph.metadata["key"] = "value"
    copy = graph.copy()
    assert copy.outputs == graph.outputs
    assert copy.metadata == graph.metadata
    assert str(copy) == str(graph)
    copy.replace_uses(values[1], values[0])
    copy.erase_dead()
    copy.opsets[""] = 1
    new = copy.add("Neg", [values[0]])
    assert len(graph) == 3
    assert graph.opset == 17
    assert graph.operands(values[2].node) == (values[1],)
    assert new not in graph
    verify(graph)
    verify(copy)


def test_networkx_view_is_a_copy() -> None:
    graph, values = chain()
    view = graph.to_networkx()
    assert view.nodes[1]["node"] is values[1].node
    view.remove_node(1)
    verify(graph)


def test_outputs_can_be_replaced_as_a_whole() -> None:
    graph, values = chain()
    before = graph.version
    graph.set_outputs([])
    assert graph.version > before
    assert not graph.is_output(values[-1])
    graph.set_outputs([("a", values[1]), ("b", values[1])])
    assert [name for name, _ in graph.outputs] == ["a", "b"]


def test_labels_speak_the_users_names() -> None:
    graph, (x, *_) = chain(0)
    named = graph.add("Relu", [x], name="act", names=("y",))
    derived = graph.add("Relu", [x], origin=("conv1",))
    bare = graph.add("Relu", [x])
    assert named.label == "Relu 'act'"
    assert named.out.label == "y"
    assert derived.label == "Relu 'conv1'"
    assert bare.label == f"Relu #{bare.id}"


def test_walking_up_visits_each_node_once() -> None:
    graph, values = chain()
    node = graph.add("Add", [values[2], values[1]])
    assert sorted(n.id for n in walk_up(graph, node.out)) == [0, 1, 2, 4]


def test_constant_values() -> None:
    graph, values = chain()
    array = np.arange(3)
    assert graph.constant_value(graph.constant(array)) is array
    assert graph.constant_value(values[0]) is None
    assert graph.constant_value(None) is None
