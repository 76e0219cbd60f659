"""Pooling, against a float64 reference that pads and loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.pool import pool
from pwopt.targets.windows import PoolAxis
from tests.targets.kernel_cases import RUNNABLE, Case, Layout, check, isa, place, result
from tests.targets.kernel_helpers import assembly

RNG = np.random.default_rng(5)


@dataclass(frozen=True)
class Spec:
    """One pooling operator; the sizes are of height and width."""

    kind: str
    shape: tuple[int, int, int, int]
    window: tuple[PoolAxis, PoolAxis]
    ceil: bool = False
    include_pad: bool = False
    layout: tuple[int, int] = (0, 0)  # channels before and after in the wider buffers

    def outputs(self, axis: int) -> int:
        """Output extent, by ONNX's formula."""
        w, extent = self.window[axis], self.shape[1 + axis]
        room = extent + w.begin + w.end - (w.size - 1) * w.dilation - 1
        count = (-(-room // w.stride) if self.ceil else room // w.stride) + 1
        # A window that would begin in the padding behind is dropped.
        if self.ceil and (count - 1) * w.stride >= extent + w.begin:
            count -= 1
        return count


def _reference(spec: Spec, x: np.ndarray) -> np.ndarray:
    n, h, w, c = x.shape
    vertical, horizontal = spec.window
    y = np.zeros((n, spec.outputs(0), spec.outputs(1), c))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            rows = [
                i * vertical.stride - vertical.begin + k * vertical.dilation
                for k in range(vertical.size)
            ]
            columns = [
                j * horizontal.stride - horizontal.begin + k * horizontal.dilation
                for k in range(horizontal.size)
            ]
            counted = sum(r < h + vertical.end for r in rows) * sum(
                q < w + horizontal.end for q in columns
            )
            rows = [r for r in rows if 0 <= r < h]
            columns = [q for q in columns if 0 <= q < w]
            taps = x[:, rows][:, :, columns].astype(np.float64)
            if spec.kind == "max":
                y[:, i, j] = taps.max(axis=(1, 2))
            elif spec.kind == "average":
                count = counted if spec.include_pad else len(rows) * len(columns)
                y[:, i, j] = taps.sum(axis=(1, 2)) / count
            else:
                y[:, i, j] = np.sqrt((taps**2).sum(axis=(1, 2)))
    return y


def _case(spec: Spec, machine: Hardware, threads: int) -> Case:
    a = RNG.standard_normal(spec.shape).astype(np.float32)
    before, after = [0, 1, 1, spec.layout[0]], [0, 1, 1, spec.layout[1]]
    layout = Layout(before=before, after=after)
    x = place(a, layout)
    y = result(
        (spec.shape[0], spec.outputs(0), spec.outputs(1), spec.shape[3]),
        layout,
    )
    function = pool(
        spec.kind,
        x.view,
        y.view,
        spec.window,
        machine,
        threads,
        count_include_pad=spec.include_pad,
    )
    return Case(function, [x.flat], y, _reference(spec, a))


def _square(*parameters: int) -> tuple[PoolAxis, PoolAxis]:
    return PoolAxis(*parameters), PoolAxis(*parameters)


SPECS = {
    "3x3s2": Spec("max", (2, 17, 13, 17), _square(3, 2, 1, 1, 1), layout=(3, 5)),
    "3x3s2_ceil": Spec("max", (1, 13, 14, 16), _square(3, 2), ceil=True),
    "2x2s2": Spec("max", (1, 14, 7, 33), _square(2, 2)),
    "2x2s2_ceil": Spec("average", (1, 13, 7, 3), _square(2, 2), ceil=True),
    "3x3s1": Spec("max", (1, 7, 9, 31), _square(3, 1, 1, 1, 1)),
    "dilated": Spec("max", (1, 13, 13, 7), _square(3, 1, 2, 2, 2)),
    "dilated_s2": Spec("average", (1, 15, 14, 7), _square(3, 2, 3, 1, 2)),
    "average": Spec("average", (2, 7, 8, 13), _square(3, 1, 1, 1, 1)),
    "include_pad": Spec("average", (1, 8, 9, 17), _square(3, 2, 1, 1, 1), include_pad=True),
    "include_ceil": Spec(
        "average", (1, 8, 8, 5), _square(3, 2, 1, 1, 1), ceil=True, include_pad=True
    ),
    "rectangle": Spec("average", (1, 9, 8, 16), (PoolAxis(1), PoolAxis(4, 3, 1, 1, 2))),
    "one": Spec("max", (1, 7, 7, 1), _square(3, 2, 1, 1, 1)),
    "l2": Spec("l2", (1, 7, 7, 19), _square(3, 2, 1, 0, 1)),
    "large": Spec("max", (1, 13, 13, 17), _square(13, 1, 1, 6, 6)),
    "large_average": Spec("average", (1, 15, 9, 3), _square(7, 2, 1, 3, 3), include_pad=True),
    "large_dilated": Spec("average", (1, 21, 23, 3), _square(7, 2, 2, 6, 5)),
    "window_is_image": Spec("average", (2, 7, 7, 33), _square(7, 1)),
    "empty": Spec("max", (0, 7, 7, 8), _square(3, 2)),
}


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
@pytest.mark.parametrize("threads", [1, 2])
def test_windows(machine: Hardware, threads: int) -> None:
    chosen = (
        SPECS
        if threads == 1
        else {
            "big": Spec("max", (2, 27, 31, 33), _square(3, 2, 1, 1, 1)),
            "big_loop": Spec("average", (1, 21, 33, 33), _square(9, 1, 1, 4, 4)),
        }
    )
    check({name: _case(s, machine, threads) for name, s in chosen.items()}, machine, threads)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_epilogue_with_extras(machine: Hardware) -> None:
    spec = Spec("average", (1, 9, 8, 19), _square(3, 2, 1, 1, 1))
    program = Program().then_with_argument("Mul").then_with_argument("Add").then("Relu")
    a = RNG.standard_normal(spec.shape).astype(np.float32)
    expected = _reference(spec, a)
    scale = RNG.standard_normal(19).astype(np.float32)
    residual = RNG.standard_normal(expected.shape).astype(np.float32)
    x, s, r, y = place(a), place(scale), place(residual), result(expected.shape)
    per_channel = View(expected.shape, (0, 0, 0, 1))
    function = pool(
        "average",
        x.view,
        y.view,
        spec.window,
        machine,
        program=program,
        extras=[per_channel, r.view],
    )
    expected = np.maximum(expected * scale + residual, 0)
    check({"k": Case(function, [x.flat, s.flat, r.flat], y, expected)}, machine)


def test_transposed_memory() -> None:
    spec = Spec("max", (1, 7, 8, 5), _square(3, 2, 1, 1, 1))
    a = RNG.standard_normal(spec.shape).astype(np.float32)
    expected = _reference(spec, a)
    x, y = place(a, Layout([0, 3, 1, 2])), result(expected.shape, Layout([0, 3, 1, 2]))
    function = pool("max", x.view, y.view, spec.window, hardware.AVX2)
    check({"k": Case(function, [x.flat], y, expected)}, hardware.AVX2)


def test_neon_compiles() -> None:
    x, y = View.dense((1, 8, 8, 6)), View.dense((1, 4, 4, 6))
    text = assembly({"k": pool("max", x, y, _square(2, 2), hardware.NEON)}, hardware.NEON)
    assert "fmax" in text or "fcmgt" in text
