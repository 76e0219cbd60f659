"""Elementwise programs as vector code, against float64 references."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import PARAMETERS, UNARY, Instruction, Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.map import map_kernel
from tests.targets.kernel_cases import RUNNABLE, isa
from tests.targets.kernel_helpers import aligned, assembly, callables

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 100.0, -100.0, 1e-40, 1.0, 2.0, -2.0, 0.5, 1e-5]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    value: np.ndarray = 1 / (1 + np.exp(-x))
    return value


def _selu(x: np.ndarray) -> np.ndarray:
    alpha, gamma = (value for _, value in PARAMETERS["Selu"])
    return gamma * np.where(x > 0, x, alpha * np.expm1(x))


REFERENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Clip": lambda x: np.clip(x, -1.5, 2.5),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "Erf": _erf,
    "Exp": np.exp,
    "Floor": np.floor,
    "Gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "HardSigmoid": lambda x: np.clip(np.float64(np.float32(0.2)) * x + 0.5, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda x: np.where(x < 0, np.float64(np.float32(0.01)) * x, x),
    "Log": np.log,
    "Neg": np.negative,
    "Reciprocal": lambda x: 1 / x,
    "Relu": lambda x: np.maximum(x, 0),
    "Selu": _selu,
    "Sigmoid": _sigmoid,
    "Softplus": lambda x: np.logaddexp(0, x),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
    "ThresholdedRelu": lambda x: np.where(x > 1, x, 0.0),
}
# Relative error allowed beyond the rounding of the operators themselves (about 2 ulp), and where a
# difference of nearly equal terms leaves an absolute error of a few ulp of 1.
LIMITS = {"Tanh": 4e-7, "Erf": 5e-7, "Softplus": 4e-7}
ABSOLUTE = {"Gelu": 1e-6, "HardSwish": 1e-6, "HardSigmoid": 1e-7, "Sigmoid": 1e-37}


def _program(op: str) -> Program:
    parameters = tuple(value for _, value in PARAMETERS.get(op, ()))
    return Program().then(op, *((-1.5, 2.5) if op == "Clip" else parameters))


def _arguments() -> np.ndarray:
    grids = [np.linspace(-110, 95, 3001), np.linspace(-8, 8, 4001), np.geomspace(1e-38, 3e38, 999)]
    return np.concatenate([*grids, SPECIAL]).astype(np.float32)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_unary_operators(machine: Hardware) -> None:
    assert set(REFERENCES) == UNARY
    x = _arguments()
    view = View.dense(x.shape)
    kernels = {op: map_kernel(_program(op), [view], view, machine) for op in sorted(UNARY)}
    for op, function in callables(kernels, machine).items():
        y = aligned(np.zeros_like(x))
        function(aligned(x), y)
        with np.errstate(all="ignore"):
            exact = REFERENCES[op](x.astype(np.float64))
            expected = exact.astype(np.float32)
        _assert_close(op, x, y, expected, exact)


def _assert_close(
    op: str, x: np.ndarray, y: np.ndarray, expected: np.ndarray, exact: np.ndarray
) -> None:
    # Gelu and HardSwish of -inf are -inf * 0; ThresholdedRelu of NaN is 0 by its definition.
    assert np.array_equal(np.isnan(y), np.isnan(expected)), (
        op,
        x[np.isnan(y) != np.isnan(expected)],
    )
    assert np.array_equal(np.isinf(y), np.isinf(expected)), (
        op,
        x[np.isinf(y) != np.isinf(expected)],
    )
    finite = np.isfinite(expected)
    error = np.abs(y[finite] - exact[finite])
    # 2e-43: below the normal range only the spacing of denormals counts.
    allowed = LIMITS.get(op, 2.5e-7) * np.abs(exact[finite]) + ABSOLUTE.get(op, 2e-43)
    worst = int(np.argmax(error - allowed))
    assert error[worst] <= allowed[worst], (op, x[finite][worst], error[worst])


BINARY_REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "Pow": np.power,
    "Sub": np.subtract,
}


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_binary_operators(machine: Hardware) -> None:
    rng = np.random.default_rng(1)
    a = rng.uniform(-4, 4, 2000).astype(np.float32)
    b = rng.uniform(-4, 4, 2000).astype(np.float32)
    b[::2] = np.round(b[::2])
    a[:7] = [np.nan, 2, 0, np.inf, -np.inf, 1, -1]
    b[:7] = [1, np.nan, 3, 2, 3, np.inf, 2]
    view = View.dense(a.shape)
    kernels = {
        op: map_kernel(Program(2, (Instruction(op, (0, 1)),)), [view, view], view, machine)
        for op in BINARY_REFERENCES
    }
    for op, function in callables(kernels, machine).items():
        y = aligned(np.zeros_like(a))
        function(aligned(a), aligned(b), y)
        with np.errstate(all="ignore"):
            exact = BINARY_REFERENCES[op](a.astype(np.float64), b.astype(np.float64))
        assert np.array_equal(np.isfinite(y), np.isfinite(exact)), op
        finite = np.isfinite(exact)
        error = np.abs(y[finite] - exact[finite])
        assert (error <= (1e-6 if op == "Pow" else 1e-7) * np.abs(exact[finite]) + 1e-7).all(), op


def test_longer_program_uses_registers_twice() -> None:
    swish = Program(
        2,
        (
            Instruction("Add", (0, 1)),
            Instruction("Sigmoid", (2,)),
            Instruction("Mul", (2, 3)),
            Instruction("Sub", (4, 0)),
        ),
    )
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 33)).astype(np.float32)
    view = View.dense((33,))
    function = callables({"k": map_kernel(swish, [view, view], view, hardware.AVX2)}, hardware.AVX2)
    y = aligned(np.zeros(33, np.float32))
    function["k"](aligned(a), aligned(b), y)
    total = a.astype(np.float64) + b
    assert np.abs(y - (total * _sigmoid(total) - a)).max() < 1e-6


def test_neon_needs_no_library_calls() -> None:
    view = View.dense((64,))
    kernels = {op: map_kernel(_program(op), [view], view, hardware.NEON) for op in sorted(UNARY)}
    text = assembly(kernels, hardware.NEON)
    for name in ("expf", "logf", "tanhf", "erff", "powf", "floorf", "ceilf"):
        assert f"\tbl\t{name}" not in text
