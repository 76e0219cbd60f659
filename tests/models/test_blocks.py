"""The small graphs: valid, runnable, the same bytes for the same seed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from pwopt.models import BLOCKS
from pwopt.models.blocks import bottleneck, chain, pointwise
from pwopt.models.builder import ModelBuilder


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString())
    (only,) = session.get_inputs()
    x = np.random.default_rng(1).standard_normal(only.shape, dtype=np.float32)
    return list(session.run(None, {only.name: x}))


@pytest.mark.parametrize("name", BLOCKS)
def test_runs_with_sane_values(name: str) -> None:
    model = BLOCKS[name]()
    onnx.checker.check_model(model, full_check=True)
    for output, info in zip(run(model), model.graph.output, strict=True):
        dims = info.type.tensor_type.shape.dim
        assert tuple(d.dim_value for d in dims) == output.shape
        assert np.isfinite(output).all()
        assert 1e-3 < np.abs(output).max() < 1e3
        assert output.std() > 1e-4


@pytest.mark.parametrize("name", BLOCKS)
def test_same_seed_same_bytes(name: str) -> None:
    first, second, other = (BLOCKS[name](seed=s).SerializeToString() for s in (3, 3, 4))
    assert first == second != other


def test_sizes_are_free() -> None:
    model = pointwise(5, 7, 9, batch=2, stride=2, bias=False)
    assert [o.shape for o in run(model)] == [(2, 7, 5, 5)]
    assert [o.shape for o in run(bottleneck(12, 5, 7, stride=2))] == [(1, 24, 4, 4)]


def test_chain_has_the_nodes_that_were_asked_for() -> None:
    assert len(chain(40).graph.node) == 40


def test_builder_knows_channels() -> None:
    b = ModelBuilder("t")
    x = b.input((1, 3, 8, 8))
    y = b.concat(b.conv(x, 5), b.conv(x, 6, 3))
    assert b.channels[b.pool(b.relu(y), 2, 2)] == 11


def test_builder_refuses_what_does_not_fit() -> None:
    b = ModelBuilder("t")
    x = b.input((1, 3, 8, 8))
    bad = b.op("Add", b.conv(x, 4), b.conv(x, 5))
    with pytest.raises(onnx.shape_inference.InferenceError):
        b.build(bad)
