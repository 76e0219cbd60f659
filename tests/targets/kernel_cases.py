"""Cases for kernel tests: operands inside wider buffers of NaN, results with a guarded surround."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import View
from tests.targets.kernel_helpers import aligned, callables, levels, window_of

GUARD = 77.0

RUNNABLE = levels()


def isa(machine: Hardware) -> str:
    """A test's name for a processor."""
    return machine.mcpu


@dataclass(frozen=True)
class Operand:
    """A flat buffer and how a kernel sees it."""

    flat: np.ndarray
    view: View


@dataclass(frozen=True)
class Case:
    """One kernel with its operands and what must be in ``y`` afterwards."""

    kernel: tirx.PrimFunc
    inputs: Sequence[np.ndarray]
    y: Operand
    expected: np.ndarray
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Layout:
    """How an operand lies in memory.

    Attributes:
        order: its dimensions from the outermost to the innermost; row-major if empty.
        before: elements of padding in front, per dimension; none if empty.
        after: likewise behind.
    """

    order: Sequence[int] = ()
    before: Sequence[int] = ()
    after: Sequence[int] = ()


def place(array: np.ndarray, layout: Layout | None = None, filler: float = np.nan) -> Operand:
    """Puts an array inside a buffer of ``filler`` (of guards, for integers)."""
    layout = layout or Layout()
    rank = array.ndim
    order = list(layout.order or range(rank))
    before, after = layout.before or [0] * rank, layout.after or [0] * rank
    if array.dtype.kind in "iub":
        filler = GUARD if array.dtype.kind != "b" else 0
    wide = [array.shape[d] + before[d] + after[d] for d in range(rank)]
    buffer = np.full([wide[d] for d in order], filler, array.dtype)
    steps = {d: s // array.itemsize for d, s in zip(order, buffer.strides, strict=True)}
    strides = tuple(steps[d] for d in range(rank))
    offset = sum(b * s for b, s in zip(before, strides, strict=True))
    flat = aligned(buffer if buffer.size else np.full(1, filler, array.dtype))
    view = View(array.shape, strides, offset, str(array.dtype))
    if array.size:
        window_of(flat, view)[...] = array
    return Operand(flat, view)


def result(shape: Sequence[int], layout: Layout | None = None, dtype: str = "float32") -> Operand:
    """A buffer for a kernel's result, full of guard values."""
    return place(np.full(shape, GUARD, dtype), layout, GUARD)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest magnitude expected."""
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(actual.astype(np.float64) - expected).max()) / scale


def check(cases: Mapping[str, Case], machine: Hardware, threads: int = 1) -> None:
    """Builds the kernels together, runs them, and compares results and their surroundings."""
    functions = callables({name: c.kernel for name, c in cases.items()}, machine, threads)
    for name, case in cases.items():
        functions[name](*case.inputs, case.y.flat)
        if case.expected.size:
            actual = window_of(case.y.flat, case.y.view)
            if actual.dtype.kind in "iub":
                assert np.array_equal(actual, case.expected), name
            else:
                error = relative_error(actual, case.expected)
                assert error <= case.tolerance, f"{name}: relative error {error:.3g}"
            actual[...] = np.asarray(GUARD, actual.dtype)
        guard = np.asarray(GUARD, case.y.flat.dtype)
        assert (case.y.flat == guard).all(), f"{name}: stores outside the result"
