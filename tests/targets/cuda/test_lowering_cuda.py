"""Lowering for CUDA: every reference network completely, layouts, slices, predicted times."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import pwopt
from pwopt.models.registry import REGISTRY
from pwopt.models.suite import SUITE
from pwopt.targets.cuda.lowering import LAUNCH_US, views_of
from pwopt.targets.plan import Step
from tests.targets.cuda.network_helpers import lowered
from tests.targets.lowering_helpers import model, node, normal

OWN = [name for name, entry in REGISTRY.items() if entry.package is None]
FETCHED = [name for name, entry in REGISTRY.items() if entry.package is not None]
LARGE = {"chain", "wide"}  # as long as one likes
PASSES = ("infer-shapes,fold-constants", None)  # as the model has it, and optimized


def _kernels(steps: list[Step]) -> Counter[str]:
    return Counter(s.factory.__name__ for s in steps)


def _check(name: str) -> None:
    options = {"length": 40} if name in LARGE else {}
    entry = REGISTRY[name]
    source = entry.build(**options)
    shapes = {}
    if entry.kind == "suite":
        shapes = {n: a.shape for n, a in SUITE[name].inputs().items()}
    for passes in PASSES:
        graph = pwopt.optimize(source, passes=passes, input_shapes=shapes, verify=False).graph
        for precision in ("fp16", "fp32"):
            plan = lowered(graph, precision).plan
            assert plan.steps
            assert all(s.predicted_us >= LAUNCH_US for s in plan.steps)


@pytest.mark.parametrize("name", OWN)
def test_reference_networks_have_kernels_for_every_node(name: str) -> None:
    _check(name)


@pytest.mark.models
@pytest.mark.parametrize("name", FETCHED)
def test_fetched_networks_have_kernels_for_every_node(name: str) -> None:
    _check(name)


def test_maps_are_half_and_outputs_as_the_model_has_them() -> None:
    x = {"x": normal(2, 20, 5, 5)}
    source = model(
        [node("Conv", "x w", "t"), node("Relu", "t", "y")],
        x,
        "y",
        {"w": normal(12, 20, 3, 3)},
    )
    steps = lowered(pwopt.load(source), "bf16").plan.steps
    first, *_, last = (list(views_of(s.arguments)) for s in steps)
    assert first[0].dtype == last[-1].dtype == "float32"  # the graph's own
    inner = [v for s in steps for v in views_of(s.arguments) if v.dtype == "bfloat16"]
    assert inner
    for view in inner:  # pixels of 12 and 20 channels are padded to 16 bytes
        assert all(s % 8 == 0 for s, e in zip(view.strides, view.shape, strict=True) if s > 1 < e)


def _concatenated(first: int) -> Counter[str]:
    x = {"x": normal(1, 16, 5, 5)}
    weights = {"a": normal(first, 16, 1, 1), "b": normal(24, 16, 3, 3)}
    nodes = [
        node("Conv", "x a", "l"),
        node("Conv", "x b", "r", pads=[1] * 4),
        node("Concat", "l r", "t", axis=1),
        node("MaxPool", "t", "y", kernel_shape=[2, 2]),
    ]
    return _kernels(lowered(pwopt.load(model(nodes, x, "y", weights)), "fp16").plan.steps)


def test_aligned_slices_of_a_concatenation_are_written_in_place() -> None:
    aligned, odd = _concatenated(8), _concatenated(12)
    assert odd["copy"] == aligned["copy"] + 1  # the slice that begins at channel 12


def test_few_rows_and_whole_maps_are_vector_products() -> None:
    x = {"x": normal(1, 16, 4, 4)}
    nodes = [node("Conv", "x w", "t"), node("Flatten", "t", "f"), node("Gemm", "f g", "y")]
    weights = {"w": normal(32, 16, 4, 4), "g": normal(32, 10)}
    steps = lowered(pwopt.load(model(nodes, x, "y", weights)), "fp16").plan.steps
    assert _kernels(steps)["gemv"] == 2


def test_photos_are_read_several_pixels_at_a_time() -> None:
    x = {"x": normal(1, 3, 17, 19)}
    nodes = [node("Conv", "x w", "y", strides=[2, 2], pads=[1] * 4)]
    steps = lowered(pwopt.load(model(nodes, x, "y", {"w": normal(8, 3, 3, 3)})), "fp16").plan.steps
    assert [s.factory.__name__ for s in steps][:2] == ["pad_channels", "conv"]
    view = next(views_of(steps[1].arguments))
    assert view.shape[3] == view.strides[2] == 4
    assert view.strides[1] % 8 == 0


def test_predicted_times_follow_the_roofline() -> None:
    def predicted(batch: int) -> float:
        source = REGISTRY["pointwise"].build(channels=512, out_channels=512, size=28, batch=batch)
        steps = lowered(pwopt.load(source), "fp16").plan.steps
        return sum(s.predicted_us for s in steps if s.factory.__name__ == "conv")

    # 512 * 512 multiply-adds for each of 784 pixels of an image, at 312 TFLOP/s.
    assert predicted(64) == pytest.approx(64 * 784 * 2 * 512 * 512 / 312e6)
    assert predicted(1) == LAUNCH_US
    assert np.isclose(predicted(128), 2 * predicted(64), rtol=0.05)
