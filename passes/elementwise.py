"""Elementwise operators of a graph, read as programs: what epilogues and groups are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pwopt.ir.graph import KERNEL_DOMAIN, ONNX_DOMAIN, Graph, Node, Value
from pwopt.ir.program import BINARY, PARAMETERS, UNARY, Instruction, Program
from pwopt.ir.types import Dim

DTYPE = "float32"  # what kernels compute in

Operand = Value | np.ndarray  # an array is a constant that the graph does not hold yet


@dataclass(frozen=True)
class Elementwise:
    """A node as ``program`` over ``operands``."""

    program: Program
    operands: tuple[Operand, ...]


def read(graph: Graph, node: Node) -> Elementwise | str | None:
    """The program of an elementwise node.

    Returns:
        the program; the reason why the node has none; or None for any other operator.
    """
    if node.domain == KERNEL_DOMAIN and node.op == "Map":
        program: Program = node.attributes["program"]
        return None if program.is_identity else Elementwise(program, _present(graph, node))
    if node.domain != ONNX_DOMAIN:
        return None
    reader = _READERS.get(node.op)
    if reader is None:
        return None
    if node.out.tensor.dtype != DTYPE:
        return f"its element type is {node.out.tensor.dtype or 'unknown'}"
    if len(node.types) != 1:
        return f"it has {len(node.types)} results"
    found = reader(graph, node)
    if isinstance(found, Elementwise):
        for operand in found.operands:
            if isinstance(operand, Value) and operand.tensor.dtype != DTYPE:
                return f"its operand {operand.label} is {operand.tensor.dtype or 'of unknown type'}"
    return found


def known(shape: tuple[Dim, ...] | None) -> bool:
    """Whether every dimension is a number or a symbol."""
    return shape is not None and all(d is not None for d in shape)


def shape_of(operand: Operand) -> tuple[Dim, ...] | None:
    """The shape of an operand, None where not even its rank is known."""
    return operand.tensor.shape if isinstance(operand, Value) else operand.shape


def broadcasts(operand: Operand, shape: tuple[Dim, ...]) -> bool:
    """Whether an operand is known to broadcast to ``shape`` without making it larger."""
    own = shape_of(operand)
    if own is None or len(own) > len(shape):
        return False
    tail = shape[len(shape) - len(own) :]
    return all(a is not None and (a == 1 or a == b) for a, b in zip(own, tail, strict=True))


class ProgramBuilder:
    """Puts programs together; equal arguments become one.

    A reference to an argument is negative, ``~index``; one to a step is the step's index.

    Attributes:
        arguments: the program's arguments; None for one that the user reserved.
    """

    def __init__(self) -> None:
        self.arguments: list[Operand | None] = []
        self._known: dict[object, int] = {}
        self._steps: list[Instruction] = []

    def reserve(self) -> int:
        """A new argument that is no operand: a convolution's accumulator."""
        self.arguments.append(None)
        return ~(len(self.arguments) - 1)

    def argument(self, operand: Operand) -> int:
        """The argument that holds ``operand``."""
        key = _key(operand)
        if key not in self._known:
            self.arguments.append(operand)
            self._known[key] = ~(len(self.arguments) - 1)
        return self._known[key]

    def call(self, program: Program, references: Sequence[int]) -> int:
        """Adds the steps of ``program`` and returns a reference to its result."""
        registers = list(references)
        for step in program.instructions:
            args = tuple(registers[a] for a in step.args)
            self._steps.append(Instruction(step.op, args, step.parameters))
            registers.append(len(self._steps) - 1)
        return registers[program.result]

    def program(self) -> Program:
        """The program of all steps so far; its result is the last step's."""
        arity = len(self.arguments)
        return Program(
            arity,
            tuple(
                Instruction(
                    step.op,
                    tuple(~a if a < 0 else arity + a for a in step.args),
                    step.parameters,
                )
                for step in self._steps
            ),
        )


def scalar(graph: Graph, operand: Operand | None) -> float | None:
    """The value of a constant of one element."""
    array = operand if isinstance(operand, np.ndarray) else graph.constant_value(operand)
    if array is None or array.size != 1 or array.dtype.kind != "f":
        return None
    return float(array.reshape(-1)[0])


def as_value(graph: Graph, operand: Operand | None) -> Value:
    """The operand as a value of the graph; an array becomes a constant."""
    assert operand is not None
    return operand if isinstance(operand, Value) else graph.constant(operand)


def reference(builder: ProgramBuilder, registers: dict[Value, int], operand: Operand) -> int:
    """The reference that holds ``operand``: a value computed before, or an argument."""
    if isinstance(operand, Value) and operand in registers:
        return registers[operand]
    return builder.argument(operand)


def _key(operand: Operand) -> object:
    array = operand if isinstance(operand, np.ndarray) else None
    if isinstance(operand, Value):
        if not (operand.node.is_constant and operand.tensor.elements == 1):
            return (operand.node.id, operand.index)
        array = operand.node.attributes["value"]
    assert array is not None
    return (array.shape, array.tobytes()) if array.size == 1 else id(array)


def _present(graph: Graph, node: Node) -> tuple[Value, ...]:
    return tuple(v for v in graph.operands(node) if v is not None)


def _unary(graph: Graph, node: Node) -> Elementwise | str | None:
    parameters = [float(node.get(name, default)) for name, default in PARAMETERS.get(node.op, ())]
    if node.op == "Gelu":
        parameters = [float(node.get("approximate", "none") == "tanh")]
    return Elementwise(Program().then(node.op, *parameters), _present(graph, node))


def _clip(graph: Graph, node: Node) -> Elementwise | str | None:
    x, *bounds = graph.operands(node)
    assert x is not None
    if graph.opset < 11:
        low, high = (float(node.get(n, d)) for n, d in PARAMETERS["Clip"])
        return Elementwise(Program().then("Clip", low, high), (x,))
    bounds += [None] * (2 - len(bounds))
    defaults = [d for _, d in PARAMETERS["Clip"]]
    values = [d if b is None else scalar(graph, b) for b, d in zip(bounds, defaults, strict=True)]
    if values[0] is not None and values[1] is not None:
        return Elementwise(Program().then("Clip", values[0], values[1]), (x,))
    program, operands = Program(), [x]
    for op, bound in zip(("Max", "Min"), bounds, strict=True):
        if bound is not None:
            program = program.then_with_argument(op)
            operands.append(bound)
    return Elementwise(program, tuple(operands))


def _binary(graph: Graph, node: Node) -> Elementwise | str | None:
    operands = _present(graph, node)
    a, b = operands
    if graph.opset < 7 and a.tensor.shape != b.tensor.shape:
        return f"it broadcasts by the rules of opset {graph.opset}"
    if node.op == "Pow" and scalar(graph, b) == 2.0:
        return Elementwise(Program(1, (Instruction("Mul", (0, 0)),)), (a,))
    return Elementwise(Program(2, (Instruction(node.op, (0, 1)),)), operands)


def _variadic(graph: Graph, node: Node) -> Elementwise | str | None:
    operands: tuple[Operand, ...] = _present(graph, node)
    if len(operands) < 2:
        return None  # an identity
    op = "Add" if node.op in ("Sum", "Mean") else node.op
    program = Program()
    for _ in operands[1:]:
        program = program.then_with_argument(op)
    if node.op == "Mean":
        program = program.then_with_argument("Div")
        operands = (*operands, np.asarray(len(operands), np.float32))
    return Elementwise(program, operands)


def _batch_norm(graph: Graph, node: Node) -> Elementwise | str | None:
    x, *rest = _present(graph, node)
    arrays = [graph.constant_value(v) for v in rest]
    if graph.opset < 7:
        return f"opset {graph.opset} cannot say the same with broadcasting"
    if node.get("training_mode", 0):
        return "it is in training mode"
    if not node.get("spatial", 1):
        return "it normalizes each pixel by itself"
    if len(arrays) != 4 or any(a is None for a in arrays):
        return "its parameters are not constant"
    rank = x.tensor.rank
    if rank is None:
        return "the rank of its operand is unknown"
    scale, bias, mean, variance = (np.asarray(a, np.float64) for a in arrays)
    factor = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    shape = (-1, *(1,) * (rank - 2))
    return Elementwise(
        Program().then_with_argument("Mul").then_with_argument("Add"),
        (
            x,
            factor.astype(np.float32).reshape(shape),
            (bias - mean * factor).astype(np.float32).reshape(shape),
        ),
    )


def _mish(graph: Graph, node: Node) -> Elementwise | str | None:
    steps = (
        Instruction("Softplus", (0,)),
        Instruction("Tanh", (1,)),
        Instruction("Mul", (0, 2)),
    )
    return Elementwise(Program(1, steps), _present(graph, node))


def _swish(graph: Graph, node: Node) -> Elementwise | str | None:
    alpha = float(node.get("alpha", 1.0))
    (x,) = _present(graph, node)
    if alpha == 1.0:
        plain = (Instruction("Sigmoid", (0,)), Instruction("Mul", (0, 1)))
        return Elementwise(Program(1, plain), (x,))
    steps = (Instruction("Mul", (0, 1)), Instruction("Sigmoid", (2,)), Instruction("Mul", (0, 3)))
    return Elementwise(Program(2, steps), (x, np.asarray(alpha, np.float32)))


def _celu(graph: Graph, node: Node) -> Elementwise | str | None:
    alpha = float(node.get("alpha", 1.0))
    if alpha != 1.0:
        return f"Celu with alpha {alpha:g} is no operator of a program"
    return Elementwise(Program().then("Elu", 1.0), _present(graph, node))


_Reader = Callable[[Graph, Node], Elementwise | str | None]
_READERS: dict[str, _Reader] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    **dict.fromkeys(("Sum", "Mean", "Max", "Min"), _variadic),
    "Clip": _clip,
    "BatchNormalization": _batch_norm,
    "Celu": _celu,
    "Mish": _mish,
    "Swish": _swish,
}
