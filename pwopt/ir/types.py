"""Types of values: an element type and a shape, either of which may be unknown."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

Dim = int | str | None  # a number, a symbol such as "batch", or unknown

# ONNX element types by the names that the IR uses; strings have no NumPy counterpart of fixed size.
NUMPY_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        **{n: n for n in ("float16", "float32", "float64", "int8", "int16", "int32", "int64")},
        **{n: n for n in ("uint8", "uint16", "uint32", "uint64", "complex64", "complex128")},
        "bool": "bool",
        "string": "object",
        "bfloat16": ml_dtypes.bfloat16,
        "float8e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8e5m2": ml_dtypes.float8_e5m2,
        "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8e8m0": ml_dtypes.float8_e8m0fnu,
        "uint4": ml_dtypes.uint4,
        "int4": ml_dtypes.int4,
        "uint2": ml_dtypes.uint2,
        "int2": ml_dtypes.int2,
        "float4e2m1": ml_dtypes.float4_e2m1fn,
    }.items()
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of a tensor.

    Attributes:
        dtype: ONNX element type in lower case ("float32", "int64", ...), or None if unknown.
        shape: one :data:`Dim` per axis, or None if even the rank is unknown.
    """

    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None

    @property
    def rank(self) -> int | None:
        """Number of axes, if known."""
        return None if self.shape is None else len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape if every axis is a number, else None."""
        if self.shape is None:
            return None
        for size in self.shape:
            if not isinstance(size, int):
                return None
        return self.shape  # type: ignore[return-value]

    @property
    def elements(self) -> int | None:
        """Number of elements, if known."""
        shape = self.static_shape
        return None if shape is None else math.prod(shape)

    @property
    def bytes(self) -> int | None:
        """Size in bytes, if known."""
        elements = self.elements
        if elements is None or self.dtype is None:
            return None
        return elements * NUMPY_DTYPES[self.dtype].itemsize

    def accepts(self, other: TensorType) -> bool:
        """Whether nothing known of ``other`` contradicts what is known of this type."""
        if self.dtype and other.dtype and self.dtype != other.dtype:
            return False
        if self.shape is None or other.shape is None:
            return True
        return len(self.shape) == len(other.shape) and all(
            a == b or not isinstance(a, int) or not isinstance(b, int)
            for a, b in zip(self.shape, other.shape, strict=True)
        )

    def __str__(self) -> str:
        dims = ("?",) if self.shape is None else ("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype or '?'}[{'x'.join(dims)}]"


@dataclass(frozen=True, slots=True)
class OpaqueType:
    """A sequence, optional, map or sparse tensor: carried along, never looked into.

    Attributes:
        serialized: the type as ONNX's protobuf bytes.
        optional: whether there may be no value at all.
    """

    serialized: bytes
    optional: bool = False

    def accepts(self, other: object) -> bool:
        """Nothing is known, nothing contradicts."""
        return True

    def __str__(self) -> str:
        return "opaque"


Type = TensorType | OpaqueType
_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
UNKNOWN = TensorType()


@functools.lru_cache(maxsize=4096)
def _tensor_type(dtype: str, shape: tuple[int, ...]) -> TensorType:
    """One object for all constants of a type, of which a large model has many."""
    return TensorType(dtype, shape)


def of_array(array: np.ndarray) -> TensorType:
    """The type of a constant."""
    name = _NAMES.get(array.dtype)
    if name is not None:
        return _tensor_type(name, array.shape)
    if array.dtype.kind in "OUS":
        return TensorType("string", tuple(array.shape))
    raise TypeError(f"no ONNX element type for NumPy's {array.dtype}")
