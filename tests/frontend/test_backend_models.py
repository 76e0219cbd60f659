"""Round trips over the models that the onnx package tests its backends with."""

from __future__ import annotations

import functools
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import ModelProto

from pwopt.errors import FrontendError
from pwopt.frontend import export, load
from tests.frontend.building import round_trip, run, same

DATA = Path(next(iter(onnx.backend.test.__path__))) / "data"
LIGHT = sorted(DATA.glob("light/*.onnx"))
FILES = sorted(
    path
    for kind in ("simple", "pytorch-operator", "pytorch-converted")
    for path in DATA.glob(f"{kind}/*/model.onnx")
)
TOO_OLD = {"test_not_2d", "test_not_3d", "test_not_4d"}  # operator set 1


@functools.cache
def cases() -> list[Any]:
    """Every generated test case; takes ten seconds, so only where a test needs it."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about the reference's arithmetic
        return [c for c in collect_testcases(None) if c.name not in TOO_OLD]


def newer(path: Path) -> ModelProto:
    """The model in a file at an operator set that pwopt reads; skips what cannot be converted."""
    model = onnx.load(path)
    if model.opset_import[0].version < 7:
        try:
            model = onnx.version_converter.convert_version(model, 13)
        except Exception as error:  # the converter's own limits
            pytest.skip(f"onnx cannot convert it: {error}")
    return model


def feeds_of(model: ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    initialized = {t.name for t in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in initialized:
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value or 1 for d in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = (rng.random(shape) * 3).astype(dtype)
    return feeds


def compare(model: ModelProto, feeds: dict[str, Any]) -> bool:
    """Whether outputs agree bit for bit; False if ONNX Runtime cannot run the original."""
    try:
        expected = run(model, feeds)
    except Exception:  # no kernel for it, or outputs that it cannot hand over
        return False
    actual = run(export(load(model)), feeds)
    assert all(map(same, expected, actual))
    return True


def test_all_generated_models_round_trip() -> None:
    assert len(cases()) > 1500
    for number, case in enumerate(cases()):
        if number % 8:
            onnx.checker.check_model(export(load(case.model)))
        else:
            round_trip(case.model)


@pytest.mark.parametrize("fraction", [0.15, pytest.param(1.0, marks=pytest.mark.slow)])
def test_generated_models_compute_the_same(fraction: float) -> None:
    chosen = random.Random(0).sample(cases(), int(fraction * len(cases())))
    chosen = [c for c in chosen if not any(w in c.name for w in ("random", "bernoulli", "dropout"))]
    compared = 0
    for case in chosen:
        names = [v.name for v in case.model.graph.input]
        feeds = dict(zip(names, case.data_sets[0][0], strict=False))
        compared += compare(case.model, feeds)
    assert compared > 0.6 * len(chosen)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_files_compute_the_same(path: Path) -> None:
    model = newer(path)
    round_trip(model)
    tensors = all(v.type.HasField("tensor_type") for v in model.graph.input)
    if tensors and not any(v.type.tensor_type.elem_type == 8 for v in model.graph.input):
        compare(model, feeds_of(model))


def test_operator_set_6_is_refused_with_a_remedy() -> None:
    path = DATA / "pytorch-operator" / "test_operator_conv" / "model.onnx"
    with pytest.raises(FrontendError, match=r"operator set 6.*version_converter"):
        load(path)


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_networks_round_trip_with_known_types(path: Path) -> None:
    model = onnx.load(path)
    round_trip(model)
    graph = load(path)
    unknown = [
        node.label
        for node in graph.nodes()
        for i in range(len(node.types))
        if i == 0 and node[i].shape is None
    ]
    assert not unknown


@pytest.mark.parametrize(
    "path",
    [p if "squeeze" in p.name else pytest.param(p, marks=pytest.mark.slow) for p in LIGHT],
    ids=lambda p: p.stem,
)
def test_networks_compute_the_same(path: Path) -> None:
    model = onnx.load(path)
    assert compare(model, feeds_of(model))
