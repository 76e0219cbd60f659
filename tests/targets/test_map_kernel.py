"""Elementwise groups with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import Instruction, Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.map import map_kernel
from tests.targets.kernel_cases import RUNNABLE, Case, Layout, check, isa, place, result
from tests.targets.kernel_helpers import aligned, callables

ADD_RELU = Program(2, (Instruction("Add", (0, 1)), Instruction("Relu", (2,))))
SCALE_SHIFT = Program(3, (Instruction("Mul", (0, 1)), Instruction("Add", (3, 2))))
RNG = np.random.default_rng(3)


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def _broadcast(view: View, shape: Sequence[int]) -> View:
    strides = tuple(0 if e == 1 else s for e, s in zip(view.shape, view.strides, strict=True))
    return View(tuple(shape), strides, view.offset, view.dtype)


def _add_relu(
    machine: Hardware,
    threads: int,
    shape: Sequence[int],
    other: Sequence[int],
    layout: Layout | None = None,
) -> Case:
    a, b = _random(*shape), _random(*other)
    x, z, y = place(a, layout), place(b), result(shape, layout)
    function = map_kernel(ADD_RELU, [x.view, _broadcast(z.view, shape)], y.view, machine, threads)
    expected = np.maximum(a.astype(np.float64) + b, 0)
    return Case(function, [x.flat, z.flat], y, expected)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
@pytest.mark.parametrize("threads", [1, 2])
def test_broadcasts_and_views(machine: Hardware, threads: int) -> None:
    cases = {}
    for channels in (1, 3, 7, 13, 17, 24, 31, 33, 64):
        shape = (2, 5, 7, channels)
        cases[f"same{channels}"] = _add_relu(machine, threads, shape, shape)
        cases[f"channel{channels}"] = _add_relu(machine, threads, shape, (1, 1, 1, channels))
        cases[f"pixel{channels}"] = _add_relu(machine, threads, shape, (2, 5, 7, 1))
        cases[f"image{channels}"] = _add_relu(machine, threads, shape, (2, 1, 1, channels))
    wide = Layout(before=[0, 1, 1, 3], after=[0, 1, 1, 5])
    cases["slice"] = _add_relu(machine, threads, (2, 5, 7, 33), (1, 1, 1, 33), wide)
    cases["planes"] = _add_relu(
        machine, threads, (2, 5, 7, 13), (1, 1, 1, 13), Layout([0, 3, 1, 2])
    )
    cases["scalar"] = _add_relu(machine, threads, (3, 7), (1, 1))
    cases["one"] = _add_relu(machine, threads, (1, 1), (1, 1))
    cases["rank0"] = _add_relu(machine, threads, (), ())
    cases["empty"] = _add_relu(machine, threads, (2, 0, 3), (2, 0, 3))
    cases["large"] = _add_relu(machine, threads, (1, 31, 31, 33), (1, 1, 1, 33))
    cases["long"] = _add_relu(machine, threads, (40001,), (40001,))
    check(cases, machine, threads)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_mixed_layouts_gather(machine: Hardware) -> None:
    a, b = _random(2, 5, 7, 19), _random(2, 5, 7, 19)
    x, z, y = place(a), place(b, Layout([0, 3, 1, 2])), result(a.shape)
    function = map_kernel(ADD_RELU, [x.view, z.view], y.view, machine)
    expected = np.maximum(a.astype(np.float64) + b, 0)
    check({"gather": Case(function, [x.flat, z.flat], y, expected)}, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_two_periodic_arguments(machine: Hardware) -> None:
    a, s, b = _random(1, 30, 30, 3), _random(1, 1, 1, 3), _random(1, 1, 1, 3)
    x, scale, shift, y = place(a), place(s), place(b), result(a.shape)
    views = [x.view, _broadcast(scale.view, a.shape), _broadcast(shift.view, a.shape)]
    function = map_kernel(SCALE_SHIFT, views, y.view, machine)
    expected = a.astype(np.float64) * s + b
    check({"affine": Case(function, [x.flat, scale.flat, shift.flat], y, expected)}, machine)


def test_in_place() -> None:
    a, b = _random(3, 37), _random(3, 37)
    view = View.dense(a.shape)
    function = map_kernel(ADD_RELU, [view, view], view, hardware.AVX2)
    x = aligned(a)
    callables({"k": function}, hardware.AVX2)["k"](x, aligned(b), x)
    assert np.array_equal(x.reshape(a.shape), np.maximum(a + b, 0))
