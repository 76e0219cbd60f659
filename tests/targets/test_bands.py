"""Chains of convolutions in bands of rows, on a processor whose L2 is smaller than their maps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto

import pwopt
from pwopt import hardware
from pwopt.targets.executable import Executable
from tests.targets.guarding import compile_guarded
from tests.targets.lowering_helpers import check, model, node, normal

Constants = dict[str, np.ndarray]


class Chain:
    """Convolutions in a row, each with bias and an activation; weights are drawn."""

    def __init__(self, channels: int) -> None:
        self.channels, self.value = channels, "x"
        self.nodes: list[NodeProto] = []
        self.constants: Constants = {}

    def conv(
        self, out: int, size: int = 1, groups: int = 1, op: str = "Relu", **other: Any
    ) -> Chain:
        name = f"v{len(self.nodes)}"
        shape = (out, self.channels // groups, size, size)
        self.constants |= {
            f"w_{name}": normal(*shape, seed=len(self.nodes)) / np.float32(size * shape[1] ** 0.5),
            f"b_{name}": normal(out, seed=99),
        }
        attributes = {"pads": [size // 2] * 4, "group": groups, **other}
        inputs = f"{self.value} w_{name} b_{name}"
        self.nodes.append(node("Conv", inputs, f"{name}_linear", **attributes))
        self.nodes.append(node(op, f"{name}_linear", name))
        self.channels, self.value = out, name
        return self

    def depthwise(self, size: int = 3, **other: Any) -> Chain:
        return self.conv(self.channels, size, self.channels, **other)

    def then(self, op: str, other: str = "") -> Chain:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, f"{self.value} {other}".strip(), name))
        self.value = name
        return self

    def compiled(self, *shape: int, l2_bytes: int = 32 << 10, threads: int = 1) -> Executable:
        """Held against ONNX Runtime."""
        inputs = {"x": normal(*shape, seed=5)}
        source = model(self.nodes, inputs, self.value, self.constants)
        machine = replace(hardware.host(), l2_bytes=l2_bytes)
        return check(source, inputs, optimized=True, hardware=machine, threads=threads)

    def guarded(self, *shape: int, l2_bytes: int) -> Executable:
        """Run in memory that was poisoned before, once for each of two poisons."""
        inputs = {"x": normal(*shape, seed=5)}
        source = model(self.nodes, inputs, self.value, self.constants)
        graph = pwopt.optimize(source, verify=False).graph
        machine = replace(hardware.host(), l2_bytes=l2_bytes)
        executable, guard = compile_guarded(graph, separate=True, hardware=machine)
        guard.run(executable, inputs)
        return executable


def cut(executable: Executable) -> int:
    """Convolutions that take several calls."""
    kernels = ("conv", "depthwise")
    calls = Counter(k["node"] for k in executable.report["kernels"] if k["kernel"] in kernels)
    return sum(count > 1 for count in calls.values())


@pytest.mark.parametrize(
    ("size", "other"),
    [
        (3, {}),
        (3, {"strides": [2, 2]}),
        (5, {}),
        (5, {"strides": [2, 2]}),
        (7, {}),
        (3, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        (3, {"pads": [0, 2, 2, 0]}),
        (3, {"pads": [0, 0, 0, 0]}),
        (3, {"strides": [3, 1], "pads": [1, 0, 0, 2]}),
        (2, {"strides": [3, 3], "pads": [0, 0, 0, 0]}),
    ],
)
def test_expansion_and_depthwise(size: int, other: dict[str, Any]) -> None:
    chain = Chain(8).conv(16, op="HardSwish").depthwise(size, **other)
    assert cut(chain.compiled(1, 8, 97, 9, l2_bytes=48 << 10)) == 2


@pytest.mark.parametrize("side", [(41, 16), (200, 3)])
def test_sizes(side: tuple[int, int]) -> None:
    assert cut(Chain(8).conv(16).depthwise(strides=[2, 2]).compiled(1, 8, *side)) == 2


@pytest.mark.parametrize(
    ("size", "other"),
    [
        (5, {}),
        (3, {"strides": [2, 2]}),
        (3, {"pads": [0, 2, 3, 0]}),
        (3, {"strides": [3, 1], "pads": [1, 0, 0, 2]}),
    ],
)
def test_bands_stay_inside_and_read_only_what_was_written(size: int, other: dict[str, Any]) -> None:
    chain = Chain(8).conv(20).depthwise(size, **other).conv(12)
    assert cut(chain.guarded(1, 8, 97, 9, l2_bytes=48 << 10)) >= 2


@pytest.mark.parametrize("channels", [24, 33])
def test_channels_that_fill_no_vector(channels: int) -> None:
    assert cut(Chain(8).conv(channels).depthwise().conv(12).compiled(1, 8, 51, 11)) == 3


def test_long_chain_with_residual() -> None:
    chain = Chain(3).conv(16, 3, strides=[2, 2]).conv(24)
    skip = chain.value
    chain.conv(48).depthwise().conv(24).then("Add", skip).conv(48).depthwise(strides=[2, 2])
    assert cut(chain.compiled(1, 3, 191, 65, l2_bytes=96 << 10)) >= 5


def test_chain_of_large_windows_is_cut_between_its_maps() -> None:
    chain = Chain(16).depthwise(7).depthwise(5).conv(16, 3, strides=[2, 2]).depthwise(7)
    assert cut(chain.compiled(1, 16, 150, 11, l2_bytes=80 << 10)) >= 2


def test_map_in_a_concatenation_is_not_cut_from_its_reader() -> None:
    chain = Chain(16).conv(16)
    value = chain.value
    chain.depthwise().then("Add", value)
    assert cut(chain.compiled(1, 16, 31, 31)) == 0


def test_what_fits_l2_several_images_and_threads_stay_whole() -> None:
    chain = Chain(8).conv(48).depthwise()
    assert cut(chain.compiled(1, 8, 29, 23, l2_bytes=1 << 20)) == 0
    assert cut(chain.compiled(2, 8, 29, 23)) == 0
    assert cut(chain.compiled(1, 8, 29, 23, threads=2)) == 0


def test_bands_need_less_memory() -> None:
    chain = Chain(8).conv(48).depthwise(strides=[2, 2])
    banded, whole = (chain.compiled(1, 8, 61, 61, l2_bytes=size) for size in (128 << 10, 4 << 20))
    assert banded.report["workspace_bytes"] < whole.report["workspace_bytes"] / 2
