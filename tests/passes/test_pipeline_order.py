"""The passes together: in their default order and in others, once and again."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pwopt.passes
from pwopt.frontend import load
from pwopt.frontend.reference import evaluate
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph, Value
from pwopt.ir.types import TensorType
from pwopt.models.blocks import BLOCKS
from pwopt.passes import LOWERING, PASSES, STRUCTURAL, default_pipeline
from pwopt.pipeline import Context, Pass, Pipeline
from tests.fuzz.generator import Example, networks
from tests.passes.building import Build, random_feeds
from tests.passes.canonical import canonical
from tests.passes.patterns import CASES, Situation
from tests.passes.spellings import ACTIVATIONS, LAYERS, activation, layer

ROOT = Path(__file__).parents[2]
FEW = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MODELS: dict[str, Callable[[], Graph]] = {
    "mnist-conv": lambda: load(ROOT / "models" / "data" / "mnist-conv.onnx"),
    **{name: lambda make=make: load(make()) for name, make in BLOCKS.items()},  # type: ignore[misc]
    "branches to be merged once they are normalized": lambda: normalized_branches(),
    **{name: lambda name=name: layer(name) for name in LAYERS},  # type: ignore[misc]
    **{name: lambda name=name: activation(name) for name in ACTIVATIONS},  # type: ignore[misc]
    **{name: lambda case=case: case.graph(Situation()) for name, case in CASES.items()},  # type: ignore[misc]
}
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

    # Other work on the machine may slow one of the two down, but not time after time.
    assert any(seconds(8000) < 16 * max(seconds(1000), 0.05) for _ in range(3))


def normalized_branches() -> Graph:
    b = Build()
    x = b.input(1, 128, 7, 7)
    parts = [b.op("Relu", b.batch_norm(b.conv(x, 8), 8)) for _ in range(3)]
    return b.output(b.op("Concat", *parts, axis=1))


def optimized(graph: Graph, passes: list[Pass]) -> Graph:
    """A copy after some passes, for one and the same machine."""
    result = graph.copy()
    Pipeline(passes).run(result, Context(AVX512))
    return result


def settles(graph: Graph) -> None:
    """Holds that a second run of the default pipeline on its own result changes nothing."""
    first = optimized(graph, default_pipeline())
    assert optimized(first, default_pipeline()).version == first.version


@pytest.mark.parametrize("name", MODELS)
def test_a_second_run_changes_nothing(name: str) -> None:
    settles(MODELS[name]())


@settings(FEW, max_examples=80)
@given(example=networks(max_layers=8))
def test_a_second_run_changes_nothing_in_random_networks(example: Example) -> None:
    settles(load(example.model, example.inputs))


# Two results of one pipeline in different orders count as equal where they are the same graph up to
# naming (canonical.py says what that covers), or a tie: of predicted times that differ by less than
# what a rewrite must save to be made. The passes over standard operators stand in any order and
# repeat until none changes anything. The lowering ones stay last, in their order, as each of them
# hides operators from those before it.
TIE = 0.02


def agree(graph: Graph, structural: bool, seeds: range) -> None:
    """Holds that the default pipeline, and permutations of it, give equal results."""
    kinds: dict[type[Pass], None] = dict.fromkeys(type(p) for p in default_pipeline())
    standard = [p for p in kinds if p not in LOWERING]
    if not structural:
        standard = [p for p in standard if p not in STRUCTURAL]
    lowering = [p() for p in LOWERING]
    want = optimized(graph, [*(p() for p in standard), *lowering])
    if structural:
        want = optimized(graph, default_pipeline())
    model = Context(AVX512).cost_model
    for seed in seeds:
        order = random.Random(seed).sample(standard, len(standard))
        have = graph.copy()
        Pipeline([*(p() for p in order), *lowering], rounds=30).run(have, Context(AVX512))
        if canonical(have) != canonical(want):
            times = model.graph_us(want), model.graph_us(have)
            names = [p.name for p in order]
            assert abs(times[0] - times[1]) <= TIE * min(times), f"{times} us after {names}"


@pytest.mark.parametrize("structural", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_any_order_gives_the_same(name: str, structural: bool) -> None:
    agree(MODELS[name](), structural, range(3))


@settings(FEW, max_examples=60)
@given(example=networks(max_layers=8), structural=st.booleans(), seed=st.integers(0, 999))
def test_any_order_gives_the_same_in_random_networks(
    example: Example, structural: bool, seed: int
) -> None:
    agree(load(example.model, example.inputs), structural, range(seed, seed + 2))


def test_lowering_passes_are_those_that_say_so() -> None:
    assert tuple(cls for cls in PASSES.values() if cls.lowers) == LOWERING


def test_canonical_form_tells_graphs_apart() -> None:
    def graph(*, swap: bool, kernel: int = 1, op: str = "Relu") -> Graph:
        b = Build()
        x, y = b.input(1, 4, 5, 5), b.input(1, 4, 5, 5, name="y")
        left, right = b.op(op, b.conv(x, 4, kernel)), b.conv(y, 4, kernel)
        pair = (right, left) if swap else (left, right)
        b.graph.add_output("z", b.op("Add", *pair))
        return b.graph

    same = canonical(graph(swap=False))
    assert canonical(graph(swap=True)) == same
    assert canonical(graph(swap=False, kernel=3)) != same
    assert canonical(graph(swap=False, op="Tanh")) != same


SCRIPT = """
import hashlib, sys
from tests.passes.test_pipeline_order import MODELS, default_pipeline, optimized
for name, make in MODELS.items():
    graph = optimized(make(), default_pipeline())
    exported = graph.to_onnx().SerializeToString(deterministic=True)
    print(name, hashlib.sha256(exported).hexdigest())
    print(graph)
"""


def test_the_same_text_and_bytes_in_every_process() -> None:
    def printed(seed: str) -> str:
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = printed("1")
    assert first.count("graph ") == len(MODELS)
    assert printed("2") == first
