"""Depthwise convolution kernels against a float64 NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.depthwise import depthwise, pack_depthwise
from pwopt.targets.windows import Window
from tests.targets.kernel_helpers import aligned, assembly, callables, error, levels, window_of

# (batch, (H, W), channels, kernel, stride, dilation, residual, channels of the wider output)
CASES = {
    "plain": (1, (7, 7), 16, 3, 1, 1, False, 0),
    "narrow": (1, (13, 17), 24, 3, 1, 1, False, 0),
    "stride": (2, (31, 33), 33, 3, 2, 1, False, 0),
    "five": (1, (14, 14), 40, 5, 2, 1, True, 0),
    "seven": (1, (17, 17), 20, 7, 1, 1, False, 0),
    "dilated": (1, (13, 13), 31, 3, 1, 2, False, 0),
    "one": (1, (1, 1), 7, 3, 1, 1, False, 0),
    "slice": (2, (9, 5), 20, 3, 1, 1, True, 50),
    "pointwise": (1, (9, 5), 17, 1, 1, 1, False, 0),
}
PLAIN = Program().then("Clip", 0.0, 6.0)
RESIDUAL = Program().then("HardSwish").then_with_argument("Add")


class Problem:
    """Operands of a case, the kernel for them and the expected output."""

    def __init__(self, name: str, processor: Hardware, threads: int) -> None:
        batch, size, channels, k, stride, dilation, residual, wide = CASES[name]
        rng = np.random.default_rng(3)
        pad = dilation * (k - 1) // 2
        padded = (batch, size[0] + 2 * pad, size[1] + 2 * pad, channels)
        image = np.zeros(padded, np.float32)
        image[:, pad : pad + size[0], pad : pad + size[1]] = rng.standard_normal(
            (batch, *size, channels)
        )
        strides = View.dense(padded).strides
        x = View((batch, *size, channels), strides, pad * (strides[1] + strides[2]))
        height, width = ((s + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for s in size)
        shape = (batch, height, width, channels)
        y = View(shape, View.dense((*shape[:3], wide or channels)).strides, 9 if wide else 0)
        weight = rng.standard_normal((channels, 1, k, k)).astype(np.float32)
        bias = rng.standard_normal(channels).astype(np.float32)
        want = np.zeros(shape) + bias
        for i in range(k):
            for j in range(k):
                rows = i * dilation + stride * np.arange(height)
                columns = j * dilation + stride * np.arange(width)
                want += image.astype(np.float64)[:, rows][:, :, columns] * weight[:, 0, i, j]
        self.y = y
        self.output = aligned(np.full((*shape[:3], wide or channels), 7, np.float32))
        packed = pack_depthwise(weight, bias, processor.lanes)
        self.arrays = [aligned(image), *(aligned(p) for p in packed)]
        if residual:
            added = rng.standard_normal(shape).astype(np.float32)
            want = want * np.clip(want / 6 + 0.5, 0, 1) + added
            self.arrays.append(aligned(added))
        else:
            want = np.clip(want, 0, 6)
        self.arrays.append(self.output)
        self.want = want
        window = Window((k, k), (stride, stride), (dilation, dilation), (pad, pad))
        extras = (View.dense(shape),) if residual else ()
        program = RESIDUAL if residual else PLAIN
        self.kernel = depthwise(x, y, window, program, extras, processor, threads)

    def check(self) -> None:
        assert error(window_of(self.output, self.y), self.want) <= 1e-5
        untouched = np.ones(self.output.size, bool)
        window_of(untouched, self.y)[:] = False
        assert (self.output[untouched] == 7).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
def test_cases(processor: Hardware, threads: int) -> None:
    problems = {name: Problem(name, processor, threads) for name in CASES}
    run = callables({n: p.kernel for n, p in problems.items()}, processor, threads)
    for name, problem in problems.items():
        run[name](*problem.arrays)
        try:
            problem.check()
        except AssertionError as failure:
            raise AssertionError(f"case {name}") from failure


def test_neon_assembly_is_vectorized() -> None:
    text = assembly({"k": Problem("plain", hardware.NEON, 1).kernel}, hardware.NEON)
    assert text.count("fmla\tv") > 8
