"""What the inference rules share: the operation being asked about, and arithmetic on dimensions.

A dimension that is not known stays None; a symbol survives wherever the axis provably keeps its
size. No function here guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt.errors import IRError
from pwopt.ir.types import UNKNOWN, Dim, TensorType, Type

if TYPE_CHECKING:
    from pwopt.ir.graph import Value

Shape = tuple[Dim, ...]

MAX_CONSTANT_INTS = 4096  # axes, pads and shapes are short; anything longer is no such operand


@dataclass(frozen=True, slots=True)
class Call:
    """An operation whose result types are wanted.

    Attributes:
        op: operator name.
        attributes: by name.
        operands: by slot, None where absent.
        opset: version of ONNX's operator set.
        results: how many results are wanted, None if the rule shall decide.
    """

    op: str
    attributes: Mapping[str, Any]
    operands: Sequence[Value | None]
    opset: int
    results: int | None = None

    def has(self, slot: int) -> bool:
        """Whether an operand is present."""
        return slot < len(self.operands) and self.operands[slot] is not None

    def type(self, slot: int) -> TensorType:
        """An operand's type; unknown where it is absent."""
        value = self.operands[slot] if slot < len(self.operands) else None
        return UNKNOWN if value is None else value.tensor

    def shape(self, slot: int) -> Shape | None:
        """An operand's shape."""
        return self.type(slot).shape

    def dtype(self, slot: int = 0) -> str | None:
        """An operand's element type."""
        return self.type(slot).dtype

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, text always as ``str``."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def array(self, slot: int) -> np.ndarray | None:
        """A constant operand of few elements."""
        value = self.operands[slot] if slot < len(self.operands) else None
        if value is None or not value.node.is_constant:
            return None
        array: np.ndarray = value.node.attributes["value"]
        return array if array.size <= MAX_CONSTANT_INTS else None

    def ints(self, slot: int) -> tuple[int, ...] | None:
        """A constant integer operand."""
        array = self.array(slot)
        return None if array is None else tuple(int(i) for i in array.reshape(-1))

    def count(self, slot: int) -> int | None:
        """Number of elements of a vector operand, if known."""
        shape = self.shape(slot)
        return shape[0] if shape and len(shape) == 1 and isinstance(shape[0], int) else None

    def like(self, slot: int = 0) -> tuple[Type, ...]:
        """One result of an operand's type."""
        return (self.type(slot),)

    def tensor(self, shape: Iterable[Dim] | None, dtype: str | None = "") -> tuple[Type, ...]:
        """One result of ``shape``; its element type is that of operand 0 unless given."""
        known = None if shape is None else tuple(shape)
        return (TensorType(self.dtype() if dtype == "" else dtype, known),)


Rule = Callable[[Call], Sequence[Type]]


def known(*dims: Dim) -> bool:
    """Whether all dimensions are numbers."""
    return all(isinstance(d, int) for d in dims)


def normalize_axis(axis: int, rank: int) -> int:
    """A non-negative axis.

    Raises:
        IRError: the axis lies outside the rank.
    """
    if not -rank <= axis < rank:
        raise IRError(f"axis {axis} does not exist in rank {rank}")
    return axis % rank


def normalize_axes(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Non-negative axes, in the order given.

    Raises:
        IRError: an axis stands twice or lies outside the rank.
    """
    normal = tuple(normalize_axis(a, rank) for a in axes)
    if len(set(normal)) != len(normal):
        raise IRError(f"axes {normal} name one axis twice")
    return normal


def same(a: Dim, b: Dim) -> Dim:
    """The dimension of an axis that two operands share, by what is known of either.

    Raises:
        IRError: both are numbers and differ.
    """
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise IRError(f"dimensions {a} and {b} differ")
    if isinstance(a, int) or b is None:
        return a
    return b if isinstance(b, int) or a is None else a


def add(a: Dim, b: Dim) -> Dim:
    """Sum of two dimensions."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return a if b == 0 else b if a == 0 else None


def product(dims: Iterable[Dim]) -> Dim:
    """Product of dimensions; a symbol survives next to ones only."""
    dims = tuple(dims)
    number = math.prod(d for d in dims if isinstance(d, int))
    rest = [d for d in dims if not isinstance(d, int)]
    if not rest or number == 0:
        return number
    return rest[0] if len(rest) == 1 and number == 1 else None


def _broadcast_dim(a: Dim, b: Dim) -> Dim:
    if a == 1:
        return b
    if b == 1 or a == b:
        return a
    if isinstance(a, int) and isinstance(b, int):
        raise IRError(f"dimensions {a} and {b} do not broadcast")
    if isinstance(a, int):  # b is 1 or a
        return a
    return b if isinstance(b, int) else None


def broadcast(*shapes: Shape | None) -> Shape | None:
    """The shape that NumPy's broadcasting gives; None if any rank is unknown.

    Raises:
        IRError: the shapes do not broadcast.
    """
    result: list[Dim] = []
    for shape in shapes:
        if shape is None:
            return None
        longer, shorter = (result, shape) if len(result) >= len(shape) else (shape, result)
        lead = len(longer) - len(shorter)
        tail = [_broadcast_dim(a, b) for a, b in zip(longer[lead:], shorter, strict=True)]
        result = [*longer[:lead], *tail]
    return tuple(result)
