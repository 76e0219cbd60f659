"""External data: tensors whose bytes lie in other files, which must lie in the model's folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
from onnx import TensorProto

from pwopt.errors import FrontendError


class ExternalData:
    """Reads external tensors from below one folder, by memory map.

    Args:
        folder: the model's folder; None for a model that came without a path.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, np.ndarray] = {}

    def __call__(self, tensor: TensorProto) -> np.ndarray:
        """The bytes of a tensor.

        Raises:
            FrontendError: the data is missing, outside the folder, or shorter than claimed.
        """
        where = f"external data of {tensor.name!r}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        data = self._map(location, where)
        offset = _number(entries.get("offset", "0"), "offset", where)
        length = _number(entries.get("length", str(max(data.size - offset, 0))), "length", where)
        if offset + length > data.size:
            raise FrontendError(
                f"{where}: bytes {offset} to {offset + length} of {location!r}, which has "
                f"{data.size}; the file is truncated or belongs to another model"
            )
        return data[offset : offset + length]

    def _map(self, location: str, where: str) -> np.ndarray:
        if location not in self._files:
            path = self._confined(location, where)
            size = path.stat().st_size
            mapped = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
            self._files[location] = mapped.view(np.ndarray)
        return self._files[location]

    def _confined(self, location: str, where: str) -> Path:
        if self._folder is None:
            raise FrontendError(
                f"{where}: lies in {location!r}, but the model came without a folder; load it by "
                "path"
            )
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or os.path.isabs(location) or ".." in parts:
            raise FrontendError(f"{where}: {location!r} is not a path inside the model's folder")
        folder = self._folder.resolve()
        try:
            path = (folder / location).resolve(strict=True)
            status = path.stat()
        except (OSError, RuntimeError) as error:
            raise FrontendError(
                f"{where}: {location!r} is not in {str(folder)!r}; keep it beside the model"
            ) from error
        if not path.is_relative_to(folder):
            raise FrontendError(f"{where}: {location!r} links to outside the model's folder")
        if not stat.S_ISREG(status.st_mode):
            raise FrontendError(f"{where}: {location!r} is not a regular file")
        if status.st_nlink > 1:
            # A hard link may be to any file of the disk, and cannot be traced.
            raise FrontendError(f"{where}: {location!r} is a hard link; copy the file instead")
        return path


def _number(text: str, what: str, where: str) -> int:
    # int() would also take "1_0", signs and other alphabets' digits.
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise FrontendError(f"{where}: {what} {text[:40]!r} is not a number of bytes")
    return int(text)
