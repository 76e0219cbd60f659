"""Winograd kernels against a float64 NumPy reference."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.winograd import pack_winograd, winograd
from pwopt.targets.cpu.kernels.winograd_tiling import (
    WinogradTile,
    choose_winograd,
    choose_winograd_tile,
    planes,
    workspace_bytes,
)
from pwopt.targets.cpu.kernels.winograd_transforms import transform_filter, transforms_safely
from pwopt.targets.windows import Window
from tests.targets.kernel_cases import GUARD, RUNNABLE, Layout, isa, place, relative_error, result
from tests.targets.kernel_helpers import aligned, assembly, callables, window_of

RELU = Program().then("Relu")
RESIDUAL = Program().then_with_argument("Add").then("Relu")
BROADCASTS = Program().then_with_argument("Mul").then_with_argument("Add").then_with_argument("Mul")


@dataclass(frozen=True)
class Case:
    """One convolution: output size, channels, and what is special about it.

    Attributes:
        pads: of the input, (top, left, bottom, right).
        extra: what the epilogue reads.
        before, after: channels beside the output's in its buffer, and beside the input's.
        tile: None for the chosen one.
    """

    size: tuple[int, int]
    channels: tuple[int, int]
    batch: int = 1
    groups: int = 1
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    extra: str = ""
    before: int = 0
    after: int = 0
    tile: WinogradTile | None = None


CASES = {
    "even": Case((8, 8), (16, 32)),
    "one_tile": Case((4, 4), (16, 16)),
    "overlap": Case((7, 13), (17, 33), batch=2),
    "few_channels": Case((5, 6), (1, 3)),
    "narrow": Case((14, 9), (24, 40)),
    "no_padding": Case((6, 11), (20, 16), pads=(0, 0, 0, 0)),
    "uneven_padding": Case((9, 10), (8, 17), pads=(0, 2, 1, 0)),
    "batch": Case((4, 5), (40, 48), batch=5),
    "grouped": Case((7, 9), (36, 40), groups=2, extra="residual"),
    "slices": Case((10, 7), (24, 20), before=5, after=9),
    "residual": Case((7, 7), (9, 40), batch=2, extra="residual"),
    "in_place": Case((7, 10), (16, 24), extra="in_place", before=3),
    "broadcasts": Case((6, 7), (9, 40), batch=2, extra="broadcasts"),
    "blocks": Case((18, 17), (16, 40), tile=WinogradTile(2, 3, 2, 2, 16)),
    "uneven_blocks": Case((11, 13), (33, 24), batch=2, tile=WinogradTile(2, 5, 1, 1)),
    "shared": Case((13, 11), (16, 70), tile=WinogradTile(2, 4, 2, 2, 16, shared=True)),
    "shared_overlap": Case(
        (15, 9), (20, 33), extra="in_place", tile=WinogradTile(2, 3, 1, 3, shared=True)
    ),
}


class Problem:
    """Operands of a case, the kernel for them and the expected output."""

    def __init__(self, case: Case, kernel: int, m: int, processor: Hardware, threads: int) -> None:
        rng = np.random.default_rng(11)

        def random(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        pads = tuple(p * (kernel // 2) for p in case.pads)
        top, left, bottom, right = pads
        height, width = case.size
        inside = (height + kernel - 1 - top - bottom, width + kernel - 1 - left - right)
        padded = np.zeros((case.batch, *(s + kernel - 1 for s in case.size), case.channels[0]))
        padded[:, top : top + inside[0], left : left + inside[1]] = random(
            case.batch, *inside, case.channels[0]
        )
        # Beside the channels and around the zero border lies NaN.
        image = place(
            padded.astype(np.float32),
            Layout(before=(0, 1, 1, case.after), after=(1, 1, 1, case.after)),
        )
        strides = image.view.strides
        x = View(
            (case.batch, *inside, case.channels[0]),
            strides,
            image.view.offset + top * strides[1] + left * strides[2],
        )
        shape = (case.batch, *case.size, case.channels[1])
        beside = Layout(before=(0, 1, 0, case.before), after=(0, 0, 1, case.before))
        self.y = result(shape, beside)
        weight = random(case.channels[1], case.channels[0] // case.groups, kernel, kernel)
        bias = random(case.channels[1])
        want = _reference(padded, weight, case.size, case.groups) + bias
        program, views, arrays = RELU, [], []
        if case.extra == "residual":
            residual = place(random(*shape), Layout(after=(0, 0, 0, 4)))
            program, views, arrays = RESIDUAL, [residual.view], [residual.flat]
            want = want + window_of(residual.flat, residual.view)
        elif case.extra == "in_place":
            window_of(self.y.flat, self.y.view)[...] = random(*shape)
            program, views, arrays = RESIDUAL, [self.y.view], [self.y.flat]
            want = want + window_of(self.y.flat, self.y.view)
        elif case.extra == "broadcasts":
            count = shape[3]
            scale, shift, factor = random(case.batch, count), random(count), random(1)
            strided = ((count, 0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 0))
            program, views = BROADCASTS, [View(shape, s) for s in strided]
            arrays = [aligned(a) for a in (scale, shift, factor)]
            want = (want * scale[:, None, None] + shift) * factor
        self.want = want if case.extra == "broadcasts" else np.maximum(want, 0)
        window = Window((kernel, kernel), pads=(top, left))
        geometry = Geometry(x, self.y.view, tuple(views), window, case.groups, processor.lanes)
        tile = case.tile or choose_winograd_tile(geometry, m, processor, threads)
        tile = replace(tile, m=m)
        self.kernel = winograd(
            x, self.y.view, window, case.groups, program, tuple(views), processor, tile, threads
        )
        packed = pack_winograd(weight, bias, case.groups, tile, processor.lanes)
        used = workspace_bytes(geometry, tile, threads) // 4
        space = np.full(used + 64, GUARD, np.float32)
        space[:used] = np.nan
        self.behind = used
        self.space = aligned(space)
        self.arrays = [
            image.flat, *(aligned(p) for p in packed), *arrays, self.space, self.y.flat
        ]  # fmt: skip

    def check(self) -> None:
        found = window_of(self.y.flat, self.y.view)
        assert np.isfinite(found).all()
        assert relative_error(found, self.want) <= 1e-5
        found[...] = GUARD
        assert (self.y.flat == GUARD).all(), "stores outside the result"
        assert (self.space[self.behind :] == GUARD).all(), "stores behind the workspace"


def _reference(x: np.ndarray, w: np.ndarray, size: tuple[int, int], groups: int) -> np.ndarray:
    """Sum over the taps of x (N, H, W, C), already padded, in float64."""
    height, width = size
    out, depth = w.shape[0] // groups, w.shape[1]
    y = np.zeros((x.shape[0], height, width, w.shape[0]))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            for g in range(groups):
                part = x[:, i : i + height, j : j + width, g * depth : (g + 1) * depth]
                mine = slice(g * out, (g + 1) * out)
                y[..., mine] += part @ w[mine, :, i, j].T.astype(np.float64)
    return y


@pytest.mark.parametrize(("kernel", "m", "threads"), [(3, 2, 2), (3, 4, 1), (3, 4, 2), (5, 2, 1)])
@pytest.mark.parametrize("processor", RUNNABLE, ids=isa)
def test_cases(processor: Hardware, kernel: int, m: int, threads: int) -> None:
    problems = {n: Problem(c, kernel, m, processor, threads) for n, c in CASES.items()}
    run = callables({n: p.kernel for n, p in problems.items()}, processor, threads)
    for name, problem in problems.items():
        run[name](*problem.arrays)
        try:
            problem.check()
        except AssertionError as failure:
            raise AssertionError(f"case {name}") from failure


def _geometry(
    channels: tuple[int, int], side: int, processor: Hardware, window: Window, groups: int = 1
) -> Geometry:
    pad = window.pads[0]
    x = View.dense((1, side + 2 * pad, side + 2 * pad, channels[0]))
    y = View.dense((1, side, side, channels[1]))
    return Geometry(x, y, (), window, groups, processor.lanes)


SAME = Window((3, 3), pads=(1, 1))
CHOICES = {
    "many_tiles": ((64, 64), 56, SAME, 1, 4),
    "few_tiles": ((512, 512), 7, SAME, 1, 2),
    "groups": ((128, 128), 28, SAME, 4, 4),
    "one_pixel": ((512, 512), 1, SAME, 1, None),
    "photo": ((3, 64), 224, SAME, 1, None),
    "narrow_groups": ((64, 64), 28, SAME, 32, None),
    "five": ((32, 64), 28, Window((5, 5), pads=(2, 2)), 1, 2),
    "stride": ((64, 64), 28, Window((3, 3), (2, 2), pads=(1, 1)), 1, None),
    "dilation": ((64, 64), 28, Window((3, 3), dilations=(2, 2), pads=(2, 2)), 1, None),
    "seven": ((64, 64), 28, Window((7, 7), pads=(3, 3)), 1, None),
    "rectangular": ((64, 64), 28, Window((1, 3), pads=(0, 1)), 1, None),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choice(name: str) -> None:
    channels, side, window, groups, m = CHOICES[name]
    geometry = _geometry(channels, side, hardware.ZEN4, window, groups)
    tile = choose_winograd(geometry, (2, 4), hardware.ZEN4, streamed=True)
    assert (tile and tile.m) == m


def test_choice_is_limited_to_the_sides_allowed() -> None:
    geometry = _geometry((64, 64), 56, hardware.AVX512, SAME)
    tile = choose_winograd(geometry, (2,), hardware.AVX512)
    assert tile is not None
    assert tile.m == 2


@pytest.mark.parametrize("threads", [1, 4])
def test_tiles_fit_the_registers_and_their_planes_l2(threads: int) -> None:
    for processor in (hardware.AVX512, hardware.AVX2, hardware.NEON):
        for channels, side in (((64, 96), 56), ((256, 256), 28), ((128, 32), 14)):
            geometry = _geometry(channels, side, processor, SAME)
            tile = choose_winograd_tile(geometry, 4, processor, threads)
            assert tile.rows * tile.nrv + tile.nrv + 1 <= processor.registers
            assert tile.tiles <= 16 or workspace_bytes(geometry, tile, 1) <= processor.l2_bytes


def test_threads_that_share_a_block_get_equal_parts() -> None:
    geometry = _geometry((256, 256), 14, hardware.ZEN4, SAME)
    tile = choose_winograd_tile(geometry, 4, hardware.ZEN4, 2)
    assert tile.shared
    parts = planes(geometry, tile).panels
    assert len(parts) == 1
    assert parts[0].count % 2 == 0


def test_weights_that_overflow_are_refused() -> None:
    weight = np.ones((2, 2, 3, 3), np.float32)
    assert transforms_safely(weight)
    for bad in (np.inf, np.nan, 1e30):
        weight[1, 0, 2, 2] = bad
        assert not transforms_safely(weight)


@pytest.mark.parametrize(("size", "m"), [(3, 2), (3, 4), (5, 2)])
def test_identity_kernel_has_exact_weights(size: int, m: int) -> None:
    weight = np.zeros((1, 1, size, size), np.float32)
    weight[0, 0, -1, -1] = 1.0
    transformed = transform_filter(weight, m)[:, :, 0, 0]
    assert transformed[-1, -1] == 1.0  # at infinity only the highest coefficient counts
    assert (transformed[0] == 0).all()  # and at zero only the lowest


def test_error_is_near_that_of_the_direct_convolution() -> None:
    processor = RUNNABLE[0]
    case = Case((16, 16), (256, 32))
    problems = {m: Problem(case, 3, m, processor, 1) for m in (2, 4)}
    run = callables({f"k{m}": p.kernel for m, p in problems.items()}, processor)
    for m, problem in problems.items():
        run[f"k{m}"](*problem.arrays)
        found = window_of(problem.y.flat, problem.y.view)
        assert relative_error(found, problem.want) <= 5e-6  # the customary points: 2e-5


def test_neon_assembly_is_vectorized() -> None:
    problem = Problem(CASES["even"], 3, 4, hardware.NEON, 1)
    text = assembly({"k": problem.kernel}, hardware.NEON)
    assert text.count("fmla\tv") > 100
    assert not re.search(r"\bfmadd\b", text)


def test_rejects_what_it_cannot_walk() -> None:
    view = View.dense((1, 4, 4, 16))
    scattered = replace(view, strides=(256, 4, 1, 16))
    tile = WinogradTile(2, 4, 1, 1)
    for x, y in ((scattered, view), (view, scattered)):
        with pytest.raises(ValueError, match="contiguous"):
            winograd(x, y, SAME, 1, RELU, (), hardware.AVX2, tile)
    small = View.dense((1, 1, 4, 16))
    with pytest.raises(ValueError, match="do not fit"):
        winograd(small, small, SAME, 1, RELU, (), hardware.AVX2, tile)
