"""Broken and hostile files: one clear error on one line, quickly, or carried along unevaluated."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from pwopt.errors import FrontendError
from pwopt.frontend import export, load
from tests.frontend.building import INT64, model, value

HUGE = 2**40


def identity() -> ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="r")], [value("x", [3])],
                 [value("y", [3])])  # fmt: skip


def refuse(source: object, *words: str) -> None:
    with pytest.raises(FrontendError) as caught:
        load(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    refuse(tmp_path / "modle.onnx", "no such file", "did you mean 'model.onnx'")


def test_directory(tmp_path: Path) -> None:
    refuse(tmp_path, "is a directory")


def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "not a regular file")


def test_file_beyond_2_gb(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # sparse
    refuse(path, "external data")


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04 zip", b"hello", b"\x08\x08"])
def test_other_bytes(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    refuse(tmp_path / "model.onnx", "not an ONNX model")
    refuse(data, "not an ONNX model")


def test_other_types() -> None:
    refuse(17, "int")


def test_truncated_and_damaged_files() -> None:
    data = identity().SerializeToString()
    rng = np.random.default_rng(0)
    damaged = [data[:n] for n in range(len(data))]
    for _ in range(500):
        copy = bytearray(data)
        copy[rng.integers(len(data))] = rng.integers(256)
        damaged.append(bytes(copy))
    refused = []
    for each in damaged:
        try:
            export(load(each))
        except FrontendError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert not [message for message in refused if "\n" in message]


def test_old_operator_set() -> None:
    old = identity()
    old.opset_import[0].version = 6
    refuse(old, "operator set 6", "7", "version_converter")


def test_unknown_operator() -> None:
    other = identity()
    other.graph.node[0].op_type = "Rleu"
    refuse(other, "Rleu", "r")


def test_unknown_domain_is_carried() -> None:
    own = model([helper.make_node("Rleu", ["x"], ["y"], domain="own")], [value("x", [3])],
                [value("y", [3])], domains=["own"])  # fmt: skip
    assert load(own).outputs[0][1].type.shape == (3,)  # type: ignore[union-attr]


def test_missing_operand() -> None:
    nodes = [helper.make_node("Relu", ["img"], ["y"], name="r")]
    refuse(model(nodes, [value("image", [3])], [value("y", [3])]), "Relu 'r'", "'img'", "nothing")


def test_missing_output() -> None:
    refuse(model([], [value("x", [3])], [value("y", [3])]), "'y'")


def test_duplicate_names() -> None:
    twice = [helper.make_node("Relu", ["x"], ["y"], name="a"),
             helper.make_node("Neg", ["x"], ["y"], name="b")]  # fmt: skip
    refuse(model(twice, [value("x", [3])], [value("y", [3])]), "'y'", "'a'", "'b'")
    double = identity()
    double.graph.input.append(double.graph.input[0])
    refuse(double, "input 'x'", "twice")
    outputs = identity()
    outputs.graph.output.append(outputs.graph.output[0])
    refuse(outputs, "output 'y'", "twice")
    weights = identity()
    weights.graph.initializer.extend([helper.make_tensor("w", 1, [1], [1.0])] * 2)
    refuse(weights, "initializer 'w'", "twice")


def test_cycle() -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], name="first"),
             helper.make_node("Relu", ["a"], ["b"])]  # fmt: skip
    refuse(model(nodes, [value("x", [3])], [value("b", [3])]), "cycle", "first")


def test_wrong_attribute() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="r", slope=0.1)]
    refuse(model(nodes, [value("x", [3])], [value("y", [3])]), "slope")


@pytest.fixture
def frugal() -> Iterator[None]:
    """Fails a test that takes long or allocates much."""
    tracemalloc.start()
    start = time.perf_counter()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert time.perf_counter() - start < 20


@pytest.mark.usefixtures("frugal")
class TestBounds:
    """A small file cannot make the frontend take much time or memory."""

    @pytest.mark.parametrize(
        "tensor",
        [
            TensorProto(dims=[HUGE, HUGE], data_type=1),
            TensorProto(dims=[HUGE], data_type=1, raw_data=b"1234"),
            TensorProto(dims=[2], data_type=1, raw_data=b"1234"),
            TensorProto(dims=[2], data_type=1, float_data=[1, 2, 3]),
            TensorProto(dims=[-1], data_type=1),
            TensorProto(dims=[1] * 1000, data_type=1, raw_data=b"1234"),
            TensorProto(dims=[0, 2**62, 2**62], data_type=1),
            TensorProto(dims=[HUGE], data_type=8),
            TensorProto(dims=[HUGE], data_type=TensorProto.INT4, raw_data=b"1"),
            TensorProto(dims=[1], data_type=8, raw_data=b"1"),
        ],
    )
    def test_initializer_without_its_data(self, tensor: TensorProto) -> None:
        source = identity()
        source.graph.initializer.add().CopyFrom(tensor)
        source.graph.initializer[0].name = "w"
        refuse(source, "initializer 'w'")

    def test_huge_inputs(self) -> None:
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
        huge = model(nodes, [value("x", [HUGE] * 8)], [value("y", [HUGE] * 8)])
        assert load(huge).outputs[0][1].shape == (HUGE,) * 8

    @pytest.mark.parametrize("op", ["Cast", "Concat", "Slice", "Add", "Reshape", "Expand", "Tile"])
    @pytest.mark.parametrize("length", ["constant", "declared", "computed", "from_shape"])
    def test_huge_computed_values(self, op: str, length: str) -> None:
        nodes, inputs, constants = [], [value("x", [4])], {"one": np.array([1])}
        if length == "declared":
            inputs.append(value("t", [HUGE], INT64))
        elif length == "constant":
            constants["s"] = np.array([HUGE])
        elif length == "computed":
            constants["k"] = np.array([2**20])
            nodes.append(helper.make_node("Mul", ["k", "k"], ["s"]))
        else:
            inputs[0] = value("x", [HUGE])
            nodes.append(helper.make_node("Shape", ["x"], ["s"]))
        if length != "declared":
            fill = helper.make_tensor("v", INT64, [1], [1])
            nodes.append(helper.make_node("ConstantOfShape", ["s"], ["t"], value=fill))
        operands = {"Cast": ["t"], "Concat": ["t", "t"], "Slice": ["x", "t", "t"],
                    "Add": ["t", "t"], "Reshape": ["x", "t"], "Expand": ["x", "t"],
                    "Tile": ["t", "one"]}[op]  # fmt: skip
        options: dict[str, Any] = {"Cast": {"to": 1}, "Concat": {"axis": 0}}.get(op, {})
        nodes.append(helper.make_node(op, operands, ["h"], **options))
        nodes.append(helper.make_node("Cast", ["h"], ["y"], to=1))
        export(load(model(nodes, inputs, [value("y", None)], constants)))

    def test_doubling(self) -> None:
        nodes = [helper.make_node("Shape", ["x"], ["v0"])]
        for i in range(40):
            nodes.append(helper.make_node("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0))
        load(model(nodes, [value("x", [3])], [value("v40", None, INT64)]))

    def test_bomb_in_a_subgraph(self) -> None:
        inner = helper.make_graph(
            [helper.make_node("Slice", ["x", "t", "t"], ["z"])], "inner", [], [value("z", [3])]
        )
        branches = {"then_branch": inner, "else_branch": inner}
        nodes = [helper.make_node("If", ["c"], ["y"], **branches)]
        inputs = [value("x", [3]), value("t", [HUGE], INT64), value("c", [], TensorProto.BOOL)]
        load(model(nodes, inputs, [value("y", None)]))
