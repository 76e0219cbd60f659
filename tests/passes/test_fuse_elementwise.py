"""Groups of elementwise operators become one Map each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.passes.fuse_elementwise import FuseElementwise
from tests.passes.building import Build, check, transform


def network() -> Graph:
    """Pre-activation as in DenseNet, and a gate."""
    b = Build()
    x = b.input("batch", 6, 5, 3)
    y = b.op("Relu", b.batch_norm(x, 6))
    pooled = b.op("MaxPool", y, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    gate = b.op("Sigmoid", b.op("GlobalAveragePool", y))
    return b.output(b.op("Add", b.op("Mul", pooled, gate), x))


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("fuse_elementwise", str(transform(network(), FuseElementwise()).graph))


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
def test_network(opset: int) -> None:
    graph = network()
    graph.opsets[""] = opset
    outcome = check(graph, FuseElementwise(), sizes={"batch": 2})
    assert outcome.ops == [".Map", "MaxPool", "GlobalAveragePool", ".Map", ".Map"]
    programs = [str(n.get("program")) for n in outcome.graph.topological() if n.get("program")]
    assert programs == ["Relu(Add(Mul(%0, %1), %2))", "Sigmoid(%0)", "Add(Mul(%0, %1), %2)"]


@pytest.mark.parametrize("opset", [7, 8, 13])
@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Sum", "Add(Add(%0, %1), %2)"),
        ("Max", "Max(Max(%0, %1), %2)"),
        ("Min", "Min(Min(%0, %1), %2)"),
        ("Mean", "Div(Add(Add(%0, %1), %2), %3)"),
    ],
)
def test_variadic(op: str, expected: str, opset: int) -> None:
    b = Build(opset)
    operands = [b.input(2, 3, 5, name=f"x{i}") for i in range(3)]
    outcome = check(b.output(b.op(op, *operands)), FuseElementwise())
    assert outcome.ops == [".Map"]
    assert outcome.program("Map") == expected


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 0, 3), (2, 3, 1, 5, 2)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    b = Build()
    x = b.input(*shape)
    y = b.op("Mul", x, b.op("Sigmoid", x))
    outcome = check(b.output(b.op("Sub", y, 1.0)), FuseElementwise())
    assert outcome.program("Map") == "Sub(Mul(%0, Sigmoid(%0)), %1)"


def test_operands_broadcast_both_ways() -> None:
    b = Build()
    x, y = b.input(1, 3, 1, 5), b.input(4, 1, 2, 1, name="y")
    outcome = check(b.output(b.op("Relu", b.op("Add", x, y))), FuseElementwise())
    assert outcome.program("Map") == "Relu(Add(%0, %1))"


def test_a_smaller_operand_is_computed_apart() -> None:
    b = Build()
    x, s = b.input(2, 4, 5, 5), b.input(2, 4, 1, 1, name="s")
    outcome = check(b.output(b.op("Mul", x, b.op("Sigmoid", s))), FuseElementwise())
    assert outcome.ops == [".Map", ".Map"]


def test_several_readers_end_a_group() -> None:
    b = Build()
    x = b.input(2, 3)
    y = b.op("Exp", x)
    outcome = check(b.output(b.op("Relu", y), b.op("Neg", y)), FuseElementwise())
    assert outcome.ops == [".Map", ".Map", ".Map"]


def test_readers_that_meet_do_not() -> None:
    b = Build()
    y = b.op("Exp", b.input(2, 3))
    z = b.op("Add", b.op("Relu", y), b.op("Mul", b.op("Neg", y), y))
    outcome = check(b.output(z), FuseElementwise())
    assert outcome.ops == [".Map"]


def test_an_output_between_ends_a_group() -> None:
    b = Build()
    y = b.op("Exp", b.input(2, 3))
    outcome = check(b.output(y, b.op("Neg", y)), FuseElementwise())
    assert outcome.ops == [".Map", ".Map"]
    assert [n.names for n in outcome.graph.nodes() if n.op == "Map"] != []


def test_a_path_around_the_group() -> None:
    """Neg may not join Add: Softmax reads it and Add reads Softmax."""
    b = Build()
    y = b.op("Neg", b.input(2, 3))
    outcome = check(b.output(b.op("Add", y, b.op("Softmax", y, axis=1))), FuseElementwise())
    assert outcome.ops == [".Map", "Softmax", ".Map"]


def test_hard_swish_and_gelu_spelt_out() -> None:
    b = Build()
    x = b.input(3, 4)
    y = b.op("Mul", x, b.op("Div", b.op("Clip", b.op("Add", x, 3.0), 0.0, 6.0), 6.0))
    z = b.op("Mul", b.op("Mul", 0.5, x), b.op("Add", b.op("Erf", b.op("Div", x, 2**0.5)), 1.0))
    outcome = check(b.output(b.op("Sub", y, z)), FuseElementwise())
    assert outcome.program("Map") == "Sub(HardSwish(%0), Gelu(%0, 0))"
    assert outcome.only("Map").arity == 1


def test_constants_of_higher_rank_keep_the_shape() -> None:
    b = Build()
    x = b.input(4)
    y = b.op("Clip", b.op("Add", x, b.number(3.0, 1, 1)), 0.0, 6.0)
    y = b.op("Div", b.op("Mul", x, y), b.number(6.0, 1, 1))
    outcome = check(b.output(y), FuseElementwise())
    assert outcome.ops == [".Map"]
    assert outcome.only("Map").out.shape == (1, 4)


def test_the_number_of_arguments_is_bounded() -> None:
    b = Build()
    y = b.input(2, 3)
    for i in range(12):
        y = b.op("Add", y, b.input(2, 3, name=f"r{i}"))
    outcome = check(b.output(y), FuseElementwise())
    assert outcome.ops == [".Map", ".Map"]
    assert all(n.arity <= 8 for n in outcome.graph.nodes() if n.op == "Map")


def test_long_chains_are_cut() -> None:
    b = Build()
    y = b.input(2, 3)
    for _ in range(100):
        y = b.op("Tanh", y)
    assert check(b.output(y), FuseElementwise()).ops == [".Map"] * 4


def test_misses() -> None:
    b = Build()
    x, n = b.input(2, 3), b.input(2, 3, name="n", dtype="int64")
    unknown = b.graph.add("Mystery", [x], domain="custom", types=[TensorType("float32")])
    values = [b.op("Add", n, n), b.op("Relu", unknown.out)]
    values += [b.op("Sum", *(b.input(2, name=f"r{i}") for i in range(9)))]
    outcome = transform(b.output(*values), FuseElementwise())
    assert sorted(outcome.missed) == [
        ("Add 'add1'", "its element type is int64"),
        ("Relu 'relu1'", "the shape of its result float32[?] is not known"),
        ("Sum 'sum1'", "9 operands, more than max-arguments=8"),
    ]


def test_constants_are_left_to_folding() -> None:
    b = Build()
    y = b.op("Relu", b.graph.constant(np.ones(3, np.float32)))
    assert transform(b.output(y), FuseElementwise()).ops == ["Relu"]
