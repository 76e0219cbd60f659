"""When outputs count as equal."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import pytest

from pwopt import compilation, driver, numerics
from pwopt.ir.types import TensorType

X = np.array([[1.0, -4.0], [2.0, 0.5]], np.float32)


def test_error_is_relative_to_the_scale() -> None:
    tiny = X * np.float32(1e-10)
    assert numerics.difference("y", tiny, tiny * np.float32(1.01)).error == pytest.approx(
        0.01, rel=1e-3
    )
    assert not numerics.difference("y", tiny, np.zeros_like(tiny)).ok
    large = X * np.float32(1e6)
    assert numerics.difference("y", large, large + np.float32(1.0)).ok


def test_a_zero_reference_is_compared_absolutely() -> None:
    zero = np.zeros(3, np.float32)
    assert numerics.difference("y", zero, zero + np.float32(1e-6)).ok
    assert not numerics.difference("y", zero, zero + np.float32(1.0)).ok


@pytest.mark.parametrize(
    ("actual", "detail"),
    [
        (X.astype(np.float64), "is float64, expected float32"),
        (X[0], r"has shape \(2,\), expected \(2, 2\)"),
        (np.where(X > 1, np.nan, X).astype(np.float32), "where the reference has numbers"),
    ],
)
def test_what_has_no_number(actual: np.ndarray, detail: str) -> None:
    found = numerics.difference("y", X, actual)
    assert found.error == math.inf
    assert not found.ok
    with pytest.raises(AssertionError, match=detail):
        raise AssertionError(str(found))


def test_equal_infinities_and_nans_agree() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert numerics.difference("y", special, special.copy()).error == 0.0
    swapped = special[[0, 2, 1, 3]]
    assert not numerics.difference("y", special, swapped).ok


def test_integers_count_the_elements_that_differ() -> None:
    want = np.arange(4000)
    have = want.copy()
    have[7] += 1
    assert numerics.difference("y", want, have).error == pytest.approx(1 / 4000)
    assert numerics.difference("y", want, have).ok
    assert not numerics.difference("y", want[:10], have[:10]).ok


def test_narrow_floats_have_their_own_tolerance() -> None:
    want = X.astype(ml_dtypes.bfloat16)
    assert numerics.difference("y", want, want).tolerance == numerics.TOLERANCES["bfloat16"]
    assert numerics.difference("y", np.array([]), np.array([])).ok


def test_missing_outputs_are_reported() -> None:
    (found,) = numerics.differences({"y": X}, {})
    assert "is missing" in str(found)


def test_random_inputs_are_seeded_and_typed() -> None:
    types = {
        "x": TensorType("float32", (2, 3)),
        "i": TensorType("int64", (5,)),
        "b": TensorType("bool", (9,)),
        "h": TensorType("bfloat16", (4,)),
        "s": TensorType("string", (2,)),
        "scalar": TensorType("float32", ()),
    }
    first, again = numerics.random_inputs(types, 1), numerics.random_inputs(types, 1)
    assert list(first) == list(types)
    for name, array in first.items():
        assert np.array_equal(array, again[name])
        assert array.shape == types[name].static_shape
    assert first["i"].min() >= 0
    assert first["h"].dtype == ml_dtypes.bfloat16
    assert not np.array_equal(first["x"], numerics.random_inputs(types, 2)["x"])


def test_perturbed_moves_floats_by_a_few_units() -> None:
    moved = numerics.perturbed({"x": X, "i": np.arange(3)})
    assert 0 < np.abs(moved["x"] / X - 1).max() <= 2 * numerics.PERTURBATION
    assert np.array_equal(moved["i"], np.arange(3))


def test_class_probabilities_as_maps_have_a_tolerance() -> None:
    want = [{0: 0.25, 1: 0.75}]
    d = numerics.difference("p", want, [{1: 0.75 + 1e-7, 0: 0.25}])
    assert (d.ok, d.dtype) == (True, "float32")
    d = numerics.difference("p", want, [{0: 0.35, 1: 0.65}])
    assert not d.ok
    d = numerics.difference("p", want, [{0: 0.25, 1: 0.75}, {0: 0.5, 1: 0.5}])
    assert not d.ok


def test_classifiers_of_scikit_learn_pass_the_check() -> None:
    info, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    zipped = onnx.helper.make_sequence_type_proto(
        onnx.helper.make_map_type_proto(
            kinds.INT64, onnx.helper.make_tensor_type_proto(kinds.FLOAT, [])
        )
    )
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Softmax", ["x"], ["p"]),
            onnx.helper.make_node(
                "ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[*range(10)]
            ),
        ],
        "classifier",
        [info("x", kinds.FLOAT, [1, 10])],
        [onnx.helper.make_value_info("y", zipped)],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    made, checked = compilation.compile_optimized(driver.optimize(model))
    assert checked.report.compilation is not None
    verification = checked.report.compilation.verification
    assert verification is not None
    (found,) = verification.outputs
    assert found.ok
    assert list(made.run({"x": np.zeros((1, 10), np.float32)})["y"][0]) == [*range(10)]
