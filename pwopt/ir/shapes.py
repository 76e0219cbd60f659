"""Shape and element type inference: a table of operators, each with a small rule.

The table holds what passes create and what they need to know the shape of; for anything else the
types that came with the model stand. A dimension that cannot be derived stays unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pwopt.errors import IRError
from pwopt.ir import shape_layout, shape_windows
from pwopt.ir.program import Program
from pwopt.ir.shape_base import (
    Call,
    Rule,
    Shape,
    broadcast,
    known,
    normalize_axes,
    normalize_axis,
    same,
)
from pwopt.ir.shape_windows import explicit_pads, window_output
from pwopt.ir.types import NUMPY_DTYPES, Dim, TensorType, Type

if TYPE_CHECKING:
    from pwopt.ir.graph import Graph, Value

__all__ = [
    "ELEMENT_TYPES",
    "broadcast",
    "explicit_pads",
    "has_rule",
    "infer",
    "program_shape",
    "window_output",
]

# ONNX's numbers of element types, as the attributes `to` and `dtype` hold them.
ELEMENT_TYPES: dict[int, str] = {
    **dict(enumerate(("float32", "uint8", "int8", "uint16", "int16", "int32", "int64"), 1)),
    **dict(enumerate(("string", "bool", "float16", "float64", "uint32", "uint64"), 8)),
    **dict(enumerate(("complex64", "complex128", "bfloat16"), 14)),
    **dict(enumerate(("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"), 17)),
    **dict(enumerate(("uint4", "int4", "float4e2m1", "float8e8m0"), 21)),
}

KERNEL_DOMAIN = "pwopt"  # graph.KERNEL_DOMAIN; that module imports this one's users


def infer(
    graph: Graph,
    op: str,
    domain: str,
    attributes: Mapping[str, Any],
    operands: Sequence[Value | None],
    *,
    results: int | None = None,
) -> tuple[Type, ...]:
    """Types of an operation's results.

    Args:
        graph: the graph that the operation is to stand in; its operator set counts.
        op: operator name.
        domain: operator domain.
        attributes: by name.
        operands: values by slot, None where absent.
        results: number of results wanted, for operators with optional ones.

    Returns:
        one type per result; without ``results`` only those that the operator always has.

    Raises:
        IRError: there is no rule for the operator, or the operands contradict it.
    """
    table = _TABLES.get(domain, {})
    rule = table.get(op)
    where = f"{domain}::{op}" if domain else op
    if rule is None:
        raise IRError(f"{where}: no shape inference rule; pass the result types explicitly")
    try:
        return tuple(rule(Call(op, attributes, tuple(operands), graph.opset, results)))
    except IRError as error:
        raise IRError(f"{where}: {error}") from None
    except Exception as error:  # rules run on whatever attributes a model file holds
        raise IRError(f"{where}: operands or attributes do not fit it ({error})") from error


def has_rule(op: str, domain: str = "") -> bool:
    """Whether :func:`infer` knows an operator."""
    return op in _TABLES.get(domain, {})


def program_shape(program: Program, shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape of a program's result for arguments of ``shapes``."""
    registers = list(shapes)
    for instruction in program.instructions:
        registers.append(broadcast(*(registers[a] for a in instruction.args)))
    return registers[program.result]


# --- elementwise -----------------------------------------------------------------------------


def _like(call: Call) -> Sequence[Type]:
    return call.like()


def _elementwise(call: Call) -> Sequence[Type]:
    if call.opset < 7 and call.get("broadcast", 0):  # the old one-sided broadcasting along `axis`
        return call.like()
    shapes = [call.shape(i) for i in range(len(call.operands))]
    return call.tensor(broadcast(*shapes))


def _predicate(call: Call) -> Sequence[Type]:
    (result,) = _elementwise(call)
    return (TensorType("bool", result.shape if isinstance(result, TensorType) else None),)


def _where(call: Call) -> Sequence[Type]:
    return call.tensor(broadcast(*(call.shape(i) for i in range(3))), call.dtype(1))


def _prelu(call: Call) -> Sequence[Type]:
    return call.like()  # the slope broadcasts to X, never the other way round


def _cast(call: Call) -> Sequence[Type]:
    if call.op == "CastLike":
        return call.tensor(call.shape(0), call.dtype(1))
    to = call.get("to")
    name = to.lower() if isinstance(to, str) else ELEMENT_TYPES.get(to)
    name = {"float": "float32", "double": "float64"}.get(name or "", name)
    return call.tensor(call.shape(0), name if name in NUMPY_DTYPES else None)


def _dropout(call: Call) -> Sequence[Type]:
    mask = TensorType("bool" if call.opset >= 10 else call.dtype(), call.shape(0))
    return (call.type(0), mask)[: call.results or 1]


def _quantize(call: Call) -> Sequence[Type]:
    if call.op == "DequantizeLinear":
        return call.tensor(call.shape(0), call.dtype(1))
    stated = ELEMENT_TYPES.get(call.get("output_dtype", 0))
    return call.tensor(call.shape(0), call.dtype(2) if call.has(2) else stated or "uint8")


# --- linear algebra, reductions, normalization -----------------------------------------------


def _gemm(call: Call) -> Sequence[Type]:
    a, b = call.shape(0), call.shape(1)
    m: Dim = None
    n: Dim = None
    k: list[Dim] = [None, None]
    if a is not None:
        m, k[0] = (a[1], a[0]) if call.get("transA", 0) else (a[0], a[1])
    if b is not None:
        k[1], n = (b[1], b[0]) if call.get("transB", 0) else (b[0], b[1])
    same(k[0], k[1])
    return call.tensor((m, n))


def _matmul(call: Call) -> Sequence[Type]:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None:
        return call.tensor(None)
    if not a or not b:
        raise IRError("a scalar operand")
    rows, columns = (a[-2:-1], b[-1:]) if len(b) > 1 else (a[-2:-1], ())
    same(a[-1], b[-2] if len(b) > 1 else b[0])
    return call.tensor((*(broadcast(a[:-2], b[:-2]) or ()), *rows, *columns))


def _reduce(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    keep = bool(call.get("keepdims", 1))
    axes = tuple(call.get("axes")) if "axes" in call.attributes else call.ints(1)
    if x is None:
        return call.tensor(None)
    if axes is None and call.has(1):
        return call.tensor((None,) * len(x) if keep else None)
    if not axes and call.get("noop_with_empty_axes", 0):
        return call.like()
    reduced = normalize_axes(axes or range(len(x)), len(x))
    if keep:
        return call.tensor(1 if i in reduced else d for i, d in enumerate(x))
    return call.tensor(d for i, d in enumerate(x) if i not in reduced)


def _arg_reduce(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    if x is None:
        return (TensorType("int64"),)
    axis = normalize_axis(call.get("axis", 0), len(x))
    middle = (1,) if call.get("keepdims", 1) else ()
    return (TensorType("int64", (*x[:axis], *middle, *x[axis + 1 :])),)


def _top_k(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    if x is None:
        return (*call.tensor(None), TensorType("int64"))
    k = call.ints(1) if call.opset >= 10 else (call.get("k"),)
    axis = normalize_axis(call.get("axis", -1), len(x))
    shape = (*x[:axis], k[0] if k else None, *x[axis + 1 :])
    return (*call.tensor(shape), TensorType("int64", shape))


def _batch_norm(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    if x is not None and len(x) > 1:
        for slot in range(1, 5):
            _channels(call, slot, x[1])
    statistics = tuple(TensorType(call.dtype(3), call.shape(3)) for _ in range(4))
    return (call.type(0), *statistics)[: call.results or 1]


def _channels(call: Call, slot: int, channels: Dim) -> None:
    shape = call.shape(slot)
    if shape is not None and len(shape) == 1:
        same(shape[0], channels)


def _layer_norm(call: Call) -> Sequence[Type]:
    x = call.shape(0)
    statistics = None
    if x is not None:
        axis = normalize_axis(call.get("axis", -1), len(x))
        statistics = (*x[:axis], *(1,) * (len(x) - axis))
    kept = TensorType(ELEMENT_TYPES.get(call.get("stash_type", 1)), statistics)
    return (call.type(0), kept, kept)[: call.results or 1]


# --- internal ops ----------------------------------------------------------------------------


def _check_extras(call: Call, result: Shape | None) -> None:
    """Extra operands of an epilogue broadcast to the accumulator and never widen it."""
    for slot in range(3, len(call.operands)):
        extra = call.shape(slot)
        if result is None or extra is None:
            continue
        if len(extra) > len(result):
            raise IRError(f"extra operand {slot} {call.type(slot)} has more axes than the result")
        for a, b in zip(result[len(result) - len(extra) :], extra, strict=True):
            if known(a, b) and b not in (1, a):
                raise IRError(f"extra operand {slot} {call.type(slot)} does not broadcast to it")


def _kernel_conv(call: Call) -> Sequence[Type]:
    (result,) = shape_windows.conv(call)
    _check_extras(call, result.shape if isinstance(result, TensorType) else None)
    return (result,)


def _pointwise(call: Call) -> Sequence[Type]:
    x, w = call.shape(0), call.shape(1)
    if x is None or w is None or len(w) != 2:
        if w is not None and len(w) != 2:
            raise IRError(f"W {call.type(1)} is no matrix of (out_channels, in_channels / group)")
        return call.tensor(None)
    shape_windows.check_channels(call, x[1], w[0], w[1])
    n = len(x) - 2
    spatial = shape_windows.window_output(x[2:], (1,) * n, call.get("strides", ()))
    result = (x[0], w[0], *spatial)
    _check_extras(call, result)
    return call.tensor(result)


def _linear(call: Call) -> Sequence[Type]:
    x, w = call.shape(0), call.shape(1)
    if x is None or w is None:
        return call.tensor(None)
    if len(w) != 2 or not x:
        raise IRError(f"W {call.type(1)} is no matrix of (N, K), or X {call.type(0)} a scalar")
    same(x[-1], w[1])
    result = (*x[:-1], w[0])
    _check_extras(call, result)
    return call.tensor(result)


def _map(call: Call) -> Sequence[Type]:
    program: Program = call.get("program")
    shapes = [call.shape(i) for i in range(program.arity)]
    return call.tensor(program_shape(program, shapes))


_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu"),
    *("Clip", "Cos", "Cosh", "CumSum", "Elu", "Erf", "Exp", "Floor", "Gelu", "GroupNormalization"),
    *("HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "LRN"),
    *("LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Mish"),
    *("Neg", "Not", "RMSNormalization", "Reciprocal", "Relu", "Round", "ScatterElements"),
    *("ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Trilu"),
)
_BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Max", "Mean"),
    *("Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Xor"),
)
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual")
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)

_TABLES: dict[str, dict[str, Rule]] = {
    "": {
        **shape_windows.RULES,
        **shape_layout.RULES,
        **dict.fromkeys(_UNARY, _like),
        **dict.fromkeys(_BROADCASTING, _elementwise),
        **dict.fromkeys(_COMPARISONS, _predicate),
        **dict.fromkeys(_REDUCTIONS, _reduce),
        "ArgMax": _arg_reduce,
        "ArgMin": _arg_reduce,
        "BatchNormalization": _batch_norm,
        "Cast": _cast,
        "CastLike": _cast,
        "DequantizeLinear": _quantize,
        "Dropout": _dropout,
        "Gemm": _gemm,
        "LayerNormalization": _layer_norm,
        "MatMul": _matmul,
        "PRelu": _prelu,
        "QuantizeLinear": _quantize,
        "TopK": _top_k,
        "Where": _where,
    },
    KERNEL_DOMAIN: {
        "Conv": _kernel_conv,
        "Linear": _linear,
        "Map": _map,
        "Pointwise": _pointwise,
    },
}
