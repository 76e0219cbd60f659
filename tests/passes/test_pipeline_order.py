"""The passes together, in their default order."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path

import pytest

import pwopt.passes
from pwopt.frontend.reference import evaluate
from pwopt.ir.graph import Graph, Value
from pwopt.ir.types import TensorType
from pwopt.passes import PASSES, default_pipeline
from pwopt.pipeline import Context, Pipeline
from tests.passes.building import Build, random_feeds

HEADINGS = ("Rewrite:", "Shapes:", "Numerics:", "Misses when:", "Source:")


@pytest.mark.parametrize("name", PASSES)
def test_one_name_in_four_spellings(name: str) -> None:
    cls = PASSES[name]
    assert cls.name == name
    assert re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower() == name
    assert cls.__module__ == f"pwopt.passes.{name.replace('-', '_')}"
    assert all(heading in (cls.__doc__ or "") for heading in HEADINGS)


def test_bare_import_is_refused() -> None:
    path = Path(pwopt.passes.__file__)
    spec = importlib.util.spec_from_file_location("passes", path)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"pwopt\.passes"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def dense(b: Build, x: Value) -> Value:
    """Normalization and Caffe's Scale, by constants that are still to be unsqueezed."""
    x = b.batch_norm(x, 4)
    axes = b.shape(1, 2)
    x = b.op("Mul", x, b.op("Unsqueeze", b.weight(4), axes))
    return b.op("Add", x, b.op("Unsqueeze", b.weight(4), axes))


def network() -> Graph:
    b = Build()
    x = b.op("Relu", dense(b, b.conv(b.input("batch", 3, 9, 7), 4, 3, auto_pad="SAME_UPPER")))
    x = b.op("Dropout", b.op("Relu", dense(b, x)))
    x = b.op("Concat", x, dense(b, b.conv(x, 4)), axis=1)
    x = b.op("ReduceMean", b.op("Sum", x, x), axes=(2, 3), keepdims=0)
    batch = b.op("Gather", b.op("Shape", x), b.shape(0), axis=0)
    x = b.op("Reshape", x, b.op("Concat", batch, b.shape(-1), axis=0))
    return b.output(b.op("Add", b.op("MatMul", x, b.weight(8, 5)), b.weight(5)))


def test_network_in_float64() -> None:
    graph = network()
    result, sizes = graph.copy(), {"batch": 2}
    Pipeline(default_pipeline()).run(result, Context())
    feeds = random_feeds(graph, sizes)
    (want,), (have,) = (list(evaluate(g, feeds).values()) for g in (graph, result))
    assert abs(want - have).max() <= 2e-6 * abs(want).max()
    assert len(result) < len(graph) / 3
    assert not any(n.op == "BatchNormalization" for n in result.nodes())


def test_long_chain_in_linear_time() -> None:
    def seconds(length: int) -> float:
        graph, kind = Graph(), TensorType("float32", (1, 4, 3, 3))
        x = graph.add_input("x", kind)
        for _ in range(length):
            x = graph.add("Sigmoid", [x], types=[kind]).out
            x = graph.add("Identity", [x], types=[kind]).out
        graph.add_output("y", x)
        start = time.process_time()
        for each in default_pipeline():
            each.run(graph, Context())
        return time.process_time() - start

    assert seconds(8000) < 16 * max(seconds(1000), 0.05)
