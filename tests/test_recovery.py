"""Recovery without PyTorch: marks of new layers, options, wrong usage."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import cli
from pwopt.approximation import NEW_LAYERS, new_layers
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.frontend import load
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph
from pwopt.models.builder import ModelBuilder
from pwopt.recovery import RecoveryOptions, recover
from tests.passes.building import Build
from tests.test_lossy import network

Capture = pytest.CaptureFixture[str]


def layer_names(model: onnx.ModelProto) -> list[str]:
    return [n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")]


@pytest.mark.parametrize("named", [True, False])
def test_new_layers_are_known_in_the_written_model(named: bool) -> None:
    model = network()
    for node in () if named else model.graph.node:
        node.name = ""
    made = pwopt.optimize(model, bottleneck=0.05, hardware=AVX512).graph.to_onnx()
    (entry,) = [p for p in made.metadata_props if p.key == NEW_LAYERS]
    marked = new_layers(load(made.SerializeToString()))
    assert all(name in entry.value for name in marked)
    first, *new, _ = layer_names(made)
    assert marked == new
    assert len(new) == 2
    assert all(new)
    assert bool(first) == named


def test_marks_of_two_runs_add_up() -> None:
    once = pwopt.optimize(network(), bottleneck=0.05, hardware=AVX512).graph.to_onnx()
    twice = pwopt.optimize(once, replace_fc_head=True, hardware=AVX512).graph.to_onnx()
    marked = new_layers(load(twice))
    assert marked[:2] == new_layers(load(once))
    assert set(marked) == set(layer_names(twice)[1:])
    assert len(set(marked)) == len(marked)


def test_an_exact_optimization_marks_nothing() -> None:
    made = pwopt.optimize(network(), hardware=AVX512).graph.to_onnx()
    assert not made.metadata_props
    assert new_layers(load(made)) == []


@pytest.mark.parametrize("text", ["no json", "{}", "[1, null]"])
def test_marks_of_others_are_none(text: str) -> None:
    model = network()
    onnx.helper.set_model_props(model, {NEW_LAYERS: text})
    assert new_layers(load(model)) == []


def test_other_metadata_stay() -> None:
    model = network()
    onnx.helper.set_model_props(model, {"author": "a", NEW_LAYERS: '["conv_0"]'})
    made = pwopt.optimize(model, bottleneck=0.05, hardware=AVX512).graph.to_onnx()
    assert {p.key: p.value for p in made.metadata_props}["author"] == "a"
    assert len(made.metadata_props) == 2
    assert new_layers(load(made)) == layer_names(made)[:3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "fine-tune"}, "mode 'fine-tune', did you mean 'finetune'?; one of feature"),
        ({"mode": "finetune", "layers": ("a",)}, "finetune trains all layers: leave out --layer"),
        ({"epochs": 0}, "epochs 0: at least 1"),
        ({"patience": -1}, "patience -1: at least 1"),
        ({"batch": 0}, "batch 0: at least 1"),
        ({"threads": 0}, "threads 0: at least 1"),
        ({"rate": 0.0}, "rate 0: it is positive"),
        ({"rate": float("nan")}, "rate nan: it is positive"),
        ({"rate": float("inf")}, "rate inf: it is positive"),
        ({"seed": -1}, "seed -1: from 0"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as error:
        RecoveryOptions(**options)  # type: ignore[arg-type]
    assert str(error.value).startswith(words)


def pictures(count: int = 20, classes: int = 10, labels: bool = True) -> Calibration:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    return Calibration({"input": x}, rng.integers(0, classes, count) if labels else None)


def refused(model: onnx.ModelProto | Graph, data: Calibration, **options: object) -> str:
    layers = RecoveryOptions(layers=("conv_2",))
    with pytest.raises(UsageError) as error:
        recover(model, data, **{"options": layers, **options})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_layers_that_are_not_there() -> None:
    message = refused(network(), pictures(), options=RecoveryOptions(layers=("conv2",)))
    assert message == "--layer conv2: no such node, did you mean 'conv_2'?"
    message = refused(network(), pictures(), options=RecoveryOptions())
    assert message.endswith("name them with --layer, or train all with --mode finetune")


def test_nothing_to_train_against() -> None:
    message = refused(network(), pictures(labels=False))
    assert message.endswith("give labels with the data, or --teacher")


def test_labels_that_are_no_classes_of_the_model() -> None:
    data = pictures()
    for found in (-1, 10):
        assert data.labels is not None
        data.labels[3] = found
        assert refused(network(), data).endswith("; the model has 10 classes")


def test_models_that_are_no_classifiers_of_one_input() -> None:
    b = Build()
    two = b.output(b.op("Add", b.input(1, 3, 8, 8, name="input"), b.input(1, 3, 8, 8, name="y")))
    assert refused(two, pictures()).startswith("the model has 2 inputs; classifiers of one")
    b = Build()
    maps = b.output(b.op("Conv", b.input(1, 3, 8, 8, name="input"), b.weight(4, 3, 1, 1)))
    options = RecoveryOptions(mode="finetune")
    message = refused(maps, pictures(), options=options)
    assert message == "the model's first output is of (4, 8, 8): no class scores"
    message = refused(network(), pictures(), teacher=maps)
    assert message == "the teacher's first output is of (4, 8, 8): no class scores"


def test_a_teacher_of_something_else() -> None:
    b = ModelBuilder("few")
    few = b.build(b.classifier(b.input((1, 3, 8, 8)), 4))
    assert refused(network(), pictures(), teacher=few) == "the teacher has 4 classes, the model 10"
    b = ModelBuilder("other")
    other = b.build(b.classifier(b.input((1, 3, 8, 8), "pixels"), 10))
    message = refused(network(), pictures(), teacher=other)
    assert message == "the teacher's inputs are ['pixels'], the model's ['input']"


def test_without_torch_one_line_says_what_to_install(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n == "torch" or n.startswith("pwopt.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    data, model = pictures(), tmp_path / "m.onnx"
    onnx.save(network(), model)
    assert data.labels is not None
    np.savez(tmp_path / "d.npz", input=data.inputs["input"], labels=data.labels)
    arguments = ["--data", str(tmp_path / "d.npz"), "--mode", "finetune", "-q"]
    out = ["-o", str(tmp_path / "out.onnx")]
    assert cli.run(["recover", str(model), *arguments, *out]) == 2
    error = capsys.readouterr().err
    assert error == "pwopt: training needs PyTorch: pip install 'pwopt[train]'\n"
    assert not (tmp_path / "out.onnx").exists()


def test_wrong_usage_of_the_command_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    model, few = tmp_path / "m.onnx", tmp_path / "few.npy"
    onnx.save(network(), model)
    np.save(few, np.zeros((5, 3, 8, 8), np.float32))
    cases = [
        (["--data", str(few)], "name them with --layer"),
        (["--data", str(few), "--layer", "conv_2"], "give labels with the data, or --teacher"),
        (["--data", str(tmp_path / "no.npz"), "--mode", "finetune"], "no.npz: no such file"),
        (["--data", str(few), "--epochs", "0"], "epochs 0: at least 1"),
        (["--data", str(few), "--mode", "finetune", "-o", str(tmp_path)], "name a file"),
    ]
    for arguments, words in cases:
        out = ["-o", str(tmp_path / "out.onnx"), "-q"]
        assert cli.run(["recover", str(model), *out, *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1, error
    assert not (tmp_path / "out.onnx").exists()
