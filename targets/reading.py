"""What the rules of every target read off a node before they choose a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, Node, Value
from pwopt.ir.program import BINARY, PARAMETERS, UNARY, Instruction, Program
from pwopt.ir.shapes import explicit_pads
from pwopt.targets.lowering import Lowering
from pwopt.targets.values import Unsupported, require_float, static_shape
from pwopt.targets.windows import PoolAxis, Window

ELEMENTWISE = (
    (KERNEL_DOMAIN, "Map"),
    *(("", op) for op in sorted({*UNARY, *BINARY, "Sum", "Max", "Min", "Mean"})),
)
REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum")


def bias_and_extras(lowering: Lowering, node: Node) -> tuple[Value | None, list[Value]]:
    """Operand 2 and the operands of the epilogue of an internal op."""
    operands = lowering.operands(node)
    bias = operands[2] if len(operands) > 2 else None
    return bias, [v for v in operands[3:] if v is not None]


@dataclass(frozen=True)
class Convolution:
    """A convolution of two spatial axes.

    Attributes:
        weight: (M, C/G, height, width).
        bias: (M,), if any.
        extras: operands of the epilogue.
        program: the epilogue.
        window: strides, dilations and padding.
        border: padding of each axis of the node, before and after; empty for none.
        groups: of channels.
    """

    weight: np.ndarray
    bias: Value | None
    extras: Sequence[Value]
    program: Program
    window: Window
    border: tuple[int, ...]
    groups: int


def convolution_of(lowering: Lowering, node: Node) -> Convolution:
    """A Conv of one or two spatial axes, or a Pointwise of up to three, as one of two.

    Raises:
        Unsupported: it is another one, or has weights that are computed at run time.
    """
    x = lowering.required(node, 0)
    bias, extras = bias_and_extras(lowering, node)
    require_float(x, bias, node.out, *extras)
    weight = lowering.constant_array(node, 1, "weight")
    if bias is not None and lowering.array(bias) is None:
        raise Unsupported("its bias is computed at run time")
    read = _pointwise if weight.ndim == 2 else _window
    weight, window, border = read(node, weight, static_shape(x)[2:])
    program = node.get("epilogue", Program())
    return Convolution(weight, bias, extras, program, window, border, node.get("group", 1))


def _window(
    node: Node, weight: np.ndarray, sizes: tuple[int, ...]
) -> tuple[np.ndarray, Window, tuple[int, ...]]:
    spatial = weight.ndim - 2
    if spatial not in (1, 2):
        raise Unsupported(f"{spatial} spatial axes")
    ones = (1,) * spatial
    strides, dilations = node.get("strides", ones), node.get("dilations", ones)
    pads = explicit_pads(
        node.get("auto_pad", "NOTSET"),
        sizes,
        weight.shape[2:],
        strides,
        dilations,
        node.get("pads", (0,) * (2 * spatial)),
    )
    if pads is None or any(p < 0 for p in pads):
        raise Unsupported("its padding is not known or negative")
    border = tuple(p for i in range(spatial) for p in (pads[i], pads[spatial + i]))
    if spatial == 1:
        weight = weight[:, :, None, :]
        strides, dilations, pads = (1, *strides), (1, *dilations), (0, *pads)
    window = Window(
        (weight.shape[2], weight.shape[3]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1]),
    )
    return weight, window, border


def _pointwise(
    node: Node, weight: np.ndarray, sizes: tuple[int, ...]
) -> tuple[np.ndarray, Window, tuple[int, ...]]:
    strides = tuple(node.get("strides", (1,) * len(sizes)))
    if len(sizes) == 3:
        if strides != (1, 1, 1):
            raise Unsupported("a strided three-dimensional convolution")
        strides = (1, 1)
    down, right = (1,) * (2 - len(strides)) + strides
    return weight[:, :, None, None], Window((1, 1), (down, right)), ()


@dataclass(frozen=True)
class Product:
    """X (..., K) @ weight (K, N) + bias (N,), then the program."""

    weight: np.ndarray
    bias: np.ndarray | None
    program: Program = Program()  # noqa: RUF009 - it is immutable
    extras: Sequence[Value] = ()


def product_of(lowering: Lowering, node: Node) -> Product:
    """An internal Linear, or ONNX's Gemm, with constant weights and bias.

    Raises:
        Unsupported: it is a Gemm of another kind.
    """
    weight = lowering.constant_array(node, 1, "weight")
    if node.domain == KERNEL_DOMAIN:
        given, extras = bias_and_extras(lowering, node)
        bias = None if given is None else lowering.constant_array(node, 2, "bias")
        return Product(weight.T, bias, node.get("epilogue", Program()), extras)
    if node.get("transA", 0):
        raise Unsupported("transA")
    weight = (weight.T if node.get("transB", 0) else weight) * np.float32(node.get("alpha", 1.0))
    bias = None
    if lowering.graph.operand(node, 2) is not None:
        bias = lowering.constant_array(node, 2, "bias") * np.float32(node.get("beta", 1.0))
        if bias.ndim == 2 and bias.shape[0] != 1:
            raise Unsupported("a bias for each row")
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[1],))
    return Product(weight, bias)


def program_of(lowering: Lowering, node: Node) -> Program:
    """What an internal Map, or a lone elementwise operator of ONNX, computes of its operands."""
    if node.domain == KERNEL_DOMAIN:
        program: Program = node.attributes["program"]
        return program
    if node.op in ("Sum", "Mean", "Max", "Min"):
        return _variadic(node)
    if node.op in BINARY:
        return Program(2, (Instruction(node.op, (0, 1)),))
    if node.op == "Clip" and node.arity > 1:
        bounds = [lowering.graph.operand(node, i) for i in (1, 2)]
        low, high = (
            default if b is None else float(lowering.constant_array(node, i, "bound").reshape(()))
            for i, b, default in zip((1, 2), bounds, (float("-inf"), float("inf")), strict=True)
        )
        return Program().then("Clip", low, high)
    if node.op == "Gelu":
        return Program().then("Gelu", float(node.get("approximate") == "tanh"))
    parameters = (float(node.get(name, default)) for name, default in PARAMETERS.get(node.op, ()))
    return Program().then(node.op, *parameters)


def _variadic(node: Node) -> Program:
    op = {"Sum": "Add", "Mean": "Add"}.get(node.op, node.op)
    program = Program(1)
    for _ in range(node.arity - 1):
        program = program.then_with_argument(op)
    if node.op == "Mean" and node.arity > 1:
        raise Unsupported("a mean of several tensors")
    return program


def pooling_of(lowering: Lowering, node: Node) -> tuple[str, tuple[PoolAxis, PoolAxis]]:
    """The kind ("max", "average", "l2") and the windows over height and width of a pooling.

    Raises:
        Unsupported: it has three spatial axes, another norm, or gives indices.
    """
    value = lowering.required(node, 0)
    require_float(value, node.out)
    shape = static_shape(value)
    spatial = len(shape) - 2
    if spatial not in (1, 2):
        raise Unsupported(f"{spatial} spatial axes")
    only_first_is_read(lowering, node, "the indices of a MaxPool are read")
    if node.op == "LpPool" and node.get("p", 2) != 2:
        raise Unsupported(f"p={node.get('p')}")
    kernel = node.get("kernel_shape")
    strides = node.get("strides", (1,) * spatial)
    dilations = node.get("dilations", (1,) * spatial)
    pads = explicit_pads(
        node.get("auto_pad", "NOTSET"),
        shape[2:],
        kernel,
        strides,
        dilations,
        node.get("pads", (0,) * (2 * spatial)),
    )
    if pads is None:
        raise Unsupported("its padding is not known")
    axes = [
        PoolAxis(kernel[i], strides[i], dilations[i], pads[i], pads[spatial + i])
        for i in range(spatial)
    ]
    window = (axes[0], axes[1]) if spatial == 2 else (PoolAxis(1), axes[0])
    return {"MaxPool": "max", "AveragePool": "average", "LpPool": "l2"}[node.op], window


def reduction_of(lowering: Lowering, node: Node) -> tuple[str, tuple[int, ...]]:
    """The kind and the axes of a global pooling or of a Reduce* with constant axes.

    Raises:
        Unsupported: there is no such kind, or nothing to reduce.
    """
    value = lowering.required(node, 0)
    require_float(value, node.out)
    shape = static_shape(value)
    rank = len(shape)
    if 0 in shape:
        raise Unsupported("a reduction over nothing")
    if node.op.startswith("Global"):
        kind = {"GlobalAveragePool": "Mean", "GlobalMaxPool": "Max"}[node.op]
        return kind, tuple(range(2, rank))
    kind = node.op.removeprefix("Reduce")
    if kind not in REDUCTIONS:
        raise Unsupported(f"no reduction {node.op}")
    axes = node.get("axes")
    if axes is None and lowering.graph.operand(node, 1) is not None:
        axes = lowering.constant_array(node, 1, "axes").tolist()
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            raise Unsupported("no axes")
        axes = range(rank)
    return kind, tuple(sorted(a % rank for a in axes))


def scale_and_shift(lowering: Lowering, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """A BatchNormalization with constant statistics as factor and summand per channel, float32.

    Raises:
        Unsupported: it is trained, or has statistics for each element.
    """
    if node.get("training_mode", 0):
        raise Unsupported("training mode")
    only_first_is_read(lowering, node, "training mode")
    if not node.get("spatial", 1):
        raise Unsupported("statistics per element")
    require_float(lowering.required(node, 0), node.out)
    scale, shift, mean, variance = (
        lowering.constant_array(node, i, "parameter").astype(np.float64) for i in range(1, 5)
    )
    factor = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    return factor.astype(np.float32), (shift - mean * factor).astype(np.float32)


def softmax_axes(lowering: Lowering, node: Node) -> tuple[int, ...]:
    """The axes of a Softmax or LogSoftmax; before opset 13 all from ``axis`` on.

    Raises:
        Unsupported: of a scalar.
    """
    value = lowering.required(node, 0)
    require_float(value, node.out)
    rank, opset = len(static_shape(value)), lowering.graph.opset
    if not rank:
        raise Unsupported("a scalar")
    axis = node.get("axis", -1 if opset >= 13 else 1)
    axis += rank if axis < 0 else 0
    return (axis,) if opset >= 13 else tuple(range(axis, rank))


def only_first_is_read(lowering: Lowering, node: Node, reason: str) -> None:
    """Raises Unsupported for this reason where a result but the first is read."""
    if any(lowering.is_read(node[i]) for i in range(1, len(node.types))):
        raise Unsupported(reason)
