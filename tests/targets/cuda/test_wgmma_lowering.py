"""Lowering for sm_90a: convolutions by warpgroup products inside of networks, parts added up."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import pwopt
from pwopt.models.registry import REGISTRY
from pwopt.targets.cuda.kernels.wgmma_tiling import WgmmaTile
from pwopt.targets.cuda.rules import conv
from pwopt.targets.plan import Plan, Step
from tests.targets.cuda.network_helpers import TOLERANCE, lowered, run_plan
from tests.targets.lowering_helpers import model, node, normal, reference


def _tiles(steps: list[Step]) -> list[WgmmaTile]:
    return [a for s in steps for a in s.arguments if isinstance(a, WgmmaTile)]


def _residual() -> onnx.ModelProto:
    """A bottleneck with a long reduction, a strided branch and odd channels."""
    nodes = [
        node("Conv", "x a", "s", strides=[2, 2], pads=[1] * 4),
        node("Relu", "s", "t"),
        node("Conv", "t b c", "u", pads=[1] * 4),
        node("Conv", "t d", "v"),
        node("Add", "u v", "w"),
        node("Relu", "w", "y"),
    ]
    weights = {
        "a": normal(136, 72, 3, 3) / 26,
        "b": normal(51, 136, 3, 3) / 35,
        "c": normal(51),
        "d": normal(51, 136, 1, 1) / 9,
    }
    return model(nodes, {"x": normal(2, 72, 13, 11)}, "y", weights)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_a_network_by_warpgroup_products_is_that_of_onnx_runtime(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "predicted_cycles", lambda shape: 0.0)  # so small ones are not chosen
    source = _residual()
    graph = pwopt.optimize(source, verify=False).graph
    plan = lowered(graph, precision, "sm_90a").plan
    tiles = _tiles(plan.steps)
    assert len(tiles) == 3
    _check(source, plan, precision)


def test_parts_of_a_reduction_are_added_up_before_bias_and_residual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tile = WgmmaTile(64, 32, 4, splits=3)
    monkeypatch.setattr(conv._Call, "_tile", lambda call, geometry: tile)
    source = _residual()
    plan = lowered(pwopt.optimize(source, verify=False).graph, "fp16", "sm_90a").plan
    assert [t.splits for t in _tiles(plan.steps)] == [3, 3, 3]
    assert plan.cleared_bytes
    _check(source, plan, "fp16")


def _check(source: onnx.ModelProto, plan: Plan, precision: str) -> None:
    inputs = {"x": normal(2, 72, 13, 11)}
    expected = reference(source, inputs)["y"]
    result = run_plan(plan, inputs, "sm_90a")["y"]
    assert np.abs(result - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()


def test_float32_and_older_architectures_have_no_warpgroup_products() -> None:
    graph = pwopt.optimize(_residual(), verify=False).graph
    assert not _tiles(lowered(graph, "fp32", "sm_90a").plan.steps)
    assert not _tiles(lowered(graph, "fp16", "sm_90").plan.steps)


def test_large_products_are_those_of_warpgroups_and_small_ones_are_not() -> None:
    def kernels(batch: int) -> list[str]:
        source = REGISTRY["pointwise"].build(channels=512, out_channels=512, size=28, batch=batch)
        return [
            s.factory.__name__ for s in lowered(pwopt.load(source), "fp16", "sm_90a").plan.steps
        ]

    assert "wgmma" in kernels(32)
    assert "wgmma" not in kernels(1)
