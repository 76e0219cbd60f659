"""Winograd kernels inside networks: chosen, placed, planned and reported like the direct ones."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import compilation, driver, hardware
from pwopt.errors import UsageError
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.models.builder import ModelBuilder
from pwopt.targets.cpu import growth
from pwopt.targets.cpu.compile import compile_graph
from tests.targets.kernel_helpers import levels
from tests.targets.lowering_helpers import Arrays, check, model, node, normal


def weights(out_channels: int, in_channels: int, side: int = 3, seed: int = 0) -> np.ndarray:
    shape = (out_channels, in_channels, side, side)
    return normal(*shape, seed=seed) * np.float32((2 / (in_channels * side * side)) ** 0.5)


def network(batch: int = 1) -> tuple[onnx.ModelProto, Arrays]:
    """Slices of a concatenation, a residual sum, borders of two widths, uneven pads, an output."""
    nodes = [
        node("Conv", "x w0 b0", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("Conv", "r w1", "left", pads=[1] * 4),
        node("Conv", "r w2", "right", pads=[2] * 4),
        node("Concat", "left right", "both", axis=1),
        node("Conv", "both w3 b3", "sum_in", pads=[1] * 4),
        node("Add", "sum_in r", "sum"),
        node("Relu", "sum", "mapped"),
        node("Conv", "mapped w4", "uneven", pads=[0, 2, 1, 0]),
        node("Sigmoid", "uneven", "y"),
        node("Conv", "mapped w5", "z"),
    ]
    constants = {
        "w0": weights(48, 32), "b0": normal(48), "w1": weights(40, 48), "w2": weights(24, 48, 5),
        "w3": weights(48, 64), "b3": normal(48), "w4": weights(40, 48), "w5": weights(33, 48),
    }  # fmt: skip
    x = {"x": normal(batch, 32, 14, 19)}
    return model(nodes, x, "y z", constants), x


def kernels(executable: pwopt.Executable) -> Counter[str]:
    return Counter(k["kernel"] for k in executable.report["kernels"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
def test_a_network_of_them(processor: Hardware, threads: int) -> None:
    made, inputs = network(batch=2)
    executable = check(made, inputs, optimized=True, threads=threads, hardware=processor)
    found = kernels(executable)
    assert found["winograd_4x4_3x3"] == 5
    assert found["winograd_2x2_5x5"] == 1
    assert not found["conv"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("off", {"conv"}), ("f2", {"winograd_2x2_3x3", "winograd_2x2_5x5"})],
)
def test_what_may_be_used(choice: str, expected: set[str]) -> None:
    made, inputs = network()
    found = kernels(check(made, inputs, optimized=True, winograd=choice))
    assert {k for k in found if k.startswith(("conv", "winograd"))} == expected


def test_unknown_choice() -> None:
    with pytest.raises(UsageError, match="winograd 'f8'"):
        pwopt.compile(network()[0], winograd="f8")


def test_residual_is_added_in_place() -> None:
    made, inputs = network()
    sizes = {}
    for choice in ("off", "auto"):
        executable = check(made, inputs, optimized=True, winograd=choice)
        sizes[choice] = executable.report["workspace_bytes"]
    # Planes live for one kernel only: they take little beside the activations.
    assert sizes["auto"] <= sizes["off"] + hardware.host().l2_bytes


def test_nodes_that_share_weights_share_their_transformed_weights() -> None:
    w, x = weights(32, 32), {"x": normal(1, 32, 16, 16)}
    twice = [node("Conv", "x w", "a"), node("Relu", "a", "r"), node("Conv", "r w", "y")]
    apart = [*twice[:2], node("Conv", "r v", "y")]
    one = check(model(twice, x, "y", {"w": w}), x)
    two = check(model(apart, x, "y", {"w": w, "v": w + 1}), x)
    assert kernels(one) == kernels(two)
    assert kernels(one)["winograd_4x4_3x3"] == 2
    grown = 4 * 36 * 32 * 32
    assert two.constants.nbytes - one.constants.nbytes >= grown


def test_smaller_tiles_where_the_error_would_be_too_large() -> None:
    # One pixel dwarfs what shares a tile with it, but no window; what it makes itself is cut.
    shift = np.zeros((1, 1, 14, 14), np.float32)
    shift[0, 0, 5, 5] = 1e7
    nodes = [
        node("Add", "x shift", "s"),
        node("Relu", "s", "r"),
        node("Conv", "r w", "c"),
        node("Clip", "c low high", "y"),
    ]
    constants = {"shift": shift, "w": weights(32, 32)}
    constants |= {n: np.asarray(v, np.float32) for n, v in (("low", -6), ("high", 6))}
    made = model(nodes, {"x": normal(1, 32, 14, 14)}, "y", constants)
    optimized = driver.optimize(made)
    assert kernels(pwopt.compile(optimized.graph))["winograd_4x4_3x3"] == 1
    executable, result = compilation.compile_optimized(optimized)
    compiled = result.report.compilation
    assert compiled is not None
    assert compiled.winograd == "f2"
    assert compiled.verification is not None
    assert compiled.verification.status == "passed"
    assert kernels(executable)["winograd_2x2_3x3"] == 1


def bytes_and_tiles(graph: Graph, max_growth: float) -> tuple[int, list[str]]:
    """Packed constants of an executable, and its Winograd kernels in the order of the graph."""
    executable = compile_graph(graph, hardware.host(), max_growth=max_growth)
    kernels = [k["kernel"] for k in executable.report["kernels"]]
    return executable.constants.nbytes, [k for k in kernels if k.startswith("winograd")]


def test_growth_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one of three layers gets larger weights, it is the one that saves the most a byte."""
    monkeypatch.setattr(growth, "FREE_BYTES", 0)
    b = ModelBuilder("net")
    x = b.relu(b.conv(b.input((1, 64, 56, 56)), 64, 3))
    for _ in range(2):
        x = b.relu(b.conv(b.pool(x, 2, 2), 64, 3))
    graph = pwopt.optimize(b.build(x), verify=False).graph
    direct, none = bytes_and_tiles(graph, 1.0)
    half, some = bytes_and_tiles(graph, 2.1)
    free, every = bytes_and_tiles(graph, math.inf)
    assert none == []
    assert 0 < len(some) < len(every) == 3
    assert some[0] == every[0]  # 56x56: the most work for the same weights
    assert direct < half < 2.1 * 1.05 * graph.constant_bytes < free


@pytest.mark.parametrize("value", [0.9, math.nan])
def test_growth_below_the_model(value: float) -> None:
    with pytest.raises(UsageError, match="--max-size-growth"):
        pwopt.compile(blocks.pointwise(), max_size_growth=value)
