"""Calibration data: what files may hold, and one line for each way in which they do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pwopt import calibration
from pwopt.calibration import Calibration, Preprocessing
from pwopt.errors import UsageError
from pwopt.ir.types import TensorType

GREY = {"pixels": TensorType("float32", (1, 1, 4, 5))}
RGB = {"pixels": TensorType("float32", ("n", 3, 4, 4))}
TWO = {"left": TensorType("float32", (1, 3)), "right": TensorType("int64", (1, 2))}


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "d.npz"
    np.savez(path, **arrays)
    return path


def fails(words: str, *arguments: Any) -> None:
    """Loading fails with one line that has these words in it."""
    with pytest.raises(UsageError, match=words) as caught:
        calibration.load(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["pixels", "images", "inputs", "x", "data"])
def test_npz_by_name_or_alias(tmp_path: Path, key: str) -> None:
    x = floats(6, 1, 4, 5)
    found = calibration.load(npz(tmp_path, **{key: x}, other=np.zeros(3)), GREY)
    np.testing.assert_array_equal(found.inputs["pixels"], x)
    assert found.labels is None
    assert len(found) == 6
    assert not found.random
    assert found.source.endswith("d.npz")


def test_the_inputs_own_name_comes_first(tmp_path: Path) -> None:
    x = floats(2, 1, 4, 5)
    found = calibration.load(npz(tmp_path, images=x + 1, pixels=x), GREY)
    np.testing.assert_array_equal(found.inputs["pixels"], x)


@pytest.mark.parametrize("key", ["labels", "y", "targets"])
@pytest.mark.parametrize(
    "labels", [[2, 0, 1], [[2], [0], [1]], [[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]]
)
def test_labels_as_numbers_or_one_hot(tmp_path: Path, key: str, labels: list[Any]) -> None:
    path = npz(tmp_path, x=floats(3, 1, 4, 5), **{key: np.array(labels)})
    found = calibration.load(path, GREY)
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 1]
    assert found.labels.dtype == np.int64


def test_an_input_with_the_name_of_labels_is_an_input(tmp_path: Path) -> None:
    types = {"x": TensorType("float32", (1, 2)), "y": TensorType("float32", (1, 3))}
    found = calibration.load(npz(tmp_path, x=floats(4, 2), y=floats(4, 3)), types)
    assert found.labels is None
    assert found.inputs["y"].shape == (4, 3)


def test_several_inputs_go_by_their_names_and_types(tmp_path: Path) -> None:
    path = npz(tmp_path, left=np.ones((5, 3)), right=np.ones((5, 2), np.int32))
    found = calibration.load(path, TWO)
    assert {n: str(a.dtype) for n, a in found.inputs.items()} == {
        "left": "float32",
        "right": "int64",
    }
    fails(r"no array right; it has left, x", npz(tmp_path, left=floats(5, 3), x=floats(5, 2)), TWO)


def test_a_missing_channel_axis_is_put_in(tmp_path: Path) -> None:
    found = calibration.load(npz(tmp_path, x=floats(6, 4, 5)), GREY)
    assert found.inputs["pixels"].shape == (6, 1, 4, 5)
    fails(r"items \(4, 4\), the model takes \(3, 4, 4\)", npz(tmp_path, x=floats(6, 4, 4)), RGB)


def test_bytes_need_a_preprocessing(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.full((2, 3, 4, 4), 51, np.uint8))
    fails("pixels are bytes: state their preprocessing, e.g. scale=255", path, RGB)
    how = Preprocessing(scale=255.0, mean=(0.1, 0.2, 0.0), std=(0.5,))
    found = calibration.load(path, RGB, how).inputs["pixels"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[1, :, 2, 3], [0.2, 0.0, 0.4], atol=1e-7)


def test_bytes_for_an_input_of_bytes_stay(tmp_path: Path) -> None:
    types = {"x": TensorType("uint8", (1, 2))}
    found = calibration.load(npz(tmp_path, x=np.array([[7, 8]], np.uint8)), types)
    assert found.inputs["x"].tolist() == [[7, 8]]


def test_npy_is_the_only_input(tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    np.save(path, floats(6, 1, 4, 5))
    assert calibration.load(path, GREY).inputs["pixels"].shape == (6, 1, 4, 5)
    assert calibration.load(str(path), GREY).labels is None
    fails("the model has the inputs left, right; use a .npz", path, TWO)


def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path) -> None:
    x = floats(6, 1, 4, 5)
    fails(r"items \(1, 5, 4\)", npz(tmp_path, x=floats(6, 1, 5, 4)), GREY)
    fails(r"items \(4, 5, 1\)", npz(tmp_path, x=floats(6, 4, 5, 1)), GREY)
    fails(r"no array pixels or images .* it has foo", npz(tmp_path, foo=x), GREY)
    fails("classes are integers", npz(tmp_path, x=x, y=floats(6)), GREY)
    fails(r"arrays of \[5, 6\] examples", npz(tmp_path, x=x, y=np.zeros(5, int)), GREY)
    fails(r"arrays of \[0\] examples", npz(tmp_path, x=x[:0]), GREY)
    fails(r"pixels is <U1; inputs are numbers", npz(tmp_path, x=np.full((2, 1, 4, 5), "a")), GREY)
    fails(r"cannot be read", npz(tmp_path, x=np.full((2, 1, 4, 5), None)), GREY)
    fails(r"close its dimensions", npz(tmp_path, x=x), {"a": TensorType("float32", (1, "c"))})
    scalar = {"x": TensorType("float32", (4,))}
    fails(r"the model takes \(\)", npz(tmp_path, x=np.float32(1)), scalar)


def test_files_that_cannot_be_read_are_said_in_one_line(tmp_path: Path) -> None:
    fails(r"nothing\.npz: no such file", tmp_path / "nothing.npz", GREY)
    for name, content in [("a.npy", b""), ("b.npy", b"no array"), ("c.npz", b"PK\x03\x04 cut")]:
        (tmp_path / name).write_bytes(content)
        fails(re.escape(name) + ": cannot be read", tmp_path / name, GREY)
    (tmp_path / "d.csv").write_text("1,2")
    fails(r"are a \.npz, a \.npy or a folder of images", tmp_path / "d.csv", GREY)
    whole = npz(tmp_path, x=floats(64, 1, 4, 5)).read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2])
    fails(r"e\.npz: cannot be read", tmp_path / "e.npz", GREY)


def picture(path: Path, width: int, height: int, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (width, height), color).save(path)


def test_folder_of_images(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", 4, 4, (255, 0, 51))
    picture(tmp_path / "a.PNG", 9, 7, (0, 102, 0))
    (tmp_path / "notes.txt").write_text("no image")
    found = calibration.load(tmp_path, RGB, Preprocessing(scale=255.0))
    assert found.source == f"2 images of {tmp_path}"
    assert found.labels is None
    np.testing.assert_allclose(found.inputs["pixels"][0, :, 2, 2], [0, 0.4, 0], atol=1e-6)
    np.testing.assert_allclose(found.inputs["pixels"][1, :, 1, 0], [1, 0, 0.2], atol=1e-6)
    swapped = calibration.load(tmp_path, RGB, Preprocessing(scale=255.0, bgr=True))
    np.testing.assert_allclose(swapped.inputs["pixels"][1, :, 1, 0], [0.2, 0, 1], atol=1e-6)


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "ant/2.png", "bee/1.png", "cat/0.png"):
        picture(tmp_path / name, 4, 5, (10, 20, 30))
    labels = calibration.load(tmp_path, RGB, Preprocessing()).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 2]


def test_grey_images_are_of_one_channel(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 5, 4, (255, 0, 0))
    Image.new("L", (5, 4), 200).save(tmp_path / "b.png")
    pixels = calibration.load(tmp_path, GREY, Preprocessing()).inputs["pixels"]
    assert pixels.shape == (2, 1, 4, 5)
    assert pixels[1, 0, 0, 0] == 200
    assert pixels[0, 0, 0, 0] == 76  # what red weighs in luma
    Image.new("L", (4, 4), 9).save(tmp_path / "b.png")
    three = calibration.load(tmp_path, RGB, Preprocessing()).inputs["pixels"]
    assert three[1, :, 0, 0].tolist() == [9, 9, 9]


def test_images_are_scaled_by_the_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    image = np.zeros((8, 32, 3), np.uint8)
    image[:, 12:20] = 250  # the middle square
    Image.fromarray(image).save(tmp_path / "a.png")
    cut = calibration.load(tmp_path, RGB, Preprocessing(resize=8, crop=8)).inputs["pixels"]
    assert np.all(cut == 250)
    squeezed = calibration.load(tmp_path, RGB, Preprocessing()).inputs["pixels"]
    assert squeezed.min() < 50
    small = calibration.load(tmp_path, RGB, Preprocessing(resize=4)).inputs["pixels"]
    assert small.shape == (1, 3, 4, 4)
    assert np.all(small[..., 1:3] == 250)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    fails("images need a preprocessing", tmp_path, RGB)
    fails("no images in it", tmp_path, RGB, Preprocessing())
    picture(tmp_path / "a.png", 4, 4, (0, 0, 0))
    fails(
        r"images are for N x 1\|3 x H x W",
        tmp_path,
        {"x": TensorType("float32", (1, 4, 4, 4))},
        Preprocessing(),
    )
    fails("use a .npz", tmp_path, TWO, Preprocessing())
    grey = {"x": TensorType("float32", (1, 1, 4, 4))}
    fails(
        "3 numbers for mean or std, and inputs of 1 channels",
        tmp_path,
        grey,
        calibration.PREPROCESSINGS["imagenet"],
    )
    (tmp_path / "b.png").write_bytes(b"no image")
    fails(r"b\.png: no image", tmp_path, RGB, Preprocessing())


def test_preprocessing_from_text() -> None:
    assert Preprocessing.parse("imagenet").crop == 224
    assert Preprocessing.parse("unit") == Preprocessing(scale=255.0)
    assert Preprocessing.parse("") == Preprocessing()
    text = "scale=255, mean=0.5:0.25:0, std=0.5,resize=256,crop=224,bgr"
    want = Preprocessing(256, 224, 255.0, (0.5, 0.25, 0.0), (0.5,), True)
    assert Preprocessing.parse(text) == want
    assert not Preprocessing.parse("bgr=false").bgr


@pytest.mark.parametrize(
    "text",
    ["picture", "imagnet", "imagenet=1", "size=3", "scal=255", "=3"],
)
def test_preprocessing_that_is_none_lists_the_keys(text: str) -> None:
    with pytest.raises(UsageError, match=r"imagenet or unit, or key=value with the keys resize,"):
        Preprocessing.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", "'imagnet', did you mean 'imagenet'"),
        ("crop=8,scal=255", "'scal=255', did you mean 'scale'"),
        ("scale", "'' is not a number"),
        ("scale=a", "'a' is not a number"),
        ("mean=1;2", "one a channel as in 0.5:0.5:0.5"),
        ("std=", "one a channel as in 0.5:0.5:0.5"),
        ("resize=2.5", "'2.5' is not a whole number"),
        ("bgr=maybe", "'maybe' is not a flag, true or false"),
    ],
)
def test_preprocessing_with_a_mistake_says_which(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        Preprocessing.parse(text)


def test_calibration_data_that_are_not_there_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="no such file or folder, did you mean 'images'"):
        calibration.load(tmp_path / "image", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [("scale=0", "are not 0"), ("std=1:0:1", "are not 0"), ("crop=-1", "lengths in pixels")],
)
def test_preprocessing_out_of_range(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Preprocessing.parse(text)


@pytest.mark.parametrize("count", [3, 4, 10, 101])
def test_parts_are_disjoint_and_leave_out_less_than_one_example_a_part(count: int) -> None:
    data = Calibration({"x": np.arange(count)}, labels=np.arange(count))
    parts = data.split(0.5, 0.25, 0.25)
    for part in parts:
        assert part.labels is not None
        np.testing.assert_array_equal(part.inputs["x"], part.labels)
    taken = np.concatenate([part.inputs["x"] for part in parts])
    assert len(set(taken.tolist())) == len(taken) > count - 3
    assert min(len(part) for part in parts) >= 1
    again = data.split(0.5, 0.25, 0.25)
    assert [p.inputs["x"].tolist() for p in again] == [p.inputs["x"].tolist() for p in parts]
    if count == 101:
        assert [len(part) for part in parts] == [50, 25, 25]


def test_too_few_examples_to_split() -> None:
    with pytest.raises(UsageError, match="arrays: 2 examples for 3 parts"):
        Calibration({"x": np.arange(2)}).split(0.5, 0.25, 0.25)


def test_the_last_batch_repeats_its_last_example() -> None:
    data = Calibration({"x": np.arange(5), "y": np.arange(5) * 10})
    found = [{n: a.tolist() for n, a in feeds.items()} for feeds in data.batches(2)]
    assert found == [
        {"x": [0, 1], "y": [0, 10]},
        {"x": [2, 3], "y": [20, 30]},
        {"x": [4, 4], "y": [40, 40]},
    ]
    assert data.take(2).inputs["x"].tolist() == [0, 1]


def test_random_numbers_stand_in() -> None:
    first, second = calibration.random(TWO), calibration.random(TWO)
    assert first.random
    assert len(first) == calibration.RANDOM_EXAMPLES
    np.testing.assert_array_equal(first.inputs["left"], second.inputs["left"])
    assert first.inputs["left"].std() == pytest.approx(1.0, abs=0.2)
    assert not first.inputs["right"].any()
    with pytest.raises(UsageError, match="close its dimensions with --input-shape"):
        calibration.random({"x": TensorType("float32", (1, 3, "h", "w"))})


def test_batches_are_the_models_own() -> None:
    assert calibration.batch_size(GREY, 100) == 1
    assert calibration.batch_size(RGB, 7) == 7
    assert calibration.batch_size(RGB, 1000) == calibration.MAX_BATCH
    with pytest.raises(UsageError, match=r"batches of \[1, 2\]"):
        calibration.batch_size({**GREY, "b": TensorType("float32", (2, 2))}, 3)
