"""Calibration data: examples that lossy rewrites are fitted to, and others that judge them.

From a .npz or .npy file, a folder of images with a stated preprocessing, or none: then random
numbers stand in, and nothing can be said about accuracy.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pwopt.errors import UsageError, nearest
from pwopt.ir.types import NUMPY_DTYPES, TensorType

INPUT_NAMES = ("images", "inputs", "x", "data")  # in a .npz, besides the model's own
LABEL_NAMES = ("labels", "y", "targets")
IMAGE_TYPES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
RANDOM_EXAMPLES = 64
MAX_BATCH = 64
_RANDOM = "random numbers"


@dataclass(frozen=True)
class Preprocessing:
    """What is done to pixels of 0 to 255 before the model sees them.

    Attributes:
        resize: length that the shorter side of an image is scaled to; 0 leaves it.
        crop: side of the square that is cut out of the middle; 0 takes the model's input size.
        scale: what pixels are divided by first.
        mean, std: by channel, subtracted and divided by afterwards.
        bgr: whether blue comes first.
    """

    resize: int = 0
    crop: int = 0
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    @classmethod
    def parse(cls, text: str) -> Preprocessing:
        """From ``imagenet`` or ``scale=255,mean=0.5:0.5:0.5,std=0.2:0.2:0.2,resize=256,crop=224``.

        Raises:
            UsageError: an unknown key, or a value of the wrong kind.
        """
        if text in PREPROCESSINGS:
            return PREPROCESSINGS[text]
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        values: dict[str, Any] = {}
        for item in filter(None, text.split(",")):
            key, _, value = (part.strip() for part in item.partition("="))
            try:
                kind = kinds[key]
                if kind is tuple:
                    values[key] = tuple(float(part) for part in value.split(":"))
                else:
                    values[key] = _flag(value) if kind is bool else kind(value)
            except KeyError as error:
                raise UsageError(_unknown(item, key, value, kinds)) from error
            except ValueError as error:
                raise UsageError(
                    f"preprocessing {item!r}: {value!r} is not a {_KINDS[kinds[key]]}"
                ) from error
        made = cls(**values)
        if made.scale == 0 or 0 in made.std:
            raise UsageError(f"preprocessing {text!r}: scale and std divide, so they are not 0")
        if made.resize < 0 or made.crop < 0:
            raise UsageError(f"preprocessing {text!r}: resize and crop are lengths in pixels")
        return made

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (count, channels, ...) as float32 inputs.

        Raises:
            UsageError: mean or std are of another number of channels.
        """
        for each in (self.mean, self.std):
            if len(each) not in (1, pixels.shape[1]):
                raise UsageError(
                    f"preprocessing: {len(each)} numbers for mean or std, and inputs of "
                    f"{pixels.shape[1]} channels: give one, or one a channel"
                )
        shape = (1, -1, *(1,) * (pixels.ndim - 2))
        mean, std = (np.asarray(v, np.float32).reshape(shape) for v in (self.mean, self.std))
        if self.bgr:
            pixels = pixels[:, ::-1]
        made: np.ndarray = (pixels.astype(np.float32) / np.float32(self.scale) - mean) / std
        return made


_ARRAYS = (".npz", ".npy")
_KINDS = {
    int: "whole number",
    float: "number",
    bool: "flag, true or false",
    tuple: "number, or one a channel as in 0.5:0.5:0.5",
}
_FLAGS = {"": True, "true": True, "1": True, "false": False, "0": False}

PREPROCESSINGS = {
    "imagenet": Preprocessing(256, 224, 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": Preprocessing(scale=255.0),
}


@dataclass(frozen=True)
class Calibration:
    """Examples, their first axis counting.

    Attributes:
        inputs: by input name, (count, ...).
        labels: (count,) integers, or None.
        source: where they come from.
        random: whether they are random numbers, which say nothing about accuracy.
    """

    inputs: Mapping[str, np.ndarray] = field(repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    source: str = "arrays"
    random: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError where the arrays are of different lengths, or empty."""
        lengths = {len(a) for a in (*self.inputs.values(), self.labels) if a is not None}
        if len(lengths) != 1 or lengths == {0}:
            raise UsageError(f"{self.source}: arrays of {sorted(lengths)} examples")

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def split(self, *shares: float, seed: int = 0) -> list[Calibration]:
        """Disjoint random parts, each of at least one example and in random order.

        Raises:
            UsageError: there are fewer examples than parts.
        """
        if len(self) < len(shares):
            raise UsageError(f"{self.source}: {len(self)} examples for {len(shares)} parts")
        order = np.random.default_rng(seed).permutation(len(self))
        spare = len(self) - len(shares)
        ends = np.cumsum([1 + int(spare * share / sum(shares)) for share in shares])
        return [self._pick(part) for part in np.split(order, ends)[: len(shares)]]

    def take(self, count: int) -> Calibration:
        """The first examples."""
        return self._pick(np.arange(min(count, len(self))))

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The inputs in batches of exactly ``size``; the last one repeats its last example."""
        for start in range(0, len(self), size):
            rows = np.minimum(np.arange(start, start + size), len(self) - 1)
            yield {name: array[rows] for name, array in self.inputs.items()}

    def _pick(self, rows: np.ndarray) -> Calibration:
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, inputs={n: a[rows] for n, a in self.inputs.items()}, labels=labels)


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(text)
    return _FLAGS[text.lower()]


def _unknown(item: str, key: str, value: str, keys: Iterable[str]) -> str:
    known = keys if value else [*PREPROCESSINGS, *keys]
    return (
        f"preprocessing {item!r}{nearest(key, known)}: write {' or '.join(PREPROCESSINGS)}, or "
        f"key=value with the keys {', '.join(keys)}; colons between channels"
    )


def load(
    source: str | Path, types: Mapping[str, TensorType], preprocessing: Preprocessing | None = None
) -> Calibration:
    """Examples for a model's inputs.

    Args:
        source: a .npz with an array for each input (and labels), a .npy for the only input, or a
            folder of images, whose subfolders, if any, are the classes in the order of their names.
        types: of the model's inputs, by name.
        preprocessing: of images, and of arrays of bytes.

    Raises:
        UsageError: the file cannot be read, or does not fit the inputs.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return _folder(path, types, preprocessing)
        if not path.exists():
            beside = (p.name for p in path.parent.glob("*") if p.is_dir() or p.suffix in _ARRAYS)
            raise UsageError(f"{path}: no such file or folder{nearest(path.name, beside)}")
        if path.suffix not in _ARRAYS:
            raise UsageError(f"{path}: calibration data are a .npz, a .npy or a folder of images")
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            single = isinstance(arrays, np.ndarray)
            named = {_single(types, path): arrays} if single else dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {reason}") from error
    names = [name for name in LABEL_NAMES if name in named and name not in types]
    labels = named[names[0]] if names else None
    inputs = {
        name: _fitting(_array(named, name, types, path), name, t, preprocessing, path)
        for name, t in types.items()
    }
    return Calibration(inputs, None if labels is None else _classes(labels, path), str(path))


def random(types: Mapping[str, TensorType], count: int = RANDOM_EXAMPLES) -> Calibration:
    """Normally distributed numbers (zeros for integers) in the place of data.

    Raises:
        UsageError: an input has an open dimension besides the first.
    """
    rng = np.random.default_rng(0)
    inputs = {}
    for name, t in types.items():
        drawn = rng.standard_normal((count, *item_shape(name, t)), np.float32)
        dtype = NUMPY_DTYPES[t.dtype or "float32"]
        inputs[name] = drawn.astype(dtype) if dtype.kind == "f" else np.zeros(drawn.shape, dtype)
    return Calibration(inputs, None, _RANDOM, random=True)


def item_shape(name: str, t: TensorType) -> tuple[int, ...]:
    """The shape of an input without its first axis.

    Raises:
        UsageError: a dimension of it is open.
    """
    shape = (t.shape or ())[1:]
    closed = tuple(d for d in shape if isinstance(d, int))
    if not t.shape or len(closed) != len(shape):
        raise UsageError(f"input {name} is {t}: close its dimensions with --input-shape")
    return closed


def batch_size(types: Mapping[str, TensorType], count: int) -> int:
    """How many examples a run of the model takes: its own batch, or many where that is open."""
    sizes = {t.shape[0] for t in types.values() if t.shape and isinstance(t.shape[0], int)}
    if len(sizes) > 1:
        raise UsageError(f"the inputs have batches of {sorted(sizes)}")
    return sizes.pop() if sizes else min(MAX_BATCH, max(1, count))


def _single(types: Mapping[str, TensorType], path: Path) -> str:
    if len(types) != 1:
        raise UsageError(f"{path}: the model has the inputs {', '.join(types)}; use a .npz")
    return next(iter(types))


def _array(
    named: Mapping[str, np.ndarray], name: str, types: Mapping[str, TensorType], path: Path
) -> np.ndarray:
    candidates = (name, *(INPUT_NAMES if len(types) == 1 else ()))
    for candidate in candidates:
        if candidate in named:
            return np.asarray(named[candidate])
    raise UsageError(f"{path}: no array {' or '.join(candidates)}; it has {', '.join(named)}")


def _fitting(
    array: np.ndarray,
    name: str,
    t: TensorType,
    preprocessing: Preprocessing | None,
    path: Path,
) -> np.ndarray:
    """The array as the input takes it: a missing channel axis is put in, the type is changed."""
    wanted = item_shape(name, t)
    if array.ndim == len(wanted) and wanted[:1] == (1,):
        array = array[:, None]
    if array.ndim != 1 + len(wanted) or array.shape[1:] != wanted:
        raise UsageError(f"{path}: {name} has items {array.shape[1:]}, the model takes {wanted}")
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{path}: {name} is {array.dtype}; inputs are numbers")
    dtype = NUMPY_DTYPES[t.dtype or "float32"]
    if array.dtype == np.uint8 and dtype.kind == "f":
        if preprocessing is None:
            raise UsageError(
                f"{path}: {name} are bytes: state their preprocessing, e.g. scale=255, or unit"
            )
        array = preprocessing(array)
    return array.astype(dtype, copy=False)


def _classes(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] > 1:  # one-hot
        labels = labels.argmax(axis=1)
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iu":
        raise UsageError(f"{path}: labels are {labels.dtype}; classes are integers")
    return labels.astype(np.int64)


def _folder(
    path: Path, types: Mapping[str, TensorType], preprocessing: Preprocessing | None
) -> Calibration:
    name = _single(types, path)
    if preprocessing is None:
        raise UsageError(f"{path}: images need a preprocessing, e.g. imagenet or scale=255")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_TYPES)
    if not files:
        raise UsageError(f"{path}: no images in it ({', '.join(sorted(IMAGE_TYPES))})")
    shape = item_shape(name, types[name])
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"input {name} is {types[name]}: images are for N x 1|3 x H x W")
    pixels = np.stack([_image(file, shape, preprocessing) for file in files])
    parents = [file.parent for file in files]
    classes = sorted(set(parents))
    labels = None
    if path not in classes and len(classes) > 1:
        labels = np.array([classes.index(parent) for parent in parents], np.int64)
    return Calibration({name: preprocessing(pixels)}, labels, f"{len(files)} images of {path}")


def _image(file: Path, shape: Sequence[int], preprocessing: Preprocessing) -> np.ndarray:
    """An image of the input's size as (channels, height, width) of bytes."""
    pillow = _pillow()
    channels, height, width = shape
    try:
        with pillow.open(file) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except OSError as error:
        raise UsageError(f"{file}: no image: {error}") from error
    resampling = pillow.Resampling.BILINEAR
    if preprocessing.resize:
        factor = preprocessing.resize / min(image.size)
        image = image.resize([max(1, round(side * factor)) for side in image.size], resampling)
    crop = (preprocessing.crop, preprocessing.crop) if preprocessing.crop else (width, height)
    if preprocessing.resize or preprocessing.crop:
        left, top = ((have - want) // 2 for have, want in zip(image.size, crop, strict=True))
        image = image.crop((left, top, left + crop[0], top + crop[1]))
    if image.size != (width, height):
        image = image.resize((width, height), resampling)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("reading images needs Pillow: pip install pillow") from error
    return Image
