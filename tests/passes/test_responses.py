"""Responses: rows of one layer before and after a rewrite belong together."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.calibration import Calibration
from pwopt.ir.graph import Value
from pwopt.ort import OrtModel
from pwopt.passes import responses as module
from pwopt.passes.responses import responses
from tests.passes.building import Build


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


def network(batch: int | str) -> tuple[Build, Value, Value]:
    b = Build()
    first = b.conv(b.input(batch, 3, 6, 5), 4, 3, pads=(1, 1, 1, 1))
    second = b.conv(b.op("Relu", first), 7)
    b.output(second)
    return b, first, second


def everything(b: Build, value: Value, x: np.ndarray) -> np.ndarray:
    """All rows of a value, example by example."""
    graph = b.graph.copy()
    graph.set_outputs([("y", value)])
    graph.erase_dead()
    size = b.graph.inputs[0].out.tensor.shape[0]  # type: ignore[index]
    size = size if isinstance(size, int) else len(x)
    model = OrtModel(graph.to_onnx().SerializeToString())
    y = np.concatenate([model.run({"x": x[i : i + size]})["y"] for i in range(0, len(x), size)])
    return np.asarray(np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]))


@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_all_pixels_are_taken_where_there_are_few(batch: int | str) -> None:
    b, first, second = network(batch)
    x = images(4, 3, 6, 5)
    found = responses(b.graph, [first, second], Calibration({"x": x}), [1000, 1000])
    for value, rows in zip((first, second), found, strict=True):
        np.testing.assert_allclose(rows, everything(b, value, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, "n"])
def test_places_do_not_depend_on_the_graph(batch: int | str) -> None:
    b, first, second = network(batch)
    data = Calibration({"x": images(5, 3, 6, 5)})
    before = responses(b.graph, [first, second], data, [40, 40])
    graph = b.graph.copy()
    doubled = graph.add("Mul", [first, graph.constant(np.array(2.0, np.float32))]).out
    (after,) = responses(graph, [doubled], data, [40])
    assert before[0].shape == (40, 4)
    assert before[1].shape == (40, 7)
    np.testing.assert_allclose(after, 2 * before[0], rtol=1e-5, atol=1e-6)


def test_places_do_not_depend_on_the_examples_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    b, first, second = network("n")
    data = Calibration({"x": images(11, 3, 6, 5)})
    at_once = responses(b.graph, [first], data, [50])
    monkeypatch.setattr(module, "_BYTES", 4 * 30 * 4 * 3)  # three maps of the first layer
    in_parts = responses(b.graph, [first, second], data, [50, 50])
    np.testing.assert_allclose(in_parts[0], at_once[0], rtol=1e-5, atol=1e-6)


def test_examples_that_fill_a_batch_up_are_not_looked_at() -> None:
    b, first, _ = network(4)
    data = Calibration({"x": images(5, 3, 6, 5)})
    (found,) = responses(b.graph, [first], data, [10**6])
    assert len(found) == 5 * 30
    (few,) = responses(b.graph, [first], data, [50])
    assert len(few) == 50


def test_several_inputs_and_matrices() -> None:
    b = Build()
    x, y = b.input("n", 6, name="x"), b.input("n", 6, name="y")
    product = b.op("Gemm", b.op("Add", x, y), b.weight(6, 4))
    b.output(b.op("Relu", product))
    left, right = images(9, 6), images(9, 6, seed=1)
    data = Calibration({"x": left, "y": right})
    total, found = responses(b.graph, [b.graph.operands(product.node)[0], product], data, [99, 99])  # type: ignore[list-item]
    np.testing.assert_allclose(total, left + right, rtol=1e-6)
    assert found.shape == (9, 4)


def test_rows_that_mix_examples_are_taken_as_they_are() -> None:
    b = Build()
    mean = b.op("ReduceMean", b.input(4, 6), axes=(0,), keepdims=1)
    product = b.op("Gemm", mean, b.weight(6, 3))
    b.output(product)
    (found,) = responses(b.graph, [product], Calibration({"x": images(8, 6)}), [100])
    assert found.shape == (2, 3)


def test_the_graph_is_not_changed() -> None:
    b, first, _ = network(1)
    before = str(b.graph), b.graph.version
    responses(b.graph, [first], Calibration({"x": images(2, 3, 6, 5)}), [10])
    assert (str(b.graph), b.graph.version) == before
