"""Fashion-MNIST: 28x28 grey pictures of clothes, ten classes (Xiao et al. 2017; MIT licence).

1,500 pictures come with pwopt; the whole set is read from Debian's ``dataset-fashion-mnist``, or
from any folder with its four files.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pwopt.errors import UsageError
from pwopt.models import store

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SUBSET = "data/fashion-mnist-subset.npz"
SUBSET_SIZES = {"test": 500, "train": 1000}  # the first of each part
CLASSES = (
    *("T-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)

# Mean and spread of the 60,000 training pictures, each from 0 to 1.
MEAN, SPREAD = 0.2860, 0.3530
_NAMES = {"train": "train", "test": "t10k"}


class Pictures(NamedTuple):
    """Pictures with their classes.

    Attributes:
        images: (count, 28, 28) uint8.
        labels: (count,) int64.
    """

    images: np.ndarray
    labels: np.ndarray

    def inputs(self) -> np.ndarray:
        """What the networks read: (count, 1, 28, 28) float32, mean 0 and spread 1."""
        scaled = (self.images[:, None].astype(np.float32) / 255 - MEAN) / SPREAD
        result: np.ndarray = scaled.astype(np.float32)
        return result


def subset(part: str) -> Pictures:
    """Pictures that come with pwopt: the first 500 for testing or 1,000 for training.

    Args:
        part: ``test`` or ``train``.

    Raises:
        UsageError: another part.
    """
    _check_part(part)
    with np.load(store.vendored(SUBSET)) as data:
        return Pictures(data[f"{part}_images"], data[f"{part}_labels"].astype(np.int64))


def load(part: str, folder: Path = FOLDER) -> Pictures:
    """All 60,000 pictures for training or 10,000 for testing.

    Args:
        part: ``test`` or ``train``.
        folder: with the four gzipped IDX files.

    Raises:
        UsageError: the files are not there, are something else, or there is no such part.
    """
    _check_part(part)
    name = _NAMES[part]
    images = _read(folder / f"{name}-images-idx3-ubyte.gz", axes=3)
    labels = _read(folder / f"{name}-labels-idx1-ubyte.gz", axes=1)
    return Pictures(images, labels.astype(np.int64))


def _check_part(part: str) -> None:
    if part not in _NAMES:
        raise UsageError(f"no part {part!r} of Fashion-MNIST; there are {', '.join(_NAMES)}")


def _read(path: Path, axes: int) -> np.ndarray:
    """An IDX file of bytes: magic 0x08 and the number of axes, big-endian sizes, data."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not here: install Debian's dataset-fashion-mnist, or give the folder "
            "that holds the four files of github.com/zalandoresearch/fashion-mnist"
        ) from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: {error}") from None
    start = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) < start:
        raise UsageError(f"{path}: not an IDX file of bytes with {axes} axes")
    shape = np.frombuffer(data, ">u4", axes, 4)
    if len(data) - start != np.prod(shape, dtype=np.int64):
        raise UsageError(f"{path}: {len(data) - start} bytes for {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape.tolist())
