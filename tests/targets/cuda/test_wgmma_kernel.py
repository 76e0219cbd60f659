"""Convolutions on warpgroup products: numbers under both timings, faults that must show, SASS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pwopt.ir.program import Program
from pwopt.targets.cuda.arch import ARCHS, GPUS
from pwopt.targets.cuda.codegen import source
from pwopt.targets.cuda.disassembly import disassemble, instructions
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.packing import rounded_to_tf32
from pwopt.targets.cuda.kernels.wgmma import wgmma
from pwopt.targets.cuda.kernels.wgmma_tiling import (
    Shape,
    WgmmaTile,
    choose_wgmma,
    pack_wgmma,
    takes,
)
from pwopt.targets.cuda.toolchain import compile_sources
from pwopt.targets.views import View
from pwopt.targets.windows import Window
from tests.targets.cuda import emulator
from tests.targets.cuda.emulator import EARLY, LATE, TIMINGS, EmulationError

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
TOLERANCES = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-6}  # of the output's scale
GARBAGE = np.nan  # what lies in the channels that pad a pixel


@dataclass(frozen=True)
class Case:
    """A convolution: input (N, H, W, C), output channels and the rest."""

    x: tuple[int, int, int, int]
    outputs: int
    window: Window
    tile: WgmmaTile
    dtype: str = "float16"
    residual: bool = False
    before: int = 0  # channels of the buffer in front of what is written

    @property
    def y(self) -> tuple[int, int, int, int]:
        """Shape of the output, with as much padding at the end as at the beginning."""
        w = self.window
        sizes = (
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(
                self.x[1:3], w.pads, w.dilations, w.kernel, w.strides, strict=True
            )
        )
        return (self.x[0], *sizes, self.outputs)  # type: ignore[return-value]

    @cached_property
    def program(self) -> Program:
        program = Program().then_with_argument("Add") if self.residual else Program()
        return program.then("Relu")

    @cached_property
    def views(self) -> tuple[View, View]:
        x = _padded(self.x, self.dtype)
        return x, _padded(self.y, self.dtype, self.before)

    @property
    def geometry(self) -> Geometry:
        x, y = self.views
        return Geometry(x, y, (y,) if self.residual else (), self.window)

    def kernel(self) -> Kernel:
        return wgmma(self.geometry, self.program, self.tile)

    def data(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The kernel's arrays, the output last, and what should be in it, float64."""
        rng, kind = np.random.default_rng(0), np.dtype(DTYPES[self.dtype])
        (xv, yv), (kh, kw) = self.views, self.window.kernel
        x = rng.standard_normal(self.x).astype(kind)
        w = (rng.standard_normal((self.outputs, self.x[3], kh, kw)) / 8).astype(kind)
        bias = rng.standard_normal(self.outputs).astype(np.float32)
        packed, biases = pack_wgmma(w.astype(np.float32), bias, self.tile.columns, self.dtype)
        arrays = [_laid_down(x, xv), packed, biases]
        if self.dtype == "float32":  # both operands, as mma.sync's kernels have them
            x, w = rounded_to_tf32(x), rounded_to_tf32(w)
        expected = _convolved(x.astype(np.float64), w.astype(np.float64), self.window, self.y)
        expected = expected + bias
        if self.residual:
            residual = rng.standard_normal(self.y).astype(kind)
            arrays.append(_laid_down(residual, yv))
            expected = expected + residual.astype(np.float64)
        expected = np.maximum(expected, 0)
        return [*arrays, np.full(_elements(yv), np.nan, kind)], expected

    def space(self) -> list[np.ndarray]:
        """Workspace and counters of a split reduction."""
        shape = Shape(self.geometry, self.tile)
        if not shape.counters:
            return []
        sums = np.full(shape.workspace_bytes // 4, np.nan, np.float32)
        return [sums, np.zeros(shape.counters, np.int32)]


def _padded(shape: tuple[int, ...], dtype: str, before: int = 0) -> View:
    """A view of an image whose pixels are padded to 16 bytes."""
    lanes = 8 if dtype != "float32" else 4
    pixel = -(-(before + shape[3]) // lanes) * lanes
    strides = (shape[1] * shape[2] * pixel, shape[2] * pixel, pixel, 1)
    return View(shape, strides, before, dtype)


def _elements(view: View) -> int:
    return view.shape[0] * view.strides[0]


def _seen(memory: np.ndarray, view: View) -> np.ndarray:
    strides = tuple(s * memory.itemsize for s in view.strides)
    return np.lib.stride_tricks.as_strided(memory[view.offset :], view.shape, strides)


def _laid_down(array: np.ndarray, view: View) -> np.ndarray:
    memory = np.full(_elements(view), GARBAGE, array.dtype)
    _seen(memory, view)[...] = array
    return memory


def _convolved(x: np.ndarray, w: np.ndarray, window: Window, shape: tuple[int, ...]) -> np.ndarray:
    (top, left), (down, right) = window.pads, window.strides
    x = np.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
    y = np.zeros(shape)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            a, b = i * window.dilations[0], j * window.dilations[1]
            part = x[:, a : a + down * shape[1] : down, b : b + right * shape[2] : right]
            y += part @ w[:, :, i, j].T
    return y


def _square(kernel: int, stride: int = 1, dilation: int = 1, pad: int = 0) -> Window:
    return Window((kernel,) * 2, (stride,) * 2, (dilation,) * 2, (pad,) * 2)


CASES = {
    "pointwise": Case((1, 14, 14, 512), 64, _square(1), WgmmaTile(columns=64), residual=True),
    "odd": Case((1, 7, 7, 117), 115, _square(1), WgmmaTile(columns=64), residual=True),
    "into_slice": Case((1, 7, 7, 64), 40, _square(1), WgmmaTile(64, 48), before=24),
    "images": Case((3, 6, 6, 64), 64, _square(3, pad=1), WgmmaTile(columns=64)),
    "strided": Case((1, 15, 15, 40), 64, _square(3, 2, pad=1), WgmmaTile(64, 64), residual=True),
    "dilated": Case((1, 9, 11, 72), 24, _square(3, 1, 2, 2), WgmmaTile(192, 24)),
    "oblong": Case((1, 5, 13, 16), 32, Window((1, 7), (1, 1), (1, 1), (0, 3)), WgmmaTile(64, 32)),
    "bfloat16": Case((2, 7, 7, 64), 64, _square(3, pad=1), WgmmaTile(columns=64), "bfloat16"),
    "tf32": Case((1, 14, 14, 50), 64, _square(1, 2), WgmmaTile(columns=64), "float32"),
    "wide": Case((256, 1, 1, 384), 256, _square(1), WgmmaTile(128, 256, 3, blocks=1)),
    "persistent": Case((1, 14, 14, 192), 320, _square(1), WgmmaTile(128, 128, 3, blocks=2)),
    "cluster": Case((1, 14, 14, 192), 96, _square(1), WgmmaTile(64, 32, 3, blocks=4, cluster=2)),
    "odd_cluster": Case(
        (1, 9, 9, 64), 64, _square(3, pad=1), WgmmaTile(128, 64, 3, cluster=2), residual=True
    ),
    "parts": Case((1, 7, 7, 320), 48, _square(3, pad=1), WgmmaTile(64, 48, splits=4)),
    "parts_residual": Case(
        (1, 12, 12, 256), 136, _square(1), WgmmaTile(128, 192, 3, 2, blocks=3), residual=True
    ),
    "uneven_parts": Case((1, 4, 4, 448), 32, _square(1), WgmmaTile(64, 32, 3, 3, blocks=2)),
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return {name: case.kernel() for name, case in CASES.items()}


@pytest.fixture(scope="module")
def text(kernels: dict[str, Kernel]) -> str:
    return source(kernels, "sm_90a")


def _error(name: str, kernels: dict[str, Kernel], text: str, timing: int) -> float:
    """Largest error over the output's scale; infinite where nothing was written."""
    (*operands, y), expected = CASES[name].data()
    space = CASES[name].space()
    for _ in range(2 if space else 1):
        y[:] = np.nan
        emulator.build(text).run(name, kernels[name], [*operands, y, *space], timing)
    assert not space or not space[1].any(), "a counter was left"
    result = _seen(y.astype(np.float64), CASES[name].views[1])
    if np.isnan(result).any():
        return math.inf
    return float(np.abs(result - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("name", CASES)
def test_a_convolution_is_that_of_float64(
    name: str, timing: int, kernels: dict[str, Kernel], text: str
) -> None:
    assert _error(name, kernels, text, timing) < TOLERANCES[CASES[name].dtype]


def test_nothing_is_written_beside_the_output(kernels: dict[str, Kernel], text: str) -> None:
    for name in ("odd", "into_slice"):
        arrays, _ = CASES[name].data()
        emulator.build(text).run(name, kernels[name], arrays)
        _seen(arrays[-1], CASES[name].views[1])[...] = np.nan
        assert np.isnan(arrays[-1].astype(np.float32)).all()


def _edited(text: str, kernel: str, old: str, new: str) -> str:
    """The text with every ``old`` in one kernel, or above the kernels, replaced."""
    start = text.index(f" {kernel}(", text.index(f" {kernel}(") + 1) if kernel else 0
    end = text.find('extern "C"', start)
    assert old in text[start:end]
    return text[:start] + text[start:end].replace(old, new) + text[end:]


FAULTS = {
    "a stage freed too early": (
        "wide",
        EARLY,
        "",
        ("wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 3;"),
    ),
    "products before their operands": (
        "persistent",
        LATE,
        "persistent",
        ("tvm_builtin_cuda_mbarrier_wait((&(barriers_ptr[ring_ptr[0]]))", "pw_no_wait(("),
    ),
    "sums read before the last products": (
        "persistent",
        EARLY,
        "",
        ("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"),
    ),
    "copies of too many bytes expected": (
        "pointwise",
        LATE,
        "pointwise",
        ("(uint)24576", "(uint)24592"),
    ),
    "blocks of a cluster that leave early": (
        "odd_cluster",
        EARLY,
        "odd_cluster",
        ("tvm_builtin_cuda_cluster_sync();", ";"),
    ),
    "stages freed in the own block only": (
        "cluster",
        LATE,
        "cluster",
        (", 1);\n", ", 0);\n"),
    ),
    "sums written before all parts have come": (
        "parts",
        EARLY,
        "parts",
        ("pw_meet(1,", "pw_no_wait(1,"),
    ),
    "staged rows read too early": (
        "odd",
        EARLY,
        "odd",
        ("tvm_builtin_cuda_warp_sync();", ";"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_synchronization_is_caught(fault: str, kernels: dict[str, Kernel], text: str) -> None:
    name, timing, where, (old, new) = FAULTS[fault]
    edited = _edited(text, where, old, new)
    edited = edited.replace('extern "C"', '#define pw_no_wait(...) ((void)0)\nextern "C"', 1)
    only = _only(edited, name)
    try:
        wrong = _error(name, kernels, only, timing)
    except EmulationError:
        return
    assert wrong > TOLERANCES[CASES[name].dtype]


def _only(text: str, kernel: str) -> str:
    """The text without the other kernels, which compiles faster."""
    parts = text.split('extern "C" __global__')
    kept = [p for p in parts[1:] if f" {kernel}(" in p]
    return 'extern "C" __global__'.join([parts[0], *kept])


@pytest.fixture(scope="module")
def cubin(text: str) -> Any:
    return compile_sources([text], "sm_90a")[0]


@pytest.mark.parametrize("name", CASES)
def test_machine_code_has_warpgroup_products_and_no_spills(
    name: str, cubin: Any, kernels: dict[str, Kernel]
) -> None:
    usage = cubin.kernels[name]
    assert usage.spill_bytes == usage.stack_bytes == 0
    arch, kernel = ARCHS["sm_90a"], kernels[name]
    shared = usage.shared_bytes + kernel.shared_bytes
    assert arch.blocks(kernel.threads, usage.registers, shared) >= 1
    found = instructions(disassemble(cubin.image)[name])
    assert found["HGMMA"] >= 4
    assert found["UTMALDG"] >= 2
    assert not cubin.warnings  # such as products that ptxas serializes


def test_serialized_products_are_told_of(text: str) -> None:
    wait = "tvm_builtin_ptx_wgmma_wait_group_wait_group_sync_aligned_1();"
    touched = _only(text, "persistent").replace(wait, f"sums_ptr[0] += 1.f; {wait}")
    (cubin,) = compile_sources([touched], "sm_90a")
    assert any("serialized" in line for line in cubin.warnings)


LAYERS = [  # images, side, input and output channels, kernel, stride
    *((1, 56, 64, 64, 3, 1), (1, 56, 64, 256, 1, 1), (1, 56, 256, 128, 1, 2)),
    *((1, 14, 1024, 256, 1, 1), (1, 7, 512, 2048, 1, 1), (32, 7, 512, 512, 3, 1)),
    *(
        (1, 1, 2048, 1000, 1, 1),
        (1, 112, 16, 96, 1, 1),
        (1, 7, 960, 160, 1, 1),
        (1, 5, 24, 9, 1, 1),
    ),
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_chosen_tiles_fit_and_fill_the_gpu(layer: tuple[int, ...], dtype: str) -> None:
    images, side, channels, outputs, kernel, stride = layer
    x = _padded((images, side, side, channels), dtype)
    y = _padded((images, -(-side // stride), -(-side // stride), outputs), dtype)
    window, gpu = _square(kernel, stride, pad=kernel // 2), GPUS["H200"]
    geometry = Geometry(x, y, (), window)
    assert takes(geometry)
    tile = choose_wgmma(geometry, ARCHS["sm_90a"], gpu)
    shape = Shape(geometry, tile)
    assert shape.shared_bytes + 1024 <= ARCHS["sm_90a"].shared_per_block
    # As many blocks as multiprocessors, or no way to cut the work further that would pay.
    assert min(shape.tiles, tile.blocks) >= min(gpu.multiprocessors / 2, shape.steps / 2)
