"""The pass ``replace-fc-head``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt import calibration, cost
from pwopt.approximation import METRICS, Approximation, Judge, LayerChange
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.frontend import OPEN
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.program import UNARY
from pwopt.passes import fully_connected, low_rank, open_sizes
from pwopt.passes.fully_connected import FlattenedMap, FullyConnected
from pwopt.passes.responses import responses
from pwopt.pipeline import Context, Pass, Remark, us_of
from pwopt.running import input_types

_SHARES = (0.75, 0.25)  # of the examples, for the fit and the judgement
_MODES = ("fit", "convolution")
_ACTIVATIONS = (*sorted(UNARY), "Clip", "LeakyRelu", "PRelu")
_WIDTH = 3  # hidden channels at most, over those of the map


@dataclass(frozen=True)
class ReplaceFcHead(Pass):
    """Replaces the fully connected head of a network by 1x1 convolutions and a global average pool.

    Rewrite:
        ``Gemm(act(Gemm(Flatten(X))))`` → ``Flatten(GlobalAveragePool(Conv1x1(act(Conv1x1(X)))))``,
        with any number of layers; after a global pool, 1x1 convolutions of the pooled map.
    Shapes:
        maps of known channels and sizes; activations of one operand between the layers.
    Numerics:
        lossy: each 1x1 is fitted by ridge regression, so that its average over the pixels gets
        nearest to what the layer in its place answers, in the new head as it is by then. Without
        data the filters' sum over the pixels. Hidden layers keep the channels that matter most.
        Exact after a global pool, and with ``mode=convolution``: a convolution over the whole map,
        1x1s behind it, and the average. With ``open=true`` the written model then takes larger
        inputs, too, and answers with the average over all places of the head.
    Misses when:
        there is no such head, weights are not constant, a value in between has other readers, the
        loss on examples that the fit has not seen is larger than the budget, or sizes are to be
        opened and another node needs them as they are.
    Source:
        Lin, Chen, Yan, "Network in Network", ICLR 2014; Long et al., CVPR 2015.

    Attributes:
        mode: "fit" or "convolution".
        width: channels of hidden layers at most; 0 takes three times those of the map.
        budget: the loss that is allowed, by the metric.
        metric: see ``insert-bottlenecks``.
        open: whether the written model declares the input's height and width as open. The
            executable is for the size that the original declares.
    """

    name: ClassVar[str] = "replace-fc-head"
    lossy: ClassVar[bool] = True

    mode: str = "fit"
    width: int = 0
    budget: float = 1.0
    metric: str = "auto"
    open: bool = False

    def __post_init__(self) -> None:
        if self.mode not in _MODES or self.metric not in METRICS:
            modes, metrics = ", ".join(_MODES), ", ".join(METRICS)
            raise UsageError(f"{self.spec}: the mode is one of {modes}, the metric of {metrics}")
        if self.width < 0 or not self.budget >= 0:
            raise UsageError(f"{self.spec}: the width and the budget are at least 0")

    def run(self, graph: Graph, context: Context) -> None:
        heads = [head for head in _heads(graph) if context.may_rewrite(self, head.layers[0].node)]
        if not heads:
            context.looked_at = None
            return
        data = context.calibration or calibration.random(input_types(graph))
        fit, held_out = data.split(*_SHARES)
        judge = Judge(graph, held_out, self.metric)
        changed = graph.copy()
        parts = [self._replace(changed, head, fit) for head in heads]
        changed.erase_dead()
        loss = judge(changed)
        lost, why = loss.by(judge.metric), None
        if lost > self.budget:
            why = f"{judge.metric} loss {lost:.3g} on {loss.examples} examples, of {self.budget:g}"
        elif self.open:
            why = _open(changed)
        if why is not None:
            context.remarks += [Remark(self.name, h.label, False, why) for h in heads]
            return
        changes = tuple(
            _change(graph, changed, head, made, context)
            for head, made in zip(heads, parts, strict=True)
        )
        for head, change in zip(heads, changes, strict=True):
            context.rewritten(self, head.layers[0].node, head.label, change.text)
        graph.restore(changed)
        context.approximations.append(
            Approximation(
                self.spec,
                self.budget,
                judge.metric,
                loss,
                data.source,
                data.random,
                len(fit),
                0,
                changes,
            )
        )

    def _replace(self, graph: Graph, head: _Head, examples: Calibration) -> list[Node]:
        """Puts 1x1s in the place of a head; returns them."""
        exact = head.flattened is None or self.mode == "convolution"
        x, units, made = head.map, np.arange(head.channels), list[Node]()
        for number, layer in enumerate(head.layers):
            weight = layer.scaled
            bias = np.zeros(len(weight), np.float32) if layer.bias is None else layer.bias
            if number == 0 and head.flattened is not None:
                weight = head.flattened.kernel(weight)
            if not exact:
                per_pixel = weight.reshape(*weight.shape[:2], -1).sum(axis=2)[:, units]
                units = self._units(graph, head, number, examples)
                weight, bias = per_pixel[units], bias[units]
                if not examples.random:
                    weight, bias = _fitted(graph, x, layer, units, weight, examples)
            x = _convolution(graph, x, layer, weight, bias)
            made.append(x.node)
            for node in head.activations[number]:
                x = graph.add(
                    node.op,
                    [x, *graph.operands(node)[1:]],
                    node.attributes,
                    types=x.node.types,
                    name=_renamed(node),
                    origin=node.origin,
                ).out
        if head.flattened is not None:
            x = graph.add("GlobalAveragePool", [x]).out
        flat = graph.add("Flatten", [x], {"axis": 1}, types=head.last.types, names=head.last.names)
        graph.replace_uses(head.last.out, flat.out)
        return made

    def _units(self, graph: Graph, head: _Head, number: int, examples: Calibration) -> np.ndarray:
        """The units of a layer that are kept: those that move the next layer's responses most."""
        count = len(head.layers[number].matrix)
        width = min(count, self.width or _WIDTH * head.channels)
        if width == count or number + 1 == len(head.layers):
            return np.arange(count)
        after = head.layers[number + 1]
        rows = responses(graph, [after.x], examples, [2 * len(examples)])[0]
        weight = rows.std(axis=0) * np.linalg.norm(after.scaled, axis=0)
        return np.sort(np.argsort(-weight, kind="stable")[:width])


@dataclass(frozen=True)
class _Head:
    """Fully connected layers one after another on a map.

    Attributes:
        map: what the first one reads, (N, C, *spatial).
        flattened: how it is flattened; None for a map of one pixel.
        layers: the first to the last.
        activations: operators behind each of them but the last.
    """

    map: Value
    flattened: FlattenedMap | None
    layers: tuple[FullyConnected, ...]
    activations: tuple[tuple[Node, ...], ...]

    @property
    def channels(self) -> int:
        first = self.layers[0].matrix.shape[1]
        if self.flattened is None:
            return int(first)
        return int(self.flattened.shape[self.flattened.axes[0]])

    @property
    def last(self) -> Node:
        return self.layers[-1].last

    @property
    def label(self) -> str:
        return self.layers[0].node.label


def _heads(graph: Graph) -> Iterator[_Head]:
    for node in graph.topological():
        first = _layer(graph, node)
        if first is None:
            continue
        flattened = fully_connected.flattened_map(graph, first)
        source = flattened.value if flattened else _one_pixel(graph, first)
        if source is None:
            continue
        layers, activations = [first], list[tuple[Node, ...]]()
        while True:
            between, after = _next(graph, layers[-1].last.out)
            activations.append(() if after is None else between)
            if after is None:
                break
            layers.append(after)
        yield _Head(source, flattened, tuple(layers), tuple(activations))


def _layer(graph: Graph, node: Node) -> FullyConnected | None:
    if not node.is_op("Gemm", "MatMul"):
        return None
    layer = fully_connected.read(graph, node)
    if isinstance(layer, str) or layer.transposed or layer.addend is not None:
        return None
    return layer if layer.x.tensor.rank == 2 else None


def _next(graph: Graph, value: Value) -> tuple[tuple[Node, ...], FullyConnected | None]:
    """The activations behind a layer, and the layer behind them."""
    between: list[Node] = []
    while (use := graph.only_use(value)) is not None and use.slot == 0:
        layer = _layer(graph, use.node)
        if layer is not None:
            return tuple(between), layer
        scalars = [graph.constant_value(v) for v in graph.operands(use.node)[1:] if v is not None]
        if not use.node.is_op(*_ACTIVATIONS) or any(a is None or a.size != 1 for a in scalars):
            break
        between.append(use.node)
        value = use.node.out
    return (), None


def _one_pixel(graph: Graph, layer: FullyConnected) -> Value | None:
    """The pooled map of one pixel that a layer reads."""
    flatten = layer.x.node
    if not flatten.is_op("Flatten", "Reshape", "Squeeze"):
        return None
    source = graph.operand(flatten, 0)
    shape = None if source is None else source.tensor.shape
    if shape is None or len(shape) < 3 or shape[1] != layer.matrix.shape[1]:
        return None
    return source if all(d == 1 for d in shape[2:]) else None


def _fitted(
    graph: Graph,
    x: Value,
    layer: FullyConnected,
    units: np.ndarray,
    prior: np.ndarray,
    examples: Calibration,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias whose average over the pixels of ``x`` is nearest to the layer's answers."""
    probe = graph.copy()
    pooled = probe.add("GlobalAveragePool", [x]).out
    all_rows = [2 * len(examples)] * 2
    inside, wanted = responses(probe, [pooled, layer.last.out], examples, all_rows)
    found = low_rank.fit(inside.astype(np.float64), wanted[:, units], prior)
    return found.weights, found.bias


def _convolution(
    graph: Graph, x: Value, layer: FullyConnected, weight: np.ndarray, bias: np.ndarray
) -> Value:
    shape = x.tensor.shape
    assert shape is not None
    missing = len(shape) - weight.ndim
    weight = weight.reshape(*weight.shape, *(1,) * missing)
    operands = [x, *(graph.constant(np.ascontiguousarray(a, np.float32)) for a in (weight, bias))]
    origin = (*layer.node.origin, *layer.last.origin)
    attributes = {"kernel_shape": weight.shape[2:]}
    return graph.add("Conv", operands, attributes, name=_renamed(layer.node), origin=origin).out


def _open(graph: Graph) -> str | None:
    """Lets the written model take any size, or says why it cannot."""
    found = open_sizes.open_inputs(graph)
    if isinstance(found, str):
        return f"sizes stay closed: {found}"
    graph.metadata[OPEN] = found
    return None


def _renamed(node: Node) -> str:
    """A name for what takes a node's place while that is still there."""
    name = node.name or node.names[0]
    return f"{name}/pixels" if name else ""


def _change(
    before: Graph, after: Graph, head: _Head, made: Sequence[Node], context: Context
) -> LayerChange:
    """What became of a head."""
    old = [layer.node for layer in head.layers]
    origin = {name for layer in head.layers for name in (*layer.node.origin, *layer.last.origin)}
    times = [
        None if context.measure is None else us_of(origin, context.measure(graph))
        for graph in (before, after)
    ]
    pool = "" if head.flattened is None else ", global average pool"
    model = context.cost_model
    return LayerChange(
        node=head.label,
        text=", ".join(_text(node, after) for node in made) + pool,
        channels_in=head.channels,
        channels_out=len(head.layers[-1].matrix),
        rank_in=None,
        rank_out=None,
        parameters_before=_parameters(before, old),
        parameters_after=_parameters(after, made),
        macs_before=sum(cost.node_macs(before, node) for node in old),
        macs_after=sum(cost.node_macs(after, node) for node in made),
        predicted_before_us=model.nodes_us(before, old),
        predicted_after_us=model.nodes_us(after, made),
        measured_before_us=times[0],
        measured_after_us=times[1],
        error=None,
        others=tuple(node.label for node in old[1:]),
    )


def _text(node: Node, graph: Graph) -> str:
    """A convolution in words, such as "1x1 64->10"."""
    weight = graph.constant_value(graph.operand(node, 1))
    assert weight is not None
    return f"{'x'.join(map(str, weight.shape[2:]))} {weight.shape[1]}->{weight.shape[0]}"


def _parameters(graph: Graph, nodes: Sequence[Node]) -> int:
    constants = {v for node in nodes for v in graph.operands(node)[1:] if v is not None}
    return sum(v.tensor.elements or 0 for v in constants)
