"""Rules for pooling, reductions, normalisations, softmax and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pwopt.ir.graph import Node
from pwopt.ir.program import Instruction, Program
from pwopt.targets.cpu.kernels.map import map_kernel
from pwopt.targets.cpu.kernels.norm import local_response, mean_variance
from pwopt.targets.cpu.kernels.pool import pool
from pwopt.targets.cpu.kernels.reduce import REDUCTIONS, reduce
from pwopt.targets.cpu.kernels.softmax import softmax
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.rules.squeeze_excite import emit_gates
from pwopt.targets.lowering import Rule, Unsupported, image_tensor, require_float, static_shape
from pwopt.targets.plan import place
from pwopt.targets.reading import (
    only_first_is_read,
    pooling_of,
    reduction_of,
    scale_and_shift,
    softmax_axes,
)
from pwopt.targets.views import channels_last


def pooling(lowering: Lowering, node: Node) -> None:
    """MaxPool, AveragePool, LpPool of one or two spatial axes."""
    kind, window = pooling_of(lowering, node)
    (xp, xv) = place(image_tensor(lowering.channels_last(lowering.required(node, 0))))
    (yp, yv) = place(image_tensor(lowering.result(node.out)))
    lowering.emit(
        pool,
        (kind, xv, yv, window, lowering.hardware, lowering.threads),
        (xp, yp),
        count_include_pad=bool(node.get("count_include_pad", 0)),
    )


def reduction(lowering: Lowering, node: Node) -> None:
    """GlobalAveragePool, GlobalMaxPool and the Reduce* family with constant axes."""
    kind, axes = reduction_of(lowering, node)
    value = lowering.required(node, 0)
    of_maps = kind == "Mean" and axes == tuple(range(2, len(static_shape(value))))
    if of_maps and node.get("keepdims", 1) and emit_gates(lowering, node):
        return
    tensor = lowering.tensor(value)
    kept = tuple(1 if a in axes else e for a, e in enumerate(tensor.view.shape))
    result = lowering.result(node.out, tuple(range(len(static_shape(node.out)))))
    (xp, xv), (yp, yv) = place(tensor), place(result)
    view = yv.reshape(kept)
    if view is None:
        raise Unsupported("the result's layout")
    lowering.emit(reduce, (kind, xv, axes, view, lowering.hardware, lowering.threads), (xp, yp))


def batch_norm(lowering: Lowering, node: Node) -> None:
    """BatchNormalization with constant statistics: a multiply and an add per channel."""
    value = lowering.required(node, 0)
    factor, shift = scale_and_shift(lowering, node)
    shape = static_shape(value)
    tensor = lowering.channels_last(value)
    result = lowering.result(node.out)
    order = channels_last(len(shape))
    placed = [place(tensor.with_view(tensor.view.permute(order)))]
    for name, array in (("scale", factor), ("shift", shift)):
        constant = lowering.constant(array, key=(node.out, name))
        column = constant.view.reshape((-1 % (len(array) + 1), *[1] * (len(shape) - 2)))
        assert column is not None
        placed.append(place(constant.with_view(column.broadcast(shape).permute(order))))
    yp, yv = place(result.with_view(result.view.permute(order)))
    program = Program(3, (Instruction("Mul", (0, 1)), Instruction("Add", (3, 2))))
    lowering.emit(
        map_kernel,
        (program, tuple(v for _, v in placed), yv, lowering.hardware, lowering.threads),
        (*(p for p, _ in placed), yp),
        in_place=(0, 3) if placed[0][1] == yv else None,
    )


def softmax_(lowering: Lowering, node: Node) -> None:
    """Softmax and LogSoftmax; before opset 13 over all axes from ``axis`` on."""
    axes = softmax_axes(lowering, node)
    tensor = lowering.tensor(lowering.required(node, 0))
    xp, xv = place(tensor)
    yp, yv = place(lowering.result(node.out, tensor.view.order))
    lowering.emit(
        softmax,
        (xv, axes, yv, lowering.hardware, lowering.threads),
        (xp, yp),
        log=node.op == "LogSoftmax",
    )


def lrn(lowering: Lowering, node: Node) -> None:
    """Local response normalisation across channels."""
    value = lowering.required(node, 0)
    require_float(value, node.out)
    (xp, xv) = place(image_tensor(lowering.channels_last(value)))
    (yp, yv) = place(image_tensor(lowering.result(node.out)))
    lowering.emit(
        local_response,
        (xv, yv, lowering.hardware, lowering.threads),
        (xp, yp),
        size=node.get("size"),
        alpha=float(node.get("alpha", 1e-4)),
        beta=float(node.get("beta", 0.75)),
        bias=float(node.get("bias", 1.0)),
    )


def instance_norm(lowering: Lowering, node: Node) -> None:
    """InstanceNormalization: statistics per image and channel."""
    value = lowering.required(node, 0)
    shape = static_shape(value)
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
    lowering.emit(
        mean_variance,
        (views[0], axes, views[-1], lowering.hardware, lowering.threads),
        [p for p, _ in placed],
        scale=views[1] if len(parameters) > 0 else None,
        bias=views[2] if len(parameters) > 1 else None,
        epsilon=float(node.get("epsilon", 1e-5)),
    )


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): pooling for op in ("MaxPool", "AveragePool", "LpPool")},
    **{("", op): reduction for op in ("GlobalAveragePool", "GlobalMaxPool")},
    **{("", f"Reduce{kind}"): reduction for kind in REDUCTIONS},
    ("", "BatchNormalization"): batch_norm,
    ("", "Softmax"): softmax_,
    ("", "LogSoftmax"): softmax_,
    ("", "LRN"): lrn,
    ("", "InstanceNormalization"): instance_norm,
    ("", "LayerNormalization"): layer_norm,
}
