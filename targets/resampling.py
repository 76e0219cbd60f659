"""Resize, whatever the target: which elements an output reads, and views of enlarged images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.targets.lowering import Lowering
from pwopt.targets.values import Unsupported, require_float, static_shape
from pwopt.targets.views import View


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


def repeated(x: View, factors: tuple[int, int]) -> View:
    """An (N, H, W, C) view whose pixels repeat: (N, H, times down, W, times right, C)."""
    (n, h, w, c), (down, right), (sn, sh, sw, sc) = x.shape, factors, x.strides
    return View((n, h, down, w, right, c), (sn, sh, 0, sw, 0, sc), x.offset, x.dtype)


def split(y: View, factors: tuple[int, int]) -> View:
    """An (N, H, W, C) view of an enlarged image in the same six dimensions."""
    (n, h, w, c), (down, right), (sn, sh, sw, sc) = y.shape, factors, y.strides
    shape, strides = (n, h // down, down, w // right, right, c), (down * sh, sh, right * sw, sw)
    return View(shape, (sn, *strides, sc), y.offset, y.dtype)


@dataclass(frozen=True)
class Resampling:
    """A Resize or Upsample of the two spatial axes.

    Attributes:
        mode: "nearest", "linear" or "cubic".
        factors: where each pixel only repeats, how often, along (height, width).
        tables: makes the samples of both axes.
    """

    mode: str
    factors: tuple[int, int] | None
    tables: Callable[[], tuple[AxisTable, AxisTable]]


def resampling_of(lowering: Lowering, node: Node) -> Resampling:
    """What a Resize or Upsample asks for.

    Raises:
        Unsupported: no kernel does it.
    """
    value = lowering.required(node, 0)
    require_float(value, node.out)
    shape, out = static_shape(value), static_shape(node.out)
    if len(shape) != 4 or shape[:2] != out[:2] or 0 in shape or 0 in out:
        raise Unsupported("axes other than the two spatial ones")
    if node.get("antialias", 0):
        raise Unsupported("antialias")
    scales = _scales(lowering, node, shape, out)
    mode = {"bilinear": "linear"}.get(stated := node.get("mode", "nearest"), stated)
    old = node.op == "Upsample" or lowering.graph.opset < 11
    coordinates = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else node.get("nearest_mode", "round_prefer_floor")
    sizes = zip(scales, shape[2:], out[2:], strict=True)
    whole = all(s == int(s) and o == i * int(s) for s, i, o in sizes)
    plain = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
    factors = None
    if mode == "nearest" and whole and (coordinates, nearest) in plain:
        factors = (int(scales[0]), int(scales[1]))
    elif coordinates == "tf_crop_and_resize":
        raise Unsupported("coordinate_transformation_mode tf_crop_and_resize")

    def tables() -> tuple[AxisTable, AxisTable]:
        rows, columns = (
            axis_table(
                mode,
                i,
                o,
                s,
                coordinates=coordinates,
                nearest=nearest,
                cubic_a=float(node.get("cubic_coeff_a", -0.75)),
                exclude_outside=bool(node.get("exclude_outside", 0)),
            )
            for i, o, s in zip(shape[2:], out[2:], scales, strict=True)
        )
        return rows, columns

    return Resampling(mode, factors, tables)


def only_maps_read(graph: Graph, value: Value) -> bool:
    """Whether the only reader adds an enlarged image to maps: it can read the small one instead."""
    readers = graph.readers(value)
    if len(readers) != 1 or graph.is_output(value) or not value.shape or value.shape[1] == 1:
        return False
    reader = readers[0]
    if (reader.domain, reader.op) != (KERNEL_DOMAIN, "Map") or reader.out.shape != value.shape:
        return False
    others = [v for v in graph.operands(reader) if v is not None and v != value]
    convolutions = ("Conv", "Pointwise")  # channels last, so the reader is, too
    return any(v.shape == value.shape and v.node.op in convolutions for v in others) and not any(
        v.node.op in ("Resize", "Upsample") for v in others
    )


def _scales(
    lowering: Lowering, node: Node, shape: tuple[int, ...], out: tuple[int, ...]
) -> tuple[float, float]:
    """The scale of each spatial axis as the model states it."""
    stated = node.get("scales")
    slot = {True: 1, False: 2}[node.op == "Upsample" or lowering.graph.opset < 11]
    if stated is None and lowering.graph.operand(node, slot) is not None:
        array = lowering.constant_array(node, slot, "scales")
        stated = array.astype(np.float64).tolist() if array.size else None
    axes = node.get("axes")
    if stated is None:
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("keep_aspect_ratio_policy")
        return (out[2] / shape[2], out[3] / shape[3])
    if axes is not None:
        by_axis = dict(zip((a % 4 for a in axes), stated, strict=True))
        return (float(by_axis.get(2, 1.0)), float(by_axis.get(3, 1.0)))
    return (float(stated[2]), float(stated[3]))
