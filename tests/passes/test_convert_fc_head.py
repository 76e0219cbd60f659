"""Fully connected layers become convolutions over the whole map, or Linear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pwopt.ir.graph import Graph
from pwopt.passes.convert_fc_head import ConvertFcHead
from tests.passes.building import Build, check, transform


def network(opset: int = 17) -> Graph:
    """A head as VGG's, on a map of 3 x 5 pixels."""
    b = Build(opset)
    x = b.op("Flatten", b.input("batch", 4, 3, 5), axis=1)
    y = b.op("Relu", b.op("Gemm", x, b.weight(11, 60), b.weight(11), transB=1))
    y = b.op("Relu", b.op("Gemm", y, b.weight(11, 7), b.weight(7)))
    y = b.op("Add", b.op("MatMul", y, b.weight(7, 3)), b.weight(3))
    return b.output(y)


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("convert_fc_head", str(transform(network(), ConvertFcHead()).graph))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_network(opset: int) -> None:
    outcome = check(network(opset), ConvertFcHead(), sizes={"batch": 2})
    assert outcome.ops == ["Conv", "Relu", "Flatten", ".Linear", "Relu", ".Linear"]
    assert outcome.missed == []


@pytest.mark.parametrize("shape", [(1, 3, 7, 7), (5, 2, 1, 3), (2, 3, 9), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("how", ["flatten", "flatten-negative", "reshape-0", "reshape-n"])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_heads(shape: tuple[int, ...], how: str, op: str) -> None:
    b = Build()
    x, size = b.input(*shape), int(np.prod(shape[1:]))
    flat = {
        "flatten": lambda: b.op("Flatten", x, axis=1),
        "flatten-negative": lambda: b.op("Flatten", x, axis=1 - len(shape)),
        "reshape-0": lambda: b.op("Reshape", x, b.shape(0, -1)),
        "reshape-n": lambda: b.op("Reshape", x, b.shape(-1, size)),
    }[how]()
    outcome = check(b.output(b.op(op, flat, b.weight(size, 6))), ConvertFcHead())
    assert outcome.ops == ["Conv", "Flatten"]
    made = "x".join(map(str, shape[2:]))
    assert outcome.remarks[0][1] == f"made a {made} convolution over the whole map"


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2)])
def test_through_a_transpose(perm: tuple[int, ...]) -> None:
    b = Build()
    x = b.op("Transpose", b.input(2, 3, 4, 5), perm=perm)
    y = b.op("MatMul", b.op("Reshape", x, b.shape(-1, 60)), b.weight(60, 6))
    outcome = check(b.output(b.op("Relu", b.op("Add", y, b.weight(1, 6)))), ConvertFcHead())
    assert outcome.ops == ["Conv", "Relu", "Flatten"]


def test_map_of_one_pixel_becomes_linear() -> None:
    b = Build()
    x = b.op("Flatten", b.op("GlobalAveragePool", b.input(2, 6, 3, 3)))
    outcome = check(b.output(b.op("Gemm", x, b.weight(6, 4), b.weight(4))), ConvertFcHead())
    assert outcome.ops == ["GlobalAveragePool", "Flatten", ".Linear"]


def test_what_may_pass_the_flatten() -> None:
    b = Build()
    x = b.op("Flatten", b.input(2, 3, 2, 2))
    y = b.op("Gemm", x, b.weight(12, 5), b.weight(5))
    y = b.batch_norm(y, 5)
    y = b.op("PRelu", y, b.weight(5))
    y = b.op("Clip", b.op("Mul", b.weight(1, 5), y), None, 6.0)
    y = b.op("Sub", 1.0, y)
    y = b.op("Add", y, b.weight(2, 5))  # differs by row
    outcome = check(b.output(b.op("Relu", y)), ConvertFcHead())
    moved = ["BatchNormalization", "PRelu", "Mul", "Clip", "Sub"]
    assert outcome.ops == ["Conv", *moved, "Flatten", "Add", "Relu"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 5), (3, 1), "input"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (3.0, 0.0)])
def test_gemm_forms(trans_a: int, trans_b: int, bias: object, alpha: float, beta: float) -> None:
    b = Build()
    x = b.input(*((4, 3) if trans_a else (3, 4)))
    operands = [x, b.weight(*((5, 4) if trans_b else (4, 5)))]
    if isinstance(bias, tuple):
        operands.append(b.weight(*bias))
    elif bias == "input":
        operands.append(b.input(3, 1, name="c"))
    attributes = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
    outcome = check(b.output(b.op("Gemm", *operands, **attributes)), ConvertFcHead())
    assert outcome.ops == ["Transpose", ".Linear"][1 - trans_a :]
    by_row = bias in ((3, 5), (3, 1), "input") and beta != 0.0
    expected = "%0" if not by_row else "Add(%0, %1)" if beta == 1.0 else "Add(%0, Mul(%1, %2))"
    assert outcome.program("Linear") == expected


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 4), (0, 4)])
def test_matmul_of_any_rank(shape: tuple[int, ...]) -> None:
    b = Build()
    y = b.op("Add", b.weight(5), b.op("MatMul", b.input(*shape), b.weight(4, 5)))
    assert check(b.output(y), ConvertFcHead()).ops == [".Linear"]


def test_flatten_with_other_readers() -> None:
    b = Build()
    flat = b.op("Flatten", b.input(2, 3, 4, 4))
    y = b.op("Gemm", flat, b.weight(48, 5), b.weight(5))
    z = b.op("Gemm", flat, b.weight(48, 2))
    outcome = check(b.output(y, z, flat, b.op("Relu", flat)), ConvertFcHead())
    assert sorted(outcome.ops) == ["Conv", "Conv", "Flatten", "Flatten", "Flatten", "Relu"]


def test_intermediate_outputs_keep_their_shape() -> None:
    b = Build()
    y = b.op("Gemm", b.op("Flatten", b.input(2, 3, 4, 4)), b.weight(48, 5))
    outcome = check(b.output(y, b.op("Relu", y)), ConvertFcHead())
    assert outcome.ops == ["Conv", "Flatten", "Relu"]


def test_shared_weights_stay_shared() -> None:
    b = Build()
    w = b.weight(6, 6)
    y = b.op("MatMul", b.op("Relu", b.op("MatMul", b.input(2, 6), w)), w)
    y = b.op("Gemm", y, w, transB=1)
    outcome = check(b.output(y), ConvertFcHead())
    used = {outcome.graph.operand(n, 1) for n in outcome.graph.nodes() if n.op == "Linear"}
    assert len(used) == 2
    assert outcome.remarks == [
        ("MatMul 'matmul1'", "made a Linear, as the 2 others that share its weights")
    ]


def test_flatten_at_another_axis_is_no_map() -> None:
    b = Build()
    x = b.op("Flatten", b.input(2, 3, 4, 5), axis=2)
    assert check(b.output(b.op("Gemm", x, b.weight(20, 3))), ConvertFcHead()).ops == [
        "Flatten",
        ".Linear",
    ]


def test_misses() -> None:
    b = Build()
    x, w = b.input(3, 4), b.input(4, 5, name="w")
    vector = b.input(4, name="vector")
    half = b.input(3, 4, name="half", dtype="float16")
    values = [
        b.op("MatMul", x, w),
        b.op("MatMul", x, b.weight(2, 4, 5)),
        b.op("MatMul", x, b.weight(4)),
        b.op("MatMul", vector, b.weight(4, 5)),
        b.op("Gemm", half, b.graph.constant(np.ones((4, 5), np.float16))),
    ]
    assert transform(b.output(*values), ConvertFcHead()).missed == [
        ("MatMul 'matmul1'", "its weights are not constant"),
        ("MatMul 'matmul2'", "its weights have rank 3"),
        ("MatMul 'matmul3'", "its weights have rank 1"),
        ("MatMul 'matmul4'", "its input has rank 1"),
        ("Gemm 'gemm1'", "its element type is float16"),
    ]
