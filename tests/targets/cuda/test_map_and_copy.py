"""Elementwise groups, copies and enlargements on the emulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pwopt.ir.program import Instruction, Program
from pwopt.targets.cuda.kernels.copy import copy, fill, pad_channels
from pwopt.targets.cuda.kernels.map import map_kernel
from pwopt.targets.cuda.kernels.resize import resize, upsample
from pwopt.targets.in_place import in_place
from pwopt.targets.resampling import axis_table, pack
from pwopt.targets.views import View
from tests.targets.cuda.emulator import compiled
from tests.targets.cuda.kernel_cases import (
    GUARD,
    Case,
    Operand,
    check,
    constant,
    held,
    image,
    result,
)

ADD_RELU = Program(2, (Instruction("Add", (0, 1)), Instruction("Relu", (2,))))
NHWC = (0, 2, 3, 1)
RNG = np.random.default_rng(3)


def _random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def _add_relu(x: Operand, z: Operand, y: Operand) -> Case:
    kernel = map_kernel(ADD_RELU, [x.view, z.broadcast(y.view.shape)], y.view)
    return Case(kernel, [x.flat, z.flat], y, np.maximum(x.values + z.values, 0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_map_broadcasts_over_odd_channels_and_slices(dtype: str) -> None:
    cases = {}
    for channels in (1, 3, 7, 8, 20, 33):
        shape = (2, 3, 5, channels)
        others = {"same": shape, "channel": (1, 1, 1, channels), "pixel": (2, 3, 5, 1)}
        for name, other in others.items():
            x, y = image(_random(*shape), dtype), image(np.full(shape, GUARD), dtype)
            y = result(shape, dtype, pad=(0, 0, 0, -channels % 8))
            cases[f"{name}{channels}"] = _add_relu(x, held(_random(*other), "float32"), y)
    cases["slice"] = _add_relu(
        held(_random(1, 3, 5, 13), dtype, before=(0, 1, 0, 3), pad=(0, 0, 1, 2)),
        held(_random(1, 3, 5, 13), dtype),
        result((1, 3, 5, 13), dtype, before=(0, 0, 0, 8), pad=(0, 0, 0, 3)),
    )
    planes = held(_random(1, 3, 5, 13), dtype, order=(0, 3, 1, 2))
    cases["planes"] = _add_relu(
        image(_random(1, 3, 5, 13), dtype), planes, result((1, 3, 5, 13), dtype)
    )
    cases["scalar"] = _add_relu(
        held(_random(3, 7), dtype), held(_random(1, 1), dtype), result((3, 7), dtype)
    )
    cases["rank0"] = _add_relu(held(_random(), dtype), held(_random(), dtype), result((), dtype))
    cases["many_blocks"] = _add_relu(
        held(_random(5001), dtype), held(_random(1), dtype), result((5001,), dtype)
    )
    check(cases)


def test_map_in_place() -> None:
    x, z = held(_random(3, 37)), held(_random(3, 37))
    with in_place(0, 2):
        kernel = map_kernel(ADD_RELU, [x.view, z.view], x.view)
    expected = np.maximum(x.values + z.values, 0)
    compiled({"k": kernel}).run("k", kernel, [x.flat, z.flat, x.flat])
    assert np.abs(x.values - expected).max() < 4e-3


def _copied(x: Operand, y: Operand) -> Case:
    expected = x.values if y.view.dtype.startswith(("float", "bfloat")) else x.window
    return Case(copy(x.view, y.view), [x.flat], y, np.broadcast_to(expected, y.view.shape))


def test_copies_change_layout_and_number_format() -> None:
    cases = {}
    for name, shape in {
        "photo": (2, 3, 9, 11),
        "lone": (1, 1, 5, 7),
        "squares": (2, 37, 5, 9),
        "one_square": (1, 9, 3, 11),
        "flat": (2, 40, 1, 1),
    }.items():
        planes = held(_random(*shape), "float32")
        padded = (0, -shape[1] % 8, 0, 0)
        half = held(_random(*shape), "float16", order=NHWC, pad=padded)
        cases[f"{name}_in"] = _copied(planes, result(shape, order=NHWC, pad=padded))
        cases[f"{name}_bf16"] = _copied(planes, result(shape, "bfloat16", order=NHWC, pad=padded))
        cases[f"{name}_out"] = _copied(half, result(shape, "float32"))
        cases[f"{name}_same"] = _copied(half, result(shape, order=NHWC, before=(0, 3, 0, 1)))
        cases[f"{name}_planes"] = _copied(half, result(shape))
    check(cases)


def test_copies_of_slices_reversals_repeats_and_integers() -> None:
    x = held(_random(2, 5, 7, 24), pad=(0, 0, 0, 8))
    part = Operand(x.flat, x.view.slice(3, 4, 12))
    flipped = Operand(x.flat, x.view.slice(2, 6, 7, -1))
    thinned = Operand(x.flat, x.view.slice(1, 0, 3, 2).slice(2, 1, 3, 2))
    row = held(_random(1, 1, 7, 1), "float32")
    cases = {
        "slice": _copied(part, result((2, 5, 7, 12), before=(0, 0, 0, 6))),
        "flip": _copied(flipped, result((2, 5, 7, 24))),
        "thin": _copied(thinned, result((2, 3, 3, 24), "float32")),
        "repeat": _copied(
            Operand(row.flat, row.broadcast((2, 3, 7, 5))), result((2, 3, 7, 5), "float32")
        ),
    }
    for dtype in ("int64", "int32", "uint8"):
        numbers = held(RNG.integers(0, 70, (3, 9, 11)), dtype)
        cases[f"{dtype}_run"] = _copied(numbers, result((3, 9, 11), dtype, pad=(0, 0, 1)))
        cases[f"{dtype}_moved"] = _copied(numbers, result((3, 9, 11), dtype, order=(0, 2, 1)))
    check(cases)


def test_pixels_padded_with_channels_of_zeros() -> None:
    cases = {}
    for channels in (1, 3):
        x = held(_random(2, 5, 7, channels), "float32", order=(0, 3, 1, 2))
        y = result((2, 5, 7, 4), pad=(0, 0, 1, 0))
        expected = np.pad(x.values, ((0, 0), (0, 0), (0, 0), (0, 4 - channels)))
        cases[str(channels)] = Case(pad_channels(x.view, y.view), [x.flat], y, expected)
    check(cases)


def test_fill() -> None:
    y = result((2, 3, 5), before=(0, 1, 1), pad=(0, 0, 2))
    n = result((7,), "int64")
    check(
        {
            "half": Case(fill(y.view, 2.5), [], y, np.full((2, 3, 5), 2.5)),
            "long": Case(fill(n.view, 3), [], n, np.full(7, 3)),
        }
    )


def _resized(mode: str, x: Operand, y: Operand, **options: str) -> Case:
    tables = [
        axis_table(mode, i, o, o / i, **options)  # type: ignore[arg-type]
        for i, o in zip(x.view.shape[1:3], y.view.shape[1:3], strict=True)
    ]
    indices, weights = pack(*tables)
    rows, columns = tables
    taken = x.values[:, rows.indices][:, :, :, columns.indices]  # n, h, i, w, j, c
    expected = np.einsum("nhiwjc,hi,wj->nhwc", taken, rows.weights, columns.weights)
    inputs = [x.flat, constant(indices, "int32"), constant(weights)]
    return Case(resize(mode, x.view, y.view), inputs, y, expected)


def test_resize() -> None:
    cases = {}
    for channels in (3, 16):
        x = image(_random(2, 5, 7, channels))
        for mode in ("nearest", "linear", "cubic"):
            y = result((2, 8, 9, channels))
            cases[f"{mode}{channels}"] = _resized(mode, x, y)
        y = result((2, 10, 21, channels))
        expected = x.values.repeat(2, 1).repeat(3, 2)
        cases[f"whole{channels}"] = Case(upsample(x.view, y.view, (2, 3)), [x.flat], y, expected)
    aligned: Sequence[int] = (1, 11, 3, 8)
    cases["corners"] = _resized(
        "linear", image(_random(1, 4, 6, 8)), result(aligned), coordinates="align_corners"
    )
    check(cases)


def test_a_copy_does_not_convert_integers() -> None:
    with pytest.raises(ValueError, match="does not convert int64 to float16"):
        copy(View.dense((3,), "int64"), View.dense((3,), "float16"))
