"""What lowering asks of values: shapes, element types, their layout as inputs and outputs."""

from __future__ import annotations

from pwopt.ir.graph import Value
from pwopt.targets.plan import Tensor
from pwopt.targets.views import View, image

DTYPES = {  # element types that move through memory, and the dtype that TVM sees
    "float32": "float32",
    "float64": "float64",
    "float16": "float16",
    "bfloat16": "uint16",
    "int64": "int64",
    "int32": "int32",
    "int16": "int16",
    "int8": "int8",
    "uint64": "uint64",
    "uint32": "uint32",
    "uint16": "uint16",
    "uint8": "uint8",
    "bool": "uint8",
}


class Unsupported(Exception):  # noqa: N818 - says that a node goes elsewhere, is no failure
    """A node for which the target has no kernel; the text says why."""


def memory_dtype(name: str) -> str:
    """The dtype that kernels move a NumPy or ONNX element type as."""
    if name not in DTYPES:
        raise Unsupported(f"element type {name}")
    return DTYPES[name]


def element_type(value: Value) -> str:
    """The dtype of a value in kernels."""
    return memory_dtype(value.tensor.dtype or "unknown")


def static_shape(value: Value) -> tuple[int, ...]:
    """The shape of a value; targets compile static shapes only."""
    if value.shape is None:
        raise Unsupported(f"the shape of {value.label} is not known at build time")
    return value.shape


def dense_view(value: Value) -> View:
    """The row-major view of a value, as inputs and outputs lie."""
    return View.dense(static_shape(value), element_type(value))


def image_tensor(tensor: Tensor) -> Tensor:
    """The tensor as kernels take images: (N, H, W, C)."""
    try:
        return tensor.with_view(image(tensor.view))
    except ValueError as error:
        raise Unsupported(str(error)) from None


def is_float(value: Value) -> bool:
    """Whether a value is float32, the one type that kernels compute in."""
    return value.tensor.dtype == "float32"


def require_float(*values: Value | None) -> None:
    """Raises Unsupported unless all of these are float32."""
    for value in values:
        if value is not None and not is_float(value):
            raise Unsupported(f"{value.label} is {value.tensor.dtype}, kernels compute in float32")
