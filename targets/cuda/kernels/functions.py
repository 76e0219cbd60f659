"""Elementwise programs as float32 expressions: the epilogue of every kernel.

The transcendental functions are CUDA's own, a few ulp each. NaN follows ONNX Runtime: every
operator propagates it except ThresholdedRelu, which gives 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.ir.program import Instruction, Program
from pwopt.targets.cuda.codegen import Expr, let, value_of

# CUDA's fmaxf and fminf return the other operand of a NaN.
_EXTREMUM = """
__forceinline__ __device__ float pw_{0}(float x, float y) {{
  float result;
  asm("{0}.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}}
"""
# Exact to 2 ulp, and 0 where the denominator overflows.
_RECIPROCAL = """
__forceinline__ __device__ float pw_fast_reciprocal(float x) {
  return __fdividef(1.0f, x);
}
"""


def evaluate(program: Program, arguments: Sequence[Expr]) -> Expr:
    """The result of a program, emitted at the builder's current place.

    Args:
        program: what to compute.
        arguments: one float32 expression or Python number per argument of the program.
    """
    if len(arguments) != program.arity:
        raise ValueError(f"{program.arity} arguments expected, {len(arguments)} given")
    uses = Counter(a for i in program.instructions for a in i.args)
    registers: list[Expr] = [
        _constant(a) if isinstance(a, int | float) else let(a) if uses[i] else a
        for i, a in enumerate(arguments)
    ]
    numbers = {i: float(a) for i, a in enumerate(arguments) if isinstance(a, int | float)}
    for instruction in program.instructions:
        registers.append(let(_apply(instruction, registers, numbers)))
    return registers[program.result]


def maximum(x: Expr, y: Expr) -> Expr:
    """The larger one; NaN if either is."""
    return value_of("pw_max", x, y, source=_EXTREMUM.format("max"))


def minimum(x: Expr, y: Expr) -> Expr:
    """The smaller one; NaN if either is."""
    return value_of("pw_min", x, y, source=_EXTREMUM.format("min"))


def clamp(x: Expr, low: float, high: float) -> Expr:
    """``min(max(x, low), high)``; infinite bounds cost nothing."""
    if low > -math.inf:
        x = maximum(x, _constant(low))
    if high < math.inf:
        x = minimum(x, _constant(high))
    return x


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x)), which underflows to 0."""
    denominator = _constant(1.0) + T.exp(-x)
    return value_of("pw_fast_reciprocal", denominator, source=_RECIPROCAL)


def _constant(value: float) -> Expr:
    return T.float32(value)


def _library(name: str, *arguments: Expr) -> Expr:
    return T.call_pure_extern("float32", name, *arguments)


def _apply(step: Instruction, registers: list[Expr], numbers: dict[int, float]) -> Expr:
    operands = [registers[a] for a in step.args]
    if step.op == "Pow" and step.args[1] in numbers:
        exact = _constant_power(operands[0], numbers[step.args[1]])
        if exact is not None:
            return exact
    if step.op in _BINARY:
        return _BINARY[step.op](*operands)
    return _UNARY[step.op](operands[0], step.parameters)


def _constant_power(x: Expr, exponent: float) -> Expr | None:
    """The power by a multiplication or a root, or None."""
    powers: dict[float, Callable[[], Expr]] = {
        -1.0: lambda: _constant(1.0) / x,
        0.5: lambda: T.sqrt(x),
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
    }
    return powers[exponent]() if exponent in powers else None


def _elu(x: Expr, alpha: float, gamma: float) -> Expr:
    negative = _library("expm1f", x) * _constant(alpha * gamma)
    positive = x if gamma == 1.0 else x * _constant(gamma)
    return T.Select(x < _constant(0.0), negative, positive)


def _gelu(x: Expr, by_tanh: float) -> Expr:
    half = x * _constant(0.5)
    if by_tanh:
        cubic = x * x * _constant(0.044715 * math.sqrt(2 / math.pi))
        inner = T.tanh(x * (cubic + _constant(math.sqrt(2 / math.pi))))
    else:
        inner = T.erf(x * _constant(math.sqrt(0.5)))
    return half * inner + half


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return clamp(x * _constant(alpha) + _constant(beta), 0.0, 1.0)


def _softplus(x: Expr) -> Expr:
    return maximum(x, _constant(0.0)) + _library("log1pf", T.exp(-T.fabs(x)))


_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "Max": maximum,
    "Min": minimum,
    "PRelu": lambda x, slope: T.Select(x < _constant(0.0), slope * x, x),
    "Pow": lambda x, y: T.pow(x, y),
}

_UNARY: dict[str, Callable[[Expr, tuple[float, ...]], Expr]] = {
    "Abs": lambda x, p: T.fabs(x),
    "Ceil": lambda x, p: T.ceil(x),
    "Clip": lambda x, p: clamp(x, p[0], p[1]),
    "Elu": lambda x, p: _elu(x, p[0], 1.0),
    "Erf": lambda x, p: T.erf(x),
    "Exp": lambda x, p: T.exp(x),
    "Floor": lambda x, p: T.floor(x),
    "Gelu": lambda x, p: _gelu(x, p[0]),
    "HardSigmoid": lambda x, p: _hard_sigmoid(x, p[0], p[1]),
    "HardSwish": lambda x, p: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "LeakyRelu": lambda x, p: T.Select(x < _constant(0.0), x * _constant(p[0]), x),
    "Log": lambda x, p: T.log(x),
    "Neg": lambda x, p: -x,
    "Reciprocal": lambda x, p: _constant(1.0) / x,
    "Relu": lambda x, p: maximum(x, _constant(0.0)),
    "Selu": lambda x, p: _elu(x, p[0], p[1]),
    "Sigmoid": lambda x, p: sigmoid(x),
    "Softplus": lambda x, p: _softplus(x),
    "Softsign": lambda x, p: x / (_constant(1.0) + T.fabs(x)),
    "Sqrt": lambda x, p: T.sqrt(x),
    "Tanh": lambda x, p: T.tanh(x),
    "ThresholdedRelu": lambda x, p: T.Select(x > _constant(p[0]), x, _constant(0.0)),
}
