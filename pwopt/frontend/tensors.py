"""Tensors and types between ONNX's protobuf and NumPy; nothing is allocated from declared sizes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, TypeProto, ValueInfoProto, numpy_helper

from pwopt.errors import FrontendError
from pwopt.ir.types import NUMPY_DTYPES, Dim, OpaqueType, TensorType, Type, of_array

_RENAMED = {"float": "float32", "double": "float64"}
DTYPE_NAMES: dict[int, str] = {
    number: _RENAMED.get(name.lower(), name.lower())
    for name, number in TensorProto.DataType.items()
    if _RENAMED.get(name.lower(), name.lower()) in NUMPY_DTYPES
}
DTYPE_NUMBERS = {name: number for number, name in DTYPE_NAMES.items()}
MAX_RANK = 64  # NumPy's
BITS = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2}

_FIELDS = {  # where a tensor without raw_data keeps its elements
    **dict.fromkeys(("float32", "complex64"), "float_data"),
    **dict.fromkeys(("float64", "complex128"), "double_data"),
    **dict.fromkeys(("uint32", "uint64"), "uint64_data"),
    "int64": "int64_data",
    "string": "string_data",
}

External = Callable[[TensorProto], np.ndarray]
"""Gives the bytes of a tensor that lies in another file."""


def supported(tensor: TensorProto) -> bool:
    """Whether the IR has the tensor's element type."""
    return tensor.data_type in DTYPE_NAMES


def decode(tensor: TensorProto, external: External, where: str) -> np.ndarray:
    """A tensor as an array, never to be written to.

    Args:
        tensor: of a :func:`supported` element type.
        external: reads external data.
        where: how messages name the tensor.

    Raises:
        FrontendError: dims and data do not fit each other.
    """
    dtype, dims = DTYPE_NAMES[tensor.data_type], tuple(tensor.dims)
    if min(dims, default=0) < 0:
        raise FrontendError(f"{where}: negative dimension in {dims[:8]}")
    if len(dims) > MAX_RANK:
        raise FrontendError(f"{where}: {len(dims)} dimensions, at most {MAX_RANK} are supported")
    count = math.prod(dims)
    try:
        if tensor.data_location == TensorProto.EXTERNAL:
            return _from_bytes(external(tensor), dtype, dims, count, where)
        if tensor.HasField("raw_data"):
            raw = np.frombuffer(tensor.raw_data, np.uint8)
            return _from_bytes(raw, dtype, dims, count, where)
        return _from_field(tensor, dtype, dims, count, where)
    except (ValueError, TypeError, OverflowError) as error:
        raise FrontendError(f"{where}: {dtype}{list(dims)} cannot be read: {error}") from error


def _from_bytes(
    raw: np.ndarray, dtype: str, dims: tuple[int, ...], count: int, where: str
) -> np.ndarray:
    kind = NUMPY_DTYPES[dtype]
    if dtype == "string":
        raise FrontendError(f"{where}: strings cannot be stored as raw data")
    expected = math.ceil(count * BITS.get(dtype, 8 * kind.itemsize) / 8)
    if raw.size != expected:
        raise FrontendError(
            f"{where}: {dtype}{list(dims)} takes {expected} bytes, the file holds {raw.size}"
        )
    if not count:
        return np.empty(dims, kind)
    if dtype in BITS:
        raw = unpack(raw, BITS[dtype], count)
    elif raw.ctypes.data % kind.alignment:
        raw = raw.copy()  # kernels want aligned data
    return raw.view(kind).reshape(dims)


def _from_field(
    tensor: TensorProto, dtype: str, dims: tuple[int, ...], count: int, where: str
) -> np.ndarray:
    field = getattr(tensor, _FIELDS.get(dtype, "int32_data"))
    expected = 2 * count if dtype.startswith("complex") else count
    expected = math.ceil(expected * BITS.get(dtype, 8) / 8)
    if len(field) != expected:
        raise FrontendError(
            f"{where}: {dtype}{list(dims)} takes {expected} values, the file holds {len(field)}"
        )
    if not count:
        return np.empty(dims, NUMPY_DTYPES[dtype])
    if dtype == "string":
        array = np.empty(count, object)
        array[:] = [decode_text(item) for item in field]
        return array.reshape(dims)
    result: np.ndarray = numpy_helper.to_array(tensor)
    return result


def unpack(raw: np.ndarray, bits: int, count: int) -> np.ndarray:
    """One byte per element from elements of 2 or 4 bits, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count].astype(np.uint8)


def pack(array: np.ndarray, bits: int) -> bytes:
    """The reverse of :func:`unpack`."""
    per_byte = 8 // bits
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    codes = np.pad(codes, (0, -codes.size % per_byte)).reshape(-1, per_byte)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return bytes(np.bitwise_or.reduce(codes << shifts, axis=1).astype(np.uint8))


def decode_text(item: bytes) -> str | bytes:
    """A string, or the bytes if they are not UTF-8."""
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item


def encode_text(item: object) -> bytes:
    """The reverse of :func:`decode_text`."""
    return item if isinstance(item, bytes) else str(item).encode()


def raw_bytes(array: np.ndarray) -> bytes:
    """The array's elements as ONNX stores them."""
    bits = BITS.get(of_array(array).dtype or "")
    return pack(array, bits) if bits else bytes(array.tobytes())


def raw_size(array: np.ndarray) -> int:
    """Number of bytes that :func:`raw_bytes` gives."""
    return math.ceil(array.size * BITS.get(of_array(array).dtype or "", 8 * array.itemsize) / 8)


def header(array: np.ndarray, name: str) -> TensorProto:
    """A tensor with name, type and dims, but without data."""
    tensor = TensorProto(name=name, data_type=DTYPE_NUMBERS[of_array(array).dtype or ""])
    tensor.dims.extend(array.shape)
    return tensor


def encode(array: np.ndarray, name: str = "") -> TensorProto:
    """An array as a tensor."""
    tensor = header(array, name)
    if tensor.data_type == TensorProto.STRING:
        tensor.string_data.extend(encode_text(item) for item in array.reshape(-1).tolist())
    else:
        tensor.raw_data = raw_bytes(array)
    return tensor


def decode_type(proto: TypeProto) -> Type:
    """A type as the IR has it; whatever is not a dense tensor stays opaque."""
    if proto.WhichOneof("value") is None:
        return TensorType()
    if not proto.HasField("tensor_type"):
        optional = proto.WhichOneof("value") == "optional_type"
        return OpaqueType(proto.SerializeToString(deterministic=True), optional)
    tensor = proto.tensor_type
    if tensor.elem_type and tensor.elem_type not in DTYPE_NAMES:
        return OpaqueType(proto.SerializeToString(deterministic=True))
    dtype = DTYPE_NAMES.get(tensor.elem_type)
    if not tensor.HasField("shape"):
        return TensorType(dtype)
    return TensorType(dtype, tuple(_decode_dim(d) for d in tensor.shape.dim))


def declared_type(info: ValueInfoProto) -> Type:
    """The type of an input as its model declares it.

    Some exporters write 0 for an open batch; an empty one is what nobody means.
    """
    found = decode_type(info.type)
    if isinstance(found, TensorType) and found.shape and found.shape[0] == 0 < len(found.shape) - 1:
        return TensorType(found.dtype, (None, *found.shape[1:]))
    return found


def _decode_dim(dim: object) -> Dim:
    # Some exporters write -1 for "unknown", Paddle's a question mark.
    if dim.HasField("dim_value"):  # type: ignore[attr-defined]
        return dim.dim_value if dim.dim_value >= 0 else None  # type: ignore[attr-defined]
    return None if dim.dim_param in ("", "?") else dim.dim_param  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=4096)
def encode_type(value_type: Type) -> TypeProto:
    """The reverse of :func:`decode_type`; the result is shared, so not to be changed."""
    if isinstance(value_type, OpaqueType):
        opaque = TypeProto()
        opaque.ParseFromString(value_type.serialized)
        return opaque
    proto = TypeProto()
    proto.tensor_type.elem_type = DTYPE_NUMBERS.get(value_type.dtype or "", 0)
    if value_type.shape is not None:
        proto.tensor_type.shape.SetInParent()
        for dim in value_type.shape:
            entry = proto.tensor_type.shape.dim.add()
            if isinstance(dim, str):
                entry.dim_param = dim
            elif dim is not None:
                entry.dim_value = dim
    return proto
