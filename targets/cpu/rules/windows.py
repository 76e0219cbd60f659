"""Rules for pooling and reductions."""

from __future__ import annotations

from pwopt.ir.graph import Node
from pwopt.targets.cpu.kernels.pool import pool
from pwopt.targets.cpu.kernels.reduce import REDUCTIONS, reduce
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.rules.squeeze_excite import emit_gates
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import place
from pwopt.targets.reading import (
    pooling_of,
    reduction_of,
)
from pwopt.targets.values import Unsupported, image_tensor, static_shape


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


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): pooling for op in ("MaxPool", "AveragePool", "LpPool")},
    **{("", op): reduction for op in ("GlobalAveragePool", "GlobalMaxPool")},
    **{("", f"Reduce{kind}"): reduction for kind in REDUCTIONS},
}
