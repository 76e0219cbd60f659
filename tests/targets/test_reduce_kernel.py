"""Reductions, softmax and normalisations, against float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.norm import local_response, mean_variance
from pwopt.targets.cpu.kernels.reduce import REDUCTIONS, reduce
from pwopt.targets.cpu.kernels.softmax import softmax
from tests.targets.kernel_cases import RUNNABLE, Case, Layout, check, isa, place, result
from tests.targets.kernel_helpers import aligned, assembly, callables

RNG = np.random.default_rng(6)
REFERENCES: dict[str, Callable[..., np.ndarray]] = {
    "Sum": np.sum,
    "Mean": np.mean,
    "Max": np.max,
    "Min": np.min,
    "Prod": np.prod,
    "L1": lambda x, axis, keepdims: np.abs(x).sum(axis=axis, keepdims=keepdims),
    "L2": lambda x, axis, keepdims: np.sqrt((x * x).sum(axis=axis, keepdims=keepdims)),
    "SumSquare": lambda x, axis, keepdims: (x * x).sum(axis=axis, keepdims=keepdims),
    "LogSum": lambda x, axis, keepdims: np.log(x.sum(axis=axis, keepdims=keepdims)),
}


def _values(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def _reduction(
    kind: str,
    shape: Sequence[int],
    axes: tuple[int, ...],
    machine: Hardware,
    threads: int = 1,
    layout: Layout | None = None,
) -> Case:
    a = _values(*shape)
    expected = REFERENCES[kind](a.astype(np.float64), axis=axes, keepdims=True)
    x, y = place(a, layout), result(expected.shape, Layout(layout.order if layout else []))
    return Case(reduce(kind, x.view, axes, y.view, machine, threads), [x.flat], y, expected, 2e-6)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_kinds_and_axes(machine: Hardware) -> None:
    assert set(REFERENCES) == set(REDUCTIONS)
    cases = {}
    for kind in REDUCTIONS:
        cases[f"{kind}_spatial"] = _reduction(kind, (2, 3, 5, 19), (1, 2), machine)
        cases[f"{kind}_last"] = _reduction(kind, (3, 37), (1,), machine)
    for axes in ((0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2), ()):
        cases[f"axes{axes}".replace(", ", "_").strip("(),")] = _reduction(
            "Sum", (3, 7, 33), axes, machine
        )
    for channels in (1, 3, 16, 31, 130):
        cases[f"gap{channels}"] = _reduction("Mean", (2, 7, 7, channels), (1, 2), machine)
    wide = Layout(before=[0, 1, 1, 3], after=[0, 1, 1, 6])
    cases["slice"] = _reduction("Max", (2, 5, 7, 17), (1, 2), machine, layout=wide)
    cases["rows"] = _reduction("Mean", (2, 5, 7, 17), (3,), machine, layout=wide)
    cases["planes"] = _reduction("Mean", (2, 7, 7, 5), (1, 2), machine, layout=Layout([0, 3, 1, 2]))
    cases = {"".join(c if c.isalnum() else "_" for c in n): v for n, v in cases.items()}
    check(cases, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_threads_and_epilogue(machine: Hardware) -> None:
    cases = {
        "across": _reduction("Mean", (2, 17, 19, 67), (1, 2), machine, threads=2),
        "along": _reduction("Sum", (33, 1001), (1,), machine, threads=2),
    }
    a, b = _values(2, 5, 5, 21), _values(2, 1, 1, 21)
    program = Program().then_with_argument("Sub").then("Relu")
    for name, order in (("nhwc", Layout()), ("nchw", Layout([0, 3, 1, 2]))):
        x, z, y = place(a, order), place(b, order), result(b.shape, order)
        function = reduce("Mean", x.view, (1, 2), y.view, machine, program=program, extras=[z.view])
        expected = np.maximum(a.astype(np.float64).mean(axis=(1, 2), keepdims=True) - b, 0)
        cases[name] = Case(function, [x.flat, z.flat], y, expected)
    check(cases, machine, threads=2)


def _softmax(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    powers: np.ndarray = np.exp(x - x.max(axis=axes, keepdims=True))
    sums: np.ndarray = powers.sum(axis=axes, keepdims=True)
    quotients: np.ndarray = powers / sums
    return quotients


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_softmax(machine: Hardware) -> None:
    cases = {}
    for i, (shape, axes) in enumerate(
        [
            ((1, 1000), (1,)),
            ((3, 7), (1,)),
            ((2, 3, 5, 33), (3,)),
            ((2, 3, 5, 33), (1,)),
            ((2, 3, 5, 1), (2,)),
            ((2, 3, 17), (1, 2)),
            ((1, 31, 31, 21), (3,)),
        ]
    ):
        for log in (False, True):
            a = (20 * RNG.standard_normal(shape)).astype(np.float32)
            x, y = place(a), result(shape)
            function = softmax(x.view, axes, y.view, machine, 2, log=log)
            expected = _softmax(a.astype(np.float64), axes)
            expected = np.log(expected) if log else expected
            cases[f"s{i}{log}"] = Case(function, [x.flat], y, expected, 2e-6)
    a = RNG.standard_normal((2, 5, 7, 19)).astype(np.float32)
    x, y = place(a, Layout(before=[0, 0, 0, 3])), result(a.shape, Layout(after=[0, 0, 0, 2]))
    function = softmax(x.view, (3,), y.view, machine)
    cases["slice"] = Case(function, [x.flat], y, _softmax(a.astype(np.float64), (3,)), 2e-6)
    check(cases, machine, threads=2)


def test_softmax_in_place_and_extremes() -> None:
    a = np.array([[1e4, -1e4, 1e4, 0, -np.inf]], np.float32)
    view = View.dense(a.shape)
    function = softmax(view, (1,), view, hardware.AVX2)
    x = aligned(a)
    callables({"k": function}, hardware.AVX2)["k"](x, x)
    assert np.abs(x - [0.5, 0, 0.5, 0, 0]).max() < 1e-7


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_local_response(machine: Hardware) -> None:
    cases = {}
    for channels in (1, 3, 5, 16, 17, 33, 64, 66):
        for size, beta in ((5, 0.75), (4, 0.5), (3, 0.6)):
            a = (3 * RNG.standard_normal((1, 2, 3, channels))).astype(np.float32)
            layout = Layout(before=[0, 0, 0, 2], after=[0, 0, 0, 1])
            x, y = place(a, layout), result(a.shape, layout)
            function = local_response(
                x.view, y.view, machine, size=size, alpha=0.3, beta=beta, bias=1.5
            )
            squares = np.pad(
                a.astype(np.float64) ** 2, [(0, 0)] * 3 + [((size - 1) // 2, size // 2)]
            )
            sums = sum(squares[..., k : k + channels] for k in range(size))
            expected = a / (1.5 + 0.3 / size * sums) ** beta
            cases[f"c{channels}s{size}"] = Case(function, [x.flat], y, expected)
    check(cases, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_mean_variance(machine: Hardware) -> None:
    cases = {}
    for i, (shape, axes, parameter_axes) in enumerate(
        [
            ((2, 7, 5, 19), (1, 2), (3,)),
            ((2, 7, 5, 19), (3,), (3,)),
            ((3, 33), (1,), (1,)),
            ((2, 5, 5, 4, 3), (1, 2, 4), (3, 4)),
            ((2, 7, 5, 1), (1, 2), (3,)),
        ]
    ):
        a = (RNG.standard_normal(shape) + 3).astype(np.float32)
        parameter_shape = [e if d in parameter_axes else 1 for d, e in enumerate(shape)]
        scale, bias = (place(_values(*parameter_shape)) for _ in range(2))
        spread = View(
            tuple(shape),
            tuple(
                0 if e == 1 else s for e, s in zip(parameter_shape, scale.view.strides, strict=True)
            ),
        )
        x, y = place(a), result(shape)
        function = mean_variance(
            x.view, axes, y.view, machine, 2, scale=spread, bias=spread, epsilon=1e-3
        )
        exact = a.astype(np.float64)
        centred = exact - exact.mean(axis=axes, keepdims=True)
        expected = centred / np.sqrt(exact.var(axis=axes, keepdims=True) + 1e-3)
        expected = expected * scale.flat.reshape(parameter_shape) + bias.flat.reshape(
            parameter_shape
        )
        cases[f"n{i}"] = Case(function, [x.flat, scale.flat, bias.flat], y, expected, 2e-6)
    check(cases, machine, threads=2)


def test_neon_compiles() -> None:
    x, y = View.dense((1, 8, 8, 6)), View.dense((1, 1, 1, 6))
    kernels = {
        "mean": reduce("Mean", x, (1, 2), y, hardware.NEON),
        "softmax": softmax(x, (3,), x, hardware.NEON),
        "response": local_response(x, x, hardware.NEON, size=5),
    }
    assert "fadd" in assembly(kernels, hardware.NEON)
