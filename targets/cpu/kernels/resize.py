"""Resize: nearest, linear and cubic, over height and width, channels last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import Expr, Memory, View, broadcast, kernel, let, loop
from pwopt.targets.cpu.kernels.copy import copy
from pwopt.targets.cpu.kernels.loops import nest, threads_for

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}


@dataclass(frozen=True)
class AxisTable:
    """Where each output position of an axis reads: (outputs, taps) indices and weights."""

    indices: NDArray[np.int32]
    weights: NDArray[np.float32]


def axis_table(
    mode: str,
    size: int,
    outputs: int,
    scale: float,
    *,
    coordinates: str = "half_pixel",
    nearest: str = "round_prefer_floor",
    cubic_a: float = -0.75,
    exclude_outside: bool = False,
    region: tuple[float, float] = (0.0, 1.0),
) -> AxisTable:
    """The samples of one axis as ONNX Resize (opset 19) defines them.

    Coordinates are float32 as in ONNX Runtime: where one falls between two elements, which of
    them is nearest hangs on the rounding.

    Args:
        mode: "nearest", "linear" or "cubic".
        size: elements of the input.
        outputs: elements of the output.
        scale: outputs / size as the model states it.
        coordinates: coordinate_transformation_mode, or "tf_half_pixel_for_nn" of opset 11.
        nearest: nearest_mode.
        cubic_a: cubic_coeff_a.
        exclude_outside: cubic taps outside the input weigh nothing.
        region: start and end of the roi, for "tf_crop_and_resize".

    Raises:
        ValueError: an unknown mode, or a region that leaves the input.
        KeyError: an unknown nearest_mode.
    """
    positions = np.arange(outputs, dtype=np.float32)
    at = _coordinates(coordinates, positions, size, outputs, np.float32(scale), region)
    taps: NDArray[np.float32]
    weights: NDArray[np.float32]
    if mode == "nearest":
        taps = _ROUNDING[nearest](at)[:, None]
        weights = np.ones((outputs, 1), np.float32)
    elif mode == "linear":
        low = np.floor(at)
        taps = np.stack([low, low + 1], axis=1)
        weights = np.stack([1 - (at - low), at - low], axis=1)
    elif mode == "cubic":
        low = np.floor(at)
        taps = low[:, None] + np.arange(-1, 3, dtype=np.float32)
        weights = _cubic(np.abs(at[:, None] - taps), cubic_a)
        if exclude_outside:
            weights = weights * ((taps >= 0) & (taps < size))
            weights /= weights.sum(axis=1, keepdims=True)
    else:
        raise ValueError(f"resize mode {mode}")
    indices = np.clip(taps, 0, size - 1).astype(np.int32)
    return AxisTable(indices, weights.astype(np.float32))


def _coordinates(
    kind: str,
    x: NDArray[np.float32],
    size: int,
    outputs: int,
    scale: np.float32,
    region: tuple[float, float],
) -> NDArray[np.float32]:
    half = np.float32(0.5)
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and outputs > 1):
        return (x + half) / scale - half
    if kind == "pytorch_half_pixel":
        return np.zeros_like(x)
    if kind == "half_pixel_symmetric":
        offset = np.float32(size / 2) * (1 - np.float32(outputs) / (scale * np.float32(size)))
        return offset + (x + half) / scale - half
    if kind == "align_corners":
        steps = np.float32(max(1, outputs - 1))
        return x * np.float32(size - 1) / steps
    if kind == "asymmetric":
        return x / scale
    if kind == "tf_half_pixel_for_nn":
        return (x + half) / scale
    if kind == "tf_crop_and_resize":
        start, end = region
        if outputs > 1:
            step = np.float32((end - start) * (size - 1) / (outputs - 1))
            at = np.float32(start * (size - 1)) + x * step
        else:
            at = np.full_like(x, 0.5 * (start + end) * (size - 1))
        if at.min() < 0 or at.max() > size - 1:
            raise ValueError(f"resize region {region} leaves the input: extrapolation is missing")
        return at
    raise ValueError(f"coordinate_transformation_mode {kind}")


_ROUNDING: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
    "floor": lambda at: np.floor(at),
    "ceil": lambda at: np.ceil(at),
}


def _cubic(distance: NDArray[np.float32], a: float) -> NDArray[np.float32]:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def pack(rows: AxisTable, columns: AxisTable) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The constant operands of :func:`resize`: rows' entries, then columns'."""
    return (
        np.concatenate([rows.indices.reshape(-1), columns.indices.reshape(-1)]),
        np.concatenate([rows.weights.reshape(-1), columns.weights.reshape(-1)]),
    )


def resize(mode: str, x: View, y: View, hardware: Hardware, threads: int = 1) -> tirx.PrimFunc:
    """Resizes an (N, H, W, C) float32 tensor by tables from :func:`pack`.

    Returns:
        A function over the pointers x, indices (int32), weights (float32), y.
    """
    taps = _TAPS[mode]
    n, height, width, channels = y.shape
    contiguous = x.strides[3] == y.strides[3] == 1 and channels > 1
    lanes = hardware.lanes if contiguous else 1

    def body(source: Memory, indices: Memory, weights: Memory, destination: Memory) -> None:
        def sample(at: Expr, stride: int) -> list[tuple[Expr, Expr]]:
            """(offset, weight) of each tap of one output row or column."""
            return [
                (let(indices.load(at + t) * stride), let(weights.load(at + t))) for t in range(taps)
            ]

        def pixel(index: list[Expr], rows: list[tuple[Expr, Expr]]) -> None:
            i, _, column = index
            columns = sample(height * taps + column * taps, x.strides[2])
            places = [
                (let(x.at(i, 0, 0, 0) + r + c), broadcast(let(p * q), lanes))
                for r, p in rows
                for c, q in columns
            ]

            def vector(channel: Expr, valid: int) -> None:
                total: Expr = None
                for base, weight in places:
                    value = source.load(base + channel * x.strides[3], lanes)
                    if mode != "nearest":
                        value = value * weight
                    total = value if total is None else total + value
                destination.store(y.at(*index, channel), total, lanes, valid)

            if channels // lanes:
                with loop(channels // lanes) as c:
                    vector(c * lanes, lanes)
            if channels % lanes:
                vector(channels - channels % lanes, channels % lanes)

        if 0 in y.shape:
            return
        with nest([n, height], threads_for(math.prod(y.shape), threads)) as (i, row):
            rows = sample(row * taps, x.strides[1])
            with loop(width) as column:
                pixel([i, row, column], rows)

    return kernel([x.dtype, "int32", "float32", y.dtype], body)


def upsample(
    x: View, y: View, factors: tuple[int, int], hardware: Hardware, threads: int = 1
) -> tirx.PrimFunc:
    """Nearest-neighbour enlargement by whole factors: each pixel repeats; any dtype.

    Returns:
        A function over the pointers x, y.
    """
    n, h, w, c = x.shape
    down, right = factors
    if y.shape != (n, h * down, w * right, c):
        raise ValueError(f"{x.shape} enlarged {factors} times is not {y.shape}")
    return copy(repeated(x, factors), split(y, factors), hardware, threads)


def repeated(x: View, factors: tuple[int, int]) -> View:
    """An (N, H, W, C) view whose pixels repeat: (N, H, times down, W, times right, C)."""
    (n, h, w, c), (down, right), (sn, sh, sw, sc) = x.shape, factors, x.strides
    return View((n, h, down, w, right, c), (sn, sh, 0, sw, 0, sc), x.offset, x.dtype)


def split(y: View, factors: tuple[int, int]) -> View:
    """An (N, H, W, C) view of an enlarged image in the same six dimensions."""
    (n, h, w, c), (down, right), (sn, sh, sw, sc) = y.shape, factors, y.strides
    shape, strides = (n, h // down, down, w // right, right, c), (down * sh, sh, right * sw, sw)
    return View(shape, (sn, *strides, sc), y.offset, y.dtype)
