"""What rules of convolutions and matrix products share: weights, bias and epilogue operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pwopt.targets.cpu.bfloat16 import DTYPE as BFLOAT16
from pwopt.targets.cpu.bfloat16 import PAIR, PAIRS
from pwopt.targets.cpu.lowering import Lowering
from pwopt.targets.plan import Pointer
from pwopt.targets.views import View


def weight_dtype(lowering: Lowering, x: View, pixels: int) -> str:
    """How the weights of a product with ``x`` are stored.

    The weights of a single pixel (row) are read once for one multiply-add each, so that their size
    is what counts.
    """
    if x.dtype in PAIRS or pixels > 1:
        return PAIR if x.dtype in PAIRS else "float32"
    return {"fp32": "float32", "bf16": BFLOAT16, "int8": "int8"}[lowering.precision.fc_weights]


def kernel_kind(kind: str, stored: str) -> str:
    """What a tuned schedule belongs to, beside the geometry, which tells pairs from float32."""
    return kind if stored in ("float32", PAIR) else f"{kind} of {stored}"


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
