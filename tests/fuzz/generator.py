"""Random convolutional networks, as a hypothesis strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from tests.fuzz.blocks import LAYERS, head
from tests.fuzz.families import FAMILIES
from tests.fuzz.foreign import foreign
from tests.fuzz.layers import Draw, Layer
from tests.fuzz.network import Network, Shape

OPSETS = (17, 13, 11, 9, 7, 21, *(8, 10, 12, 14, 15, 16, 18, 19, 20, 22, 23, 24))
EVERYTHING: tuple[Layer, ...] = (*LAYERS, *FAMILIES, foreign, foreign)
MAX_ELEMENTS = 40_000  # of one value


@dataclass(frozen=True)
class Example:
    """A random model.

    Attributes:
        model: checked.
        inputs: shapes of the graph inputs by name, some of which the model may leave open.
    """

    model: onnx.ModelProto
    inputs: dict[str, Shape]

    def feeds(self) -> dict[str, np.ndarray]:
        """Seeded inputs."""
        rng = np.random.default_rng(0)
        return {n: rng.standard_normal(s).astype(np.float32) for n, s in self.inputs.items()}

    def __repr__(self) -> str:
        return f"Example({self.inputs})\n{onnx.printer.to_text(_without_weights(self.model))}"


@st.composite
def networks(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    layers: tuple[Layer, ...] = EVERYTHING,
    max_layers: int = 6,
) -> Example:
    """Models of a few layers, each of which reads one of the last values made.

    Args:
        draw: hypothesis's source of choices.
        layers: to choose from.
        max_layers: bound on their number.
    """
    opset = draw(st.sampled_from(OPSETS))
    net = Network(draw(st.integers(0, 3)), opset, constant_nodes=draw(st.booleans()))
    d = Draw(net, draw)
    x = net.add_input(_input_shape(d))
    for _ in range(draw(st.integers(1, max_layers))):
        source = d.among(net.maps[:-5:-1])
        y = d.among(layers)(d, source)
        shape = net.shapes[y]
        if (
            y != source
            and len(shape) > 2
            and int(np.prod(shape)) <= MAX_ELEMENTS
            and y not in net.maps
        ):
            net.maps.append(y)
    made = [v for v in dict.fromkeys(net.maps) if v != x]
    outputs = made[-1:]
    for _ in range(d.among([0, 1, 0, 2]) if len(made) > 1 else 0):
        outputs.append(d.among(made[:-1]))
    if d.among([False, False, True]):
        outputs.append(head(d, net.maps[-1]))
    if not outputs or set(outputs) & {x}:
        outputs = [net.op("Identity", x)]
    if draw(st.booleans()):
        outputs.reverse()
    old = d.among([False] * 7 + [True])
    batch = d.among(["", "", "", "N"])
    return Example(
        net.finish(list(dict.fromkeys(outputs)), old_inputs=old, batch=batch), {x: net.shapes[x]}
    )


def _input_shape(d: Draw) -> Shape:
    rank = d.among([2, 2, 2, 2, 2, 1, 3])
    batch = d.among([1, 1, 2, 3])
    if rank == 3:
        return (batch, d.among([1, 4, 9, 17]), *(d.among([1, 4, 5, 7]) for _ in range(3)))
    extents = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 16, 17, 19]
    return (batch, d.channels(), *(d.among(extents[::-1]) for _ in range(rank)))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    short = onnx.ModelProto()
    short.CopyFrom(model)
    for tensor in (
        *short.graph.initializer,
        *(a.t for n in short.graph.node for a in n.attribute if n.op_type == "Constant"),
    ):
        if len(tensor.raw_data) > 64:
            tensor.ClearField("raw_data")
    return short
