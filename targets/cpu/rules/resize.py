"""Rules for Resize and Upsample over the two spatial axes."""

from __future__ import annotations

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.targets.cpu.kernels import resize as kernels
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.lowering import Rule, image_tensor
from pwopt.targets.plan import Pointer, place
from pwopt.targets.resampling import pack, resampling_of


def resize(lowering: Lowering, node: Node) -> None:
    """Resize of opset 10 on, and the deprecated Upsample."""
    resampling = resampling_of(lowering, node)
    factors = resampling.factors
    source = image_tensor(lowering.channels_last(lowering.required(node, 0)))
    if factors and _only_maps_read(lowering.graph, node.out):
        lowering.enlarged[node.out] = (source, factors)
        return
    (xp, xv), (yp, yv) = place(source), place(image_tensor(lowering.result(node.out)))
    if factors:
        whole_steps = (xv, yv, factors, lowering.hardware, lowering.threads)
        lowering.emit(kernels.upsample, whole_steps, (xp, yp))
        return
    indices, weights = pack(*resampling.tables())
    pointers = [
        Pointer(lowering.packed((node.out, name), array.copy))
        for name, array in (("indices", indices), ("weights", weights))
    ]
    arguments = (resampling.mode, xv, yv, lowering.hardware, lowering.threads)
    lowering.emit(kernels.resize, arguments, (xp, *pointers, yp))


def _only_maps_read(graph: Graph, value: Value) -> bool:
    """Whether the only reader adds an enlarged image to maps: it can read the small one instead."""
    readers = graph.readers(value)
    if len(readers) != 1 or graph.is_output(value) or not value.shape or value.shape[1] == 1:
        return False
    reader = readers[0]
    if (reader.domain, reader.op) != (KERNEL_DOMAIN, "Map") or reader.out.shape != value.shape:
        return False
    others = [v for v in graph.operands(reader) if v is not None and v != value]
    convolutions = ("Conv", "Pointwise")  # channels last, so the reader is, too
    return any(v.shape == value.shape and v.node.op in convolutions for v in others) and not any(
        v.node.op in ("Resize", "Upsample") for v in others
    )


RULES: dict[tuple[str, str], Rule] = {("", "Resize"): resize, ("", "Upsample"): resize}
