"""External data, and what a model may not reach with it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from pwopt.errors import FrontendError
from pwopt.frontend import load, save
from tests.frontend.building import assert_same_outputs, model, run, value

WEIGHT = np.arange(3000, dtype=np.float32)


def external(location: str, offset: str | None = None, length: str | None = None) -> ModelProto:
    built = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [3000])],
                  [value("y", [3000])])  # fmt: skip
    tensor = built.graph.initializer.add(name="w", dims=[3000], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", location), ("offset", offset), ("length", length)):
        if entry is not None:
            tensor.external_data.add(key=key, value=entry)
    return built


def store(folder: Path, source: ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(source.SerializeToString())
    return path


def refuse(path: Path, *words: str) -> None:
    with pytest.raises(FrontendError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    for word in ("'w'", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("offset", [None, "0", "3", "4096"])
def test_reads(tmp_path: Path, offset: str | None) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(bytes(int(offset or 0)) + WEIGHT.tobytes())
    graph = load(store(tmp_path, external("data/w.bin", offset)))
    array = next(n for n in graph.nodes() if n.is_constant).attributes["value"]
    assert (array == WEIGHT).all()
    assert array.flags.aligned
    assert not array.flags.writeable or offset == "3"


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("/etc/passwd", "not a path inside"),
        ("../secret.bin", "not a path inside"),
        ("a/../../secret.bin", "not a path inside"),
        ("..\\secret.bin", "not a path inside"),
        ("", "not a path inside"),
        ("a\0b", "not a path inside"),
        ("missing.bin", "keep it beside the model"),
        ("folder", "not a regular file"),
        ("symbolic.bin", "links to outside"),
        ("folder/up/secret.bin", "links to outside"),
        ("hard.bin", "hard link"),
        ("loop.bin", "keep it"),
    ],
)
def test_confined(tmp_path: Path, location: str, word: str) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    (folder / "symbolic.bin").symlink_to(secret)
    (folder / "folder" / "up").symlink_to(tmp_path)
    (folder / "loop.bin").symlink_to(folder / "loop.bin")
    os.link(secret, folder / "hard.bin")
    refuse(store(folder, external(location)), word)


@pytest.mark.parametrize(
    ("offset", "length", "word"),
    [
        ("1", None, "takes 12000 bytes"),
        ("1", "12000", "which has 12000"),
        ("0", "1000000000000000", "truncated"),
        ("99999", None, "truncated"),
        ("-1", None, "not a number"),
        ("0", "-5", "not a number"),
        ("1e3", None, "not a number"),
        ("9" * 5000, None, "not a number"),
        ("0", "11999", "takes 12000 bytes"),
    ],
)
def test_outside_the_file(tmp_path: Path, offset: str, length: str | None, word: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    refuse(store(tmp_path, external("w.bin", offset, length)), word)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").touch()
    refuse(store(tmp_path, external("w.bin")), "takes 12000 bytes")


def test_model_without_a_folder() -> None:
    with pytest.raises(FrontendError, match="load it by path"):
        load(external("w.bin"))


def test_external_data_of_subgraphs_moves_into_them(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    inner = external("w.bin").graph
    del inner.input[:]
    nodes = [helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)]
    inputs = [value("x", [3000]), value("c", [], TensorProto.BOOL)]
    source = model(nodes, inputs, [value("z", [3000])])
    path = store(tmp_path, source)
    feeds = {"x": WEIGHT, "c": np.array(True)}
    (expected,) = run(str(path), feeds)
    exported = load(path).to_onnx()
    (actual,) = run(exported, feeds)
    assert (expected == actual).all()
    assert_same_outputs(exported, feeds)


def test_saves_with_external_data(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "s"], ["y"])]
    constants = {"w": WEIGHT, "s": np.ones(1, np.float32)}
    source = model(nodes, [value("x", [3000])], [value("y", [3000])], constants)
    path = tmp_path / "model.onnx"
    save(load(source), path, external_data=True)
    first = sorted(p.name for p in tmp_path.iterdir())
    assert len(first) == 2
    onnx.checker.check_model(path)
    feeds = {"x": WEIGHT}
    assert (run(str(path), feeds)[0] == run(source, feeds)[0]).all()
    # Loading maps the data; saving over the same file must not disturb it.
    graph = load(path)
    save(graph, path, external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == first
    constants["w"] = WEIGHT + 1
    save(load(model(nodes, [value("x", [3000])], [value("y", [3000])], constants)), path, True)
    assert len(list(tmp_path.iterdir())) == 2
    assert (run(str(path), feeds)[0] == run(source, feeds)[0] + 1).all()
    assert graph.to_onnx().graph.initializer[0].raw_data == WEIGHT.tobytes()
