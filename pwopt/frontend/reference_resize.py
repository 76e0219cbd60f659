"""Resize and Upsample by one interpolation matrix per axis; onnx.reference loops over elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pwopt.ir.graph import Node

Arrays = Sequence[np.ndarray | None]


def resize(node: Node, inputs: Arrays, opset: int) -> list[np.ndarray] | None:
    """Nearest and linear interpolation; None for what is left to onnx.reference."""
    x, mode = inputs[0], node.get("mode", "nearest")
    transform = node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if node.op == "Upsample" or opset < 11:
        transform, rounding = "asymmetric", "simple"
    if x is None or mode not in ("nearest", "linear", "bilinear") or node.get("antialias", 0):
        return None
    if transform == "tf_crop_and_resize" or "keep_aspect_ratio_policy" in node.attributes:
        return None
    axes = [a % x.ndim for a in node.get("axes") or range(x.ndim)]
    scales, sizes = _factors(node, inputs, opset, [x.shape[a] for a in axes])
    for axis, scale, size in zip(axes, scales, sizes, strict=True):
        if scale != 1 or size != x.shape[axis]:
            # A nearest neighbour hangs on rounding: in float32, as the runtimes compute it.
            kind = np.float32 if mode == "nearest" else np.float64
            at = _coordinates(transform, x.shape[axis], size, kind(scale))
            x = (
                _nearest(x, axis, at, rounding, scale)
                if mode == "nearest"
                else _linear(x, axis, at)
            )
    return [x]


def _factors(
    node: Node, inputs: Arrays, opset: int, lengths: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Scale and result size per axis."""
    slot = 1 if node.op == "Upsample" or opset < 11 else 2
    scales = node.get("scales")
    if scales is None and "height_scale" in node.attributes:
        scales = (1.0, 1.0, node.get("height_scale"), node.get("width_scale"))
    if scales is None and slot < len(inputs) and inputs[slot] is not None:
        scales = np.asarray(inputs[slot]).tolist()
    if not scales:
        sizes = [int(s) for s in np.asarray(inputs[3])]
        return [s / length for s, length in zip(sizes, lengths, strict=True)], sizes
    # In float32, as ONNX's shape inference rounds.
    sizes = [int(np.float32(n) * np.float32(s)) for n, s in zip(lengths, scales, strict=True)]
    return [float(s) for s in scales], sizes


def _coordinates(
    transform: str, length: int, size: int, scale: np.float32 | np.float64
) -> np.ndarray:
    """Where in the input each result element lies, along one axis, in the type of ``scale``."""
    i: np.ndarray = np.arange(size, dtype=scale.dtype)
    if transform == "asymmetric":
        return i / scale
    if transform == "align_corners":
        return i * (length - 1) / (size - 1) if size > 1 else np.zeros(size)
    if transform == "pytorch_half_pixel" and size == 1:
        return np.zeros(size)
    if transform in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / scale - 0.5
    if transform == "half_pixel_symmetric":
        adjustment = size / (length * scale)
        return length / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5
    raise ValueError(f"coordinate_transformation_mode {transform!r}")


def _nearest(x: np.ndarray, axis: int, at: np.ndarray, rounding: str, scale: float) -> np.ndarray:
    match rounding:
        case "floor":
            index = np.floor(at)
        case "ceil":
            index = np.ceil(at)
        case "round_prefer_ceil":
            index = np.floor(at + 0.5)
        case "simple":  # before operator set 11
            index = np.ceil(at) if scale < 1 else np.floor(at)
        case _:
            index = np.ceil(at - 0.5)
    nearest: np.ndarray = np.clip(index.astype(np.int64), 0, x.shape[axis] - 1)
    return np.take(x, nearest, axis)


def _linear(x: np.ndarray, axis: int, at: np.ndarray) -> np.ndarray:
    at = np.clip(at, 0, x.shape[axis] - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    share = (at - low).reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return np.asarray(np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share, x.dtype)
