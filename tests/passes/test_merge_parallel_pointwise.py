"""1x1 convolutions of one tensor become one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.printer import to_text
from pwopt.passes.merge_parallel_pointwise import MergeParallelPointwise
from tests.passes.building import Build, Outcome, check, transform

PASS = MergeParallelPointwise()


def narrow(b: Build, x: Value, *widths: int, **attributes: Any) -> list[Value]:
    """Convolutions that waste most of a vector register each, so that one of all is faster."""
    return [b.op("Relu", b.conv(x, width, **attributes)) for width in widths]


def node_of(outcome: Outcome, op: str) -> Node:
    (node,) = (n for n in outcome.graph.nodes() if n.op == op)
    return node


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.input("batch", 512, 7, 5)
    left, middle, right = narrow(b, x, 3, 5, 2)
    middle = b.conv(middle, 4, 3, pads=(1, 1, 1, 1))
    graph = b.output(b.op("Concat", left, middle, axis=1), b.op("Sigmoid", right))
    outcome = check(graph, PASS, sizes={"batch": 2})
    golden("merge_parallel_pointwise", to_text(outcome.graph, hashes=False))


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
@pytest.mark.parametrize("bias", [True, False])
def test_split(opset: int, bias: bool) -> None:
    b = Build(opset)
    x = b.input(2, 512, 5, 7)
    first = b.conv(x, 3) if bias else b.op("Conv", x, b.weight(3, 512, 1, 1))
    second = b.op("Conv", x, b.weight(4, 512, 1, 1), dilations=(1, 1))
    outcome = check(b.output(b.op("Relu", first), b.op("Sigmoid", second)), PASS)
    assert outcome.ops == ["Conv", "Split", "Relu", "Sigmoid"]
    assert outcome.remarks == [("Conv 'conv1'", "merged with Conv 'conv2'")]
    assert node_of(outcome, "Conv").arity == (3 if bias else 2)


def test_names_and_origin() -> None:
    b = Build()
    outcome = check(b.output(*narrow(b, b.input(1, 512, 5, 5), 3, 4)), PASS)
    assert outcome.ops == ["Conv", "Relu", "Split"]
    assert node_of(outcome, "Conv").origin == ("conv1", "conv2")
    assert node_of(outcome, "Relu").origin == ("relu1", "relu2")
    assert node_of(outcome, "Split").names == ("relu1_out", "relu2_out")


def test_strides_and_rank() -> None:
    for shape, strides in [((1, 512, 9), (2,)), ((2, 512, 3, 5, 4), (1, 2, 3))]:
        b = Build()
        outcome = check(b.output(*narrow(b, b.input(*shape), 3, 4, strides=strides)), PASS)
        assert outcome.ops == ["Conv", "Relu", "Split"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_adjacent_operands_of_a_concat(order: tuple[int, ...]) -> None:
    b = Build()
    x = b.input(2, 16, 6, 6)
    parts = narrow(b, x, 16, 32, 24)
    other = b.conv(x, 8, 3, pads=(1, 1, 1, 1))
    graph = b.output(b.op("Concat", other, *(parts[i] for i in order), axis=-3))
    outcome = check(graph, PASS)
    assert outcome.ops == ["Conv", "Conv", "Relu", "Concat"]
    others = [f"Conv 'conv{i + 1}'" for i in order[1:]]
    assert outcome.remarks == [
        ("Conv 'conv1'", f"merged with {', '.join(others)} within Concat 'concat1'")
    ]


def test_whole_concat() -> None:
    b = Build()
    graph = b.output(b.op("Concat", *narrow(b, b.input(1, 16, 6, 6), 16, 32), axis=1))
    outcome = check(graph, PASS)
    assert outcome.ops == ["Conv", "Relu"]


def test_only_what_is_adjacent() -> None:
    b = Build()
    x = b.input(1, 16, 6, 6)
    first, second, third = narrow(b, x, 16, 32, 16)
    pooled = b.op("MaxPool", x, kernel_shape=(1, 1))
    outcome = check(b.output(b.op("Concat", first, second, pooled, third, axis=1)), PASS)
    assert outcome.ops.count("Conv") == 2
    assert outcome.remarks == [("Conv 'conv1'", "merged with Conv 'conv2' within Concat 'concat1'")]


def concat_over(axis: int) -> Graph:
    b = Build()
    return b.output(b.op("Concat", *narrow(b, b.input(1, 16, 6, 6), 16, 16), axis=axis))


def test_another_axis_needs_a_split() -> None:
    assert_apart(check(concat_over(2), PASS))


def test_activations_of_one_kind() -> None:
    b = Build()
    x = b.input(1, 512, 6, 6)
    low, high = b.number(0.0), b.number(6.0)
    values = [b.op("Clip", b.conv(x, 3), low, b.number(6.0)) for _ in range(2)]
    values += [b.op("Clip", b.conv(x, 3), low, high)]
    values = [b.op("LeakyRelu", v, alpha=0.5) for v in values]
    assert check(b.output(*values), PASS).ops == ["Conv", "Clip", "LeakyRelu", "Split"]


@pytest.mark.parametrize("different", ["alpha", "bound", "reader"])
def test_activations_that_differ(different: str) -> None:
    b = Build()
    x = b.input(1, 2048, 6, 6)
    values = [b.conv(x, 2), b.conv(x, 2)]
    if different == "alpha":
        ends = [b.op("LeakyRelu", v, alpha=0.1 * i) for i, v in enumerate(values)]
    elif different == "bound":
        ends = [b.op("Clip", v, 0.0, float(i)) for i, v in enumerate(values)]
    else:
        ends = [b.op("Relu", v) for v in values] + [b.op("Tanh", values[0])]
    assert check(b.output(*ends), PASS).ops[:2] == ["Conv", "Split"]


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_b: int) -> None:
    b = Build()
    x = b.input(64, 256)
    values = []
    for width in (3, 5):
        weight = b.weight(width, 256) if trans_b else b.weight(256, width)
        bias = b.weight(1, width) if width == 3 else b.weight(1)
        values.append(b.op("Gemm", x, weight, bias, transB=trans_b, alpha=0.5, beta=2.0))
    assert check(b.output(*values), PASS).ops == ["Gemm", "Split"]


def test_matmul_with_bias() -> None:
    b = Build()
    x = b.input(2, 64, 256)
    values = [b.op("Add", b.weight(w), b.op("MatMul", x, b.weight(256, w))) for w in (3, 5, 2)]
    outcome = check(b.output(*values), PASS)
    assert outcome.ops == ["MatMul", "Add", "Split"]


def assert_apart(outcome: Outcome) -> None:
    assert not outcome.remarks
    ((label, why),) = outcome.missed
    assert label == "Conv 'conv1'"
    assert re.fullmatch(
        r"with Conv 'conv2' one product is predicted to take [\d.]+ us, apart they take [\d.]+ us",
        why,
    )


def test_a_split_that_costs_more() -> None:
    b = Build()
    assert_apart(check(b.output(*narrow(b, b.input(1, 16, 28, 28), 32, 64)), PASS))


def reasons(graph: Graph, runtime: bool = True) -> list[tuple[str, str]]:
    outcome = check(graph, PASS) if runtime else transform(graph, PASS)
    assert not outcome.remarks
    return outcome.missed


def test_strides_that_differ() -> None:
    b = Build()
    x = b.input(1, 512, 6, 6)
    graph = b.output(b.conv(x, 3), b.conv(x, 3, strides=(2, 2)))
    why = "its strides [1, 1] are not those of Conv 'conv2': [2, 2]"
    assert reasons(graph) == [("Conv 'conv1'", why)]


def test_what_still_folds_into_a_weight() -> None:
    for behind in ("BatchNormalization", "Mul"):
        b = Build()
        x = b.input(1, 512, 6, 6)
        y, z = b.conv(x, 3), b.conv(x, 3)
        y = b.batch_norm(y, 3) if behind != "Mul" else b.op("Mul", y, b.weight(3, 1, 1))
        why = f"{behind} '{behind.lower()}1' folds into the weights before it first"
        assert reasons(b.output(y, z)) == [("Conv 'conv1'", why)]


def test_a_factor_that_never_folds() -> None:
    b = Build()
    x = b.input(1, 512, 6, 6)
    y = b.op("Mul", b.conv(x, 3), b.input(3, 1, 1, name="factor"))
    assert check(b.output(y, b.conv(x, 3)), PASS).ops == ["Conv", "Split", "Mul"]


def test_what_is_added_up_is_no_two_results() -> None:
    b = Build()
    x = b.input(1, 512, 6, 6)
    y = b.op("Add", b.conv(x, 3), b.conv(x, 3))
    assert check(b.output(y), PASS).ops == ["Conv", "Conv", "Add"]


def test_pads_and_groups() -> None:
    b = Build()
    x = b.input(1, 512, 6, 6)
    values = [b.conv(x, 3), b.conv(x, 3, pads=(1, 1, 1, 1)), b.conv(x, 4, group=2)]
    assert reasons(b.output(*values)) == [
        ("Conv 'conv1'", "Conv 'conv2' pads with zeros"),
        ("Conv 'conv2'", "Conv 'conv2' pads with zeros"),
        ("Conv 'conv3'", "Conv 'conv3' has 2 groups"),
    ]


def test_weights_that_are_not_constant() -> None:
    b = Build()
    x, w, v = b.input(1, 64, 6, 6), b.input(3, 64, 1, 1, name="w"), b.input(3, name="v")
    graph = b.output(b.op("Conv", x, w), b.op("Conv", x, b.weight(3, 64, 1, 1), v))
    assert reasons(graph) == [
        ("Conv 'conv1'", "the weight of Conv 'conv1' is not constant"),
        ("Conv 'conv2'", "the bias of Conv 'conv2' is not constant"),
    ]


def test_shared_weight() -> None:
    b = Build()
    x, y, w = b.input(1, 512, 6, 6), b.input(1, 512, 6, 6, name="y"), b.weight(3, 512, 1, 1)
    w = b.graph.constant(w.node.attributes["value"], "w")
    graph = b.output(b.op("Conv", x, w), b.conv(x, 3), b.op("Conv", y, w))
    why = (
        "weight 'w' is shared by 2 readers; copies of it would add 6144 bytes, "
        "more than max-growth-bytes=0"
    )
    assert reasons(graph) == [("Conv 'conv1'", why)]


def test_unknown_shape() -> None:
    b = Build()
    x = b.input(1, 512, "h", 6)
    why = "the shape of x is not known: float32[1x512xhx6]"
    assert reasons(b.output(b.conv(x, 3), b.conv(x, 3)), runtime=False) == [("Conv 'conv1'", why)]


def test_gemm_bias_by_row() -> None:
    b = Build()
    x = b.input(4, 256)
    graph = b.output(*(b.op("Gemm", x, b.weight(256, 3), b.weight(4, 1)) for _ in range(2)))
    why = "the bias of Gemm 'gemm1' differs by row"
    assert ("Gemm 'gemm1'", why) in reasons(graph)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_types(dtype: type) -> None:
    b = Build()
    x = b.input(1, 512, 6, 6, dtype=np.dtype(dtype).name)
    weights = [b.graph.constant(np.full((3, 512, 1, 1), i, dtype)) for i in (1, 2)]
    graph = b.output(*(b.op("Conv", x, w) for w in weights))
    outcome = transform(graph, PASS)
    assert outcome.ops == ["Conv", "Split"]
    assert outcome.graph.topological()[-1].out.tensor.dtype == np.dtype(dtype).name


def test_empty_batch_and_graph_outputs() -> None:
    b = Build()
    x = b.input(0, 512, 6, 6)
    first, second = b.conv(x, 3), b.conv(x, 3)
    outcome = check(b.output(first, second, b.op("Relu", first)), PASS, runtime=False)
    assert [why for _, why in outcome.missed] != []


def test_larger_kernels_are_none_of_it() -> None:
    b = Build()
    x = b.input(1, 8, 6, 6)
    graph = b.output(b.conv(x, 3), b.conv(x, 3, 3), b.op("Relu", x))
    assert reasons(graph) == []


def test_split_as_a_view() -> None:
    b = Build()
    graph = b.output(*narrow(b, b.input(1, 16, 28, 28), 24, 40))
    assert_apart(check(graph, PASS))
    outcome = check(graph, MergeParallelPointwise(copies=False))
    assert outcome.ops == ["Conv", "Relu", "Split"]
