"""Elementwise and broadcast groups: one pass over memory per group."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import Expr, Memory
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import evaluate
from pwopt.targets.cuda.kernels.threads import (
    Access,
    by_vectors,
    lanes_for,
    offset_of,
    per_output,
    unravel,
)
from pwopt.targets.views import View, collapse


def map_kernel(program: Program, arguments: Sequence[View], y: View) -> Kernel:
    """``y = program(arguments)`` element by element in float32; pointers as the views, y last.

    A thread computes up to 16 bytes of neighbours.

    Args:
        program: what to compute; its arity is the number of arguments.
        arguments: views of y's shape; stride 0 broadcasts. One may be y itself (in place).
        y: the result, not empty.
    """
    views = [*arguments, y]
    extents, strides = collapse(views)
    lanes = lanes_for(views, [s[-1] for s in strides], extents[-1])
    vectors = -(-extents[-1] // lanes)
    accesses = [Access.of(v.offset, s, v.dtype, lanes) for v, s in zip(views, strides, strict=True)]

    def body(index: Expr, *memories: Memory) -> None:
        *outer, vector = unravel(index, [*extents[:-1], vectors])
        places = [
            offset_of(v.offset, [*outer, vector * lanes], s)
            for v, s in zip(views, strides, strict=True)
        ]

        def compute(count: int) -> None:
            columns = [
                a.load(m, p, count)
                for a, m, p in zip(accesses[:-1], memories[:-1], places[:-1], strict=True)
            ]
            results = [evaluate(program, [column[i] for column in columns]) for i in range(count)]
            accesses[-1].store(memories[-1], places[-1], results)

        by_vectors(vector, extents[-1], lanes, compute)

    return per_output([v.dtype for v in views], math.prod(extents[:-1]) * vectors, body)
