"""Rules for matrix products."""

from __future__ import annotations

import math

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, Node
from pwopt.targets.cuda.kernels.product import matmul
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.cuda.rules.conv import Filters, convolve
from pwopt.targets.lowering import Rule
from pwopt.targets.plan import place
from pwopt.targets.reading import Product, product_of
from pwopt.targets.rules import epilogue_rows
from pwopt.targets.values import Unsupported, require_float, static_shape
from pwopt.targets.views import View
from pwopt.targets.windows import Window


def linear(lowering: CudaLowering, node: Node) -> None:
    """An internal Linear, or ONNX's Gemm with constant weights and bias."""
    _constant_product(lowering, node, product_of(lowering, node))


def matmul_(lowering: CudaLowering, node: Node) -> None:
    """MatMul with a constant matrix on the right, or of two tensors computed at run time."""
    a, b = lowering.required(node, 0), lowering.required(node, 1)
    require_float(a, b, node.out)
    weight = lowering.array(b)
    if weight is not None and weight.ndim == 2 and len(static_shape(a)) >= 2:
        _constant_product(lowering, node, Product(weight, None))
        return
    left, right = lowering.tensor(a), lowering.tensor(b)
    if len(left.view.shape) < 2 or len(right.view.shape) < 2:
        raise Unsupported("a vector operand")
    shape = static_shape(node.out)
    result = lowering.result(node.out, tuple(range(len(shape))))
    if not result.view.elements:
        return
    (ap, av), (bp, bv), (yp, yv) = place(left), place(right), place(result)
    av, bv = (v.broadcast((*shape[:-2], *v.shape[-2:])) for v in (av, bv))
    lowering.emit(matmul, (av, bv, yv), (ap, bp, yp))


def _constant_product(lowering: CudaLowering, node: Node, product: Product) -> None:
    """X (..., K) @ weight (K, N) + bias, then the program: a convolution whose pixels are rows."""
    x = lowering.required(node, 0)
    require_float(x, node.out, *product.extras)
    shape = static_shape(node.out)
    rows = (math.prod(shape[:-1]), shape[-1])
    result = lowering.result(node.out, tuple(range(len(shape))))
    view = result.view.reshape(rows) if result.view.elements else None
    if view is None:
        return
    key = (node.out,) if node.domain != KERNEL_DOMAIN else (lowering.required(node, 1), node.out)
    bias = None if product.bias is None else np.asarray(product.bias)
    weight = product.weight.T[:, :, None, None]
    filters = Filters(key, weight, bias, Window(), program=product.program)
    given = [epilogue_rows(lowering, e, shape, rows) for e in product.extras]
    extras = [t.with_view(_image(t.view)) for t in given]
    owned = [lowering.array(e) is None for e in product.extras]
    rows_in = lowering.reshaped(x, (rows[0], product.weight.shape[0]))
    source = rows_in.with_view(_image(rows_in.view))
    convolve(lowering, source, filters, result.with_view(_image(view)), extras, owned)


def _image(matrix: View) -> View:
    """A matrix (rows, columns) as a row of pixels."""
    rows, columns = matrix.shape
    down, right = matrix.strides
    strides = (0, 0, down, 1 if columns == 1 else right)
    return View((1, 1, rows, columns), strides, matrix.offset, matrix.dtype)


RULES: dict[tuple[str, str], Rule] = {
    (KERNEL_DOMAIN, "Linear"): linear,
    ("", "Gemm"): linear,
    ("", "MatMul"): matmul_,
}
