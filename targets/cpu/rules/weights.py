"""What rules of convolutions and matrix products share: weights, bias and epilogue operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pwopt.ir.graph import Node, Value
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.cpu.plan import Pointer


def bias_and_extras(lowering: Lowering, node: Node) -> tuple[Value | None, list[Value]]:
    """Operand 2 and the operands of the epilogue of an internal op."""
    operands = lowering.operands(node)
    bias = operands[2] if len(operands) > 2 else None
    return bias, [v for v in operands[3:] if v is not None]


def packed_weights(
    lowering: Lowering, key: tuple[Any, ...], make: Callable[[], tuple[np.ndarray, np.ndarray]]
) -> tuple[Pointer, Pointer]:
    """Packed weights and bias as two constants made in one go."""
    made: list[tuple[np.ndarray, np.ndarray]] = []

    def part(index: int) -> np.ndarray:
        if not made:
            made.append(make())
        return made[0][index]

    return (
        Pointer(lowering.packed((*key, "weights"), lambda: part(0))),
        Pointer(lowering.packed((*key, "bias"), lambda: part(1))),
    )
