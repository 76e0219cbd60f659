"""Fashion-MNIST: the pictures that come with pwopt, and the reader of the whole set."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pwopt.errors import UsageError
from pwopt.models import fashion, labelled_data, store


def write(folder: Path, name: str, array: np.ndarray) -> None:
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    (folder / name).write_bytes(gzip.compress(head + array.tobytes()))


def test_the_subset() -> None:
    for part, count in fashion.SUBSET_SIZES.items():
        images, labels = fashion.subset(part)
        assert images.shape == (count, 28, 28)
        assert images.dtype == np.uint8
        share = np.bincount(labels) / count
        assert len(share) == len(fashion.CLASSES)
        assert (share > 0.06).all()
    size = (store.HERE / fashion.SUBSET).stat().st_size
    assert size < 1_000_000


def test_inputs_are_normalized() -> None:
    inputs = fashion.subset("train").inputs()
    assert inputs.shape == (1000, 1, 28, 28)
    assert inputs.dtype == np.float32
    assert abs(inputs.mean()) < 0.05
    assert abs(inputs.std() - 1) < 0.05


def test_labelled_data_serves_it() -> None:
    inputs, labels = labelled_data("fashion_nin")
    assert inputs.shape == (500, 1, 28, 28)
    assert labels.shape == (500,)
    few, _ = labelled_data("fashion_resnet", 7)
    assert np.array_equal(few, inputs[:7])


def test_reads_the_four_files(tmp_path: Path) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    write(tmp_path, "t10k-images-idx3-ubyte.gz", images)
    write(tmp_path, "t10k-labels-idx1-ubyte.gz", np.array([3, 9], np.uint8))
    found = fashion.load("test", tmp_path)
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == [3, 9]
    assert found.labels.dtype == np.int64


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz is not here: install"):
        fashion.load("train", tmp_path)
    with pytest.raises(UsageError, match="no part 'validation' of Fashion-MNIST"):
        fashion.load("validation", tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for content in (
        b"x",
        gzip.compress(b"\0\0\x08\x01"),
        gzip.compress(b"\0\0\x08\x03" + bytes(5)),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="train-images"):
            fashion.load("train", tmp_path)
    write(tmp_path, path.name, np.zeros((2, 28, 28), np.uint8))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(UsageError, match="1567 bytes for 2 x 28 x 28"):
        fashion.load("train", tmp_path)


@pytest.mark.skipif(not fashion.FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_the_subset_is_the_beginning_of_the_whole_set() -> None:
    for part, count in fashion.SUBSET_SIZES.items():
        whole, few = fashion.load(part), fashion.subset(part)
        assert len(whole.labels) == {"train": 60000, "test": 10000}[part]
        assert np.array_equal(whole.images[:count], few.images)
        assert np.array_equal(whole.labels[:count], few.labels)
