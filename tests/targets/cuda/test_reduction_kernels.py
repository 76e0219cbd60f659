"""Reductions, softmax, normalisations and small products on the emulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pwopt.ir.program import Instruction, Program
from pwopt.targets.cuda.codegen import source
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.copy import copy
from pwopt.targets.cuda.kernels.gemv import gemv, gemv_splits, pack_gemv
from pwopt.targets.cuda.kernels.norm import mean_variance
from pwopt.targets.cuda.kernels.product import matmul
from pwopt.targets.cuda.kernels.reduce import REDUCTIONS, reduce
from pwopt.targets.cuda.kernels.softmax import softmax
from pwopt.targets.views import View
from tests.targets.cuda.emulator import TIMINGS, EmulationError, build
from tests.targets.cuda.kernel_cases import (
    GUARD,
    TOLERANCE,
    Case,
    Operand,
    check,
    constant,
    held,
    image,
    relative_error,
    result,
)

RNG = np.random.default_rng(7)
ADD_RELU = Program(2, (Instruction("Add", (0, 1)), Instruction("Relu", (2,))))

Numpy = Callable[..., np.ndarray]
DEFINITIONS: dict[str, Numpy] = {
    "Sum": np.sum,
    "Mean": np.mean,
    "Max": np.max,
    "Min": np.min,
    "Prod": np.prod,
    "L1": lambda x, **k: np.abs(x).sum(**k),
    "L2": lambda x, **k: np.sqrt((x**2).sum(**k)),
    "SumSquare": lambda x, **k: (x**2).sum(**k),
    "LogSum": lambda x, **k: np.log(x.sum(**k)),
}


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def _reduced(kind: str, x: Operand, axes: tuple[int, ...], dtype: str = "float32") -> Case:
    expected = DEFINITIONS[kind](x.values, axis=axes, keepdims=True)
    y = result(expected.shape, dtype)
    return Case(reduce(kind, x.view, axes, y.view), [x.flat], y, expected)


def test_every_reduction() -> None:
    positive = image(np.abs(_random(2, 3, 5, 12)) + 0.5)
    cases = {kind: _reduced(kind, positive, (1, 2)) for kind in REDUCTIONS}
    check(cases)
    assert set(DEFINITIONS) == set(REDUCTIONS)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_reductions_over_any_axes(dtype: str) -> None:
    shape = (2, 5, 7, 13)
    x = image(_random(*shape), dtype)
    planes = held(_random(2, 13, 5, 7), dtype)
    every = [(0,), (3,), (1, 2), (0, 1, 2), (1, 3), (0, 1, 2, 3), (2, 3)]
    cases = {f"last{axes}": _reduced("Sum", x, axes) for axes in every}
    cases |= {f"planes{axes}": _reduced("Mean", planes, axes, dtype) for axes in every}
    cases["wide"] = _reduced("Mean", image(_random(1, 7, 7, 320), dtype), (1, 2), dtype)
    cases["long"] = _reduced("Max", held(_random(3, 1500), dtype), (1,))
    cases["lone"] = _reduced("Mean", image(_random(1, 9, 9, 1), dtype), (1, 2))
    check(cases)


def test_softmax_along_every_axis() -> None:
    cases = {}
    for name, x in {
        "scores": held(_random(2, 1000) * 5),
        "classes": image(_random(2, 3, 5, 21)),
        "rows": held(_random(3, 7), "float32"),
        "long": held(_random(2, 1300), "bfloat16"),
    }.items():
        for axis in range(1, len(x.view.shape)):
            for log in (False, True):
                y = result(x.view.shape, "float32")
                shifted = x.values - x.values.max(axis, keepdims=True)
                total = np.exp(shifted).sum(axis, keepdims=True)
                expected = shifted - np.log(total) if log else np.exp(shifted) / total
                kernel = softmax(x.view, (axis,), y.view, log=log)
                cases[f"{name}{axis}{'_log' * log}"] = Case(kernel, [x.flat], y, expected, 1e-5)
    check(cases)


def _normalised(x: Operand, axes: tuple[int, ...], scale: Operand, bias: Operand) -> Case:
    shape = x.view.shape
    y = result(shape)
    mean = x.values.mean(axes, keepdims=True)
    variance = x.values.var(axes, keepdims=True)
    expected = (x.values - mean) / np.sqrt(variance + 1e-3) * scale.values + bias.values
    kernel = mean_variance(
        x.view,
        axes,
        y.view,
        scale=scale.broadcast(shape),
        bias=bias.broadcast(shape),
        epsilon=1e-3,
    )
    return Case(kernel, [x.flat, scale.flat, bias.flat], y, expected)


def test_instance_and_layer_normalisation() -> None:
    def parameters(*shape: int) -> Sequence[Operand]:
        return [held(_random(*shape), "float32") for _ in range(2)]

    cases = {
        "instance": _normalised(image(_random(2, 5, 7, 12)), (1, 2), *parameters(1, 1, 1, 12)),
        "odd": _normalised(image(_random(2, 5, 7, 13)), (1, 2), *parameters(1, 1, 1, 13)),
        "layer": _normalised(held(_random(5, 77)), (1,), *parameters(1, 77)),
        "long": _normalised(held(_random(2, 3, 700)), (1, 2), *parameters(1, 3, 700)),
    }
    check(cases)


def _gemv(rows: int, depth: int, columns: int, dtype: str) -> Case:
    x = held(_random(rows, depth), dtype, pad=(0, -depth % 8))
    weight, bias = _random(depth, columns) / depth**0.5, _random(columns)
    extra, y = held(_random(rows, columns), dtype), result((rows, columns), dtype)
    packed, biases = pack_gemv(weight, bias)
    kept = constant(packed, dtype)
    rounded = kept[: packed.size].astype(np.float64).reshape(packed.shape).T
    expected = np.maximum(x.values @ rounded + bias + extra.values, 0)
    kernel = gemv(x.view, y.view, ADD_RELU, (extra.view,))
    return Case(kernel, [x.flat, kept, constant(biases), extra.flat], y, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_few_rows(dtype: str) -> None:
    shapes = ((1, 128, 10), (3, 1024, 7), (2, 77, 5), (8, 36, 3), (1, 520, 1))
    check({f"m{m}k{k}n{n}": _gemv(m, k, n, dtype) for m, k, n in shapes})
    assert gemv_splits(7, 1024, "float16") > 1  # the second one is shared by warps


def test_more_than_a_few_rows_are_refused() -> None:
    view = View.dense((9, 16), "float16")
    with pytest.raises(ValueError, match="few contiguous rows"):
        gemv(view, View.dense((9, 3), "float16"), Program(), ())


def test_product_of_two_tensors() -> None:
    a, b = held(_random(2, 3, 5, 7)), held(_random(2, 3, 9, 7))
    y = result((2, 3, 5, 9))
    turned = b.view.permute((0, 1, 3, 2))
    expected = a.values @ b.values.swapaxes(2, 3)
    check({"k": Case(matmul(a.view, turned, y.view), [a.flat, b.flat], y, expected)})


# --- negative controls ----------------------------------------------------------------------------


def _fails(case: Case, text: str) -> bool:
    """Whether some timing of the emulator shows that a kernel's text is wrong."""
    library = build(text)
    for timing in TIMINGS:
        case.y.window[...] = GUARD
        try:
            library.run("k", case.kernel, [*case.inputs, case.y.flat], timing)
        except EmulationError:
            return True
        actual = case.y.values
        tolerance = TOLERANCE[case.y.view.dtype]
        if not np.isfinite(actual).all() or relative_error(actual, case.expected) > tolerance:
            return True
    return False


def _text(kernel: Kernel) -> str:
    return source({"k": kernel}, "sm_80")


BARRIER = "__syncthreads();"
CONTROLS = {
    "columns": lambda: _reduced("Sum", image(_random(1, 9, 9, 64)), (1, 2)),
    "block": lambda: _reduced("Sum", held(_random(2, 3000), "float32"), (1,)),
    "splits": lambda: _gemv(1, 1024, 7, "float16"),
    "squares": lambda: _transposed(),
}


def _transposed() -> Case:
    x, y = held(_random(1, 40, 6, 9), "float32"), result((1, 40, 6, 9), order=(0, 2, 3, 1))
    return Case(copy(x.view, y.view), [x.flat], y, x.values)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_missing_barrier_is_caught(name: str) -> None:
    case = CONTROLS[name]()
    text = _text(case.kernel)
    assert not _fails(case, text)
    parts = text.split(BARRIER)
    assert len(parts) > 1
    without_last = 1 if name in ("columns", "block") else 0  # guards what a later use would write
    for i in range(1, len(parts) - without_last):
        broken = BARRIER.join(parts[:i]) + BARRIER.join([parts[i], *parts[i + 1 :]])
        assert _fails(case, broken), f"barrier {i} of {len(parts) - 1}"
