"""Large models: the work grows with the number of nodes, and no faster."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import hardware, report
from pwopt.models import blocks
from pwopt.models.builder import ModelBuilder, Value
from pwopt.passes import default_pipeline
from pwopt.pipeline import Context, Pipeline
from tests.counting import assert_linear

SIZE = 24


def branches(make: Callable[[ModelBuilder, Value], Value]) -> Callable[[int], onnx.ModelProto]:
    """Many branches that read one value and end in one Concat."""

    def build(count: int) -> onnx.ModelProto:
        b = ModelBuilder("branches")
        x = b.relu(b.conv(b.input((1, 4, 4, 4)), 4, 3))
        return b.build(b.conv(b.concat(*[make(b, x) for _ in range(count)]), 4))

    return build


def outputs(count: int) -> onnx.ModelProto:
    b = ModelBuilder("outputs")
    x = b.relu(b.conv(b.input((1, 4, 4, 4)), 4, 3))
    ends = [b.op("Identity", b.relu(b.batch_norm(b.conv(x, 4, 3)))) for _ in range(count)]
    return b.build(*ends)


def shared_weight(count: int) -> onnx.ModelProto:
    b = ModelBuilder("shared")
    w, x = b.constant(np.eye(4)[:, :, None, None]), b.input((1, 4, 4, 4))
    for _ in range(count):
        x = b.relu(b.batch_norm(b.op("Conv", x, w, channels=4)))
    return b.build(x)


def shared_residual(count: int) -> onnx.ModelProto:
    b = ModelBuilder("residual")
    x = y = b.relu(b.conv(b.input((1, 4, 4, 4)), 4, 3))
    for _ in range(count):
        y = b.relu(b.op("Add", b.conv(y, 4), x))
    return b.build(y)


def equal(count: int) -> onnx.ModelProto:
    b = ModelBuilder("equal")
    w, x = b.constant(np.eye(4)[:, :, None, None]), b.input((1, 4, 4, 4))
    return b.build(b.concat(*[b.relu(b.op("Conv", x, w, channels=4)) for _ in range(count)]))


MODELS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "chain": lambda count: blocks.chain(4 * count),
    "wide": lambda count: blocks.wide(10 * count),
    "pointwise": branches(lambda b, x: b.relu(b.conv(x, 4))),
    "strided": branches(lambda b, x: b.relu(b.conv(x, 4, stride=2))),
    "pooled": branches(lambda b, x: b.pool(b.conv(x, 4), 2, 2, kind="AveragePool")),
    "gates": branches(lambda b, x: b.op("Mul", b.op("Sigmoid", x), x)),
    **{f.__name__: f for f in (outputs, shared_weight, shared_residual, equal)},
}

# Beyond so many readers of one value passes look no further; below, all are compared with all.
SIZES = dict.fromkeys(("pointwise", "pooled", "strided"), 65)


def optimize(model: onnx.ModelProto) -> None:
    """Reads, optimizes, describes and writes a model."""
    graph = pwopt.load(model)
    result = graph.copy()
    Pipeline(default_pipeline()).run(result, Context())
    for each in (graph, result):
        report.summarize(each, hardware.host())
    result.to_onnx()


@pytest.mark.parametrize("name", MODELS)
def test_work_grows_with_the_number_of_nodes(name: str) -> None:
    size = SIZES.get(name, SIZE)
    models = {factor * size: MODELS[name](factor * size) for factor in (1, 2, 4)}
    assert_linear(lambda count: optimize(models[count]), size)
