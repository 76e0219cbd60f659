"""Random operators without a kernel of ours, between those that have one.

TVM's own loops compute most of them, ONNX Runtime the others. What jumps (comparisons, rounding,
positions, tiny divisors) only reads the graph's input, which is the same to the bit everywhere.
"""

from __future__ import annotations

from onnx import TensorProto

from pwopt.models.builder import Value
from tests.fuzz.layers import Draw

SMOOTH = (
    *("where", "cumsum", "gather", "tile", "double", "depth", "expand", "trilu"),
    *("log_softmax", "reverse", "global_lp", "shrink", "logsumexp", "prod"),
)
JUMPING = ("argmax", "round", "greater", "mod", "integers", "hardmax", "is_nan", "mean_variance")


def foreign(d: Draw, x: Value) -> Value:
    """One such operator, with what is needed to come back to a float32 map."""
    kind = d.among([*SMOOTH, *JUMPING])
    return _jumping(d, kind) if kind in JUMPING else _smooth(d, x, kind)


def _cast(d: Draw, x: Value, to: int = TensorProto.FLOAT) -> Value:
    return d.net.op("Cast", x, to=to)


def _smooth(d: Draw, x: Value, kind: str) -> Value:
    net, opset, shape = d.net, d.net.opset, d.net.shapes[x]
    axis = d.number(1, len(shape) - 1)
    zero = net.constant(0.0)
    if kind == "where" and opset >= 9:
        return net.op("Where", net.op("Greater", x, zero), x, net.op("Mul", x, net.constant(0.3)))
    if kind == "cumsum" and opset >= 11:
        total = net.op("CumSum", x, net.constant(axis), exclusive=int(d.flag()))
        return net.op("Mul", total, net.constant(1 / shape[axis]))
    if kind == "gather":
        picked = [d.number(0, shape[axis] - 1) for _ in range(d.number(1, 5))]
        return net.op("Gather", x, net.constant(picked), axis=axis)
    if kind == "tile" and shape[1] <= 16:
        return net.op("Tile", x, net.constant([1, 2, *[1] * (len(shape) - 2)]))
    if kind == "double":
        return _cast(d, net.op("Tanh", _cast(d, x, TensorProto.DOUBLE)))
    if kind == "depth" and len(shape) == 4:
        if shape[1] % 4 == 0 and d.flag():
            return net.op("DepthToSpace", x, blocksize=2)
        if all(s % 2 == 0 for s in shape[2:]) and shape[1] <= 10:
            return net.op("SpaceToDepth", x, blocksize=2)
    if kind == "expand" and opset >= 8 and 1 in shape[2:]:
        target = [*shape[:2], *(3 if s == 1 else s for s in shape[2:])]
        return net.op("Expand", x, net.constant(target))
    if kind == "trilu" and opset >= 14:
        return net.op("Trilu", x, upper=int(d.flag()))
    if kind == "log_softmax":
        return net.op("LogSoftmax", x, axis=axis if opset >= 13 else 1)
    if kind == "reverse" and opset >= 10:
        back = [net.constant([v]) for v in (-1, -(1 << 40), axis, -1)]
        return net.op("Slice", x, *back)
    if kind == "global_lp":
        return net.op("GlobalLpPool", x)
    if kind == "shrink" and opset >= 9:
        return net.op("Shrink", x, lambd=0.0, bias=0.0)
    if kind == "logsumexp" and opset < 18:
        return net.op("ReduceLogSumExp", x, axes=[axis], keepdims=1)
    if kind == "prod" and opset < 18:
        return net.op("ReduceProd", net.op("Sigmoid", x), axes=[axis], keepdims=1)
    return net.op("ThresholdedRelu", x, alpha=0.0) if opset >= 10 else net.op("Elu", x)


def _jumping(d: Draw, kind: str) -> Value:
    net, opset, x = d.net, d.net.opset, "input"
    shape = net.shapes[x]
    axis = d.number(1, len(shape) - 1)
    if kind == "argmax":
        op = d.among(["ArgMax", "ArgMin"])
        y = _cast(d, net.op(op, x, axis=axis, keepdims=1))
        return net.op("Mul", y, net.constant(1 / shape[axis]))
    if kind == "round" and opset >= 11:
        return net.op("Round", x)
    if kind == "greater" and opset >= 9:
        return _cast(d, net.op("Greater", x, net.constant(d.among([0.0, 0.5]))))
    if kind == "mod" and opset >= 10:
        return net.op("Mod", x, net.constant(0.75), fmod=1)
    if kind == "integers":
        y = _cast(d, net.op("Mul", x, net.constant(3.0)), TensorProto.INT32)
        if opset >= 14:
            y = net.op("Add", y, net.op("Relu", y)) if d.flag() else net.op("Mul", y, y)
        return _cast(d, y)
    if kind == "hardmax":
        return net.op("Hardmax", x, axis=axis if opset >= 13 else 1)
    if kind == "mean_variance" and opset >= 9 and min(shape[2:]) > 2:
        return net.op("MeanVarianceNormalization", x, axes=list(range(2, len(shape))))
    if kind == "is_nan" and opset >= 9:
        return _cast(d, net.op("Not", net.op("IsNaN", x)))
    return net.op("Sign", x) if opset >= 9 else net.op("Floor", x)
