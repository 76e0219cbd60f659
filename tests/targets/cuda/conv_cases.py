"""Convolutions to run through the emulator: their memory, their reference, what must hold."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from pwopt.errors import CodegenError
from pwopt.ir.program import Instruction, Program
from pwopt.targets.cuda.arch import ARCHS
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.conv import conv
from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.packing import pack_conv, rounded_to_tf32
from pwopt.targets.cuda.kernels.tiling import (
    Tile,
    candidates,
    choose_tile,
    counters,
    workspace_bytes,
)
from pwopt.targets.views import View
from pwopt.targets.windows import Window
from tests.targets.cuda import emulator
from tests.targets.cuda.emulator import Library

# Relative to the output's scale: rounding of the output. The reference rounds to TF32, too.
TOLERANCES = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2e-6}
RELU = Program().then("Relu")
ADD_RELU = Program(2, (Instruction("Add", (0, 1)), Instruction("Relu", (2,))))
GATE = Program(3, (Instruction("Mul", (0, 1)), Instruction("Add", (3, 2))))
SMALL = Tile(64, 64, 2, 2)


def numpy_type(dtype: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@dataclass
class Operand:
    """A flat array and what a view names in it; everything else holds NaN, or 77 in a result."""

    view: View
    flat: np.ndarray

    @property
    def window(self) -> np.ndarray:
        """The elements that the view names."""
        size = self.flat.itemsize
        return np.lib.stride_tricks.as_strided(
            self.flat[self.view.offset :],
            self.view.shape,
            tuple(s * size for s in self.view.strides),
        )

    def untouched(self, value: float) -> bool:
        """Whether what the view does not name still holds a value."""
        named = np.zeros(len(self.flat), bool)
        Operand(self.view, named).window[:] = True
        return bool((self.flat[~named].astype(np.float32) == value).all())


def image(
    shape: tuple[int, int, int, int],
    dtype: str,
    pixel: int = 0,
    offset: int = 0,
    fill: float = np.nan,
    strides: tuple[int, int, int, int] | None = None,
) -> Operand:
    """Room for an image (N, H, W, C) whose pixels are ``pixel`` elements apart (0: padded)."""
    _, h, w, c = shape
    kind = numpy_type(dtype)
    chunk = 16 // kind.itemsize
    pixel = pixel or -(-c // chunk) * chunk
    strides = strides or (h * w * pixel, w * pixel, pixel, 1)
    size = offset + sum((e - 1) * s for e, s in zip(shape, strides, strict=True)) + 1
    raw = np.full(size + 2 * chunk + 64, fill, kind)
    start = -raw.ctypes.data % 64 // kind.itemsize
    return Operand(View(shape, strides, offset, dtype), raw[start : start + size + 2 * chunk])


@dataclass(frozen=True)
class Case:
    """A convolution; sizes as (N, H, W) and channels in and out."""

    size: tuple[int, int, int]
    channels: tuple[int, int]
    window: Window = Window()  # noqa: RUF009 - frozen
    dtype: str = "float16"
    groups: int = 1
    program: Program = RELU
    out_dtype: str = ""
    ends: tuple[int, int] = (0, 0)  # padding below and right
    tile: Tile = SMALL
    pixel: int = 0  # of the input
    offset: int = 0  # of the input
    out_pixel: int = 0
    out_offset: int = 0
    nchw: bool = False  # the output
    extras: tuple[str, ...] = field(default=())  # "full", "channel", "image", "scalar"

    def out_size(self) -> tuple[int, int]:
        sizes = []
        for axis in range(2):
            reach = self.window.dilations[axis] * (self.window.kernel[axis] - 1)
            space = self.size[1 + axis] + self.window.pads[axis] + self.ends[axis] - reach - 1
            sizes.append(space // self.window.strides[axis] + 1)
        return sizes[0], sizes[1]


@dataclass
class Problem:
    """A case with memory and values."""

    case: Case
    x: Operand
    y: Operand
    extras: list[Operand]
    weight: np.ndarray
    bias: np.ndarray
    geometry: Geometry

    def kernel(self) -> Kernel:
        return conv(self.geometry, self.case.program, self.case.tile)

    def run(self, library: Library, name: str, kernel: Kernel, timing: int) -> np.ndarray:
        """The output; asserts that nothing else was written, twice where there are counters."""
        tile = self.case.tile
        packed, bias = pack_conv(self.weight, self.bias, self.geometry, tile)
        split: list[Any] = []
        if tile.split > 1:
            workspace = np.full(workspace_bytes(self.geometry, tile) // 4, np.nan, np.float32)
            split = [_aligned(workspace), np.zeros(counters(self.geometry, tile), np.int32)]
        arrays = [self.x.flat, _aligned(packed), _aligned(bias), *(e.flat for e in self.extras)]
        for _ in range(2 if split else 1):
            self.y.flat[:] = 77
            library.run(name, kernel, [*arrays, self.y.flat, *split], timing)
        assert self.y.untouched(77), "written outside of the output"
        if split:
            assert not split[1].any(), "a counter was left"
        return self.y.window.astype(np.float64)

    def reference(self) -> np.ndarray:
        window, case = self.case.window, self.case
        x, weights = self.x.window, self.weight
        if case.dtype == "float32" and case.tile.tensor_cores:
            x, weights = rounded_to_tf32(x), rounded_to_tf32(weights)
        x = x.astype(np.float64)
        pads = [(0, 0), *zip(window.pads, np.add(case.ends, 64), strict=True), (0, 0)]
        x = np.pad(x, pads)
        height, width = case.out_size()
        groups, inputs = case.groups, case.channels[0] // case.groups
        outputs = case.channels[1] // groups
        y = np.zeros((case.size[0], height, width, groups, outputs))
        for kh in range(window.kernel[0]):
            for kw in range(window.kernel[1]):
                top, left = kh * window.dilations[0], kw * window.dilations[1]
                rows = slice(top, top + height * window.strides[0], window.strides[0])
                columns = slice(left, left + width * window.strides[1], window.strides[1])
                patch = x[:, rows, columns].reshape(*y.shape[:3], groups, inputs)
                weight = weights[:, :, kh, kw].reshape(groups, outputs, inputs)
                y += np.einsum("nhwgi,goi->nhwgo", patch, weight.astype(np.float64))
        y = y.reshape(*y.shape[:3], -1) + self.bias
        extras = [e.window.astype(np.float64) for e in self.extras]
        return _evaluate(case.program, [y, *extras])


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


def _evaluate(program: Program, registers: list[np.ndarray]) -> np.ndarray:
    functions: dict[str, Any] = {
        "Relu": lambda x: np.maximum(x, 0),
        "Add": np.add,
        "Mul": np.multiply,
    }
    for step in program.instructions:
        registers.append(functions[step.op](*(registers[a] for a in step.args)))
    return registers[program.result]


def problem(case: Case, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    n, h, w = case.size
    channels, outputs = case.channels
    x = image((n, h, w, channels), case.dtype, case.pixel, case.offset)
    x.window[:] = rng.standard_normal((n, h, w, channels))
    shape = (n, *case.out_size(), outputs)
    out_dtype = case.out_dtype or case.dtype
    strides = None
    if case.nchw:
        area = shape[1] * shape[2]
        strides = (outputs * area, shape[2], 1, area)
    y = image(shape, out_dtype, case.out_pixel, case.out_offset, 77, strides)
    extras = []
    for kind in case.extras:
        extra = image(shape, case.dtype)
        if kind != "full":
            kept = {"channel": (0, 0, 0, 1), "image": (1, 0, 0, 1), "scalar": (0, 0, 0, 0)}[kind]
            own = tuple(e if k else 1 for e, k in zip(shape, kept, strict=True))
            extra = image(own, case.dtype)  # type: ignore[arg-type]
            view = extra.view.broadcast(shape)
            extra.window[:] = rng.standard_normal(own)
            extra = Operand(view, extra.flat)
        else:
            extra.window[:] = rng.standard_normal(shape)
        extras.append(extra)
    inputs = channels // case.groups
    weight = rng.standard_normal((outputs, inputs, *case.window.kernel)) / np.sqrt(
        inputs * np.prod(case.window.kernel)
    )
    weight = weight.astype(numpy_type(case.dtype)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    geometry = Geometry(x.view, y.view, tuple(e.view for e in extras), case.window, case.groups)
    return Problem(case, x, y, extras, weight, bias, geometry)


def check(problems: dict[str, Problem]) -> None:
    """Runs all cases under both timings; they must agree to the bit, and with the reference."""
    kernels = {name: p.kernel() for name, p in problems.items()}
    library = emulator.compiled(kernels)
    for name, p in problems.items():
        late, early = (p.run(library, name, kernels[name], t) for t in emulator.TIMINGS)
        assert np.array_equal(late, early), f"{name}: depends on timing"
        expected = p.reference()
        error = float(np.abs(late - expected).max() / np.abs(expected).max())
        assert error <= TOLERANCES[p.case.dtype], f"{name}: error {error:.1e}"


def random_case(rng: random.Random) -> Case | None:
    """Anything that the kernels take, or None where the dice gave no convolution of that kind."""
    dtype = rng.choice(("float16", "float16", "bfloat16", "float32"))
    cores = dtype != "float32" or rng.random() < 0.5
    kernels = ((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (1, 7), (7, 1), (2, 2), (3, 1))
    kernel = rng.choice(kernels)
    window = Window(
        kernel,
        rng.choice(((1, 1), (1, 1), (2, 2), (1, 2), (3, 3))),
        rng.choice(((1, 1), (1, 1), (1, 1), (2, 2), (1, 3))),
        (rng.randrange(kernel[0]), rng.randrange(kernel[1])),
    )
    groups = rng.choice((1, 1, 1, 1, 2, 3, 4, 8))
    inputs = groups * rng.choice((1, 3, 4, 5, 8, 10, 12, 16, 24, 40, 64))
    outputs = groups * rng.choice((1, 2, 3, 7, 8, 12, 16, 33, 40, 72))
    chunk = 16 // numpy_type(dtype).itemsize
    pixel, offset, out_pixel, out_offset = 0, 0, 0, 0
    if rng.random() < 0.3:
        pixel = -(-inputs // chunk) * chunk + rng.choice((0, chunk // 2, chunk, 2 * chunk))
        offset = rng.choice((0, chunk // 2, chunk))
    elif inputs in (1, 2, 4):
        pixel = inputs
    if rng.random() < 0.3:
        out_pixel, out_offset = outputs + rng.randrange(10), rng.randrange(10)
    extras = rng.choice(((), (), ("full",), ("image", "channel"), ("scalar", "full")))
    case = Case(
        size=(rng.choice((1, 1, 2, 3)), rng.randint(1, 14), rng.randint(1, 14)),
        channels=(inputs, outputs),
        window=window,
        dtype=dtype,
        groups=groups,
        program=(RELU, ADD_RELU, GATE)[len(extras)],
        out_dtype=rng.choice(("", "", "float32")),
        ends=(rng.randrange(kernel[0]), rng.randrange(kernel[1])),
        pixel=pixel,
        offset=offset,
        out_pixel=out_pixel,
        out_offset=out_offset,
        nchw=rng.random() < 0.15,
        extras=extras,
    )
    if min(case.out_size()) < 1:
        return None
    try:
        geometry = problem(case).geometry
    except CodegenError:  # not aligned to 4 bytes
        return None
    arch = ARCHS[rng.choice(tuple(ARCHS))]
    tiles = list(candidates(geometry, arch, tensor_cores=cores))
    chosen = choose_tile(geometry, arch, tensor_cores=cores)
    return replace(case, tile=rng.choice((chosen, rng.choice(tiles))))
