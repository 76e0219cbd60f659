"""ONNX operators in PyTorch, differentiable; definitions of the operator set, version 7 to 24."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pwopt.errors import UsageError
from pwopt.ir.graph import Graph, Node
from pwopt.ir.shape_windows import explicit_pads

BATCH_NORM_MOMENTUM = 0.1  # weight of a batch in the running statistics, torch's default


class Call(NamedTuple):
    """One node to be computed.

    Attributes:
        graph: of the node.
        node: the operation.
        training: whether batch normalization uses and updates statistics of the batch.
    """

    graph: Graph
    node: Node
    training: bool

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.get(attribute, default)

    def constant(self, slot: int, attribute: str | None = None) -> list[Any] | None:
        """Numbers that are a constant operand, or an attribute in older operator sets.

        Raises:
            UsageError: they are computed by the graph.
        """
        if attribute is not None and self.node.get(attribute) is not None:
            return list(np.atleast_1d(self.node.get(attribute)))
        value = self.graph.operand(self.node, slot)
        if value is None:
            return None
        array = self.graph.constant_value(value)
        if array is None:
            raise UsageError(f"{self.node.label}: operand {slot} is computed, not constant")
        return [v.item() for v in np.atleast_1d(array)]


Operator = Callable[..., "Tensor | Sequence[Tensor]"]


def _pads(call: Call, x: Tensor, kernel: Sequence[int]) -> tuple[int, ...]:
    pads = explicit_pads(
        call.get("auto_pad", ""),
        tuple(x.shape[2:]),
        kernel,
        call.get("strides", ()),
        call.get("dilations", ()),
        call.get("pads", ()),
    )
    assert pads is not None  # the sizes are known
    return pads


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    """Pads the last axes; ``pads`` in ONNX's order."""
    n = len(pads) // 2
    pairs = [p for axis in reversed(range(n)) for p in (pads[axis], pads[n + axis])]
    return functional.pad(x, pairs, value=value)


def _split_pads(x: Tensor, pads: Sequence[int], value: float) -> tuple[Tensor, list[int]]:
    """What torch's symmetric padding cannot express is padded beforehand."""
    n = len(pads) // 2
    if tuple(pads[:n]) == tuple(pads[n:]):
        return x, list(pads[:n])
    return _padded(x, pads, value), [0] * n


def _by_rank(x: Tensor, *functions: Any) -> Any:
    """The function for one, two or three spatial axes."""
    return functions[x.dim() - 3]


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n = x.dim() - 2
    x, padding = _split_pads(x, _pads(call, x, weight.shape[2:]), 0.0)
    run = _by_rank(x, functional.conv1d, functional.conv2d, functional.conv3d)
    strides, dilations = call.get("strides", (1,) * n), call.get("dilations", (1,) * n)
    y: Tensor = run(x, weight, bias, strides, padding, dilations, call.get("group", 1))
    return y


def _batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    epsilon = call.get("epsilon", 1e-5)
    options = (scale, bias, call.training, BATCH_NORM_MOMENTUM, epsilon)
    return functional.batch_norm(x, mean, variance, *options)


def _clip(call: Call, x: Tensor, *_: Tensor | None) -> Tensor:
    low, high = (
        (call.constant(slot, name) or [None])[0] for slot, name in ((1, "min"), (2, "max"))
    )
    return x if low is None and high is None else torch.clamp(x, low, high)


def _window(call: Call) -> tuple[list[int], list[int]]:
    kernel = list(call.get("kernel_shape"))
    return kernel, list(call.get("strides", (1,) * len(kernel)))


def _max_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides = _window(call)
    run = _by_rank(x, functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
    x = _padded(x, _pads(call, x, kernel), -torch.inf)
    dilations = list(call.get("dilations", (1,) * len(kernel)))
    y: Tensor = run(x, kernel, strides, 0, dilations, bool(call.get("ceil_mode", 0)))
    return y


def _average_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides = _window(call)
    pads, ceil = _pads(call, x, kernel), bool(call.get("ceil_mode", 0))
    run = _by_rank(x, functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
    if max(call.get("dilations", (1,))) > 1 or (ceil and any(pads)):
        raise UsageError(f"{call.node.label}: dilated, or padded and rounded up: not trainable")
    summed: Tensor = run(_padded(x, pads, 0.0), kernel, strides, 0, ceil)
    if call.get("count_include_pad", 0) or not any(pads):
        return summed
    # The mean over the window's part inside the map.
    ones = x.new_ones((1, 1, *x.shape[2:]))
    share: Tensor = run(_padded(ones, pads, 0.0), kernel, strides, 0, ceil)
    return summed / share


def _spatial_axes(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _reduce_mean(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    axes = call.constant(1, "axes")
    if axes is None and call.get("noop_with_empty_axes", 0):
        return x
    return x.mean(axes or list(range(x.dim())), keepdim=bool(call.get("keepdims", 1)))


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.flatten(1) if axis == 1 else x.reshape(int(np.prod(x.shape[:axis])), -1)


def _reshape(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    shape = call.constant(1, "shape") or []
    value = call.graph.operand(call.node, 0)
    declared = value.shape if value is not None else None
    if not call.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    if declared and shape and shape[0] == declared[0] != x.shape[0]:
        shape[0] = x.shape[0]  # a longer batch than the graph was written for
    return x.reshape(shape)


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if call.get("transA", 0) else a
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if call.get("transB", 0) and alpha == beta == 1 and (c is None or c.dim() == 1):
        return functional.linear(a, b, c)
    y = alpha * (a @ (b.T if call.get("transB", 0) else b))
    return y if c is None else y + beta * c


def _squeeze(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    axes = call.constant(1, "axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(call: Call, x: Tensor, *_: Tensor) -> Tensor:
    axes = call.constant(1, "axes") or []
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _split(call: Call, x: Tensor, *_: Tensor) -> Sequence[Tensor]:
    axis, parts = call.get("axis", 0), len(call.node.types)
    sizes = call.constant(1, "split") or -(-x.shape[axis] // parts)
    found: Sequence[Tensor] = torch.split(x, sizes, axis)
    return found


def _pad(call: Call, x: Tensor, *_: Tensor | None) -> Tensor:
    if call.get("mode", "constant") != "constant" or call.graph.operand(call.node, 3):
        raise UsageError(f"{call.node.label}: only constant padding of all axes is trainable")
    value = call.get("value", 0.0) if call.get("pads") else (call.constant(2) or [0.0])[0]
    return _padded(x, call.constant(1, "pads") or [], value)


def _resize(call: Call, x: Tensor, *_: Tensor | None) -> Tensor:
    """Nearest by a whole factor, and linear of half-pixel centres: what pyramids use."""
    mode, value = call.get("mode", "nearest"), call.node.out.shape
    to = call.get("coordinate_transformation_mode", "half_pixel")
    if value is None:
        raise UsageError(f"{call.node.label}: its output's shape is not known")
    sizes = list(value[2:])
    whole = all(size % old == 0 for size, old in zip(sizes, x.shape[2:], strict=True))
    if mode == "nearest" and whole:
        return functional.interpolate(x, size=sizes, mode="nearest")
    if mode == "linear" and x.dim() == 4 and to in ("half_pixel", "pytorch_half_pixel"):
        return functional.interpolate(x, size=sizes, mode="bilinear", align_corners=False)
    raise UsageError(f"{call.node.label}: Resize of mode {mode}, {to}: not trainable")


def _softmax(call: Call, x: Tensor, log: bool = False) -> Tensor:
    run = functional.log_softmax if log else functional.softmax
    if call.graph.opset >= 13:
        return run(x, call.get("axis", -1))
    axis = call.get("axis", 1) % x.dim()  # older: over all axes from this one on
    return run(x.flatten(axis), -1).reshape(x.shape)


def _global_max(_: Call, x: Tensor) -> Tensor:
    return x.amax(_spatial_axes(x), keepdim=True)


def _global_mean(_: Call, x: Tensor) -> Tensor:
    return x.mean(_spatial_axes(x), keepdim=True)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0.0, 1.0)


def _prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _local_response(call: Call, x: Tensor) -> Tensor:
    size, alpha, beta, bias = (call.get(a, d) for a, d in _LRN_DEFAULTS)
    return functional.local_response_norm(x, size, alpha, beta, bias)


_LRN_DEFAULTS = (("size", None), ("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))


def _plain(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda _, *operands: function(*operands)


OPERATORS: dict[str, Operator] = {
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda call, *parts: torch.cat(parts, call.get("axis")),
    "Conv": _conv,
    "Div": _plain(torch.div),
    "Dropout": lambda _, x, *__: x,
    "Elu": lambda call, x: functional.elu(x, call.get("alpha", 1.0)),
    "Erf": _plain(torch.erf),
    "Flatten": _flatten,
    "Gelu": lambda call, x: functional.gelu(x, approximate=call.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_mean,
    "GlobalMaxPool": _global_max,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LRN": _local_response,
    "LeakyRelu": lambda call, x: functional.leaky_relu(x, call.get("alpha", 0.01)),
    "LogSoftmax": lambda call, x: _softmax(call, x, log=True),
    "MatMul": _plain(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _plain(torch.sigmoid),
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda call, x: x.permute(call.get("perm") or tuple(range(x.dim()))[::-1]),
    "Unsqueeze": _unsqueeze,
}
