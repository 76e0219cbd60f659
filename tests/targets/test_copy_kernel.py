"""Copies, transpositions, fills."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.copy import copy, fill, fill_border
from pwopt.targets.cpu.kernels.resize import upsample
from tests.targets.kernel_cases import GUARD, RUNNABLE, Case, Layout, check, isa, place, result
from tests.targets.kernel_helpers import aligned, callables

NCHW, NHWC = [0, 3, 1, 2], [0, 1, 2, 3]
RNG = np.random.default_rng(4)


def _values(shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    if dtype == "bool":
        return RNG.integers(0, 2, shape).astype(bool)
    return RNG.integers(-100, 100, shape).astype(dtype)


def _copy(
    machine: Hardware,
    threads: int,
    shape: Sequence[int],
    orders: tuple[Sequence[int], Sequence[int]],
    dtype: str = "float32",
    padding: Sequence[int] | None = None,
) -> Case:
    a = _values(shape, dtype)
    x = place(a, Layout(orders[0], padding or [], padding or []))
    y = result(shape, Layout(orders[1], before=padding or []), dtype)
    return Case(copy(x.view, y.view, machine, threads), [x.flat], y, a)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
@pytest.mark.parametrize("threads", [1, 2])
def test_layouts(machine: Hardware, threads: int) -> None:
    cases = {}
    sizes = itertools.product((1, 3, 8, 17, 33), ((7, 7), (1, 13)))
    for channels, (height, width) in sizes if threads == 1 else ():
        shape = (2, height, width, channels)
        for name, orders in (("hw", (NCHW, NHWC)), ("wh", (NHWC, NCHW)), ("same", (NHWC, NHWC))):
            case = _copy(machine, threads, shape, orders)
            cases[f"{name}_{channels}_{height}"] = case
    for orders in ((NCHW, NHWC), (NHWC, NCHW), (NCHW, NCHW)):
        name = f"padded{orders[0][1]}{orders[1][1]}"
        cases[name] = _copy(machine, threads, (1, 9, 7, 19), orders, padding=[0, 1, 1, 2])
        cases[f"{name}_few"] = _copy(machine, threads, (2, 9, 33, 4), orders, padding=[0, 1, 1, 0])
        cases[f"{name}_large"] = _copy(machine, threads, (1, 61, 31, 33), orders)
    cases["empty"] = _copy(machine, threads, (2, 0, 3, 4), (NCHW, NHWC))
    check(cases, machine, threads)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_dtypes(machine: Hardware) -> None:
    for dtype in ("bool", "int8", "uint8", "float16", "int32", "int64", "float64"):
        cases = {
            f"{i}": _copy(machine, 1, (2, 5, 7, 19), orders, dtype)
            for i, orders in enumerate([(NHWC, NHWC), (NCHW, NHWC), (NHWC, NCHW)])
        }
        carriers = {
            name: Case(
                c.kernel,
                [_bits(v) for v in c.inputs],
                type(c.y)(_bits(c.y.flat), c.y.view),
                _bits(c.expected),
            )
            for name, c in cases.items()
        }
        functions = callables({n: c.kernel for n, c in carriers.items()}, machine)
        for name, c in carriers.items():
            functions[name](*c.inputs, c.y.flat)
            strides = tuple(s * c.y.flat.itemsize for s in c.y.view.strides)
            actual = np.lib.stride_tricks.as_strided(c.y.flat, c.y.view.shape, strides)
            assert np.array_equal(actual, c.expected), (dtype, name)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"int{8 * array.itemsize}")


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_permutations(machine: Hardware) -> None:
    cases = {}
    for shape in ((3, 5, 18), (20, 3, 17)):
        for order in itertools.permutations(range(3)):
            name = "_".join(map(str, (*shape, *order)))
            cases[name] = _copy(machine, 1, shape, ([0, 1, 2], order))
    shuffled = _copy(machine, 1, (1, 7, 7, 3, 20), ([0, 1, 2, 3, 4], [0, 1, 2, 4, 3]))
    cases["groups"] = shuffled
    check(cases, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_slices_with_steps_and_broadcasts(machine: Hardware) -> None:
    a = _values((2, 9, 11, 13))
    x = place(a)
    n, h, w, c = x.view.strides
    steps = View((2, 4, 11, 4), (n, 2 * h, -w, 3 * c), x.view.at(0, 1, 10, 1))
    repeat = View((2, 9, 5, 13), (n, h, 0, c), x.view.at(0, 0, 4, 0))
    y, z = result((2, 4, 11, 4)), result((2, 9, 5, 13))
    cases = {
        "steps": Case(copy(steps, y.view, machine), [x.flat], y, a[:, 1::2, ::-1, 1::3]),
        "repeat": Case(copy(repeat, z.view, machine), [x.flat], z, a[:, :, 4:5].repeat(5, axis=2)),
    }
    check(cases, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_fill_and_border(machine: Hardware) -> None:
    inner = result((2, 5, 6, 19), Layout(before=[0, 2, 1, 3], after=[0, 1, 3, 2]))
    functions = callables(
        {
            "fill": fill(inner.view, 1.5, machine),
            "border": fill_border(inner.view, (2, 1, 1, 3), -2.0, machine, threads=2),
        },
        machine,
        threads=2,
    )
    expected = np.full((2, 8, 10, 24), GUARD, np.float32)
    expected[..., 3:22] = -2.0
    expected[:, 2:7, 1:7, 3:22] = 1.5
    functions["fill"](inner.flat)
    functions["border"](inner.flat)
    assert np.array_equal(inner.flat.reshape(expected.shape), expected)


def test_fill_integers() -> None:
    y = aligned(np.zeros(37, np.int64))
    callables({"k": fill(View.dense((37,), "int64"), 5, hardware.AVX2)}, hardware.AVX2)["k"](y)
    assert (y == 5).all()


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_upsample(machine: Hardware) -> None:
    a = _values((2, 3, 5, 7))
    x, y = place(a), result((2, 6, 15, 7))
    function = upsample(x.view, y.view, (2, 3), machine)
    expected = a.repeat(2, axis=1).repeat(3, axis=2)
    check({"up": Case(function, [x.flat], y, expected)}, machine)
