"""Per-channel affine functions ``y = scale * x + shift`` and the operators that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.passes.rewriting import is_float

AFFINE_OPS = ("Add", "Div", "Mul", "Neg", "Sub")


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``y = scale * x + shift``, each a float64 vector over one axis, or of one element."""

    scale: np.ndarray
    shift: np.ndarray

    def then(self, after: Affine) -> Affine:
        """This function followed by another along the same axis."""
        with np.errstate(all="ignore"):
            shift = self.shift * after.scale + after.shift
            return Affine(self.scale * after.scale, shift)

    @property
    def scales(self) -> bool:
        """Whether any factor differs from one."""
        return bool(np.any(self.scale != 1))

    @property
    def shifts(self) -> bool:
        """Whether any summand differs from zero."""
        return bool(np.any(self.shift != 0))

    @property
    def is_finite(self) -> bool:
        """Whether all factors and summands are finite numbers."""
        return bool(np.all(np.isfinite(self.scale)) and np.all(np.isfinite(self.shift)))


IDENTITY = Affine(np.ones(1), np.zeros(1))


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operator that is affine in one of its operands, the other one being constant.

    Attributes:
        node: the operator.
        x: the operand that varies.
        op: Mul, Add, or what they come from.
        constant: the constant operand; None for Neg.
        reversed: whether the constant is the first operand.
    """

    node: Node
    x: Value
    op: str
    constant: np.ndarray | None
    reversed: bool = False

    def along(self, axis: int) -> Affine | None:
        """The affine function along one axis of ``x``; None if the constant varies otherwise."""
        if self.constant is None:
            return Affine(-np.ones(1), np.zeros(1))
        c = per_axis(self.constant, self.x, axis)
        if c is None:
            return None
        with np.errstate(all="ignore"):
            if self.op == "Mul":
                return Affine(c, np.zeros(1))
            if self.op == "Add":
                return Affine(np.ones(1), c)
            if self.op == "Sub":
                return Affine(-np.ones(1), c) if self.reversed else Affine(np.ones(1), -c)
            return Affine(1.0 / c, np.zeros(1))


def step_at(graph: Graph, node: Node) -> Step | None:
    """The affine step that a node computes, None if it is none.

    Operator sets below 7 broadcast by attributes; they are left alone.
    """
    if not node.is_op(*AFFINE_OPS) or graph.opset < 7:
        return None
    if not is_float(node.out):
        return None
    operands = graph.operands(node)
    if node.op == "Neg":
        return None if operands[0] is None else Step(node, operands[0], "Neg", None)
    if len(operands) != 2 or operands[0] is None or operands[1] is None:
        return None
    first, second = operands[0], operands[1]
    before, after = graph.constant_value(first), graph.constant_value(second)
    if before is None and after is not None:
        return Step(node, first, node.op, after)
    if before is not None and after is None and node.op != "Div":
        return Step(node, second, node.op, before, reversed=True)
    return None


def per_axis(constant: np.ndarray, x: Value, axis: int) -> np.ndarray | None:
    """A constant that is broadcast against ``x`` and varies along one axis only.

    Returns:
        float64, one element or one per position of the axis; None if the constant varies along
        another axis, changes the shape of ``x``, or the shape of ``x`` is too little known.
    """
    shape = x.tensor.shape
    if shape is None or constant.ndim > len(shape) or not constant.size:
        return None
    aligned = (1,) * (len(shape) - constant.ndim) + constant.shape
    if any(size != 1 and i != axis for i, size in enumerate(aligned)):
        return None
    if aligned[axis] != 1 and shape[axis] != aligned[axis]:
        return None
    return constant.astype(np.float64).reshape(-1)


def chain_from(graph: Graph, first: Step, axis: int) -> tuple[list[Step], Affine] | None:
    """The longest chain of single-use affine steps that begins with ``first``.

    Returns:
        the steps and their composition; None if not even the first one is along ``axis``.
    """
    composed = IDENTITY
    steps: list[Step] = []
    step: Step | None = first
    while step is not None:
        part = step.along(axis)
        if part is None:
            break
        longer = composed.then(part)
        if steps and not longer.is_finite:
            break
        steps.append(step)
        composed = longer
        use = graph.only_use(step.node.out)
        step = None if use is None else step_at(graph, use.node)
    return (steps, composed) if steps else None


def broadcastable(vector: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A vector along one axis, shaped so that it broadcasts against a tensor of ``rank``."""
    return vector.reshape(vector.shape + (1,) * (rank - 1 - axis))


def labels(nodes: Sequence[Node]) -> str:
    """Nodes as a message names them, a long list cut short."""
    shown = ", ".join(node.label for node in nodes[:4])
    return shown if len(nodes) <= 4 else f"{shown} and {len(nodes) - 4} more"
