"""Writes models to disk: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from onnx import ModelProto, TensorProto

from pwopt.errors import FrontendError
from pwopt.frontend.exporter import build, outline
from pwopt.frontend.tensors import encode, header, raw_bytes, raw_size
from pwopt.ir.graph import Graph

EXTERNAL_ABOVE = 1_900_000_000  # bytes of constants; the rest of a model needs some room, too
SMALLEST_EXTERNAL = 1024  # bytes of one tensor
ALIGNMENT = 4096  # so that runtimes can map the data

T = TypeVar("T")


def save(graph: Graph, path: str | os.PathLike[str], external_data: bool | None = None) -> None:
    """Writes a graph as an ONNX file; an existing file is replaced only once the new one is whole.

    External data goes to one file beside the model, ``<model>.<hash of its bytes>.data``, so that
    at every moment the model's file and its data belong together. Data files of a former version of
    the model are removed.

    Args:
        graph: the graph.
        path: of the model's file.
        external_data: whether to keep the weights in a file of their own; None: if a single file
            would exceed ONNX's 2 GB.

    Raises:
        FrontendError: the file cannot be written, or the model does not fit one.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise FrontendError(f"{path}: is a directory; give a file name")
    if external_data is None:
        external_data = _constant_bytes(graph) > EXTERNAL_ABOVE
    try:
        if external_data:
            _save_external(graph, target)
        else:
            model = _serialized(build(graph, encode), path)
            _write(target, lambda file: file.write(model))
    except OSError as error:
        raise FrontendError(f"{path}: cannot be written: {error.strerror or error}") from error


def file_bytes(graph: Graph) -> int:
    """Size of the file that :func:`save` would write, its data file included, to some bytes.

    Raises:
        FrontendError: an attribute has no ONNX form.
    """
    model, arrays = outline(graph)
    data = (encode(a).ByteSize() if a.dtype == object else raw_size(a) for a in arrays)
    return int(model.ByteSize()) + sum(data)


def _constant_bytes(graph: Graph) -> int:
    return sum(raw_size(n.attributes["value"]) for n in graph.nodes() if n.is_constant)


def _serialized(model: ModelProto, path: object) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except Exception as error:
        # protobuf's own exceptions differ between its versions.
        raise FrontendError(
            f"{path}: the model does not fit one ONNX file of 2 GB; save it with external data"
        ) from error


def _save_external(graph: Graph, target: Path) -> None:
    writer = _DataFile()
    model = build(graph, writer.place)
    temporary = _temporary(target)
    try:
        digest = _stored(temporary, writer.copy_to)
        data = target.with_name(f"{target.name}.{digest}.data")
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.external_data[0].value = data.name
        serialized = _serialized(model, target)
        os.replace(temporary, data)
    finally:
        temporary.unlink(missing_ok=True)
    _write(target, lambda file: file.write(serialized))
    former = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.data")
    for other in target.parent.iterdir():
        if other != data and former.fullmatch(other.name):
            other.unlink(missing_ok=True)


class _DataFile:
    """Lays out constants in a file, then writes it."""

    def __init__(self) -> None:
        self._arrays: list[tuple[int, np.ndarray]] = []
        self._end = 0
        self._digest = hashlib.sha256()

    def place(self, array: np.ndarray, name: str) -> TensorProto:
        """The tensor of a constant, with its place in the file if it is not small."""
        size = raw_size(array)
        if size < SMALLEST_EXTERNAL or array.dtype == object:
            return encode(array, name)
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        self._arrays.append((offset, array))
        self._end = offset + size
        tensor = header(array, name)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        return tensor

    def copy_to(self, file: BinaryIO) -> str:
        """Writes all constants; returns the hash of what was written."""
        position = 0
        for offset, array in self._arrays:
            for piece in (bytes(offset - position), raw_bytes(array)):
                file.write(piece)
                self._digest.update(piece)
                position += len(piece)
        return self._digest.hexdigest()[:16]


def _write(target: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = _temporary(target)
    try:
        _stored(temporary, write)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")


def _stored(path: Path, write: Callable[[BinaryIO], T]) -> T:
    """Writes a new file down to the disk."""
    with open(path, "xb") as file:
        result = write(file)
        file.flush()
        os.fsync(file.fileno())
    return result
