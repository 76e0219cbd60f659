"""A layer that can be replaced by narrower ones, and the nodes that stand in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pwopt import cost
from pwopt.calibration import Calibration
from pwopt.cost_model import CostModel
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes import fully_connected, low_rank
from pwopt.passes.linear import linear_at
from pwopt.passes.low_rank import Basis
from pwopt.passes.rank_choice import Choice
from pwopt.passes.responses import responses
from pwopt.passes.rewriting import replace_node

MIN_ROWS = 8192  # of responses that layers are fitted to
_ROWS_A_CHANNEL = 16
_MAX_RANKS = 16  # tried on each side of a layer


@dataclass(eq=False)
class Layer:
    """A convolution of one group or a matrix product, with what is known of its responses.

    Attributes:
        node: Conv, Gemm or MatMul.
        weight: (outputs, inputs, *kernel), float32.
        bias: (outputs,).
        wanted: (rows, outputs), responses of the original network.
        center: (outputs,), the responses' mean.
        inputs, outputs: directions of its inputs and responses, the most important first.
        choices: ways to replace it, and to keep it.
    """

    node: Node
    weight: np.ndarray
    bias: np.ndarray
    wanted: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    center: np.ndarray = field(default_factory=lambda: np.zeros(0))
    inputs: Basis | None = None
    outputs: Basis | None = None
    choices: list[Choice] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The node by the user's names."""
        return self.node.label

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of the kernel; empty for a matrix product."""
        return tuple(self.weight.shape[2:])

    @property
    def has_window(self) -> bool:
        """Whether it looks at more than one pixel."""
        return int(np.prod(self.kernel, initial=1)) > 1

    def observe(self, rows_in: np.ndarray, rows_out: np.ndarray, *, data: bool) -> None:
        """Finds the directions.

        Args:
            rows_in: what it read, (rows, inputs).
            rows_out: what it answered, (rows, outputs).
            data: whether these are worth more than the weights alone.
        """
        taps = self.weight.reshape(*self.weight.shape[:2], -1).astype(np.float64)
        by_weights = np.einsum("oit,pit->op", taps, taps)
        self.wanted, inputs = rows_out, self.weight.shape[1]
        self.center = self.bias.astype(np.float64)
        even, moment_in, moment_out = np.eye(inputs), np.eye(inputs), by_weights
        if data:
            wide = rows_in.astype(np.float64)
            moment_in = low_rank.shrunk(wide.T @ wide / len(wide), even, len(wide))
            self.center = rows_out.mean(axis=0, dtype=np.float64)
            centered = rows_out - self.center
            covariance = centered.T @ centered / len(centered)
            moment_out = low_rank.shrunk(covariance, by_weights, len(centered))
        self.outputs = low_rank.output_basis(moment_out)
        self.inputs = low_rank.input_basis(moment_in, taps) if self.has_window else None

    def error(self, rank_in: int | None, rank_out: int | None) -> float:
        """Share of the responses' energy that is lost."""
        lost = 0.0
        if rank_in is not None and self.inputs is not None:
            lost += float(self.inputs.error[rank_in])
        if rank_out is not None and self.outputs is not None:
            lost += float(self.outputs.error[rank_out])
        return lost

    @property
    def spectrum(self) -> tuple[float, ...]:
        """Share of the responses' energy in each direction, falling."""
        return () if self.outputs is None else tuple(-np.diff(self.outputs.error))

    def ranks(self, unit: int) -> Iterator[tuple[int | None, int | None]]:
        """What can be kept on either side, in whole vectors."""
        outputs, inputs = self.weight.shape[:2]
        widest = outputs if self.has_window else min(outputs, inputs)
        for rank_in in (None, *(_ranks(inputs, unit) if self.has_window else ())):
            for rank_out in (None, *_ranks(widest, unit)):
                if rank_in is not None or rank_out is not None:
                    yield rank_in, rank_out

    def text(self, choice: Choice) -> str:
        """What a choice puts in its place, in words."""
        outputs, inputs = self.weight.shape[:2]
        window = "x".join(map(str, self.kernel)) or "1x1"
        s, r = choice.rank_in or inputs, choice.rank_out or outputs
        parts = [f"{window} {s}->{r}"]
        if choice.rank_in is not None:
            parts.insert(0, f"1x1 {inputs}->{s}")
        if choice.rank_out is not None:
            parts.append(f"1x1 {r}->{outputs}")
        return ", ".join(parts)


def read(graph: Graph, node: Node) -> Layer | str:
    """A node as a layer, or the reason why it cannot be replaced."""
    if node.op == "Conv":
        linear = linear_at(graph, node)
        if isinstance(linear, str):
            return linear
        if node.get("group", 1) != 1:
            return f"{node.label} has {node.get('group', 1)} groups"
        weight, x = graph.constant_value(linear.weight), linear.x
        bias = graph.constant_value(linear.bias)
        shared = linear.weight
    else:
        full = fully_connected.read(graph, node)
        if isinstance(full, str):
            return full
        if full.transposed or full.addend is not None or full.x.tensor.rank != 2:
            return f"{node.label} is no plain product of a matrix with weights and a bias"
        weight, x, shared = full.scaled, full.x, full.weight
        bias = full.bias if full.last is node else None
    assert weight is not None
    if weight.dtype != np.float32:
        return f"the weights of {node.label} are {weight.dtype}"
    if graph.reader_count(shared) + graph.is_output(shared) > 1:
        return f"the weights of {node.label} are shared"
    if x.tensor.static_shape is None and any(
        not isinstance(d, int) for d in (x.tensor.shape or ("",))[1:]
    ):
        return f"the size of {x.label} is not known"
    return Layer(node, weight, np.zeros(len(weight), np.float32) if bias is None else bias)


def observe(graph: Graph, layers: Sequence[Layer], examples: Calibration) -> None:
    """Looks at what all layers read and answer."""
    channels = max(max(layer.weight.shape[:2]) for layer in layers)
    rows = max(MIN_ROWS, _ROWS_A_CHANNEL * channels)
    inputs = [_input(graph, layer.node) for layer in layers]
    found = responses(graph, [*inputs, *(layer.node.out for layer in layers)], examples, rows)
    for layer, rows_in, rows_out in zip(layers, found, found[len(layers) :], strict=False):
        layer.observe(rows_in, rows_out, data=not examples.random)


def replace(graph: Graph, layer: Layer, choice: Choice, examples: Calibration | None) -> float:
    """Puts a choice in the place of a layer.

    Args:
        graph: in which the layers before it may have been replaced already.
        layer: of the original.
        choice: ranks.
        examples: that the last weights are fitted to; without them the directions' own are taken.

    Returns:
        the relative error of its responses to the examples, or of the directions alone.
    """
    x, weight = _input(graph, layer.node), layer.weight.astype(np.float64)
    fitted = examples if examples is not None and not examples.random else None
    error = layer.error(choice.rank_in, choice.rank_out)
    if choice.rank_in is not None and layer.inputs is not None:
        reduce = layer.inputs.reduce[: choice.rank_in]
        x = _add(graph, layer, x, reduce, None, "reduce", own=False)
        weight = np.einsum("oi...,is->os...", weight, layer.inputs.expand[:, : choice.rank_in])
    if choice.rank_out is None or layer.outputs is None:
        value = _add(graph, layer, x, weight, layer.bias, "", own=True)
        if fitted is not None:
            rows = responses(graph, [value], fitted, len(layer.wanted))[0]
            shift = (layer.wanted - rows).mean(axis=0, dtype=np.float64)
            error = low_rank.relative_error(rows + shift, layer.wanted)
            before = value.node
            value = _add(graph, layer, x, weight, layer.bias + shift, "", own=True)
            graph.erase_dead([before])
        _finish(graph, layer, value)
        return error
    directions = layer.outputs.reduce[: choice.rank_out]
    weight = np.einsum("ro,oi...->ri...", directions, weight)
    inside = _add(graph, layer, x, weight, None, "narrow", own=True)
    expand = layer.outputs.expand[:, : choice.rank_out]
    if fitted is None:
        bias = layer.center - expand @ (directions @ (layer.center - layer.bias))
    else:
        rows = responses(graph, [inside], fitted, len(layer.wanted))[0]
        expand, bias = low_rank.fit_expansion(rows.astype(np.float64), layer.wanted, expand)
        error = low_rank.relative_error(rows @ expand.T + bias, layer.wanted)
    _finish(graph, layer, _add(graph, layer, inside, expand, bias, "", own=False))
    return error


@dataclass(frozen=True)
class Figures:
    """Predicted microseconds, multiply-accumulates and parameters of what a choice makes."""

    us: float
    macs: int
    parameters: int


def figures(graph: Graph, layer: Layer, choice: Choice, model: CostModel) -> Figures:
    """What a choice costs, in a graph of its own with constants as large as those of ``graph``."""
    scratch = Graph(opsets=graph.opsets)
    x = scratch.add_input("x", _input(graph, layer.node).type)
    outputs, inputs = layer.weight.shape[:2]
    s, r = choice.rank_in or inputs, choice.rank_out or outputs
    if choice.rank_in is not None:
        x = _add(scratch, layer, x, _zeros(s, inputs), None, "reduce", own=False)
    last = choice.rank_out is None
    bias = _zeros(outputs) if last else None
    x = _add(scratch, layer, x, _zeros(r, s, *layer.kernel), bias, "narrow", own=True)
    if not last:
        _add(scratch, layer, x, _zeros(outputs, r), _zeros(outputs), "", own=False)
    parameters = cost.parameters(scratch)
    scratch.constant(_zeros(max(0, graph.constant_bytes - scratch.constant_bytes) // 4))
    return Figures(model.graph_us(scratch), cost.graph_macs(scratch), parameters)


def rank_unit(hardware: Hardware) -> int:
    """Channels that fill a vector."""
    return max(1, hardware.lanes // 2 if hardware.splits else hardware.lanes)


def _ranks(channels: int, unit: int) -> list[int]:
    """Multiples of the unit below the number of channels, thinned out where there are many."""
    every = range(unit, channels, unit)
    step = -(-len(every) // _MAX_RANKS) if every else 1
    return list(every[::step])


def _zeros(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


def _input(graph: Graph, node: Node) -> Value:
    x = graph.operand(node, 0)
    assert x is not None
    return x


def _add(
    graph: Graph,
    layer: Layer,
    x: Value,
    weight: np.ndarray,
    bias: np.ndarray | None,
    part: str,
    *,
    own: bool,
) -> Value:
    """Adds a part; ``own`` is the one that has the layer's window and strides."""
    node = layer.node
    name = f"{node.name}/{part}" if part and node.name else node.name
    attributes: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    if node.op == "Conv":
        attributes = dict(node.attributes) if own else {}
        missing = len(layer.kernel) + 2 - weight.ndim
        weight = weight.reshape(*weight.shape, *(1,) * missing) if missing else weight
        attributes["kernel_shape"] = weight.shape[2:]
    operands = [x, graph.constant(_float32(weight), f"{name}.weight" if name else "", node.origin)]
    if bias is not None:
        operands.append(graph.constant(_float32(bias)))
    op = "Conv" if node.op == "Conv" else "Gemm"
    return graph.add(op, operands, attributes, name=name, origin=node.origin).out


def _float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float32 else np.ascontiguousarray(array, np.float32)


def _finish(graph: Graph, layer: Layer, value: Value) -> None:
    """Lets ``value`` stand for the layer's result."""
    made = value.node
    replace_node(graph, layer.node, made.op, graph.operands(made), made.attributes)
    graph.erase_dead([made])
