"""Rules that all targets share: elementwise groups, normalisations, softmax, resizing.

They ask for kernels by name: see :meth:`Lowering.call`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pwopt.ir.graph import Node, Value
from pwopt.ir.program import Instruction, Program
from pwopt.targets.lowering import Lowering, Rule
from pwopt.targets.plan import Pointer, Tensor, place
from pwopt.targets.reading import (
    ELEMENTWISE,
    only_first_is_read,
    program_of,
    scale_and_shift,
    softmax_axes,
)
from pwopt.targets.resampling import only_maps_read, pack, repeated, resampling_of, split
from pwopt.targets.values import Unsupported, image_tensor, require_float, static_shape
from pwopt.targets.views import channels_last, image


def elementwise(lowering: Lowering, node: Node) -> None:
    """An internal Map, or a lone elementwise operator of ONNX."""
    program = program_of(lowering, node)
    values = lowering.operands(node)[: program.arity]
    require_float(node.out, *values)
    shape = static_shape(node.out)
    order = _order(lowering, values, shape)
    arguments: list[Tensor] = []
    factors: tuple[int, int] | None = None
    for value in values:
        if value is None:
            raise Unsupported("an operand is absent")
        if value in lowering.enlarged:
            tensor, factors = lowering.enlarged[value]
            arguments.append(tensor)
            continue
        rank = len(static_shape(value))
        own = [a - (len(shape) - rank) for a in order if a >= len(shape) - rank]
        tensor = lowering.ordered(value, own)
        arguments.append(tensor.with_view(tensor.view.broadcast(shape).permute(order)))
    result = lowering.result(node.out, order)
    if not result.view.elements:
        return
    placed = [place(t) for t in (*arguments, result.with_view(result.view.permute(order)))]
    views = [v for _, v in placed]
    if factors:
        views = [
            (repeated if value in lowering.enlarged else split)(view, factors)
            for view, value in zip(views, (*values, node.out), strict=True)
        ]
    lowering.call(
        "map_kernel",
        (program, tuple(views[:-1]), views[-1]),
        [p for p, _ in placed],
        in_place=lowering.replaceable(values, views),
    )


def _order(
    lowering: Lowering, values: Sequence[Value | None], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The layout of the largest operand, which then need not move; images are channels last."""
    best, order = -1, tuple(range(len(shape)))
    for value in values:
        if value is None or lowering.array(value) is not None or value in lowering.enlarged:
            continue
        view = lowering.tensor(value).view
        if len(view.shape) == len(shape) and view.elements > best:
            best = view.elements
            is_image = len(shape) > 2 and view.strides[1] == 1
            order = channels_last(len(shape)) if is_image else view.order
    return order


def batch_norm(lowering: Lowering, node: Node) -> None:
    """BatchNormalization with constant statistics: a multiply and an add per channel."""
    factor, shift = scale_and_shift(lowering, node)
    value = lowering.required(node, 0)
    shape = static_shape(value)
    order = channels_last(len(shape))
    tensor, result = lowering.channels_last(value), lowering.result(node.out)
    if not result.view.elements:
        return
    placed = [place(tensor.with_view(tensor.view.permute(order)))]
    for name, array in (("scale", factor), ("shift", shift)):
        constant = lowering.constant(array, key=(node.out, name))
        column = constant.view.reshape((len(array), *[1] * (len(shape) - 2)))
        assert column is not None
        placed.append(place(constant.with_view(column.broadcast(shape).permute(order))))
    yp, yv = place(result.with_view(result.view.permute(order)))
    program = Program(3, (Instruction("Mul", (0, 1)), Instruction("Add", (3, 2))))
    lowering.call(
        "map_kernel",
        (program, tuple(v for _, v in placed), yv),
        (*(p for p, _ in placed), yp),
        in_place=(0, 3) if placed[0][1] == yv else None,
    )


def softmax(lowering: Lowering, node: Node) -> None:
    """Softmax and LogSoftmax; before opset 13 over all axes from ``axis`` on."""
    axes = softmax_axes(lowering, node)
    tensor = lowering.tensor(lowering.required(node, 0))
    xp, xv = place(tensor)
    yp, yv = place(lowering.result(node.out, tensor.view.order))
    if yv.elements:
        lowering.call("softmax", (xv, axes, yv), (xp, yp), log=node.op == "LogSoftmax")


def lrn(lowering: Lowering, node: Node) -> None:
    """Local response normalisation across channels."""
    value = lowering.required(node, 0)
    require_float(value, node.out)
    xp, xv = place(image_tensor(lowering.channels_last(value)))
    yp, yv = place(image_tensor(lowering.result(node.out)))
    if not yv.elements:
        return
    lowering.call(
        "local_response",
        (xv, yv),
        (xp, yp),
        size=node.get("size"),
        alpha=float(node.get("alpha", 1e-4)),
        beta=float(node.get("beta", 0.75)),
        bias=float(node.get("bias", 1.0)),
    )


def instance_norm(lowering: Lowering, node: Node) -> None:
    """InstanceNormalization: statistics per image and channel."""
    shape = static_shape(lowering.required(node, 0))
    parameters = [
        lowering.constant_array(node, i, "parameter").reshape(-1, *[1] * (len(shape) - 2))
        for i in (1, 2)
    ]
    _normalise(lowering, node, tuple(range(2, len(shape))), parameters, channels_last(len(shape)))


def layer_norm(lowering: Lowering, node: Node) -> None:
    """LayerNormalization over the last axes."""
    only_first_is_read(lowering, node, "its mean is read")
    value = lowering.required(node, 0)
    rank = len(static_shape(value))
    axes = tuple(range(node.get("axis", -1) % rank, rank))
    slots = [i for i in (1, 2) if lowering.graph.operand(node, i) is not None]
    parameters = [lowering.constant_array(node, i, "parameter") for i in slots]
    _normalise(lowering, node, axes, parameters, lowering.tensor(value).view.order)


def _normalise(
    lowering: Lowering,
    node: Node,
    axes: tuple[int, ...],
    parameters: Sequence[np.ndarray],
    order: tuple[int, ...],
) -> None:
    value = lowering.required(node, 0)
    require_float(value, node.out)
    shape = static_shape(value)
    tensors = [lowering.ordered(value, order)]
    for i, array in enumerate(parameters):
        constant = lowering.constant(array.astype(np.float32), key=(node.out, i))
        tensors.append(constant.with_view(constant.view.broadcast(shape)))
    tensors.append(lowering.result(node.out, order))
    placed = [place(t) for t in tensors]
    views = [v for _, v in placed]
    if not views[-1].elements:
        return
    lowering.call(
        "mean_variance",
        (views[0], axes, views[-1]),
        [p for p, _ in placed],
        scale=views[1] if len(parameters) > 0 else None,
        bias=views[2] if len(parameters) > 1 else None,
        epsilon=float(node.get("epsilon", 1e-5)),
    )


def resize(lowering: Lowering, node: Node) -> None:
    """Resize of opset 10 on, and the deprecated Upsample."""
    resampling = resampling_of(lowering, node)
    factors = resampling.factors
    source = image_tensor(lowering.channels_last(lowering.required(node, 0)))
    if factors and only_maps_read(lowering.graph, node.out):
        lowering.enlarged[node.out] = (source, factors)
        return
    (xp, xv), (yp, yv) = place(source), place(image_tensor(lowering.result(node.out)))
    if factors:
        lowering.call("upsample", (xv, yv, factors), (xp, yp))
        return
    indices, weights = pack(*resampling.tables())
    tables = [
        Pointer(lowering.packed((node.out, name), array.copy))
        for name, array in (("indices", indices), ("weights", weights))
    ]
    lowering.call("resize", (resampling.mode, xv, yv), (xp, *tables, yp))


def epilogue_operand(lowering: Lowering, value: Value, out: Value) -> Tensor:
    """An operand of the epilogue, broadcast to the output, as (N, H, W, C)."""
    shape = static_shape(out)
    rank = len(static_shape(value))
    order = [a - (len(shape) - rank) for a in channels_last(len(shape)) if a >= len(shape) - rank]
    tensor = lowering.ordered(value, order)
    try:
        view = image(tensor.view.broadcast(shape))
    except ValueError as error:
        raise Unsupported(str(error)) from None
    if view.strides[3] not in (0, 1):
        raise Unsupported(f"the layout of {value.label}")
    return tensor.with_view(view)


def epilogue_rows(
    lowering: Lowering, value: Value, shape: tuple[int, ...], rows: tuple[int, int]
) -> Tensor:
    """An operand of the epilogue of a product of this shape, as (rows, columns)."""
    tensor = lowering.tensor(value) if lowering.array(value) is not None else lowering.dense(value)
    view = tensor.view.broadcast(shape).reshape(rows)
    if view is None:
        raise Unsupported("a partly broadcast operand")
    return tensor.with_view(view)


RULES: dict[tuple[str, str], Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    ("", "BatchNormalization"): batch_norm,
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "LRN"): lrn,
    ("", "InstanceNormalization"): instance_norm,
    ("", "LayerNormalization"): layer_norm,
    ("", "Resize"): resize,
    ("", "Upsample"): resize,
}
