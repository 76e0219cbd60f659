"""Rules for pooling and reductions."""

from __future__ import annotations

from pwopt.ir.graph import Node
from pwopt.targets.cuda.kernels.pool import covers, pool
from pwopt.targets.cuda.kernels.reduce import reduce
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import place
from pwopt.targets.reading import (
    REDUCTIONS,
    pooling_of,
    reduction_of,
)
from pwopt.targets.values import image_tensor, static_shape
from pwopt.targets.views import channels_last


def pooling(lowering: CudaLowering, node: Node) -> None:
    """MaxPool, AveragePool, LpPool of one or two spatial axes; of whole maps as a reduction."""
    kind, window = pooling_of(lowering, node)
    xp, xv = place(image_tensor(lowering.channels_last(lowering.required(node, 0))))
    yp, yv = place(image_tensor(lowering.result(node.out)))
    if not yv.elements:
        return
    if covers(window, xv, yv):
        name = {"max": "Max", "average": "Mean", "l2": "L2"}[kind]
        lowering.emit(reduce, (name, xv, (1, 2), yv), (xp, yp))
        return
    count_include_pad = bool(node.get("count_include_pad", 0))
    lowering.emit(pool, (kind, xv, yv, window), (xp, yp), count_include_pad=count_include_pad)


def reduction(lowering: CudaLowering, node: Node) -> None:
    """GlobalAveragePool, GlobalMaxPool and the Reduce* family with constant axes."""
    kind, axes = reduction_of(lowering, node)
    tensor = lowering.tensor(lowering.required(node, 0))
    kept = tuple(1 if a in axes else e for a, e in enumerate(tensor.view.shape))
    rank = len(static_shape(node.out))
    order = channels_last(rank) if rank == len(kept) else tuple(range(rank))
    xp, xv = place(tensor)
    yp, yv = place(lowering.result(node.out, order))
    view = yv if yv.shape == kept else yv.reshape(kept)
    assert view is not None  # at most the rows of a matrix are padded
    lowering.emit(reduce, (kind, xv, axes, view), (xp, yp))


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): pooling for op in ("MaxPool", "AveragePool", "LpPool")},
    **{("", op): reduction for op in ("GlobalAveragePool", "GlobalMaxPool")},
    **{("", f"Reduce{kind}"): reduction for kind in REDUCTIONS},
}
