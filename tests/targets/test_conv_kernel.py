"""Convolution kernels against a float64 NumPy reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.conv import conv, pack_conv
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.tiling import Tile, candidates, choose_tile
from pwopt.targets.windows import Window
from tests.targets.kernel_helpers import aligned, assembly, callables, error, levels, window_of

RELU = Program().then("Relu")
RESIDUAL = Program().then_with_argument("Add").then("Relu")
# Squeeze-and-excitation scale, per-channel offset and a scalar factor.
BROADCASTS = Program().then_with_argument("Mul").then_with_argument("Add").then_with_argument("Mul")


@dataclass(frozen=True)
class Case:
    """One convolution; sizes in elements, ``extra`` names what the epilogue reads."""

    size: tuple[int, int]
    channels: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1
    tile: Tile | None = None
    extra: str = ""
    channels_first: bool = False
    slice_of: int = 0  # channels of the wider buffer that holds the output
    pads: tuple[int, int] | None = None

    def window(self) -> Window:
        same = tuple(d * (k - 1) // 2 for k, d in zip(self.kernel, self.dilations, strict=True))
        pads = self.pads if self.pads is not None else (same[0], same[1])
        return Window(self.kernel, self.strides, self.dilations, pads)


CASES = {
    "pointwise": Case((7, 7), (8, 24)),
    "one_pixel": Case((1, 1), (31, 33)),
    "one_channel": Case((13, 17), (1, 1), (3, 3)),
    "odd_panels": Case((17, 17), (16, 80), tile=Tile(6, 4, "channels", 16)),
    "streamed": Case((7, 7), (32, 100), tile=Tile(7, 3, "channels", 16, stream=True)),
    "pointwise_strided": Case((13, 13), (24, 40), strides=(2, 2), batch=2),
    "rows_in_a_tile": Case((7, 7), (16, 33), (3, 3), tile=Tile(14, 2, "pixels")),
    "batch": Case((17, 31), (5, 33), (3, 3), (2, 2), batch=3),
    "dilated": Case((13, 13), (7, 17), (3, 3), dilations=(2, 3)),
    "rectangular": Case((17, 9), (6, 20), (1, 7)),
    "rectangular_down": Case((17, 9), (6, 20), (7, 1), strides=(2, 1)),
    "no_padding": Case((13, 11), (3, 32), (5, 5), pads=(0, 0)),
    "grouped": Case((9, 9), (12, 20), (3, 3), groups=4),
    "grouped_wide": Case((7, 7), (32, 96), (3, 3), groups=2, strides=(2, 2)),
    "multiplier": Case((9, 9), (6, 18), (3, 3), groups=6),
    "stem": Case((31, 33), (3, 24), (7, 7), (2, 2), channels_first=True, batch=2),
    "stem_gray": Case((13, 13), (1, 33), (5, 5), channels_first=True),
    "slice": Case((7, 13), (16, 24), (3, 3), slice_of=70),
    "residual": Case((13, 7), (9, 40), (3, 3), extra="residual", batch=2),
    "in_place": Case((13, 7), (9, 40), extra="in_place", tile=Tile(7, 2, "pixels")),
    "broadcasts": Case((7, 7), (9, 40), (3, 3), extra="broadcasts", batch=2),
}


def output_size(case: Case) -> tuple[int, int]:
    """Of a window that is padded alike on both sides."""
    sizes = []
    for d in range(2):
        w = case.window()
        span = w.dilations[d] * (w.kernel[d] - 1)
        sizes.append((case.size[d] + 2 * w.pads[d] - span - 1) // w.strides[d] + 1)
    return sizes[0], sizes[1]


def reference(x: np.ndarray, w: np.ndarray, b: np.ndarray, case: Case) -> np.ndarray:
    """Sum over the taps of x (N, H, W, C), already padded, in float64."""
    height, width = output_size(case)
    x, w = x.astype(np.float64), w.astype(np.float64)
    out, depth = w.shape[0] // case.groups, w.shape[1]
    y = np.zeros((x.shape[0], height, width, w.shape[0]))
    for i in range(case.kernel[0]):
        for j in range(case.kernel[1]):
            rows = i * case.dilations[0] + case.strides[0] * np.arange(height)
            columns = j * case.dilations[1] + case.strides[1] * np.arange(width)
            taken = x[:, rows][:, :, columns]
            for g in range(case.groups):
                part = taken[..., g * depth : (g + 1) * depth]
                mine = slice(g * out, (g + 1) * out)
                y[..., mine] += part @ w[mine, :, i, j].T
    return np.asarray(y + b)


class Problem:
    """Operands of a case, the kernel for them and the expected output."""

    def __init__(self, case: Case, processor: Hardware, threads: int) -> None:
        rng = np.random.default_rng(7)

        def random(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        window, (height, width) = case.window(), output_size(case)
        top, left = window.pads
        padded = (case.batch, case.size[0] + 2 * top, case.size[1] + 2 * left, case.channels[0])
        image = np.zeros(padded, np.float32)
        inside = (slice(None), slice(top, top + case.size[0]), slice(left, left + case.size[1]))
        image[inside] = random(case.batch, *case.size, case.channels[0])
        memory, strides = image, View.dense(padded).strides
        if case.channels_first:
            memory = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
            n, c, h, w = View.dense(memory.shape).strides
            strides = (n, h, w, c)
        x = View(
            (case.batch, *case.size, case.channels[0]),
            strides,
            top * strides[1] + left * strides[2],
        )
        shape = (case.batch, height, width, case.channels[1])
        wide = case.slice_of or shape[3]
        y = View(shape, View.dense((*shape[:3], wide)).strides, 16 if case.slice_of else 0)
        weight = random(case.channels[1], case.channels[0] // case.groups, *case.kernel)
        bias = random(case.channels[1])
        buffer = random(*shape[:3], wide)
        self.before = buffer.copy()
        want = reference(image, weight, bias, case)
        dense, count = View.dense(shape), shape[3]
        extras: list[tuple[View, np.ndarray]] = []
        program = RELU
        if case.extra in ("residual", "in_place"):
            program = RESIDUAL
            extras = [(dense, buffer if case.extra == "in_place" else random(*shape))]
            want = want + extras[0][1]
        elif case.extra == "broadcasts":
            program = BROADCASTS
            scale, shift, factor = random(case.batch, count), random(count), random(1)
            extras = [
                (View(shape, (count, 0, 0, 1)), scale),
                (View(shape, (0, 0, 0, 1)), shift),
                (View(shape, (0, 0, 0, 0)), factor),
            ]
            want = (want * scale[:, None, None] + shift) * factor
        self.want = want if case.extra == "broadcasts" else np.maximum(want, 0)
        views = tuple(view for view, _ in extras)
        geometry = Geometry(x, y, views, window, case.groups, processor.lanes)
        tile = case.tile or choose_tile(geometry, processor)
        limit = (processor.registers - 1) // (tile.nrv + 1)
        tile = replace(tile, mr=min(tile.mr, limit))
        self.kernel = conv(x, y, window, case.groups, program, views, processor, tile, threads)
        packed, packed_bias = pack_conv(weight, bias, case.groups, tile, processor.lanes)
        self.y, self.output = y, aligned(buffer)
        shared = case.extra == "in_place"
        read = [self.output if shared else aligned(array) for _, array in extras]
        self.arrays = [aligned(memory), aligned(packed), aligned(packed_bias), *read, self.output]

    def check(self) -> None:
        assert error(window_of(self.output, self.y), self.want) <= 1e-5
        untouched = np.ones(self.output.size, bool)
        window_of(untouched, self.y)[:] = False
        assert (self.output[untouched] == self.before.reshape(-1)[untouched]).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
def test_cases(processor: Hardware, threads: int) -> None:
    problems = {name: Problem(case, processor, threads) for name, case in CASES.items()}
    run = callables({n: p.kernel for n, p in problems.items()}, processor, threads)
    for name, problem in problems.items():
        run[name](*problem.arrays)
        try:
            problem.check()
        except AssertionError as failure:
            raise AssertionError(f"case {name}") from failure


def test_every_candidate_is_correct() -> None:
    processor = levels()[0]
    case = CASES["slice"]
    view = View.dense((1, 7, 13, 24))
    geometry = Geometry(view, view, (), case.window(), 1, processor.lanes)
    tiles = list(candidates(geometry, processor))[::9]
    problems = [Problem(replace(case, tile=t), processor, 1) for t in tiles]
    run = callables({f"k{i}": p.kernel for i, p in enumerate(problems)}, processor)
    for i, problem in enumerate(problems):
        run[f"k{i}"](*problem.arrays)
        problem.check()


def test_tiles_fit_the_registers_without_conflicts() -> None:
    for processor in (hardware.AVX512, hardware.AVX2, hardware.NEON):
        view = View.dense((1, 14, 14, 1024))
        geometry = Geometry(view, view, (), Window(), 1, processor.lanes)
        tile = choose_tile(geometry, processor)
        assert tile.mr * tile.nrv + tile.nrv + 1 <= processor.registers
        assert tile.mr <= processor.l1_bytes // 4096 - 1  # pixels are 4096 bytes apart


def test_neon_assembly_is_vectorized() -> None:
    text = assembly({"k": Problem(CASES["pointwise"], hardware.NEON, 1).kernel}, hardware.NEON)
    assert text.count("fmla\tv") > 8


def test_rejects_scattered_output_channels() -> None:
    view = View.dense((1, 4, 4, 8))
    scattered = replace(view, strides=(128, 4, 1, 16))
    with pytest.raises(ValueError, match="contiguous"):
        conv(view, scattered, Window(), 1, RELU, (), hardware.AVX2, Tile(4, 1))
