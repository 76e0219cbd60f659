"""Labelled data for the trained networks of the suite, to check that accuracy survives."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from pwopt.errors import UsageError
from pwopt.models import fashion, images, store
from pwopt.models.trained import TRAINED
from pwopt.running import Runner

LABELLED = ("mnist_conv", "mobilenet_v2", "ocr_cls")


def labelled_data(name: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed inputs of a trained network with their classes.

    Args:
        name: one of :data:`LABELLED`, or a network trained on Fashion-MNIST (``fashion_...``).
        count: how many; by default all photos (20), 100 rendered text lines, and the 500 test
            pictures of Fashion-MNIST that come with pwopt (mean 0 and spread 1, see
            :mod:`pwopt.models.fashion`).

    Returns:
        inputs (count, ...) float32, each one ready to feed with a batch axis of one in front of
        it kept by slicing ``inputs[i : i + 1]``, and labels (count,) int64.

    Raises:
        UsageError: there is no labelled data for the name, or it has to be fetched first.
    """
    if name in TRAINED:
        pictures = fashion.subset("test")
        return pictures.inputs()[:count], pictures.labels[:count]
    if name not in _SOURCES:
        there = ", ".join((*LABELLED, *TRAINED))
        raise UsageError(f"no labelled data for {name}; there is for {there}")
    inputs, labels = _SOURCES[name](count)
    return np.concatenate(inputs).astype(np.float32), np.asarray(labels, np.int64)


def classify(runner: Runner, inputs: np.ndarray, name: str = "input") -> np.ndarray:
    """The class that a network of batch one gives each input.

    Args:
        runner: what computes it: an executable, a model in ONNX Runtime.
        inputs: (count, ...), see :func:`labelled_data`.
        name: of the network's input.

    Returns:
        (count,) int64: the largest value's position in the first output.
    """
    firsts = (
        next(iter(runner.run({name: inputs[i : i + 1]}).values())) for i in range(len(inputs))
    )
    return np.array([int(np.argmax(first)) for first in firsts], np.int64)


Labelled = tuple[list[np.ndarray], list[int]]


def _photos(kind: str, count: int | None) -> list[tuple[str, int]]:
    """Files of foolbox's samples with the class that ends their names."""
    found = []
    for path in sorted(p for p in store.files_of("foolbox") if f"/{kind}_" in p):
        label = re.search(r"_(\d+)\.\w+$", path)
        if label:
            found.append((str(store.locate("foolbox", path)), int(label.group(1))))
    return found[:count]


def _mnist(count: int | None) -> Labelled:
    photos = _photos("mnist", count)
    return [images.read_grey(p)[None, None] for p, _ in photos], [label for _, label in photos]


def _imagenet(count: int | None) -> Labelled:
    photos = _photos("imagenet", count)
    inputs = [images.imagenet(images.read_photo(p, 256, 224)) for p, _ in photos]
    return inputs, [label for _, label in photos]


def _text_lines(count: int | None) -> Labelled:
    """Rendered lines, every other one upside down (class 1)."""
    rng = np.random.default_rng(2024)
    inputs, labels = [], []
    for index in range(count or 100):
        upside_down = index % 2 == 1
        line = images.text_line(images.phrase(rng), seed=index, rotate=upside_down)
        inputs.append(images.paddle_ocr(line))
        labels.append(int(upside_down))
    return inputs, labels


_SOURCES: dict[str, Callable[[int | None], Labelled]] = {
    "mnist_conv": _mnist,
    "mobilenet_v2": _imagenet,
    "ocr_cls": _text_lines,
}
