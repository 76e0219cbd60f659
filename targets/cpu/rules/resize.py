"""Rules for Resize and Upsample over the two spatial axes."""

from __future__ import annotations

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value
from pwopt.targets.cpu.kernels import resize as kernels
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.lowering import Rule, Unsupported, image_tensor, require_float, static_shape
from pwopt.targets.plan import Pointer, place


def resize(lowering: Lowering, node: Node) -> None:
    """Resize of opset 10 on, and the deprecated Upsample."""
    value = lowering.required(node, 0)
    require_float(value, node.out)
    shape, out = static_shape(value), static_shape(node.out)
    if len(shape) != 4 or shape[:2] != out[:2] or 0 in shape or 0 in out:
        raise Unsupported("axes other than the two spatial ones")
    if node.get("antialias", 0):
        raise Unsupported("antialias")
    scales = _scales(lowering, node, shape, out)
    mode = node.get("mode", "nearest")
    old = node.op == "Upsample" or lowering.graph.opset < 11
    coordinates = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    nearest = "floor" if old else node.get("nearest_mode", "round_prefer_floor")
    source = image_tensor(lowering.channels_last(value))
    sizes = zip(scales, shape[2:], out[2:], strict=True)
    whole = all(s == int(s) and o == i * int(s) for s, i, o in sizes)
    plain = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
    if mode == "nearest" and whole and (coordinates, nearest) in plain:
        factors = (int(scales[0]), int(scales[1]))
        if _only_maps_read(lowering.graph, node.out):
            lowering.enlarged[node.out] = (source, factors)
            return
    (xp, xv), (yp, yv) = place(source), place(image_tensor(lowering.result(node.out)))
    if mode == "nearest" and whole and (coordinates, nearest) in plain:
        whole_steps = (xv, yv, factors, lowering.hardware, lowering.threads)
        lowering.emit(kernels.upsample, whole_steps, (xp, yp))
        return
    if coordinates == "tf_crop_and_resize":
        raise Unsupported("coordinate_transformation_mode tf_crop_and_resize")
    tables = [
        kernels.axis_table(
            {"bilinear": "linear"}.get(mode, mode),
            i,
            o,
            s,
            coordinates=coordinates,
            nearest=nearest,
            cubic_a=float(node.get("cubic_coeff_a", -0.75)),
            exclude_outside=bool(node.get("exclude_outside", 0)),
        )
        for i, o, s in zip(shape[2:], out[2:], scales, strict=True)
    ]
    indices, weights = kernels.pack(*tables)
    pointers = [
        Pointer(lowering.packed((node.out, name), array.copy))
        for name, array in (("indices", indices), ("weights", weights))
    ]
    kind = {"bilinear": "linear"}.get(mode, mode)
    arguments = (kind, xv, yv, lowering.hardware, lowering.threads)
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


def _scales(
    lowering: Lowering, node: Node, shape: tuple[int, ...], out: tuple[int, ...]
) -> tuple[float, float]:
    """The scale of each spatial axis as the model states it."""
    stated = node.get("scales")
    slot = {True: 1, False: 2}[node.op == "Upsample" or lowering.graph.opset < 11]
    if stated is None and lowering.graph.operand(node, slot) is not None:
        array = lowering.constant_array(node, slot, "scales")
        stated = array.astype(np.float64).tolist() if array.size else None
    axes = node.get("axes")
    if stated is None:
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("keep_aspect_ratio_policy")
        return (out[2] / shape[2], out[3] / shape[3])
    if axes is not None:
        by_axis = dict(zip((a % 4 for a in axes), stated, strict=True))
        return (float(by_axis.get(2, 1.0)), float(by_axis.get(3, 1.0)))
    return (float(stated[2]), float(stated[3]))


RULES: dict[tuple[str, str], Rule] = {("", "Resize"): resize, ("", "Upsample"): resize}
