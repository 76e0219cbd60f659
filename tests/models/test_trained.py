"""The networks trained on Fashion-MNIST are as good as the manifest says, compiled ones too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import pwopt
from pwopt.errors import UsageError
from pwopt.models import TRAINED, entry, fashion, labelled_data, plain, store
from pwopt.models.datasets import classify
from pwopt.models.trained import trained
from pwopt.ort import OrtModel
from pwopt.running import Runner


def accuracy(runner: Runner, name: str) -> float:
    inputs, labels = labelled_data(name)
    return float((classify(runner, inputs) == labels).mean())


@pytest.mark.parametrize("name", TRAINED)
def test_accuracy_is_the_manifests(name: str) -> None:
    stated = store.manifest()["vendored"][TRAINED[name].file]
    assert stated["accuracy"] >= (0.92 if name == "fashion_vgg" else 0.9)
    runner = OrtModel(store.vendored(TRAINED[name].file), threads=1)
    # One picture may be on a border between classes that another processor rounds across.
    assert accuracy(runner, name) == pytest.approx(stated["subset_accuracy"], abs=1 / 500)


@pytest.mark.parametrize("name", ["fashion_lenet", "fashion_senet"])
def test_accuracy_survives_compilation(name: str) -> None:
    stated = store.manifest()["vendored"][TRAINED[name].file]
    result = pwopt.optimize(store.vendored(TRAINED[name].file))
    found = accuracy(pwopt.compile(result.graph), name)
    assert found == pytest.approx(stated["subset_accuracy"], abs=1 / 500)


@pytest.mark.parametrize("name", TRAINED)
def test_the_file_is_its_builders_network(name: str) -> None:
    """The same nodes and shapes as before training, batch normalization not folded."""
    model, untrained = entry(name).build(), TRAINED[name].untrained()
    assert store.vendored(TRAINED[name].file).stat().st_size < 1_000_000

    def outline(proto: onnx.ModelProto) -> list[tuple[str, str, list[str], list[str]]]:
        nodes = proto.graph.node  # in another order: trained weights are newer than the nodes
        return sorted((n.name, n.op_type, list(n.input), list(n.output)) for n in nodes)

    def sizes(proto: onnx.ModelProto) -> dict[str, list[int]]:
        return {t.name: list(t.dims) for t in proto.graph.initializer}

    assert outline(model) == outline(untrained)
    assert sizes(model) == sizes(untrained)
    parameters = sum(int(np.prod(dims)) for dims in sizes(model).values())
    assert parameters == store.manifest()["vendored"][TRAINED[name].file]["parameters"]


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="no trained network fashion; there are fashion_nin"):
        trained("fashion")


def test_training_learns() -> None:
    pytest.importorskip("torch")
    from pwopt.models.train import fitted

    model = plain.lenet(width=4, batch_norm=True)
    lines: list[str] = []
    graph = fitted(
        model, fashion.subset("train"), epochs=12, rate=0.01, seed=0, progress=lines.append
    )
    assert len(lines) == 12
    runner = OrtModel(graph.to_onnx().SerializeToString(), threads=1)
    test = fashion.subset("test")
    assert (classify(runner, test.inputs()) == test.labels).mean() > 0.6
