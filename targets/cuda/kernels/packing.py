"""Weights in the order in which the matrix kernels walk them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from pwopt.targets.cuda.kernels.geometry import Geometry
from pwopt.targets.cuda.kernels.tiling import Tile

_TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def pack_conv(
    weight: np.ndarray, bias: np.ndarray | None, geometry: Geometry, tile: Tile
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (OC, IC/G, KH, KW) and bias (OC) as the kernels walk them, both flat.

    Weights become [part][OC/bn][K/bk][bn][bk], zero where there is none, in the input's type; of
    float32 for tensor cores those of TF32. The bias becomes float32, [part][OC/bn][bn].
    """
    matrix = as_operand(reduction_matrix(weight, geometry), geometry.x.dtype, tile.tensor_cores)
    parts, channels, steps = matrix.shape
    depth = tile.depth(geometry.x.itemsize)
    rows, columns = -(-channels // tile.bn) * tile.bn, -(-steps // depth) * depth
    padded = np.zeros((parts, rows, columns), matrix.dtype)
    padded[:, :channels, :steps] = matrix
    tiles = padded.reshape(parts, rows // tile.bn, tile.bn, columns // depth, depth)
    packed = np.ascontiguousarray(tiles.swapaxes(2, 3)).reshape(-1)
    biases = np.zeros((parts, rows), np.float32)
    if bias is not None:
        biases[:, :channels] = bias.reshape(parts, channels)
    return packed, biases.reshape(-1)


def reduction_matrix(weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Weights (OC, IC/G, KH, KW) as float32 [part][OC][K], chunks padded with zeros."""
    out_channels, in_channels, height, width = weight.shape
    per_group = out_channels // geometry.groups
    merged, parts = geometry.merged, geometry.parts
    grouped = weight.reshape(parts, merged, per_group, in_channels, height, width)
    dense = np.zeros((parts, merged, per_group, height, width, merged, in_channels), np.float32)
    for i in range(merged):
        dense[:, i, :, :, :, i] = grouped[:, i].transpose(0, 1, 3, 4, 2)
    dense = dense.reshape(parts, merged * per_group, height, width, merged * in_channels)
    if geometry.by_rows:
        before = ((0, 0), (0, 0), (0, 0), (geometry.lead, 0), (0, 0))
        dense = np.pad(dense, before).reshape(parts, merged * per_group, height, 1, -1)
    missing = -dense.shape[-1] % geometry.chunk
    padded = np.pad(dense, ((0, 0),) * 4 + ((0, missing),))
    return padded.reshape(parts, merged * per_group, -1)


def as_operand(matrix: np.ndarray, dtype: str, tensor_cores: bool = True) -> np.ndarray:
    """float32 weights in the type of the maps that they meet; float32 for tensor cores as TF32."""
    if dtype == "float32":
        return rounded_to_tf32(matrix) if tensor_cores else matrix
    if dtype == "float16":  # a weight of infinity would turn every zero into NaN
        limit = float(np.finfo(np.float16).max)
        matrix = np.clip(matrix, -limit, limit)
    return matrix.astype(_TYPES[dtype])


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """The nearest numbers of 10 bits of mantissa; ties away from zero, as ``cvt.rna`` does."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    finite = (bits & 0x7F800000) != 0x7F800000
    return np.where(finite, (bits + 0x1000) & 0xFFFFE000, bits).astype(np.uint32).view(np.float32)
