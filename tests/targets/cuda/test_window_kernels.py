"""Pooling, depthwise convolutions and LRN on the emulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pwopt.ir.program import Instruction, Program
from pwopt.targets.cuda.kernels import depthwise as depthwise_module
from pwopt.targets.cuda.kernels.depthwise import depthwise, depthwise_lanes, pack_depthwise
from pwopt.targets.cuda.kernels.norm import local_response
from pwopt.targets.cuda.kernels.pool import pool
from pwopt.targets.windows import PoolAxis, Window
from tests.targets.cuda.kernel_cases import Case, Operand, check, constant, held, image, result

RNG = np.random.default_rng(5)
ADD_RELU = Program(2, (Instruction("Add", (0, 1)), Instruction("Relu", (2,))))


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def _output(size: int, axis: PoolAxis, ceil: bool = False) -> int:
    span = (axis.size - 1) * axis.dilation + 1
    whole, rest = divmod(size + axis.begin + axis.end - span, axis.stride)
    return whole + 1 + (ceil and rest > 0)


def _pooled(
    kind: str, x: Operand, window: tuple[PoolAxis, PoolAxis], y: Operand, pads: bool
) -> np.ndarray:
    """Pooling by its definition."""
    n, height, width, channels = y.view.shape
    expected = np.zeros((n, height, width, channels))
    for row in range(height):
        for column in range(width):
            lines, places = (
                [
                    o * a.stride - a.begin + k * a.dilation
                    for k in range(a.size)
                    if 0 <= o * a.stride - a.begin + k * a.dilation < size
                ]
                for o, a, size in zip((row, column), window, x.view.shape[1:3], strict=True)
            )
            values = x.values[:, lines][:, :, places]
            count = len(lines) * len(places)
            if pads:
                count = window[0].counted(row, x.view.shape[1])
                count *= window[1].counted(column, x.view.shape[2])
            expected[:, row, column] = {
                "max": lambda v, c: v.max((1, 2)),
                "average": lambda v, c: v.sum((1, 2)) / c,
                "l2": lambda v, c: np.sqrt((v**2).sum((1, 2))),
            }[kind](values, count)
    return expected


def _pool(kind: str, axes: Sequence[PoolAxis], channels: int, **options: bool) -> Case:
    window = (axes[0], axes[-1])
    x = image(_random(2, 9, 8, channels))
    ceil, pads = options.get("ceil", False), options.get("pads", False)
    sizes = [_output(s, a, ceil) for s, a in zip((9, 8), window, strict=True)]
    y = result((2, *sizes, channels), pad=(0, 0, 0, -channels % 8))
    kernel = pool(kind, x.view, y.view, window, count_include_pad=pads)
    return Case(kernel, [x.flat], y, _pooled(kind, x, window, y, pads))


def test_pooling_by_its_definition() -> None:
    cases = {}
    for channels in (1, 20, 24):
        cases[f"max{channels}"] = _pool("max", [PoolAxis(3, 2, 1, 1, 1)], channels)
        cases[f"average{channels}"] = _pool("average", [PoolAxis(3, 2, 1, 1, 1)], channels)
    cases["valid"] = _pool("average", [PoolAxis(2, 2)], 16)
    cases["l2"] = _pool("l2", [PoolAxis(3, 1, 1, 1, 0)], 16)
    cases["padding_counts"] = _pool("average", [PoolAxis(3, 2, 1, 1, 1)], 16, pads=True)
    cases["ceil"] = _pool("average", [PoolAxis(3, 2), PoolAxis(3, 2, 1, 0, 1)], 16, ceil=True)
    cases["ceil_pads"] = _pool("average", [PoolAxis(3, 2, 1, 1, 1)], 16, ceil=True, pads=True)
    cases["ceil_max"] = _pool("max", [PoolAxis(3, 2)], 16, ceil=True)
    cases["dilated"] = _pool("average", [PoolAxis(2, 1, 3, 2, 2), PoolAxis(3, 1, 2, 1, 0)], 16)
    cases["large"] = _pool("max", [PoolAxis(7, 1, 1, 3, 3)], 16)
    check(cases)


def convolved(
    x: np.ndarray, weight: np.ndarray, window: Window, sizes: Sequence[int]
) -> np.ndarray:
    """A depthwise convolution of (N, H, W, C) by its definition, in float64."""
    n, height, width, channels = x.shape
    _, _, rows, columns = weight.shape
    (down, right), (top, left) = window.dilations, window.pads
    total = np.zeros((n, *sizes, channels))
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            for k in range(rows):
                for j in range(columns):
                    line = row * window.strides[0] - top + k * down
                    place = column * window.strides[1] - left + j * right
                    if 0 <= line < height and 0 <= place < width:
                        total[:, row, column] += x[:, line, place] * weight[:, 0, k, j]
    return total


def _depthwise(
    window: Window, sizes: Sequence[int], channels: int, dtype: str, x: Operand | None = None
) -> Case:
    x = x or image(_random(2, 7, 9, channels), dtype)
    weight, bias = _random(channels, 1, *window.kernel), _random(channels)
    shape = (x.view.shape[0], *sizes, channels)
    extra = image(_random(*shape), dtype)
    y = result(shape, dtype, pad=(0, 0, 0, -channels % 8))
    lanes = depthwise_lanes(x.view)
    packed, biases = pack_depthwise(weight, bias, lanes)
    kept = constant(packed, dtype)
    rounded = kept[: packed.size].astype(np.float64).reshape(packed.shape)[:, :channels]
    rounded = rounded.T.reshape(weight.shape)
    total = convolved(x.values, rounded, window, sizes) + bias
    kernel = depthwise(x.view, y.view, window, ADD_RELU, (extra.view,))
    inputs = [x.flat, kept, constant(biases), extra.flat]
    return Case(kernel, inputs, y, np.maximum(total + extra.values, 0))


WINDOWS = {
    "same": (Window((3, 3), pads=(1, 1)), (7, 9)),
    "strided": (Window((3, 3), (2, 2), pads=(1, 1)), (4, 5)),
    "valid": (Window((3, 3)), (5, 7)),
    "dilated": (Window((3, 3), (1, 1), (2, 3), (2, 3)), (7, 9)),
    "uneven": (Window((5, 2), (1, 2), pads=(2, 0)), (7, 4)),
    "tall": (Window((9, 1), pads=(4, 0)), (7, 9)),
}


@pytest.mark.parametrize("pixels", [1, 4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_depthwise(dtype: str, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise_module, "ENOUGH", 10**9 if pixels == 1 else 0)
    cases = {
        f"{name}{channels}": _depthwise(window, sizes, channels, dtype)
        for name, (window, sizes) in WINDOWS.items()
        for channels in ((20,) if name != "same" else (5, 16, 20))
    }
    whole = held(_random(1, 7, 9, 21), dtype, before=(0, 0, 0, 3))
    cases["slice"] = _depthwise(*WINDOWS["same"], 21, dtype, whole)
    check(cases)


def test_local_response_by_its_definition() -> None:
    cases = {}
    for channels, size in ((1, 5), (7, 3), (20, 5), (32, 4)):
        x = image(_random(1, 3, 5, channels))
        squares = np.pad(x.values**2, [(0, 0)] * 3 + [((size - 1) // 2, size // 2)])
        sums = sum(squares[..., k : k + channels] for k in range(size))
        expected = x.values / (2.0 + 0.3 / size * sums) ** 0.75
        y = result((1, 3, 5, channels))
        kernel = local_response(x.view, y.view, size=size, alpha=0.3, beta=0.75, bias=2.0)
        cases[f"c{channels}_{size}"] = Case(kernel, [x.flat], y, expected)
    check(cases)
