"""The pass ``commute-pooling``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pwopt.errors import IRError
from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node, Value
from pwopt.passes.canonical_arithmetic import clip_bounds
from pwopt.passes.linear import not_alone
from pwopt.passes.mixing import Mixing, Pointwise, again, conv_first, mix_first, pointwise_at, put
from pwopt.passes.rewriting import int_list, is_float, reads_only_first, text
from pwopt.passes.sketch import Sketch, saving
from pwopt.pipeline import Applied, Context, Missed, Rewrite

_MEANS = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_MAXIMA = ("GlobalMaxPool", "MaxPool")
_RISING = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
_EPILOGUES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED = ("Add", "BatchNormalization", "Div", "Mul", "Sub")  # with a convolution, or each other


@dataclass(frozen=True)
class CommutePooling(Rewrite):
    """Puts pools and 1x1 convolutions, and max-pools and activations, in the cheaper order.

    Rewrite:
        ``AveragePool(Conv(x, W[M, C, 1, 1], b))`` → ``Conv(AveragePool(x), W, b)`` where that
        saves work (a stride of two: three quarters of the convolution), and the other way round
        where the convolution has far fewer output than input channels; so for GlobalAveragePool
        and a ReduceMean over spatial axes. ``MaxPool(Relu(x))`` → ``Relu(MaxPool(x))`` where no
        convolution can take the activation into its epilogue, and ``Relu(MaxPool(Conv(x)))`` →
        ``MaxPool(Relu(Conv(x)))`` where one can; so for other activations that never fall.

    Shapes:
        Any batch, group count, spatial rank and window; open sizes too.

    Numerics:
        Exact up to the order of sums; activations and maxima exactly.

    Misses when:
        The value in between has another reader or is an output; the convolution is strided or
        padded; it has a bias and the mean counts padding; a MaxPool follows a 1x1 convolution
        directly (maxima do not add up); the indices of a MaxPool are read; it would not pay.

    Source:
        Both operators are linear, one over channels and one over pixels. A monotone function of a
        maximum is the maximum of the function.
    """

    name: ClassVar[str] = "commute-pooling"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        (ONNX_DOMAIN, op) for op in (*_MEANS, *_MAXIMA, *_RISING, "Conv")
    )

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        x = graph.operand(node, 0)
        if x is None or not is_float(x) or x.tensor.shape is None or 0 in x.tensor.shape:
            return None
        if node.op == "Conv":
            return _convolution(graph, node, x, context)
        if node.op in _RISING:
            return _rising(graph, node, x)
        conv = pointwise_at(graph, x.node)
        if node.op in _MAXIMA:
            if conv is not None:
                return Missed(f"the maxima of {node.label} do not commute with a sum over channels")
            return _maximum(graph, node, x, context)
        mixing = mean_at(graph, node) if conv is not None else None
        if mixing is None or conv is None:
            return None
        if isinstance(conv, str):
            return Missed(conv)
        return mix_first(graph, conv, mixing, context)


def mean_at(graph: Graph, node: Node) -> Mixing | None:
    """A mean over windows or over whole spatial axes; None for any other operator."""
    x = graph.operand(node, 0)
    if x is None or not node.is_op(*_MEANS) or len(node.types) != 1:
        return None
    bends = None
    if node.op == "AveragePool":
        bends = _counts_padding(graph, node)
    elif node.op == "ReduceMean":
        rank, axes = x.tensor.rank, int_list(graph, node, 1, "axes")
        if rank is None or not axes or not node.get("keepdims", 1):
            return None
        if any(a % rank < 2 for a in axes):
            return None
    rest = graph.operands(node)[1:]
    return Mixing(node, x, bends, lambda _: rest)


def _counts_padding(graph: Graph, node: Node) -> str | None:
    """Why an AveragePool does not leave a constant map constant."""
    pads = tuple(node.get("pads") or ())
    padded = any(pads) or text(node, "auto_pad", "NOTSET").startswith("SAME")
    counts = bool(node.get("count_include_pad", 0)) or graph.opset < 7
    if padded and counts:
        return f"{node.label} counts its padding"
    if counts and node.get("ceil_mode", 0):
        return f"the last window of {node.label} may hang over the end"
    return _empty_windows(node)


def _empty_windows(node: Node) -> str | None:
    """Why a pool may have windows of padding alone, whose results no two runtimes agree on."""
    pads, kernel = tuple(node.get("pads") or ()), tuple(node.get("kernel_shape") or ())
    if any(p >= k for p, k in zip(pads, kernel * 2, strict=False)):
        return f"a window of {node.label} may lie in its pads {pads}"
    if any(pads) and node.get("ceil_mode", 0):
        return f"a window of {node.label} may lie in its pads {pads}, for it rounds up"
    return None


def _convolution(graph: Graph, node: Node, x: Value, context: Context) -> Applied | Missed | None:
    mixing = mean_at(graph, x.node)
    conv = pointwise_at(graph, node) if mixing is not None else None
    if mixing is None or not isinstance(conv, Pointwise):
        return None
    return conv_first(graph, conv, mixing, context)


def _rises(graph: Graph, node: Node) -> bool:
    """Whether an activation never falls, whatever its argument."""
    if node.op == "Clip":
        bounds = clip_bounds(graph, node)
        return bounds is not None and bounds[0] <= bounds[1]
    if node.op in ("HardSigmoid", "LeakyRelu"):
        return bool(node.get("alpha", 0.01) >= 0)
    return node.is_op(*_RISING)


def _maximum(graph: Graph, node: Node, x: Value, context: Context) -> Applied | Missed | None:
    """``max(act(x))`` → ``act(max(x))`` where the activation is an operator of its own."""
    act = x.node
    source = graph.operand(act, 0) if act.is_op(*_RISING) and _rises(graph, act) else None
    if source is None or source.node.is_op(*_EPILOGUES, *_FUSED):
        return None
    if (missed := not_alone(graph, x)) is not None:
        return missed
    if (trouble := _of_pool(graph, node)) is not None:
        return trouble
    rest = graph.operands(act)[1:]
    try:
        before = Sketch(graph).copy([act, node]).us(context)
        after = Sketch(graph)
        after.add(act.op, [after.add(node.op, [source], node.attributes), *rest], act.attributes)
        why = saving(before, after.us(context))
    except IRError as error:
        why = str(error)
    if why is not None:
        return Missed(why)
    what = f"moved {node.label} before {act.label}"
    pooled = again(graph, node, [source], node.out.tensor)
    put(graph, node, again(graph, act, [pooled, *rest], node.out.tensor, node.names[:1]))
    return Applied(what)


def _rising(graph: Graph, node: Node, x: Value) -> Applied | Missed | None:
    """``act(max(conv(x)))`` → ``max(act(conv(x)))``: in the epilogue the activation is free."""
    pool = x.node
    source = graph.operand(pool, 0) if pool.is_op(*_MAXIMA) and _rises(graph, node) else None
    if source is None or not source.node.is_op(*_EPILOGUES):
        return None
    trouble = not_alone(graph, x) or not_alone(graph, source) or _of_pool(graph, pool)
    if trouble is not None:
        return trouble
    what = f"moved {node.label} before {pool.label}"
    active = again(graph, node, [source, *graph.operands(node)[1:]], source.tensor)
    put(graph, node, again(graph, pool, [active], node.out.tensor, node.names[:1]))
    return Applied(what)


def _of_pool(graph: Graph, pool: Node) -> Missed | None:
    if not reads_only_first(graph, pool):
        return Missed(f"the indices of {pool.label} are read")
    why = _empty_windows(pool)
    return None if why is None else Missed(why)
