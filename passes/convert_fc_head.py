"""Turns fully connected layers into convolutions over the whole map, or into ``Linear``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, ONNX_DOMAIN, Graph, Node, Use, Value
from pwopt.ir.program import BINARY, UNARY, Instruction, Program
from pwopt.ir.types import TensorType
from pwopt.passes import elementwise
from pwopt.passes.estimate import constant_growth
from pwopt.passes.fully_connected import FlattenedMap, FullyConnected, flattened_map, read
from pwopt.pipeline import Applied, Context, Missed, Rewrite

# Their further operands mean the same on a map.
_BY_CHANNEL = ("BatchNormalization", *sorted(UNARY))

Cache = dict[tuple[object, ...], Value]


@dataclass(frozen=True)
class ConvertFcHead(Rewrite):
    """Turns fully connected layers into what runs channels-last without a transpose.

    Rewrite:
        ``Gemm(Flatten(X[N, C, H, W]), W)`` → ``Flatten(Conv(X, W[M, C, H, W]))``, and activations
        behind it move in front of the Flatten, where they can become the convolution's epilogue.
        The same for a Reshape, for a MatMul, and through a Transpose in front of the Reshape.
        ``Gemm(X, W)``, ``Add(MatMul(X, W), B)`` → ``pwopt.Linear(X, W[N, K], B)``; alpha, beta,
        transA and transB are folded; a bias that differs by row becomes the epilogue's Add.
    Shapes:
        any batch; the map's other sizes must be known. A map of one pixel becomes Linear as it is.
    Numerics:
        exact where alpha and beta are 1, else the scaled weights are rounded once to float32; the
        sums may be taken in another order.
    Misses when:
        weights are not a constant matrix; not float32; the input's rank is unknown or 1.
    Source:
        ONNX Gemm-1 to Gemm-13, MatMul-1 to MatMul-13; Long et al. 2015 (fully convolutional heads).
    """

    name: ClassVar[str] = "convert-fc-head"
    lowers: ClassVar[bool] = True
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {(ONNX_DOMAIN, "Gemm"), (ONNX_DOMAIN, "MatMul")}
    )

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        layer = read(graph, node)
        if isinstance(layer, str):
            return Missed(layer)
        what = f"its weight {layer.weight.label!r} in another form"
        if (why := context.growth().refuse(graph, _added(graph, layer), what)) is not None:
            return Missed(why)
        cache: Cache = {}
        converted, texts = 0, []
        for use in graph.uses(layer.weight):
            if use.slot != 1 or use.node not in graph or not use.node.is_op("Gemm", "MatMul"):
                continue
            each = read(graph, use.node)
            if isinstance(each, FullyConnected):
                converted += 1
                texts.append(_convert(graph, each, cache))
        others = f", as the {converted - 1} others that share its weights"
        return Applied(texts[0] + (others if converted > 1 else ""))


def _added(graph: Graph, layer: FullyConnected) -> int:
    """Bytes by which the constants grow: forms of a weight beside the one that others read."""
    layers = [read(graph, use.node) for use in graph.uses(layer.weight) if use.slot == 1]
    found = [each for each in layers if isinstance(each, FullyConnected)]
    forms = {_key(each, _flattened(graph, each)) for each in found}
    biases = sum(each.bias.nbytes for each in found if each.bias is not None)
    gone = [node for each in found for node in (each.node, each.last)]
    return constant_growth(graph, gone, len(forms) * layer.matrix.nbytes + biases)


def _flattened(graph: Graph, layer: FullyConnected) -> FlattenedMap | None:
    return None if layer.addend is not None else flattened_map(graph, layer)


def _convert(graph: Graph, layer: FullyConnected, cache: Cache) -> str:
    flattened = _flattened(graph, layer)
    if flattened is None:
        _to_linear(graph, layer, cache)
        return "made a Linear"
    _to_convolution(graph, layer, flattened, cache)
    size = "x".join(map(str, [flattened.shape[axis] for axis in flattened.axes][1:]))
    return f"made a {size} convolution over the whole map"


def _to_linear(graph: Graph, layer: FullyConnected, cache: Cache) -> None:
    x, extras, program = layer.x, [], Program()
    if layer.transposed:
        shape = x.tensor.shape
        flipped = TensorType(x.tensor.dtype, None if shape is None else shape[::-1])
        x = graph.add("Transpose", (x,), {"perm": (1, 0)}, types=(flipped,)).out
    if layer.addend is not None:
        extras, program = [layer.addend], program.then_with_argument("Add")
        if layer.beta != 1.0:
            extras.append(graph.constant(np.asarray(layer.beta, np.float32)))
            steps = (Instruction("Mul", (1, 2)), Instruction("Add", (0, 3)))
            program = Program(3, steps)
    new = graph.add(
        "Linear",
        (x, _weight(graph, layer, cache), _bias(graph, layer), *extras),
        {"epilogue": program},
        domain=KERNEL_DOMAIN,
        types=layer.last.types,
        names=layer.last.names,
        name=layer.node.name,
        origin=(*layer.node.origin, *layer.last.origin),
    )
    graph.replace_uses(layer.last.out, new.out)
    graph.erase_dead([layer.last])


def _to_convolution(
    graph: Graph, layer: FullyConnected, flattened: FlattenedMap, cache: Cache
) -> None:
    weight = _weight(graph, layer, cache, flattened)
    ones = (1,) * (len(flattened.shape) - 1)
    width, batch = layer.matrix.shape[0], flattened.value.tensor.shape
    assert batch is not None
    map_type = TensorType("float32", (batch[0], width, *ones))
    attributes = {
        "kernel_shape": weight.tensor.shape[2:] if weight.tensor.shape else (),
        "strides": ones,
        "dilations": ones,
        "pads": (0,) * (2 * len(ones)),
        "group": 1,
    }
    value = graph.add(
        "Conv",
        (flattened.value, weight, _bias(graph, layer)),
        attributes,
        types=(map_type,),
        name=layer.node.name,
        origin=(*layer.node.origin, *layer.last.origin),
    ).out
    last = layer.last
    while (reader := _movable(graph, last.out, width)) is not None:
        value = graph.add(
            reader.node.op,
            _over_map(graph, reader, value, len(ones)),
            reader.node.attributes,
            types=(map_type,),
            name=reader.node.name,
            origin=reader.node.origin,
        ).out
        last = reader.node
    new = graph.add(
        "Flatten",
        (value,),
        {"axis": 1},
        types=last.types,
        names=last.names,
        origin=[name for each in flattened.flatten for name in each.origin],
    )
    graph.replace_uses(last.out, new.out)
    graph.erase_dead([last])


def _movable(graph: Graph, value: Value, width: int) -> Use | None:
    """The elementwise reader of a flat value that may read a map instead."""
    use = graph.only_use(value)
    if use is None or not isinstance(elementwise.read(graph, use.node), elementwise.Elementwise):
        return None
    node = use.node
    if node.out.tensor.shape != value.tensor.shape or not (
        node.is_op(*_BY_CHANNEL) or node.is_op(*BINARY)
    ):
        return None
    for slot, operand in enumerate(graph.operands(node)):
        array = graph.constant_value(operand)
        if slot == use.slot or (operand is None and node.is_op(*_BY_CHANNEL)):
            continue
        if array is None or (array.size != 1 and array.shape[-1:] != (array.size,)):
            return None
        if array.size not in (1, width):
            return None
    return use


def _over_map(graph: Graph, reader: Use, value: Value, spatial: int) -> list[Value | None]:
    """The operands of a movable reader, ``value`` in place of the flat one."""
    operands: list[Value | None] = []
    for slot, operand in enumerate(graph.operands(reader.node)):
        array = graph.constant_value(operand)
        if slot == reader.slot:
            operands.append(value)
        elif array is None or array.size == 1 or reader.node.is_op(*_BY_CHANNEL):
            operands.append(operand)
        else:
            operands.append(graph.constant(array.reshape(-1, *(1,) * spatial)))
    return operands


def _weight(
    graph: Graph, layer: FullyConnected, cache: Cache, flattened: FlattenedMap | None = None
) -> Value:
    node, key = layer.weight.node, _key(layer, flattened)
    if key not in cache:
        array = layer.scaled if flattened is None else flattened.kernel(layer.scaled)
        cache[key] = graph.constant(array, layer.weight.name, node.origin)
    return cache[key]


def _key(layer: FullyConnected, flattened: FlattenedMap | None) -> tuple[object, ...]:
    """What two layers that share a weight must agree in to share its new form, too."""
    transposed = layer.node.op == "Gemm" and bool(layer.node.get("transB", 0))
    return transposed, layer.alpha, flattened and (flattened.shape, flattened.axes)


def _bias(graph: Graph, layer: FullyConnected) -> Value | None:
    return None if layer.bias is None else graph.constant(layer.bias)
