"""BatchNormalization goes into the operator before it, or becomes a Mul and an Add."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.ir.printer import to_text
from pwopt.passes.fold_batch_norm import FoldBatchNorm
from tests.passes.building import Build, check, transform

AFFINE = "turned BatchNormalization 'batchnormalization1' into Mul and Add"


def one(linear: Callable[[Build], Value], channels: int = 6, opset: int = 17) -> Graph:
    b = Build(opset)
    return b.output(b.batch_norm(linear(b), channels))


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x = b.conv(b.input("batch", 3, 7, 5), 4, 3)
    y = b.op("Relu", b.batch_norm(x, 4))
    graph = b.output(b.batch_norm(y, 4))
    golden("fold_batch_norm", to_text(transform(graph, FoldBatchNorm()).graph, hashes=False))


@pytest.mark.parametrize(
    ("linear", "op"),
    [
        (lambda b: b.conv(b.input(2, 4, 7, 5), 6, 3, strides=(2, 1), pads=(1, 0, 1, 2)), "Conv"),
        (lambda b: b.op("Conv", b.input(1, 4, 7, 5), b.weight(6, 4, 1, 1)), "Conv"),
        (lambda b: b.conv(b.input(3, 4, 13), 6, 3, group=2), "Conv"),
        (lambda b: b.conv(b.input(1, 6, 3, 5, 7), 6, 3, group=6), "Conv"),
        (
            lambda b: b.op("ConvTranspose", b.input(1, 4, 5, 7), b.weight(4, 6, 3, 3)),
            "ConvTranspose",
        ),
        (
            lambda b: b.op(
                "ConvTranspose",
                b.input(2, 4, 5, 7),
                b.weight(4, 3, 2, 3),
                b.weight(6),
                group=2,
                strides=(2, 1),
            ),
            "ConvTranspose",
        ),
        (lambda b: b.op("Gemm", b.input(3, 5), b.weight(5, 6), b.weight(6), alpha=0.5), "Gemm"),
        (
            lambda b: b.op(
                "Gemm", b.input(3, 5), b.weight(6, 5), b.weight(3, 6), beta=2.0, transB=1
            ),
            "Gemm",
        ),
        (lambda b: b.op("Gemm", b.input(1, 5), b.weight(5, 6)), "Gemm"),
        (lambda b: b.op("MatMul", b.input(3, 5), b.weight(5, 6)), "Gemm"),
    ],
)
def test_folds(linear: Callable[[Build], Value], op: str) -> None:
    outcome = check(one(linear), FoldBatchNorm())
    assert outcome.ops == [op]
    assert not outcome.missed


def test_symbolic_sizes() -> None:
    graph = one(lambda b: b.conv(b.input("batch", 4, "h", "w"), 6, 3))
    assert check(graph, FoldBatchNorm(), sizes={"batch": 2, "h": 5, "w": 9}).ops == ["Conv"]


def test_another_reader() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    graph = b.output(b.op("Add", b.batch_norm(x, 6), b.op("Relu", x)))
    outcome = check(graph, FoldBatchNorm())
    assert sorted(outcome.ops) == ["Add", "Add", "Conv", "Mul", "Relu"]
    assert outcome.remarks == [
        ("BatchNormalization 'batchnormalization1'", f"{AFFINE}: 'conv1_out' is read by 2 nodes")
    ]


def test_graph_output() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    outcome = check(b.output(x, b.batch_norm(x, 6)), FoldBatchNorm())
    assert outcome.ops == ["Conv", "Mul", "Add"]
    assert outcome.remarks[0][1] == f"{AFFINE}: 'conv1_out' is an output of the graph"


def test_weight_that_is_not_constant() -> None:
    b = Build()
    x = b.op("Conv", b.input(1, 4, 5, 3), b.input(6, 4, 1, 1, name="w"))
    outcome = check(b.output(b.batch_norm(x, 6)), FoldBatchNorm())
    assert outcome.ops == ["Conv", "Mul", "Add"]
    assert outcome.remarks[0][1] == f"{AFFINE}: the weight of Conv 'conv1' is not constant"


def shared() -> Graph:
    b = Build()
    x, w = b.input(1, 4, 5, 3), b.weight(4, 4, 3, 3, name="w")
    convs = [b.batch_norm(b.op("Conv", x, w), 4) for _ in range(3)]
    return b.output(*convs)


def test_shared_weight_within_the_budget() -> None:
    assert check(shared(), FoldBatchNorm()).ops == ["Conv"] * 3


def test_shared_weight_beyond_the_budget() -> None:
    outcome = check(shared(), FoldBatchNorm(max_growth_bytes=1151))
    assert outcome.ops.count("Mul") == 3
    assert outcome.remarks[0][1] == (
        f"{AFFINE}: weight 'w' is shared by 3 readers; copies of it would add 1152 bytes, "
        "more than max-growth-bytes=1151"
    )


def missed(outcome_of: Graph) -> list[str]:
    outcome = transform(outcome_of, FoldBatchNorm())
    assert "BatchNormalization" in outcome.ops
    return [why for _, why in outcome.missed]


def test_training_mode() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    p = [b.positive(6) for _ in range(4)]
    assert missed(b.output(b.op("BatchNormalization", x, *p, training_mode=1))) == [
        "it is in training mode"
    ]


def test_parameter_that_is_not_constant() -> None:
    b = Build()
    x, scale = b.conv(b.input(1, 4, 5, 3), 6), b.input(6, name="scale")
    p = [b.positive(6) for _ in range(3)]
    assert missed(b.output(b.op("BatchNormalization", x, scale, *p))) == [
        "its scale is not constant"
    ]


def test_negative_variance() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    p = [b.positive(6) for _ in range(3)]
    graph = b.output(b.op("BatchNormalization", x, *p, b.number(-1.0, 6), epsilon=0.5))
    assert missed(graph) == ["variance + epsilon is -0.5, not positive"]


def test_overflow_keeps_the_form() -> None:
    b = Build()
    x = b.conv(b.input(1, 4, 5, 3), 6)
    p = [b.number(v, 6) for v in (1e30, 0.0, 0.0, 0.0)]
    graph = b.output(b.op("BatchNormalization", x, *p, epsilon=1e-30))
    assert missed(graph) == [
        "its factors do not fit float32; the new weights of Conv 'conv1' do not fit float32"
    ]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types(dtype: str) -> None:
    b = Build()
    w, p = np.ones((6, 4, 1, 1), dtype), np.full(6, 0.5, dtype)
    conv = b.op("Conv", b.input(1, 4, 5, 3, dtype=dtype), b.graph.constant(w))
    graph = b.output(b.op("BatchNormalization", conv, *(b.graph.constant(p) for _ in range(4))))
    outcome = transform(graph, FoldBatchNorm())
    assert outcome.ops == ["Conv"]
    assert {n.out.tensor.dtype for n in outcome.graph.nodes()} == {dtype}


def test_spatial_zero() -> None:
    b = Build(opset=8)
    p = [b.positive(4, 3, 2) for _ in range(4)]
    outcome = transform(
        b.output(b.op("BatchNormalization", b.input(1, 4, 3, 2), *p, spatial=0)), FoldBatchNorm()
    )
    assert outcome.ops == ["Mul", "Add"]
