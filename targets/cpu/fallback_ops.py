"""Which ONNX operators TVM's own kernels may compute.

The list holds what agreed with ONNX Runtime on the backend tests of the onnx package and on edge
values (infinities, NaN, negative operands, ties, every element type). The conditions name what TVM
0.27 gets wrong. What is not here was wrong, is slow, is random or has state, or has no lowering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

Condition = Callable[[Set[str], Mapping[str, Any]], str | None]

_ELEMENTWISE = {
    *("Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Sqrt", "Reciprocal", "Exp", "Log", "Relu"),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
    *("Tanh", "Erf", "Sigmoid", "Softplus", "Softsign", "Selu", "Elu", "Mish", "HardSigmoid"),
    *("HardSwish", "LeakyRelu", "ThresholdedRelu", "PRelu", "Gelu", "Shrink", "IsNaN", "IsInf"),
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Min", "Max", "Sum", "Mean", "Clip", "Where"),
    *("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Xor", "Not"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Cast", "CastLike"),
    *("QuantizeLinear", "DequantizeLinear"),
}
_MOVES = {
    *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Concat"),
    *("Slice", "Split", "Pad", "Tile", "Trilu", "Gather", "GatherElements", "GatherND", "Scatter"),
    *("ScatterElements", "ScatterND", "DepthToSpace", "SpaceToDepth", "EyeLike"),
    *("ConstantOfShape", "Range"),
}
_REDUCTIONS = {
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin", "CumSum"),
    *("Softmax", "LogSoftmax", "Hardmax", "MaxPool", "GlobalMaxPool"),
}
_ACCUMULATING = {  # float16 sums: TVM adds up in float16, too coarse
    *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    *("ReduceLogSum", "ReduceLogSumExp", "CumSum", "Softmax", "LogSoftmax", "Sum", "Mean"),
    *("Conv", "ConvTranspose", "MatMul", "MatMulInteger", "Gemm", "Einsum", "AveragePool"),
    *("LpPool", "GlobalAveragePool", "GlobalLpPool", "BatchNormalization", "LayerNormalization"),
    *("InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization", "LRN"),
    *("GridSample", "Resize"),
}
ALLOWED = _ELEMENTWISE | _MOVES | _REDUCTIONS | _ACCUMULATING

_FLOAT32_ONLY = {"AffineGrid", "Erf", "Gelu"}  # computed in float32 whatever the type


def _batch_norm(dtypes: Set[str], attributes: Mapping[str, Any]) -> str | None:
    return "TVM ignores training_mode" if attributes.get("training_mode") else None


def _is_inf(dtypes: Set[str], attributes: Mapping[str, Any]) -> str | None:
    given = (attributes.get(name, 1) for name in ("detect_negative", "detect_positive"))
    return None if all(given) else "TVM looks for infinities of both signs"


def _mod(dtypes: Set[str], attributes: Mapping[str, Any]) -> str | None:
    if attributes.get("fmod") or not any(d.startswith("float") for d in dtypes):
        return None
    return "TVM's remainder of infinities is NaN"


CONDITIONS: dict[str, Condition] = {
    "BatchNormalization": _batch_norm,
    "IsInf": _is_inf,
    "Mod": _mod,
}


def refusal(op: str, dtypes: Set[str], attributes: Mapping[str, Any]) -> str | None:
    """Why TVM may not compute an operator, or None.

    Args:
        op: name in ONNX's own domain.
        dtypes: the element types of its operands and results.
        attributes: those given.
    """
    if op not in ALLOWED:
        return "not among the operators that TVM is trusted with"
    if "float16" in dtypes and op in _ACCUMULATING:
        return "TVM adds up float16 in float16"
    if "float64" in dtypes and op in _FLOAT32_ONLY:
        return "TVM computes it in float32"
    condition = CONDITIONS.get(op)
    return condition(dtypes, attributes) if condition else None
