"""Rules for matrix products."""

from __future__ import annotations

import math

from pwopt.ir.graph import KERNEL_DOMAIN, Node
from pwopt.ir.program import Program
from pwopt.targets.cpu.kernels.gemm import gemm, gemm_geometry, matmul, matmul_geometry, pack_gemm
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.rules import bf16
from pwopt.targets.cpu.rules.weights import (
    kernel_kind,
    packed_weights,
    weight_dtype,
)
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import place
from pwopt.targets.reading import Product, product_of
from pwopt.targets.rules import epilogue_rows
from pwopt.targets.values import Unsupported, require_float, static_shape


def linear(lowering: Lowering, node: Node) -> None:
    """An internal Linear, or ONNX's Gemm with constant weights and bias."""
    product = product_of(lowering, node)
    _constant_product(lowering, node, product)


def matmul_(lowering: Lowering, node: Node) -> None:
    """MatMul with a constant matrix on the right, or of two tensors computed at run time."""
    a, b = lowering.required(node, 0), lowering.required(node, 1)
    require_float(a, b, node.out)
    weight = lowering.array(b)
    if weight is not None and weight.ndim == 2 and len(static_shape(a)) >= 2:
        return _constant_product(lowering, node, Product(weight, None))
    left, right = lowering.tensor(a), lowering.tensor(b)
    if len(left.view.shape) < 2 or len(right.view.shape) < 2:
        raise Unsupported("a vector operand")
    shape = static_shape(node.out)
    result = lowering.result(node.out, tuple(range(len(shape))))
    batch = shape[:-2]
    (ap, av), (bp, bv), (yp, yv) = place(left), place(right), place(result)
    av, bv = (v.broadcast((*batch, *v.shape[-2:])) for v in (av, bv))
    geometry = matmul_geometry(av, bv, yv, (), lowering.hardware.lanes)
    tile = lowering.tile("matmul", geometry, lowering.hardware)
    arguments = (av, bv, yv, Program(), (), lowering.hardware, tile, lowering.threads)
    lowering.emit(matmul, arguments, (ap, bp, yp))
    return None


def _constant_product(
    lowering: Lowering,
    node: Node,
    product: Product,
) -> None:
    """X (..., K) @ weight (K, N) + bias, then the program."""
    weight, bias, program, extras = product.weight, product.bias, product.program, product.extras
    x = lowering.required(node, 0)
    require_float(x, node.out, *extras)
    shape = static_shape(node.out)
    flat = (math.prod(shape[:-1]), shape[-1])
    tensor = lowering.reshaped(x, (flat[0], weight.shape[0]))
    if bf16.pays(lowering, weight.shape[0], flat[0]):
        tensor = bf16.row_pairs(lowering, tensor)
    result = lowering.result(node.out, tuple(range(len(shape))))
    if not result.view.elements:
        return
    placed = [place(epilogue_rows(lowering, e, shape, flat)) for e in extras]
    xp, xv = place(tensor)
    yp, yv = place(result)
    rows = yv.reshape(flat)
    if rows is None:
        raise Unsupported("the layout of its result")
    views, hardware = tuple(v for _, v in placed), lowering.hardware.for_channels(flat[1])
    stored = weight_dtype(lowering, xv, flat[0])
    geometry = gemm_geometry(xv, rows, views, hardware.lanes)
    tile = lowering.tile(kernel_kind("gemm", stored), geometry, hardware)
    w, b = packed_weights(
        lowering,
        (gemm, node.out),
        lambda: pack_gemm(weight, bias, tile, hardware.lanes, stored),
    )
    lowering.emit(
        gemm,
        (xv, rows, program, views, hardware, tile, lowering.threads),
        (xp, w, b, *(p for p, _ in placed), yp),
        weights=stored,
    )


RULES: dict[tuple[str, str], Rule] = {
    (KERNEL_DOMAIN, "Linear"): linear,
    ("", "Gemm"): linear,
    ("", "MatMul"): matmul_,
}
