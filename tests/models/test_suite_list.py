"""The suite's list, its inputs, and the networks that need no files."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pwopt.errors import UsageError
from pwopt.models import SUITE, images, labelled_data, load_suite
from pwopt.models.light import load_light


def test_fourteen_networks() -> None:
    assert len(load_suite()) == len(SUITE) == 14
    assert [m.name for m in load_suite(["vgg19", "alexnet"])] == ["alexnet", "vgg19"]


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="no model nope"):
        load_suite(["nope"])
    with pytest.raises(UsageError, match="no labelled data for vgg19"):
        labelled_data("vgg19")


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "mnist_conv"])
def test_small_networks(name: str) -> None:
    model = SUITE[name]
    proto = model.build()
    assert proto.SerializeToString() == model.build().SerializeToString()
    session = ort.InferenceSession(proto.SerializeToString())
    outputs = session.run(None, model.inputs())
    assert all(np.isfinite(o).all() and o.std() > 1e-6 for o in outputs)
    other = session.run(None, model.inputs(seed=1))
    assert not np.array_equal(outputs[-1], other[-1])


def test_light_weights_are_initializers() -> None:
    graph = load_light("squeezenet").graph
    assert all(node.op_type != "ConstantOfShape" for node in graph.node)
    assert [i.name for i in graph.input] == ["data_0"]


def test_light_weights_depend_on_the_seed() -> None:
    first, same, other = (load_light("squeezenet", seed=s) for s in (0, 0, 1))
    assert first == same
    assert first != other


def test_logits_are_an_output() -> None:
    graph = SUITE["squeezenet"].build().graph
    makers = {o: n for n in graph.node for o in n.output}
    probability, logits = (o.name for o in graph.output)
    assert makers[probability].op_type == "Softmax"
    assert list(makers[probability].input) == [logits]


def test_pictures() -> None:
    photo = images.photo(64, seed=3)
    assert photo.shape == (64, 64, 3)
    assert 0 <= photo.min() < photo.max() <= 255
    assert np.array_equal(photo, images.photo(64, seed=3))
    line = images.text_line("pixel", seed=1)
    assert line.shape == (48, 192, 3)
    assert line.min() < 128 < line.max()
    flipped = images.text_line("pixel", seed=1, rotate=True)
    assert not np.array_equal(line, flipped)
    assert images.paddle_ocr(line).shape == (1, 3, 48, 192)
    assert images.imagenet(photo).dtype == np.float32


def test_onnx_checks_every_vendored_network() -> None:
    onnx.checker.check_model(SUITE["mnist_conv"].build(), full_check=True)
