"""Products of two tensors that are both computed at run time, without tensor cores."""

from __future__ import annotations

import math

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import Expr, Memory, let, serial, when
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.threads import ENOUGH, filled, per_output, unravel
from pwopt.targets.views import View

_SHARES = (4, 2, 1)  # rows of a thread, which share what they multiply by


def matmul(a: View, b: View, y: View) -> Kernel:
    """Y (..., M, N) = A (..., M, K) @ B (..., K, N), views of one batch; pointers a, b, y.

    A thread computes one column of up to four rows; neighbouring threads have neighbouring columns.
    """
    *batch, rows, columns = y.shape
    depth = a.shape[-1]
    shares = [s for s in _SHARES if y.elements // s >= ENOUGH and s <= rows]
    share = shares[0] if shares else 1
    tiles = -(-rows // share)

    def body(index: Expr, left: Memory, right: Memory, target: Memory) -> None:
        *at, tile, column = unravel(index, [*batch, tiles, columns])
        first = let(tile * share)
        sums = filled(share, T.float32(0))
        with serial(depth) as k:
            factor = let(right.load(b.at(*at, k, column))[0])
            for r in range(share):
                with when(first + r < rows if rows % share and r else True):
                    sums[r] = sums[r] + left.load(a.at(*at, first + r, k))[0] * factor
        for r in range(share):
            with when(first + r < rows if rows % share and r else True):
                target.store(y.at(*at, first + r, column), [sums[r]])

    work = math.prod(batch) * tiles * columns
    return per_output([a.dtype, b.dtype, y.dtype], work, body)
