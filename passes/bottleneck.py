"""A layer that can be replaced by narrower ones, and the nodes that stand in its place."""

from __future__ import annotations

import math
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
from pwopt.passes.canonical_arithmetic import clip_bounds
from pwopt.passes.linear import linear_at
from pwopt.passes.low_rank import Basis, Fit
from pwopt.passes.rank_choice import Choice
from pwopt.passes.responses import responses
from pwopt.passes.rewriting import replace_node

MIN_ROWS = 8192  # of responses that layers are fitted to
_ROWS_A_CHANNEL = 16  # or number that an output depends on
_MAX_FEATURES = 1024  # that an output depends on; a fit takes their third power
_MAX_RANKS = 16  # tried on each side of a layer


@dataclass(eq=False)
class Layer:
    """A convolution of one group or a matrix product, with what is known of its responses.

    Attributes:
        node: Conv, Gemm or MatMul.
        weight: (outputs, inputs, *kernel), float32.
        bias: (outputs,), or None.
        bounds: beyond which its readers, a ReLU or a Clip, tell no responses apart.
        wanted: (rows, outputs), responses of the original network.
        center: (outputs,), the responses' mean, less the bias.
        inputs, outputs: directions of its inputs and responses, the most important first.
        choices: ways to replace it, and to keep it.
    """

    node: Node
    weight: np.ndarray
    bias: np.ndarray | None
    bounds: tuple[float, float] = (-math.inf, math.inf)
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
        return self.taps > 1

    @property
    def taps(self) -> int:
        """Pixels of the kernel."""
        return int(np.prod(self.kernel, initial=1))

    @property
    def rows(self) -> int:
        """How many responses are looked at."""
        features = min(_MAX_FEATURES, self.weight.shape[1] * self.taps)
        return max(MIN_ROWS, _ROWS_A_CHANNEL * int(max(features, *self.weight.shape[:2])))

    def observe(self, read: np.ndarray | None, answered: np.ndarray | None) -> None:
        """Finds the directions: by the weights alone, or by data, too.

        Args:
            read: (rows, inputs); is needed where there is a window.
            answered: (rows, outputs).
        """
        outputs, inputs = self.weight.shape[:2]
        taps = self.weight.reshape(outputs, inputs, -1).astype(np.float64)
        flat = taps.reshape(outputs, -1)
        moment_out = flat @ flat.T
        self.center = np.zeros(outputs)
        if answered is not None:
            self.wanted = answered
            mean = answered.mean(axis=0, dtype=np.float64)
            centered = answered - mean
            covariance = centered.T @ centered / len(centered)
            moment_out = low_rank.shrunk(covariance, moment_out, len(centered))
            self.center = mean if self.bias is None else mean - self.bias
        self.outputs = low_rank.output_basis(moment_out)
        if self.has_window:
            moment_in = np.eye(inputs)
            if read is not None:
                wide = read.astype(np.float64)
                moment_in = low_rank.shrunk(wide.T @ wide / len(wide), moment_in, len(wide))
            self.inputs = low_rank.input_basis(moment_in, taps)

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

    @property
    def spectrum_in(self) -> tuple[float, ...]:
        """The same of its inputs, as far as it answers to them; nothing without a window."""
        return () if self.inputs is None else tuple(-np.diff(self.inputs.error))

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
    return Layer(node, weight, bias, _bounds(graph, node))


def _bounds(graph: Graph, node: Node) -> tuple[float, float]:
    """The bounds within which all readers of a result need it."""
    readers = graph.readers(node.out)
    clips = not graph.is_output(node.out) and all(each.is_op("Relu", "Clip") for each in readers)
    found = [clip_bounds(graph, each) for each in readers] if clips else []
    known = [each for each in found if each is not None]
    if not known or len(known) < len(found):
        return -math.inf, math.inf
    return min(low for low, _ in known), max(high for _, high in known)


def observe(graph: Graph, layers: Sequence[Layer], examples: Calibration) -> None:
    """Looks at what all layers read and answer; random examples say less than the weights."""
    if examples.random:
        for layer in layers:
            layer.observe(None, None)
        return
    windows = [layer for layer in layers if layer.has_window]
    values = [_input(graph, layer.node) for layer in windows]
    values += [layer.node.out for layer in layers]
    rows = [layer.rows for layer in (*windows, *layers)]
    found = responses(graph, values, examples, rows)
    read = dict(zip(windows, found, strict=False))
    for layer, answered in zip(layers, found[len(windows) :], strict=True):
        layer.observe(read.get(layer), answered)


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
    x, weight = _reduced(graph, layer, choice)
    inner, expand, bias = _by_directions(layer, weight, choice)
    fitted = examples if examples is not None and not examples.random else None
    error = layer.error(choice.rank_in, choice.rank_out)
    if fitted is not None and weight[0].size <= _MAX_FEATURES:
        apart, flat = graph.copy(), weight.reshape(len(weight), -1)
        seen = _windows(apart, layer, x) if layer.node.op == "Conv" else x
        found, error = _fit(apart, layer, seen, flat, bias, fitted, choice.rank_out)
        inner, expand, bias = found.weights, found.directions, found.bias
        inner = (inner if expand is None else expand.T @ inner).reshape(-1, *weight.shape[1:])
        fitted = None
    value = _add(graph, layer, x, inner, "" if expand is None else "narrow", own=True)
    if expand is not None:
        if fitted is not None:
            found, error = _fit(graph, layer, value, expand, bias, fitted)
            expand, bias = found.weights, found.bias
        value = _add(graph, layer, value, expand, "", own=False)
    elif fitted is not None:
        rows = responses(graph, [value], fitted, [layer.rows])[0]
        bias = (layer.wanted - rows).mean(axis=0, dtype=np.float64)
        error = _error(layer, rows + bias)
    _finish(graph, layer.node, value, bias)
    return error


def _reduced(graph: Graph, layer: Layer, choice: Choice) -> tuple[Value, np.ndarray]:
    """What the layer's window reads from now on, and its weights (outputs, channels, *kernel)."""
    x, weight = _input(graph, layer.node), layer.weight.astype(np.float64)
    if choice.rank_in is None or layer.inputs is None:
        return x, weight
    x = _add(graph, layer, x, layer.inputs.reduce[: choice.rank_in], "reduce", own=False)
    product = np.tensordot(weight, layer.inputs.expand[:, : choice.rank_in], (1, 0))
    return x, np.moveaxis(product, -1, 1)


def _by_directions(
    layer: Layer, weight: np.ndarray, choice: Choice
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The narrow weights, those that expand (outputs, rank) or None, and the bias."""
    if choice.rank_out is None or layer.outputs is None:
        return weight, None, layer.bias
    directions = layer.outputs.reduce[: choice.rank_out]
    expand = layer.outputs.expand[:, : choice.rank_out]
    bias = layer.center - expand @ (directions @ layer.center)
    bias = bias if layer.bias is None else bias + layer.bias
    return np.tensordot(directions, weight, 1), expand, bias


def _windows(graph: Graph, layer: Layer, x: Value) -> Value:
    """All that an output of the layer depends on as channels: (N, channels * taps, *spatial)."""
    shape = x.tensor.shape
    assert shape is not None
    channels = int(shape[1] or 0)
    picks = np.tile(np.eye(layer.taps, dtype=np.float32), (channels, 1))
    weight = graph.constant(picks.reshape(-1, 1, *layer.kernel))
    attributes = {"group": channels, "kernel_shape": layer.kernel}
    return graph.add("Conv", [x, weight], {**layer.node.attributes, **attributes}).out


def _fit(
    graph: Graph,
    layer: Layer,
    features: Value,
    prior: np.ndarray,
    bias: np.ndarray | None,
    examples: Calibration,
    rank: int | None = None,
) -> tuple[Fit, float]:
    """A map of a value to the layer's responses, and the relative error on the examples."""
    rows = responses(graph, [features], examples, [layer.rows])[0].astype(np.float64)
    found = low_rank.fit(rows, layer.wanted, prior, bias, rank=rank, bounds=layer.bounds)
    return found, _error(layer, found(rows))


def _error(layer: Layer, answered: np.ndarray) -> float:
    """The relative error of responses, as far as readers of the layer see them."""
    return low_rank.relative_error(
        np.clip(answered, *layer.bounds), np.clip(layer.wanted, *layer.bounds)
    )


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
        x = _add(scratch, layer, x, _zeros(s, inputs), "reduce", own=False)
    x = _add(scratch, layer, x, _zeros(r, s, *layer.kernel), "", own=True)
    if choice.rank_out is not None:
        x = _add(scratch, layer, x, _zeros(outputs, r), "", own=False)
    if layer.bias is not None or not choice.keeps:
        _finish(scratch, x.node, x, _zeros(outputs))
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
    part: str,
    *,
    own: bool,
) -> Value:
    """Adds a part; ``own`` is the one that has the layer's window and strides."""
    node = layer.node
    base = node.name or node.names[0]
    name = f"{base}/{part}" if part and base else base
    attributes: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    if node.op == "Conv":
        attributes = dict(node.attributes) if own else {}
        missing = len(layer.kernel) + 2 - weight.ndim
        weight = weight.reshape(*weight.shape, *(1,) * missing) if missing else weight
        attributes["kernel_shape"] = weight.shape[2:]
    operands = [x, graph.constant(_float32(weight), f"{name}.weight" if name else "", node.origin)]
    op = "Conv" if node.op == "Conv" else "Gemm"
    if op == "Gemm" and graph.opset < 11:  # which cannot leave it out
        operands.append(graph.constant(_zeros(len(weight)).copy()))
    return graph.add(op, operands, attributes, name=name, origin=node.origin).out


def _float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float32 else np.ascontiguousarray(array, np.float32)


def _finish(graph: Graph, node: Node, value: Value, bias: np.ndarray | None) -> None:
    """Lets ``value``, with a bias added, stand for the result of ``node``."""
    made = value.node
    operands = list(graph.operands(made))
    if bias is not None:
        operands[2:] = [graph.constant(_float32(bias))]
    replace_node(graph, node, made.op, operands, made.attributes, name=made.name)
    graph.erase_dead([made])
