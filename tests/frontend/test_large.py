"""Large models: the frontend's work grows with the number of nodes, and weights are not copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from pwopt.frontend import export, load
from tests.counting import assert_linear
from tests.frontend.building import model, value


def chain(length: int, outputs: int = 1) -> ModelProto:
    nodes = [
        helper.make_node("Add", [f"v{i}", "w"], [f"v{i + 1}"], name=f"n{i}")
        if i % 2
        else helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}")
        for i in range(length)
    ]
    ends = [value(f"v{length - i}", [1, 8]) for i in range(outputs)]
    return model(nodes, [value("v0", [1, 8])], ends, {"w": np.ones(8, np.float32)})


@pytest.mark.parametrize(
    ("length", "outputs"),
    [(10_000, 1), (10_000, 2_000), pytest.param(100_000, 1, marks=pytest.mark.slow)],
)
def test_many_nodes(length: int, outputs: int) -> None:
    graph = load(chain(length, outputs))
    result = export(graph)
    assert len(result.graph.node) == length
    assert graph.outputs[0][1].shape == (1, 8)
    onnx.checker.check_model(result)


def fan(count: int) -> ModelProto:
    """Many readers of one value, many operands of one node."""
    nodes = [helper.make_node("Relu", ["x"], [f"r{i}"]) for i in range(count)]
    nodes.append(helper.make_node("Sum", [f"r{i}" for i in range(count)], ["y"]))
    return model(nodes, [value("x", [3])], [value("y", [3])])


@pytest.mark.parametrize("make", [chain, lambda length: chain(length, length // 2), fan])
def test_work_grows_with_the_number_of_nodes(make: Callable[[int], ModelProto]) -> None:
    assert_linear(lambda size: export(load(make(size))), 50)


def test_weights_beyond_2_gb_are_mapped(tmp_path: Path) -> None:
    elements = 3 * 2**28
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * elements)  # sparse: takes no room on the disk
    source = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [1])],
                   [value("y", [elements])])  # fmt: skip
    tensor = source.graph.initializer.add(name="w", dims=[elements], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(source.SerializeToString())
    graph = load(path)
    array = next(n for n in graph.nodes() if n.is_constant).attributes["value"]
    assert array.nbytes == 4 * elements
    assert graph.outputs[0][1].shape == (elements,)
