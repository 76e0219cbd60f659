"""Two linear layers become one where that is no more work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.collapse_linear_chains import CollapseLinearChains
from tests.passes.building import Build, check, transform

PASS = CollapseLinearChains()


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.conv(b.conv(b.input("batch", 4, 9, 7), 16), 6, 3, pads=(1, 1, 1, 1))
    x = b.op("Relu", b.conv(b.conv(x, 12), 5))
    outcome = check(b.output(b.conv(b.conv(x, 8), 8)), PASS, sizes={"batch": 2})
    golden("collapse_linear_chains", to_text(outcome.graph, hashes=False))


def plain(b: Build, x: Value, channels: int, kernel: int = 1, **attributes: Any) -> Value:
    """A convolution without bias."""
    shape = x.tensor.shape
    assert shape is not None
    assert isinstance(shape[1], int)
    rank = len(shape) - 2
    weight = b.weight(channels, shape[1] // attributes.get("group", 1), *(kernel,) * rank)
    return b.op("Conv", x, weight, **attributes)


@pytest.mark.parametrize("first", [plain, Build.conv])
@pytest.mark.parametrize("second", [plain, Build.conv])
@pytest.mark.parametrize("shape", [(2, 4, 9), (1, 4, 9, 7), (2, 4, 3, 5, 4)])
def test_pointwise_twice(
    first: Callable[..., Value], second: Callable[..., Value], shape: tuple[int, ...]
) -> None:
    b = Build()
    strides = (2, 1, 3)[: len(shape) - 2]
    x = first(b, b.input(*shape), 9, strides=strides)
    outcome = check(b.output(second(b, x, 5, strides=(2,) * len(strides))), PASS)
    assert outcome.ops == ["Conv"]
    assert outcome.remarks == [("Conv 'conv2'", "multiplied with Conv 'conv1' before it")]


@pytest.mark.parametrize("first", [plain, Build.conv])
@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": (3, 2)},
        {"pads": (1, 0, 2, 1), "dilations": (2, 1)},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "VALID", "kernel_shape": (3, 3)},
    ],
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_larger_kernel_first(
    first: Callable[..., Value], attributes: dict[str, Any], strides: tuple[int, ...]
) -> None:
    b = Build()
    x = first(b, b.input(2, 4, 11, 9), 12, 3, **attributes)
    outcome = check(b.output(b.conv(x, 6, strides=strides)), PASS)
    if attributes.get("auto_pad") == "SAME_UPPER" and strides != (1, 1):
        why = "Conv 'conv1' pads by its strides: SAME_UPPER"
        assert outcome.missed == [("Conv 'conv2'", why)]
    else:
        assert outcome.ops == ["Conv"]


@pytest.mark.parametrize(
    ("first", "attributes"),
    [
        (plain, {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
        (plain, {"auto_pad": "SAME_LOWER", "strides": (2, 1)}),
        (Build.conv, {"dilations": (1, 2), "strides": (1, 3)}),
        (Build.conv, {"auto_pad": "VALID"}),
    ],
)
def test_larger_kernel_second(first: Callable[..., Value], attributes: dict[str, Any]) -> None:
    b = Build()
    x = first(b, b.input(2, 4, 11, 9), 12)
    assert check(b.output(b.conv(x, 6, 3, **attributes)), PASS).ops == ["Conv"]


@pytest.mark.parametrize(("first", "second"), [(2, 2), (4, 2), (2, 4), (8, 8), (1, 8), (6, 4)])
@pytest.mark.parametrize("kernels", [(1, 1), (3, 1), (1, 3)])
def test_groups(first: int, second: int, kernels: tuple[int, int]) -> None:
    b = Build()
    x = b.conv(b.input(1, 24, 7, 5), 24, kernels[0], group=first)
    graph = b.output(b.conv(x, 24, kernels[1], group=second))
    outcome = check(graph, PASS)
    if first == second:  # otherwise the zeros between the groups may be more work
        assert outcome.ops == ["Conv"]


def test_scaling_before_a_dense_one() -> None:
    b = Build()
    x = b.conv(b.input(1, 6, 7, 5), 6, group=6)
    outcome = check(b.output(b.conv(x, 4, 3)), PASS)
    assert outcome.ops == ["Conv"]


def test_gemm_and_matmul() -> None:
    b = Build()
    x = b.op("Gemm", b.input(3, 5), b.weight(5, 9), b.weight(9), alpha=0.5, beta=3.0)
    x = b.op("Gemm", x, b.weight(4, 9), b.weight(1), transB=1, alpha=2.0)
    assert check(b.output(x), PASS).ops == ["Gemm"]
    b = Build(10)
    x = b.op("Gemm", b.input(3, 5), b.weight(5, 9), b.weight(9))
    assert check(b.output(b.op("Gemm", x, b.weight(9, 4), b.weight(4))), PASS).ops == ["Gemm"]
    b = Build()
    x = b.op("MatMul", b.op("MatMul", b.input(2, 3, 5), b.weight(5, 9)), b.weight(9, 4))
    assert check(b.output(x), PASS).ops == ["MatMul"]


def test_unknown_sizes() -> None:
    b = Build()
    x = b.conv(b.conv(b.input("n", 4, "h", "w"), 9), 5, 3)
    sizes = {"n": 2, "h": 7, "w": 6}
    assert check(b.output(x), PASS, sizes=sizes).ops == ["Conv"]
    b = Build()
    x = b.conv(b.conv(b.input("n", 9, "h", "w"), 4), 9, 3)
    assert check(b.output(x), PASS, sizes=sizes).missed == [
        ("Conv 'conv2'", "the product takes 729 multiply-accumulates per pixel, the two take 324")
    ]


def test_empty_batch() -> None:
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(0, 4, 5, 5), 9), 5))
    assert check(graph, PASS, runtime=False).ops == ["Conv"]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types(dtype: str) -> None:
    b = Build()
    x, random = b.input(1, 4, 5, 5, dtype=dtype), np.random.default_rng(0)
    for shape in ((9, 4, 1, 1), (5, 9, 1, 1)):
        x = b.op("Conv", x, b.graph.constant(random.standard_normal(shape).astype(dtype)))
    outcome = transform(b.output(x), PASS)
    assert outcome.ops == ["Conv"]
    weight = outcome.graph.operand(outcome.graph.topological()[-1], 1)
    assert weight is not None
    assert weight.tensor.dtype == dtype


def reasons(graph: Graph, runtime: bool = True) -> list[tuple[str, str]]:
    outcome = check(graph, PASS) if runtime else transform(graph, PASS)
    assert not outcome.remarks
    return outcome.missed


def test_more_work() -> None:
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(1, 16, 3, 3), 4), 16))
    why = "the product takes 2304 multiply-accumulates, the two take 1152"
    assert reasons(graph) == [("Conv 'conv2'", why)]
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(1, 8, 5, 5), 8, 3, group=8), 8))
    why = "the product takes 5184 multiply-accumulates, the two take 1224"
    assert reasons(graph) == [("Conv 'conv2'", why)]
    b = Build()
    x = b.op("Gemm", b.input(1, 9), b.weight(9, 2), b.weight(2))
    why = "the product takes 81 multiply-accumulates per row, the two take 36"
    assert reasons(b.output(b.op("Gemm", x, b.weight(2, 9), b.weight(9)))) == [
        ("Gemm 'gemm2'", why)
    ]


def test_bias_before_padding() -> None:
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(1, 4, 5, 5), 9), 5, 3, pads=(1, 1, 1, 1)))
    why = "Conv 'conv2' pads with zeros, which the bias of Conv 'conv1' does not reach"
    assert reasons(graph) == [("Conv 'conv2'", why)]


def test_bias_of_zeros_before_padding() -> None:
    b = Build()
    x = b.op("Conv", b.input(1, 4, 5, 5), b.weight(9, 4, 1, 1), b.number(0.0, 9))
    assert check(b.output(b.conv(x, 5, 3, pads=(1, 1, 1, 1))), PASS).ops == ["Conv"]


def test_pads_of_a_pointwise() -> None:
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(1, 4, 5, 5), 9, pads=(1, 1, 1, 1)), 5))
    assert reasons(graph) == [("Conv 'conv2'", "Conv 'conv1' pads with zeros")]
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(1, 4, 5, 5), 9), 5, pads=(1, 1, 1, 1)))
    assert reasons(graph) == [("Conv 'conv2'", "Conv 'conv2' pads with zeros")]


def test_strides_before_a_larger_kernel() -> None:
    b = Build()
    graph = b.output(b.conv(b.conv(b.input(1, 4, 9, 9), 9, strides=(2, 2)), 5, 3))
    why = "Conv 'conv1' has strides [2, 2] before a larger kernel"
    assert reasons(graph) == [("Conv 'conv2'", why)]


def test_readers_and_outputs() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 5), 9)
    graph = b.output(b.conv(x, 5), b.op("Relu", x))
    assert reasons(graph) == [("Conv 'conv2'", "'conv1_out' is read by 2 nodes")]
    b = Build()
    x = b.conv(b.input(1, 4, 5, 5), 9)
    graph = b.output(x, b.conv(x, 5))
    assert reasons(graph) == [("Conv 'conv2'", "'conv1_out' is an output of the graph")]


def test_shared_weight() -> None:
    b = Build()
    x, w = b.input(1, 6, 5, 5), b.weight(6, 6, 1, 1)
    first = b.op("Conv", b.op("Conv", x, w), b.weight(6, 6, 1, 1))
    outcome = check(b.output(first, b.op("Conv", b.op("Neg", x), w)), PASS)
    assert len(outcome.remarks) == 1  # the product takes the place of the other weight
    b = Build()
    x, w, v = b.input(1, 6, 5, 5), b.weight(6, 6, 1, 1), b.weight(6, 6, 1, 1)
    ends = [b.op("Conv", b.op("Conv", b.op(op, x), w), v) for op in ("Neg", "Abs")]
    assert reasons(b.output(*ends)) == [
        (f"Conv 'conv{i}'", "the constants would grow by 144 bytes") for i in (2, 4)
    ]


def test_weights_that_are_not_constant() -> None:
    b = Build()
    x, w = b.input(1, 4, 5, 5), b.input(9, 4, 1, 1, name="w")
    graph = b.output(b.conv(b.op("Conv", x, w), 5))
    assert reasons(graph) == [("Conv 'conv2'", "the weight of Conv 'conv1' is not constant")]


def test_product_that_does_not_fit() -> None:
    b = Build()
    x = b.input(1, 4, 5, 5)
    for outputs, inputs in ((4, 4), (2, 4)):
        x = b.op("Conv", x, b.number(1e30, outputs, inputs, 1, 1))
    why = "the new weights of Conv 'conv2' do not fit float32"
    assert reasons(b.output(x), runtime=False) == [("Conv 'conv2'", why)]


def test_larger_kernels_and_activations_are_none_of_it() -> None:
    b = Build()
    x = b.conv(b.conv(b.input(1, 4, 9, 9), 9, 3), 5, 3)
    assert reasons(b.output(b.conv(b.op("Relu", x), 2))) == []
