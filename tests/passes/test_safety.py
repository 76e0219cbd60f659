"""Every pass in every situation that makes rewrites go wrong.

Each pass gets the graph of patterns.py that it rewrites, changed by one situation at a time. What
it leaves must be valid, must export to a model that ONNX's checker accepts in its operator set, and
must compute the same in float64 and in ONNX Runtime; so must what the default pipeline leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import onnx
import pytest

from pwopt import numerics
from pwopt.errors import FrontendError
from pwopt.frontend import export
from pwopt.frontend.reference import evaluate
from pwopt.hardware import AVX512
from pwopt.ir.graph import Graph, Value
from pwopt.ir.verify import verify
from pwopt.ort import OrtError, OrtModel
from pwopt.passes import PASSES, default_pipeline
from pwopt.pipeline import Context, Pass, Pipeline
from tests.passes.building import FOLDED, random_feeds
from tests.passes.patterns import CASES, Situation

# No pattern of the usual kind makes it act: nothing of these graphs has an unknown type.
WITHOUT_PATTERN = {"infer-shapes"}
OPSETS = range(7, 25)

SITUATIONS: dict[str, Situation] = {
    "plain": Situation(),
    "shared weights": Situation(shared=True),
    "batch of none": Situation(batch=0),
    "batch of three": Situation(batch=3),
    "open batch": Situation(batch="N"),
    "strides": Situation(wide={"strides": (2, 1)}, narrow={"strides": (1, 2)}),
    "dilation": Situation(wide={"dilations": (2, 1)}, pool={"dilations": (2, 1)}),
    "groups": Situation(group=2),
    "padding with a bias": Situation(
        wide={"pads": (2, 0, 1, 1)}, narrow={"pads": (1, 0, 0, 2)}, pool={"pads": (1, 0, 0, 1)}
    ),
    "padding of pools counts": Situation(pool={"pads": (1, 1, 0, 1), "count_include_pad": 1}),
    "ceil mode": Situation(pool={"ceil_mode": 1, "strides": (2, 3)}),
    "ceil mode with padding": Situation(
        22,  # before, ONNX counts a window behind the image that no runtime does
        pool={"ceil_mode": 1, "strides": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1},
    ),
    **{
        f"auto_pad {mode}": Situation(
            wide={"auto_pad": mode, "strides": (2, 1)},
            narrow={"auto_pad": mode, "strides": (1, 1) if mode == "VALID" else (2, 2)},
            pool={"auto_pad": mode},
        )
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
    },
    **{f"opset {opset}": Situation(opset) for opset in OPSETS},
}


def test_every_exact_pass_has_a_pattern() -> None:
    exact = {name for name, each in PASSES.items() if not each.lossy}
    assert set(CASES) == exact - WITHOUT_PATTERN


def holds(graph: Graph, each: str, feeds: Mapping[str, np.ndarray]) -> bool:
    """Runs a pass and the default pipeline and checks both; whether the pass changed anything."""
    expected = _answers(graph, feeds)
    before = graph.version
    alone = _after(graph, [PASSES[each]()], feeds, expected)
    assert graph.version == before
    _after(graph, default_pipeline(), feeds, expected)
    return alone.version != before


Results = dict[str, np.ndarray] | None
Answers = tuple[Results, Results]


def _answers(graph: Graph, feeds: Mapping[str, np.ndarray]) -> Answers:
    """In float64 and in ONNX Runtime; None where one of them does not run the graph as it is."""
    exact, measured = None, None
    with suppress(FrontendError):
        exact = evaluate(graph, {n: a.astype(np.float64) for n, a in feeds.items()})
    with suppress(OrtError):
        measured = _runtime(graph, feeds)
    return exact, measured


def _runtime(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return OrtModel(export(graph).SerializeToString(), threads=1).run(feeds)


def _after(
    graph: Graph, passes: list[Pass], feeds: Mapping[str, np.ndarray], expected: Answers
) -> Graph:
    result = graph.copy()
    Pipeline(passes).run(result, Context(AVX512))
    verify(result)
    onnx.checker.check_model(export(result), full_check=True)
    exact, measured = expected
    names = [name for name, _ in graph.outputs]
    assert [name for name, _ in result.outputs] == names
    wide = {n: a.astype(np.float64) for n, a in feeds.items()}
    found = {} if exact is None else evaluate(result, wide)
    for name, have in found.items():
        want = (exact or {})[name]
        assert have.shape == want.shape, name
        error = np.abs(have - want).max(initial=0.0) / (np.abs(want).max(initial=0.0) or 1.0)
        assert error <= FOLDED, f"{name} is off by {error:.3g} of its scale"
    if measured is not None:
        for difference in numerics.differences(measured, _runtime(result, feeds)):
            assert difference.ok, str(difference)
    return result


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    return random_feeds(graph, {"N": 2})


@pytest.mark.parametrize("each", CASES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_situations(each: str, situation: str) -> None:
    graph = CASES[each].graph(SITUATIONS[situation])
    changed = holds(graph, each, feeds_of(graph))
    assert changed or situation != "plain", "the pattern does not show the pass at work"


def inner_values(graph: Graph) -> Iterator[Value]:
    """What nodes compute and no output shows yet."""
    for node in graph.topological():
        if not node.is_constant and not node.is_input and not graph.is_output(node.out):
            yield node.out


@pytest.mark.parametrize("each", CASES)
def test_an_inner_value_is_an_output_too(each: str) -> None:
    graph = CASES[each].graph(Situation())
    for i, value in enumerate(list(inner_values(graph))):
        changed = graph.copy()
        changed.add_output(f"inner_{i}", value)
        holds(changed, each, feeds_of(changed))
    for i, value in enumerate(list(inner_values(graph))):
        graph.add_output(f"inner_{i}", value)
    holds(graph, each, feeds_of(graph))


@pytest.mark.parametrize("each", CASES)
def test_an_inner_value_has_another_reader(each: str) -> None:
    graph = CASES[each].graph(Situation())
    for value in list(inner_values(graph)):
        if value.tensor.dtype == "float32":
            changed = graph.copy()
            changed.add_output("other", changed.add("Abs", [value]).out)
            holds(changed, each, feeds_of(changed))


@pytest.mark.parametrize("each", CASES)
def test_weights_that_are_not_constant(each: str) -> None:
    """Every single floating-point constant as an input instead, and all of them together."""
    graph = CASES[each].graph(Situation())
    constants = [
        node
        for node in graph.nodes()
        if node.is_constant
        and node.out.tensor.dtype == "float32"
        and not any(use.node.is_op("Resize", "Upsample") for use in graph.uses(node.out))
    ]
    for chosen in [*([node] for node in constants), constants]:
        changed, feeds = graph.copy(), feeds_of(graph)
        for i, node in enumerate(chosen):
            feeds[f"w{i}"] = node.get("value")
            changed.replace_uses(node.out, changed.add_input(f"w{i}", node.types[0]))
            changed.erase(node)
        holds(changed, each, feeds)
