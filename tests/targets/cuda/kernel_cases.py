"""Cases for CUDA kernels: operands inside wider memory, run on the CPU by the emulator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.views import View
from tests.targets.cuda.emulator import compiled
from tests.targets.kernel_helpers import aligned

GUARD = 77.0  # what surrounds a result; every dtype of maps has it
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Relative to the output's scale: half a unit in the last place of the largest result, and as much
# for each operand that is rounded before. float32 leaves room for other orders of summation.
TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class Operand:
    """Flat memory, how a kernel sees it, and the values in it as float64."""

    flat: np.ndarray
    view: View

    @property
    def values(self) -> np.ndarray:
        """What the view names."""
        return self.window.astype(np.float64)

    @property
    def window(self) -> np.ndarray:
        """The elements that the view names, writable."""
        item, view = self.flat.itemsize, self.view
        strides = tuple(s * item for s in view.strides)
        return np.lib.stride_tricks.as_strided(self.flat[view.offset :], view.shape, strides)

    def broadcast(self, shape: Sequence[int]) -> View:
        """The view as an operand of a result of this shape."""
        return self.view.broadcast(shape)


@dataclass(frozen=True)
class Case:
    """One kernel with its operands, in the order of its pointers, and what ``y`` must be after."""

    kernel: Kernel
    inputs: Sequence[np.ndarray]
    y: Operand
    expected: np.ndarray
    tolerance: float | None = None  # by y's dtype


def held(
    array: np.ndarray,
    dtype: str = "float16",
    *,
    order: Sequence[int] = (),
    pad: Sequence[int] = (),
    before: Sequence[int] = (),
    filler: float = np.nan,
) -> Operand:
    """Puts an array into memory of ``filler``.

    Args:
        array: values, rounded to ``dtype``.
        dtype: of the memory.
        order: its dimensions from the outermost to the innermost; row-major if empty.
        pad: elements behind, per dimension; none if empty.
        before: elements in front, per dimension; none if empty.
        filler: what is around; integers get guards.
    """
    kind = DTYPES.get(dtype, np.dtype(dtype))
    rank = array.ndim
    axes = list(order or range(rank))
    front, behind = list(before or [0] * rank), list(pad or [0] * rank)
    wide = [array.shape[d] + front[d] + behind[d] for d in range(rank)]
    filler = filler if dtype in DTYPES else GUARD
    buffer = np.full([wide[d] for d in axes], filler, kind)
    steps = {d: s // buffer.itemsize for d, s in zip(axes, buffer.strides, strict=True)}
    strides = tuple(steps[d] for d in range(rank))
    view = View(
        array.shape, strides, sum(b * s for b, s in zip(front, strides, strict=True)), dtype
    )
    operand = Operand(aligned(buffer), view)
    operand.window[...] = array.astype(kind)
    return operand


def result(shape: Sequence[int], dtype: str = "float16", **layout: Sequence[int]) -> Operand:
    """Memory for a kernel's result, full of guards."""
    return held(np.full(shape, GUARD), dtype, filler=GUARD, **layout)


def image(array: np.ndarray, dtype: str = "float16", lanes: int = 8) -> Operand:
    """An (N, H, W, C) array whose pixels are padded to whole vectors of NaN."""
    return held(array, dtype, pad=(0, 0, 0, -array.shape[3] % lanes))


def constant(array: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """A packed constant."""
    return aligned(array.astype(DTYPES.get(dtype, np.dtype(dtype))))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest magnitude expected."""
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(actual - expected).max()) / scale


def check(cases: Mapping[str, Case], arch: str = "sm_80") -> None:
    """Compiles the kernels together, runs them, and compares results and their surroundings."""
    symbols = {name: f"k_{re.sub(r'[^a-zA-Z0-9]', '_', name)}" for name in cases}
    assert len(set(symbols.values())) == len(cases)
    library = compiled({symbols[name]: case.kernel for name, case in cases.items()}, arch)
    for name, case in cases.items():
        library.run(symbols[name], case.kernel, [*case.inputs, case.y.flat])
        if case.y.view.dtype in DTYPES:
            tolerance = case.tolerance or TOLERANCE[case.y.view.dtype]
            assert np.isfinite(case.y.values).all(), f"{name}: not finite"
            error = relative_error(case.y.values, case.expected)
            assert error <= tolerance, f"{name}: relative error {error:.3g} over {tolerance:.3g}"
        else:
            assert np.array_equal(case.y.window, case.expected), name
        case.y.window[...] = GUARD
        assert (case.y.flat == case.y.flat.dtype.type(GUARD)).all(), f"{name}: stores outside"
