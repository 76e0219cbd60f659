"""Constant per-channel arithmetic goes into the operators beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.fold_affine import FoldAffine
from tests.passes.building import Build, check, transform


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.op("Mul", b.conv(b.input("batch", 3, 7, 5), 4), b.weight(4, 1, 1))
    x = b.op("Relu", b.op("Add", x, b.weight(1, 4, 1, 1)))
    x = b.conv(b.op("Sub", b.op("Div", x, 3.0), 1.5), 5)
    golden("fold_affine", to_text(transform(b.output(x), FoldAffine()).graph, hashes=False))


def chain(b: Build, x: Value, *shape: int) -> Value:
    x = b.op("Mul", x, b.weight(*shape))
    x = b.op("Sub", b.weight(*shape), x)
    x = b.op("Neg", b.op("Div", x, b.positive(*shape)))
    return b.op("Add", b.op("Mul", 0.5, x), b.weight(*shape))


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1, 1, 1), ()])
@pytest.mark.parametrize("group", [1, 2])
def test_into_a_convolution_before(shape: tuple[int, ...], group: int) -> None:
    b = Build()
    x = b.conv(b.input(2, 4, 7, 5), 6, 3, group=group, pads=(1, 1, 1, 1))
    outcome = check(b.output(chain(b, x, *shape)), FoldAffine())
    assert outcome.ops == ["Conv"]
    assert not outcome.missed


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("group", [1, 2])
def test_into_a_convolution_after(shape: tuple[int, ...], group: int) -> None:
    b = Build()
    x = b.conv(chain(b, b.input(2, 4, 7, 5), *shape), 6, 3, group=group, strides=(2, 1))
    assert check(b.output(x), FoldAffine()).ops == ["Conv"]


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_products(op: str) -> None:
    b = Build()
    x = b.op(op, b.input(3, 5), b.weight(5, 6))
    assert check(b.output(chain(b, x, 6)), FoldAffine()).ops == ["Gemm"]


def test_gemm_after() -> None:
    b = Build()
    x = chain(b, b.input(3, 5), 5)
    y = b.op("Gemm", x, b.weight(6, 5), b.weight(6), alpha=0.5, beta=3.0, transB=1)
    assert check(b.output(y), FoldAffine()).ops == ["Gemm"]


def test_sequence_keeps_one_add() -> None:
    b = Build()
    x = b.op("MatMul", b.input(2, 7, 5), b.weight(5, 6))
    assert check(b.output(chain(b, x, 6)), FoldAffine()).ops == ["MatMul", "Add"]


def test_factor_passes_padding_and_shift_does_not() -> None:
    b = Build()
    scaled = b.conv(b.op("Mul", b.input(1, 4, 7, 5), b.weight(4, 1, 1)), 6, 3, pads=(1, 1, 1, 1))
    assert check(b.output(scaled), FoldAffine()).ops == ["Conv"]
    b = Build()
    shifted = b.conv(b.op("Add", b.input(1, 4, 7, 5), b.weight(4, 1, 1)), 6, 3, pads=(1, 1, 1, 1))
    outcome = check(b.output(shifted), FoldAffine())
    assert outcome.ops == ["Add", "Conv"]
    assert outcome.missed == [
        ("Add 'add1'", "Conv 'conv1' pads with zeros, which a shift before it would not reach")
    ]


def test_transposed_convolution_after() -> None:
    b = Build()
    x = b.op("Mul", b.input(1, 4, 7, 5), b.weight(4, 1, 1))
    graph = b.output(b.op("ConvTranspose", x, b.weight(4, 6, 3, 3)))
    assert check(graph, FoldAffine()).ops == ["ConvTranspose"]
    b = Build()
    x = b.op("Add", b.input(1, 4, 7, 5), b.weight(4, 1, 1))
    graph = b.output(b.op("ConvTranspose", x, b.weight(4, 6, 3, 3)))
    assert check(graph, FoldAffine()).missed[0][1] == (
        "ConvTranspose 'convtranspose1' sums fewer terms at its borders, so a shift is no bias"
    )


def test_merges_what_stands_alone() -> None:
    b = Build()
    x = b.op("Relu", chain(b, b.op("Relu", b.input(2, 4, 7, 5)), 4, 1, 1))
    assert check(b.output(x), FoldAffine()).ops == ["Relu", "Mul", "Add", "Relu"]


def reasons(graph: Graph) -> list[str]:
    outcome = check(graph, FoldAffine())
    assert not outcome.remarks
    return [why for _, why in outcome.missed]


def test_another_reader() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    graph = b.output(b.op("Mul", x, b.weight(6, 1, 1)), b.op("Relu", x))
    assert reasons(graph) == ["'conv1_out' is read by 2 nodes"]


def test_graph_output() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    graph = b.output(x, b.op("Mul", x, b.weight(6, 1, 1)))
    assert reasons(graph) == ["'conv1_out' is an output of the graph"]


def test_constant_along_another_axis() -> None:
    b = Build()
    graph = b.output(b.op("Mul", b.conv(b.input(1, 4, 5, 3), 6), b.weight(5, 1)))
    assert reasons(graph) == ["its constant does not run along the channels of Conv 'conv1'"]


def test_constant_that_widens_the_result() -> None:
    b = Build()
    graph = b.output(b.op("Mul", b.conv(b.input(1, 4, 5, 3), 1), b.weight(6, 1, 1)))
    assert reasons(graph) == ["its constant does not run along the channels of Conv 'conv1'"]


def test_division_by_zero() -> None:
    b = Build()
    graph = b.output(b.op("Div", b.conv(b.input(1, 4, 5, 3), 6), 0.0))
    outcome = transform(graph, FoldAffine())
    assert [why for _, why in outcome.missed] == ["its factors are not all finite"]


def test_integers_are_left_alone() -> None:
    b = Build()
    x = b.input(2, 3, dtype="int64")
    graph = b.output(b.op("Mul", b.op("Mul", x, b.shape(2)), b.shape(3)))
    assert transform(graph, FoldAffine()).ops == ["Mul", "Mul"]
