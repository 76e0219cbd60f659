"""Rules for Resize and Upsample over the two spatial axes."""

from __future__ import annotations

from pwopt.ir.graph import Node
from pwopt.targets.cuda.kernels import resize as kernels
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.lowering import Rule, image_tensor
from pwopt.targets.plan import Pointer, place
from pwopt.targets.resampling import only_maps_read, pack, resampling_of


def resize(lowering: CudaLowering, node: Node) -> None:
    """Resize of opset 10 on, and the deprecated Upsample."""
    resampling = resampling_of(lowering, node)
    factors = resampling.factors
    source = image_tensor(lowering.channels_last(lowering.required(node, 0)))
    if factors and only_maps_read(lowering.graph, node.out):
        lowering.enlarged[node.out] = (source, factors)
        return
    (xp, xv), (yp, yv) = place(source), place(image_tensor(lowering.result(node.out)))
    if factors:
        lowering.emit(kernels.upsample, (xv, yv, factors), (xp, yp))
        return
    indices, weights = pack(*resampling.tables())
    tables = [
        Pointer(lowering.packed((node.out, name), array.copy))
        for name, array in (("indices", indices), ("weights", weights))
    ]
    lowering.emit(kernels.resize, (resampling.mode, xv, yv), (xp, *tables, yp))


RULES: dict[tuple[str, str], Rule] = {("", "Resize"): resize, ("", "Upsample"): resize}
