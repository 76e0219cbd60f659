"""Programs of elementwise operations: what a fused node computes per element.

A program is a straight line of instructions over *registers*. Registers ``0 .. arity-1`` are its
arguments, each instruction defines the next one, and the last register is the result. The same
class describes the epilogue of a convolution (argument 0 is the accumulator, the others are extra
operands such as a residual) and a group of elementwise operators (the arguments are its operands).
Every instruction is a standard ONNX operator, which is also its definition: exporting a program
expands it into those operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNARY = frozenset(
    {
        *("Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
        *("LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus"),
        *("Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
    }
)
BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"})

# Attributes of each operator in this order, with their ONNX defaults. Clip's are its bounds, which
# ONNX spells as attributes up to opset 10 and as operands after.
PARAMETERS: dict[str, tuple[tuple[str, float], ...]] = {
    "Clip": (("min", float("-inf")), ("max", float("inf"))),
    "Elu": (("alpha", 1.0),),
    "HardSigmoid": (("alpha", 0.2), ("beta", 0.5)),
    "LeakyRelu": (("alpha", 0.01),),
    "Selu": (("alpha", 1.6732632423543772), ("gamma", 1.0507009873554805)),
    "ThresholdedRelu": (("alpha", 1.0),),
    "Gelu": (("tanh", 0.0),),  # 1.0: approximate="tanh"
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """``op`` applied to registers ``args``; ``parameters`` in the order of :data:`PARAMETERS`."""

    op: str
    args: tuple[int, ...]
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A straight-line elementwise program; see the module's text.

    Attributes:
        arity: number of arguments.
        instructions: in order; empty means the identity on argument 0.
    """

    arity: int = 1
    instructions: tuple[Instruction, ...] = ()

    def __post_init__(self) -> None:
        registers = self.arity
        for instruction in self.instructions:
            op, count = instruction.op, len(instruction.args)
            expected = 1 if op in UNARY else 2 if op in BINARY else None
            if expected is None:
                raise ValueError(f"{op} is not an elementwise operator that a program can hold")
            if count != expected or any(not 0 <= a < registers for a in instruction.args):
                raise ValueError(f"{op}{instruction.args} does not fit {registers} registers")
            if len(instruction.parameters) != len(PARAMETERS.get(op, ())):
                raise ValueError(f"{op} takes parameters {PARAMETERS.get(op, ())}")
            registers += 1

    def then(self, op: str, *parameters: float) -> Program:
        """This program followed by a unary operator on its result."""
        step = Instruction(op, (self.result,), parameters)
        return Program(self.arity, (*self.instructions, step))

    def then_with_argument(self, op: str, *, result_first: bool = True) -> Program:
        """This program followed by a binary operator on its result and one *new* argument.

        The new argument becomes the last one, register ``arity``.
        """
        moved = self.with_arity(self.arity + 1)
        args = (moved.result, self.arity) if result_first else (self.arity, moved.result)
        return Program(moved.arity, (*moved.instructions, Instruction(op, args)))

    def with_arity(self, arity: int) -> Program:
        """The same computation with unused arguments added at the end."""
        if arity < self.arity:
            raise ValueError(f"cannot shrink {self.arity} arguments to {arity}")
        shift = arity - self.arity
        return Program(
            arity,
            tuple(
                Instruction(
                    i.op, tuple(a if a < self.arity else a + shift for a in i.args), i.parameters
                )
                for i in self.instructions
            ),
        )

    def inlined(self, callee: Program, arguments: Sequence[int]) -> Program:
        """This program followed by ``callee`` whose arguments are registers of this one."""
        if len(arguments) != callee.arity:
            raise ValueError(f"{callee.arity} arguments expected, {len(arguments)} given")
        registers = list(arguments)
        steps = list(self.instructions)
        if not callee.instructions and arguments[0] != self.result:
            raise ValueError("an identity cannot select a register")
        for i in callee.instructions:
            steps.append(Instruction(i.op, tuple(registers[a] for a in i.args), i.parameters))
            registers.append(self.arity + len(steps) - 1)
        return Program(self.arity, tuple(steps))

    @property
    def result(self) -> int:
        """The register that holds the result."""
        return self.arity + len(self.instructions) - 1 if self.instructions else 0

    @property
    def is_identity(self) -> bool:
        """Whether the result is argument 0 itself."""
        return not self.instructions

    def __str__(self) -> str:
        text = [f"%{i}" for i in range(self.arity)]
        for i in self.instructions:
            operands = ", ".join([*(text[a] for a in i.args), *(f"{p:g}" for p in i.parameters)])
            text.append(f"{i.op}({operands})")
        return text[self.result]
