"""Elementwise programs as vector expressions: the epilogue of every kernel.

:func:`emit` expands a :class:`~pwopt.ir.program.Program` at the builder's current place; registers
that are used more than once become bindings. NaN follows ONNX Runtime: every operator propagates it
except ThresholdedRelu, which gives 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Instruction, Program
from pwopt.targets.cpu.codegen import Expr, broadcast, let
from pwopt.targets.cpu.kernels import functions as f


def emit(program: Program, arguments: Sequence[Expr], lanes: int, hardware: Hardware) -> Expr:
    """The result of a program as an expression of ``lanes`` float32 elements.

    Args:
        program: what to compute.
        arguments: one per argument of the program: a vector of ``lanes`` elements, a scalar
            expression or a Python number (both are broadcast; a number allows exact powers).
        lanes: elements of the result; 1 for a scalar.
        hardware: the processor, for instruction selection.
    """
    del hardware  # every operator has one portable form so far
    if len(arguments) != program.arity:
        raise ValueError(f"{program.arity} arguments expected, {len(arguments)} given")
    uses = Counter(a for i in program.instructions for a in i.args)
    numbers = {i: a for i, a in enumerate(arguments) if isinstance(a, int | float)}
    registers = [
        let(_spread(a, lanes)) if uses[i] and i not in numbers else _spread(a, lanes)
        for i, a in enumerate(arguments)
    ]
    for instruction in program.instructions:
        value = _apply(instruction, registers, numbers, lanes)
        register = len(registers)
        registers.append(
            let(value) if uses[register] > 1 or _reads_twice(program, register) else value
        )
    return registers[program.result]


def _spread(value: Expr, lanes: int) -> Expr:
    if isinstance(value, int | float):
        return broadcast(float(value), lanes)
    return value if lanes == 1 or "x" in str(value.ty) else T.broadcast(value, lanes)


def _reads_twice(program: Program, register: int) -> bool:
    """Whether the instruction that uses a register mentions its operand more than once."""
    return any(register in i.args and i.op not in _SINGLE_USE for i in program.instructions)


def _apply(step: Instruction, registers: list[Expr], numbers: dict[int, Expr], lanes: int) -> Expr:
    operands = [registers[a] for a in step.args]
    if step.op == "Pow" and step.args[1] in numbers:
        exact = f.power_of_constant(operands[0], float(numbers[step.args[1]]), lanes)
        if exact is not None:
            return exact
    if step.op in _BINARY:
        return _BINARY[step.op](operands[0], operands[1], lanes)
    return _UNARY[step.op](operands[0], step.parameters, lanes)


def _maximum(x: Expr, y: Expr, lanes: int) -> Expr:
    # The instruction returns its second operand if either is NaN.
    return T.Select(T.isnan(x), x, T.max(x, y)) if not _is_constant(x) else T.max(x, y)


def _minimum(x: Expr, y: Expr, lanes: int) -> Expr:
    return T.Select(T.isnan(x), x, T.min(x, y)) if not _is_constant(x) else T.min(x, y)


def _is_constant(x: Expr) -> bool:
    inner = getattr(x, "value", x)
    return isinstance(inner, float) or isinstance(getattr(inner, "value", None), float)


def _prelu(x: Expr, slope: Expr, lanes: int) -> Expr:
    return T.Select(x < broadcast(0.0, lanes), slope * x, x)


_BINARY: dict[str, Callable[[Expr, Expr, int], Expr]] = {
    "Add": lambda x, y, n: x + y,
    "Sub": lambda x, y, n: x - y,
    "Mul": lambda x, y, n: x * y,
    "Div": lambda x, y, n: x / y,
    "Max": _maximum,
    "Min": _minimum,
    "PRelu": _prelu,
    "Pow": f.power,
}


def _elu(x: Expr, alpha: float, gamma: float, lanes: int) -> Expr:
    negative = f.expm1_nonpositive(x, lanes) * broadcast(alpha * gamma, lanes)
    positive = x if gamma == 1.0 else x * broadcast(gamma, lanes)
    return T.Select(x < broadcast(0.0, lanes), negative, positive)


def _gelu(x: Expr, by_tanh: float, lanes: int) -> Expr:
    half = let(x * broadcast(0.5, lanes))
    if by_tanh:
        cubic = x * x * broadcast(0.044715 * math.sqrt(2 / math.pi), lanes)
        inner = f.tanh(let(x * (cubic + broadcast(math.sqrt(2 / math.pi), lanes))), lanes)
    else:
        inner = f.erf(let(x * broadcast(math.sqrt(0.5), lanes)), lanes)
    return half * inner + half


def _hard_sigmoid(x: Expr, alpha: float, beta: float, lanes: int) -> Expr:
    return f.clamp(x * broadcast(alpha, lanes) + broadcast(beta, lanes), 0.0, 1.0, lanes)


def _leaky_relu(x: Expr, alpha: float, lanes: int) -> Expr:
    scaled = x * broadcast(alpha, lanes)
    if 0 <= alpha <= 1:
        return T.max(scaled, x)  # NaN in both
    return T.Select(x < broadcast(0.0, lanes), scaled, x)


def _thresholded(x: Expr, alpha: float, lanes: int) -> Expr:
    return T.Select(x > broadcast(alpha, lanes), x, broadcast(0.0, lanes))


_UNARY: dict[str, Callable[[Expr, tuple[float, ...], int], Expr]] = {
    "Abs": lambda x, p, n: T.fabs(x),
    "Ceil": lambda x, p, n: T.ceil(x),
    "Clip": lambda x, p, n: f.clamp(x, p[0], p[1], n),
    "Elu": lambda x, p, n: _elu(x, p[0], 1.0, n),
    "Erf": lambda x, p, n: f.erf(x, n),
    "Exp": lambda x, p, n: f.exp(x, n),
    "Floor": lambda x, p, n: T.floor(x),
    "Gelu": lambda x, p, n: _gelu(x, p[0], n),
    "HardSigmoid": lambda x, p, n: _hard_sigmoid(x, p[0], p[1], n),
    "HardSwish": lambda x, p, n: x * _hard_sigmoid(x, 1 / 6, 0.5, n),
    "LeakyRelu": lambda x, p, n: _leaky_relu(x, p[0], n),
    "Log": lambda x, p, n: f.log(x, n),
    "Neg": lambda x, p, n: -x,
    "Reciprocal": lambda x, p, n: broadcast(1.0, n) / x,
    "Relu": lambda x, p, n: T.max(broadcast(0.0, n), x),
    "Selu": lambda x, p, n: _elu(x, p[0], p[1], n),
    "Sigmoid": lambda x, p, n: f.sigmoid(x, n),
    "Softplus": lambda x, p, n: f.softplus(x, n),
    "Softsign": lambda x, p, n: x / (broadcast(1.0, n) + T.fabs(x)),
    "Sqrt": lambda x, p, n: T.sqrt(x),
    "Tanh": lambda x, p, n: f.tanh(x, n),
    "ThresholdedRelu": lambda x, p, n: _thresholded(x, p[0], n),
}

# Operators whose expansion mentions each operand once: their operands need no binding.
_SINGLE_USE = frozenset(
    {
        *("Abs", "Add", "Ceil", "Clip", "Div", "Exp", "Floor", "HardSigmoid", "Mul", "Neg"),
        *("Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Erf"),
    }
)
