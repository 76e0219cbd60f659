"""Internal ops, expanded, against ONNX Runtime and against their definition, at every opset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from pwopt.errors import IRError
from pwopt.frontend import export
from pwopt.frontend.reference import evaluate
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Value
from pwopt.ir.internal import epilogue, expand, extras, is_internal, with_epilogue
from pwopt.ir.program import PARAMETERS, UNARY, Instruction, Program
from pwopt.ir.types import TensorType
from pwopt.ir.verify import verify
from tests.ir.cases import weights
from tests.ir.test_reference import assert_close, run_peer

OPSETS = (7, 8, 9, 10, 11, 13, 14, 17, 20, 22, 23)
RELU = Program().then("Relu")
RESIDUAL = Program().then_with_argument("Add").then("Relu")
SWISH = Program(1, (Instruction("Sigmoid", (0,)), Instruction("Mul", (0, 1))))


def single(
    op: str, x: Sequence[int], rest: Sequence[np.ndarray | None], opset: int, **attributes: Any
) -> Graph:
    """A graph of one internal op on input x and constants."""
    graph = Graph("single", {"": opset})
    operands: list[Value | None] = [graph.add_input("x", TensorType("float32", tuple(x)))]
    operands += [None if a is None else graph.constant(a, f"c{i}") for i, a in enumerate(rest)]
    node = graph.add(
        op, operands, attributes, domain=KERNEL_DOMAIN, names=("y",), name="node", origin=("a", "b")
    )
    graph.add_output("out", node.out)
    verify(graph)
    return graph


def check(graph: Graph, seed: int = 0) -> np.ndarray:
    """Expands, validates, compares with ONNX Runtime; returns the reference's result."""
    verify(graph)
    version = graph.version
    expanded = expand(graph)
    verify(expanded)
    assert graph.version == version
    assert not any(is_internal(n) for n in expanded.nodes())
    for (_, before), (_, after) in zip(graph.outputs, expanded.outputs, strict=True):
        assert before.type == after.type
        assert before.name == after.name
        assert before.node.origin == after.node.origin
    model = export(graph)
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(seed)
    feeds = {
        i.out.name: rng.standard_normal(i.out.shape or ()).astype(np.float32) for i in graph.inputs
    }
    (result,) = evaluate(graph, feeds).values()
    (expected,) = run_peer(graph, feeds)
    assert_close(result, expected)
    return result


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("op", "x", "rest", "attributes"),
    [
        ("Conv", (1, 3, 9, 7), [weights(5, 3, 3, 2)], {}),
        (
            "Conv",
            (2, 4, 9, 7),
            [weights(6, 2, 3, 3), weights(6), weights(2, 6, 5, 4)],
            {"pads": (1, 1, 1, 1), "strides": (2, 2), "group": 2, "epilogue": RESIDUAL},
        ),
        ("Conv", (1, 4, 11), [weights(4, 1, 3)], {"group": 4, "dilations": (2,), "epilogue": RELU}),
        ("Pointwise", (1, 5, 3, 7), [weights(4, 5)], {}),
        ("Pointwise", (2, 5, 13), [weights(4, 5), weights(4)], {"epilogue": SWISH}),
        (
            "Pointwise",
            (1, 6, 7, 5),
            [weights(4, 3), None, weights(4, 1, 1)],
            {"strides": (2, 3), "group": 2, "epilogue": RESIDUAL},
        ),
        ("Pointwise", (1, 2, 3, 3, 3), [weights(4, 2), weights(4)], {"epilogue": RELU}),
        ("Linear", (3, 5), [weights(4, 5)], {}),
        ("Linear", (3, 5), [weights(4, 5), weights(4)], {"epilogue": RELU}),
        ("Linear", (3, 5), [weights(4, 5), None, weights(3, 4)], {"epilogue": RESIDUAL}),
        ("Linear", (2, 3, 5), [weights(4, 5), weights(4)], {"epilogue": SWISH}),
        ("Linear", (5,), [weights(4, 5), weights(4)], {}),
        ("Map", (2, 3, 5), [weights(3, 1)], {"program": RESIDUAL}),
        ("Map", (3, 1), [weights(2, 1, 4)], {"program": RESIDUAL}),
        ("Map", (3,), [], {"program": Program()}),
        ("Map", (3, 1), [weights(4)], {"program": Program(2)}),
    ],
)
def test_kernels(
    op: str,
    x: tuple[int, ...],
    rest: list[np.ndarray | None],
    attributes: dict[str, Any],
    opset: int,
) -> None:
    check(single(op, x, rest, opset, **attributes))


DEFINITIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Clip": lambda x: np.clip(x, -0.4, 0.6),
    "Gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "ThresholdedRelu": lambda x: np.where(x > 0.3, x, 0),
}
CHOSEN = {"Clip": (-0.4, 0.6), "Gelu": (1.0,), "ThresholdedRelu": (0.3,)}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", sorted(UNARY))
def test_unary_operators(op: str, opset: int) -> None:
    parameters = CHOSEN.get(op, tuple(default for _, default in PARAMETERS.get(op, ())))
    start = Program().then("Abs") if op in ("Log", "Sqrt") else Program()
    graph = single("Map", (4, 33), [], opset, program=start.then(op, *parameters))
    if op == "Erf" and opset < 9:
        with pytest.raises(IRError, match="Erf needs operator set 9"):
            expand(graph)
        return
    result = check(graph)
    if op in DEFINITIONS:
        x = np.random.default_rng(0).standard_normal((4, 33)).astype(np.float32)
        np.testing.assert_allclose(result, DEFINITIONS[op](x.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", ["Add", "Div", "Max", "Min", "Mul", "PRelu", "Sub"])
@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (2, 1, 4)), ((1,), (2, 3))]
)
def test_binary_operators(op: str, a: tuple[int, ...], b: tuple[int, ...], opset: int) -> None:
    program = Program(2, (Instruction(op, (0, 1)),))
    check(single("Map", a, [weights(*b)], opset, program=program))


@pytest.mark.parametrize("opset", [7, 8])
def test_broadcasting_extremum_of_two_inputs(opset: int) -> None:
    graph = Graph("max", {"": opset})
    a = graph.add_input("a", TensorType("float32", (3, 1)))
    b = graph.add_input("b", TensorType("float32", (2, 1, 4)))
    program = Program(2, (Instruction("Max", (0, 1)),))
    node = graph.add("Map", [a, b], {"program": program}, domain=KERNEL_DOMAIN)
    graph.add_output("out", node.out)
    assert check(graph).shape == (2, 3, 4)


def test_one_sided_clips() -> None:
    for opset in (10, 11):
        for bounds in ((0.1, np.inf), (-np.inf, 0.1), (-np.inf, np.inf)):
            check(single("Map", (5,), [], opset, program=Program().then("Clip", *bounds)))


def test_exact_gelu_has_its_own_operator_only_later() -> None:
    program = Program().then("Gelu", 0.0)
    ops = [n.op for n in expand(single("Map", (5,), [], 20, program=program)).nodes()]
    assert "Gelu" in ops
    ops = [n.op for n in expand(single("Map", (5,), [], 17, program=program)).nodes()]
    assert "Erf" in ops


def test_constants_are_shared_and_originals_go() -> None:
    graph = Graph("shared", {"": 13})
    x = graph.add_input("x", TensorType("float32", (1, 4, 3, 3)))
    w = graph.constant(weights(4, 4), "w")
    clip = Program().then("Clip", 0.0, 6.0)
    for _ in range(3):
        x = graph.add("Pointwise", [x, w], {"epilogue": clip}, domain=KERNEL_DOMAIN).out
    graph.add_output("y", x)
    constants = [n for n in expand(graph).nodes() if n.is_constant]
    assert sorted(n.out.shape or () for n in constants) == [(), (), (4, 4, 1, 1)]


def test_weight_keeps_its_name() -> None:
    expanded = expand(single("Pointwise", (1, 5, 3, 7), [weights(4, 5)], 17))
    assert [n.out.name for n in expanded.nodes() if n.is_constant] == ["c0"]


def test_symbolic_batch() -> None:
    graph = Graph("symbolic")
    x = graph.add_input("x", TensorType("float32", ("N", 4, 5, 5)))
    node = graph.add(
        "Pointwise", [x, graph.constant(weights(3, 4))], {"epilogue": SWISH}, domain=KERNEL_DOMAIN
    )
    graph.add_output("y", node.out)
    expanded = expand(graph)
    verify(expanded)
    assert [v.tensor.shape for _, v in expanded.outputs] == [("N", 3, 5, 5)]


def test_float16_parameters_have_the_operand_type() -> None:
    graph = Graph("half")
    x = graph.add_input("x", TensorType("float16", (5,)))
    program = Program().then("Clip", 0.0, 6.0)
    node = graph.add("Map", [x], {"program": program}, domain=KERNEL_DOMAIN)
    graph.add_output("y", node.out)
    expanded = expand(graph)
    verify(expanded)
    assert {n.out.tensor.dtype for n in expanded.nodes()} == {"float16"}


def test_accessors() -> None:
    graph = single("Pointwise", (1, 5, 3, 7), [weights(4, 5)], 17)
    (node,) = [n for n in graph.nodes() if is_internal(n, "Pointwise")]
    assert not is_internal(node, "Map")
    assert epilogue(node).is_identity
    assert extras(graph, node) == ()
    residual = graph.constant(weights(4, 1, 1))
    new = with_epilogue(graph, node, RESIDUAL, [residual])
    assert new.arity == 4
    assert graph.operand(new, 2) is None
    assert extras(graph, new) == (residual,)
    assert epilogue(new) == RESIDUAL
    graph.replace_uses(node.out, new.out)
    graph.erase(node)
    check(graph)
