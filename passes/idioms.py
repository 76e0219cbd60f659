"""Activations that exporters spell out, recognised in programs.

HardSigmoid, HardSwish, Gelu in both forms, Sigmoid as a quotient, LeakyRelu as a maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pwopt.ir.program import Instruction, Program


def recognise(
    program: Program, constants: Sequence[float | None], pinned: int = 0
) -> tuple[Program, list[int]]:
    """The same program with spelt-out activations as one instruction each.

    Equal up to rounding: the constants that the pattern asks for match to one part in a million.

    Args:
        program: any program.
        constants: for each argument its value where it is a constant of one element.
        pinned: so many of the first arguments stay even where nothing reads them any more.

    Returns:
        the program, and which of its arguments are left, in order.
    """
    reader = _Reader(program, constants)
    replaced = {}
    for register in range(program.arity, program.arity + len(program.instructions)):
        found = reader.idiom(register)
        if found is not None:
            replaced[register] = found
            reader.steps[register] = found
    if not replaced:
        return program, list(range(program.arity))
    return _without_unused(program, replaced, pinned)


def _without_unused(
    program: Program, replaced: dict[int, Instruction], pinned: int
) -> tuple[Program, list[int]]:
    steps = {
        register: replaced.get(register, step)
        for register, step in enumerate(program.instructions, program.arity)
    }
    needed, pending = {program.result, *range(pinned)}, [program.result]
    while pending:
        step = steps.get(pending.pop())
        for arg in step.args if step else ():
            if arg not in needed:
                needed.add(arg)
                pending.append(arg)
    kept = sorted(needed)
    place = {register: i for i, register in enumerate(kept)}
    arguments = [r for r in kept if r < program.arity]
    instructions = tuple(
        Instruction(steps[r].op, tuple(place[a] for a in steps[r].args), steps[r].parameters)
        for r in kept
        if r >= program.arity
    )
    return Program(len(arguments), instructions), arguments


class _Reader:
    """Reads registers as products and as affine functions of other registers.

    Attributes:
        steps: what defines each register that is not an argument.
    """

    def __init__(self, program: Program, constants: Sequence[float | None]) -> None:
        self.steps = dict(enumerate(program.instructions, program.arity))
        self._constants = {i: c for i, c in enumerate(constants) if c is not None}
        self._affine: dict[int, tuple[int, float, float]] = {}
        self._polynomials: dict[tuple[int, int], dict[int, float] | None] = {}

    def idiom(self, register: int) -> Instruction | None:
        """The one instruction that computes what this register holds, if there is one."""
        match self.steps[register].op:
            case "Clip" | "Mul":
                return self._hard_sigmoid(register) or self._gated(register)
            case "Div":
                found = self._hard_sigmoid(register) or self._gated(register)
                return found or self._quotient(register)
            case "Max":
                return self._leaky(register)
            case "Reciprocal":
                x = self._sigmoid_denominator(self.steps[register].args[0])
                return None if x is None else Instruction("Sigmoid", (x,))
        return None

    def _hard_sigmoid(self, register: int) -> Instruction | None:
        base, scale, offset = self._as_affine(register)
        step = self.steps.get(base)
        if step is None or step.op != "Clip" or offset or step.parameters[0]:
            return None
        if scale <= 0 or not _close(scale * step.parameters[1], 1.0):
            return None
        x, alpha, beta = self._as_affine(step.args[0])
        if base == register and x == step.args[0]:
            return None  # a Clip alone costs less
        return Instruction("HardSigmoid", (x,), (scale * alpha, scale * beta))

    def _quotient(self, register: int) -> Instruction | None:
        """Sigmoid as 1 / (1 + exp(-x))."""
        above, below = self.steps[register].args
        if self._constants.get(above) != 1.0:
            return None
        x = self._sigmoid_denominator(below)
        return None if x is None else Instruction("Sigmoid", (x,))

    def _sigmoid_denominator(self, register: int) -> int | None:
        """The x of 1 + exp(-x)."""
        base, scale, offset = self._as_affine(register)
        step = self.steps.get(base)
        if step is None or step.op != "Exp" or (scale, offset) != (1.0, 1.0):
            return None
        x, slope, shift = self._as_affine(step.args[0])
        return x if (slope, shift) == (-1.0, 0.0) else None

    def _leaky(self, register: int) -> Instruction | None:
        """LeakyRelu as the maximum of x and a part of it."""
        left, right = self.steps[register].args
        for x, part in ((left, right), (right, left)):
            base, slope, shift = self._as_affine(part)
            if base == x and x != part and shift == 0 and 0 <= slope <= 1:
                return Instruction("LeakyRelu", (x,), (slope,))
        return None

    def _gated(self, register: int) -> Instruction | None:
        """HardSwish and Gelu: an operand times a function of it."""
        coefficient, factors = self._as_product(register)
        if len(factors) != 2:
            return None
        for x, gate in (factors, factors[::-1]):
            if self._is_hard_swish(x, gate, coefficient):
                return Instruction("HardSwish", (x,))
            if self._is_gelu(x, gate, coefficient):
                return Instruction("Gelu", (x,), (0.0,))
            if self._is_tanh_gelu(x, gate, coefficient):
                return Instruction("Gelu", (x,), (1.0,))
        return None

    def _is_hard_swish(self, x: int, gate: int, coefficient: float) -> bool:
        """Whether coefficient * gate is HardSigmoid(x; 1/6, 1/2)."""
        step = self.steps.get(gate)
        if step is None:
            return False
        if step.op == "HardSigmoid" and step.args == (x,):
            return all(map(_close, (coefficient, *step.parameters), (1.0, 1 / 6, 0.5)))
        if step.op != "Clip" or not _close(coefficient, 1 / 6):
            return False
        inside = self._as_affine(step.args[0])
        return inside == (x, 1.0, 3.0) and step.parameters == (0.0, 6.0)

    def _is_gelu(self, x: int, gate: int, coefficient: float) -> bool:
        """Whether coefficient * gate is (1 + Erf(x / sqrt(2))) / 2."""
        base, scale, offset = self._as_affine(gate)
        step = self.steps.get(base)
        if step is None or step.op != "Erf" or not _close(scale, offset):
            return False
        inner, slope, shift = self._as_affine(step.args[0])
        return (
            inner == x
            and shift == 0
            and _close(slope, math.sqrt(0.5))
            and _close(coefficient * scale, 0.5)
        )

    def _is_tanh_gelu(self, x: int, gate: int, coefficient: float) -> bool:
        """Whether coefficient * gate is (1 + Tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2."""
        base, scale, offset = self._as_affine(gate)
        step = self.steps.get(base)
        if step is None or step.op != "Tanh" or not _close(scale, offset):
            return False
        if not _close(coefficient * scale, 0.5):
            return False
        polynomial = self._as_polynomial(step.args[0], x)
        wanted = {1: math.sqrt(2 / math.pi), 3: 0.044715 * math.sqrt(2 / math.pi)}
        return (
            polynomial is not None
            and polynomial.keys() == wanted.keys()
            and all(_close(polynomial[k], wanted[k]) for k in wanted)
        )

    def _as_polynomial(self, register: int, x: int) -> dict[int, float] | None:
        """Coefficients by power of x, at most the third; None for what is no such polynomial."""
        if (register, x) not in self._polynomials:
            self._polynomials[register, x] = self._read_polynomial(register, x)
        return self._polynomials[register, x]

    def _read_polynomial(self, register: int, x: int) -> dict[int, float] | None:
        if register == x:
            return {1: 1.0}
        if register in self._constants:
            return {0: self._constants[register]}
        step = self.steps.get(register)
        if step is None or len(step.args) != 2:
            return None
        exponent = self._constants.get(step.args[1])
        if step.op == "Pow":
            is_power = step.args[0] == x and exponent in (2.0, 3.0)
            return {int(exponent or 0): 1.0} if is_power else None
        if step.op not in ("Add", "Mul"):
            return None
        left, right = (self._as_polynomial(a, x) for a in step.args)
        if left is None or right is None:
            return None
        result: dict[int, float] = {}
        if step.op == "Add":
            for power in left.keys() | right.keys():
                result[power] = left.get(power, 0.0) + right.get(power, 0.0)
        else:
            for i, a in left.items():
                for j, b in right.items():
                    result[i + j] = result.get(i + j, 0.0) + a * b
        return result if max(result) <= 3 else None

    def _as_affine(self, register: int) -> tuple[int, float, float]:
        """(base, scale, offset) such that the register holds scale*base + offset."""
        if register not in self._affine:
            self._affine[register] = self._read_affine(register)
        return self._affine[register]

    def _read_affine(self, register: int) -> tuple[int, float, float]:
        itself = (register, 1.0, 0.0)
        step = self.steps.get(register)
        if step is not None and step.op == "Neg":
            base, scale, offset = self._as_affine(step.args[0])
            return base, -scale, -offset
        if step is None or len(step.args) != 2:
            return itself
        left, right = step.args
        if left in self._constants and step.op in ("Add", "Mul"):
            left, right = right, left
        c = self._constants.get(right)
        if c is None or left in self._constants:
            return itself
        base, scale, offset = self._as_affine(left)
        match step.op:
            case "Add":
                return base, scale, offset + c
            case "Sub":
                return base, scale, offset - c
            case "Mul":
                return base, scale * c, offset * c
            case "Div" if c:
                return base, scale / c, offset / c
        return itself

    def _as_product(self, register: int) -> tuple[float, list[int]]:
        """(c, factors) such that the register holds c times the product of the factors."""
        if register in self._constants:
            return self._constants[register], []
        step = self.steps.get(register)
        if step is None or step.op not in ("Mul", "Div"):
            return 1.0, [register]
        left, right = step.args
        if step.op == "Div":
            c = self._constants.get(right)
            if not c:
                return 1.0, [register]
            coefficient, factors = self._as_product(left)
            return coefficient / c, factors
        a, first = self._as_product(left)
        b, second = self._as_product(right)
        if len(first) + len(second) > 2:
            return 1.0, [register]
        return a * b, first + second


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
