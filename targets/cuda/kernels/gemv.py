"""Products of a few rows with a constant matrix: bound by reading the matrix once."""

from __future__ import annotations

import functools
import math

import numpy as np
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import (
    WIDEST,
    Block,
    Expr,
    Memory,
    barrier,
    kernel,
    let,
    serial,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import evaluate
from pwopt.targets.cuda.kernels.reduce import add
from pwopt.targets.cuda.kernels.slices import WARP, across_warp
from pwopt.targets.cuda.kernels.threads import Access, filled, loaded
from pwopt.targets.views import View, itemsize

MAX_ROWS = 8
_WARPS = 4  # of a block
_ENOUGH = 108 * 8  # warps that keep a GPU's memory busy


def gemv_splits(columns: int, depth: int, dtype: str) -> int:
    """Warps that share the reduction of one result."""
    per_warp = WARP * WIDEST // itemsize(dtype)
    splits = 1
    while splits < _WARPS and columns * splits < _ENOUGH and depth >= 2 * splits * per_warp:
        splits *= 2
    return splits


def pack_gemv(weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, N) and bias (N,) as :func:`gemv` walks them: (N, K) and (N,), float32."""
    columns = weight.shape[1]
    biases = np.zeros(columns, np.float32) if bias is None else bias.astype(np.float32)
    return np.ascontiguousarray(weight.T, np.float32), biases


def gemv(x: View, y: View, program: Program, extras: tuple[View, ...]) -> Kernel:
    """Y (M, N) = X (M, K) @ W.T + bias with an epilogue; pointers x, weights, bias, *extras, y.

    Weights, of x's dtype, and bias, float32, are those of :func:`pack_gemv`. A warp, or several
    where there are few columns, computes one column of the result for all rows, and reads 16 bytes
    of it and of each row at a time.

    Args:
        x: rows, at most :data:`MAX_ROWS`, each contiguous.
        y: result, any strides.
        program: epilogue; argument 0 is the sum with the bias, argument i extra i - 1.
        extras: further operands of the epilogue in y's shape, any strides.

    Raises:
        ValueError: there are more rows, or their elements are not neighbours.
    """
    (rows, depth), columns = x.shape, y.shape[1]
    if rows > MAX_ROWS or (x.strides[1] != 1 and depth > 1):
        raise ValueError(f"{x} is not a few contiguous rows")
    size = itemsize(x.dtype)
    lanes = math.gcd(depth, WIDEST // size)
    steps = [x.strides[0] if rows > 1 else 0, 1]
    access = Access.of(x.offset, steps, x.dtype, lanes)
    splits = gemv_splits(columns, depth, x.dtype)
    outputs = _WARPS // splits
    stride = WARP * splits * lanes  # elements that the warps of a result read at a time

    def body(block: Block, *memories: Memory) -> None:
        source, weights, bias, *others, target = memories
        part, output = let(block.warp % splits), let(block.warp // splits)
        column = let(block.x * outputs + output)
        sums = filled(rows, T.float32(0))

        def step(at: Expr) -> None:
            factors = loaded(weights, column * depth + at, lanes, lanes * size)
            for r in range(rows):
                values = loaded(source, x.at(r, at), lanes, access.align)
                with unrolled(lanes) as e:
                    product = T.cast(values[e], "float32") * T.cast(factors[e], "float32")
                    sums[r] = sums[r] + product

        inside = column < columns if columns % outputs else True
        with when(inside), serial(-(-depth // stride)) as i:
            at = let(i * stride + (part * WARP + block.lane) * lanes)
            with when(at < depth if depth % stride else True):
                step(at)
        totals = [across_warp(add, sums[r]) for r in range(rows)]
        if splits > 1:
            totals = _joined(block, totals, splits, part, output)
        leads = T.And(block.lane == 0, part == 0)
        with when(T.And(leads, column < columns)):
            start = let(bias[column])
            for r, total in enumerate(totals):
                arguments = [let(total + start)]
                for view, memory in zip(extras, others, strict=True):
                    arguments += memory.load(view.at(r, column))
                target.store(y.at(r, column), [evaluate(program, arguments)])

    dtypes = [x.dtype, x.dtype, "float32", *(e.dtype for e in extras), y.dtype]
    blocks = -(-columns // outputs)
    return kernel(dtypes, body, grid=(blocks, 1, 1), threads=_WARPS * WARP)


def _joined(block: Block, totals: list[Expr], splits: int, part: Expr, output: Expr) -> list[Expr]:
    """The sums of all warps of a result; in the first of them."""
    rows = len(totals)
    scratch = block.static(_WARPS * rows, "float32", "scratch")
    with when(block.lane == 0):
        for r, total in enumerate(totals):
            scratch[(output * splits + part) * rows + r] = total
    barrier()
    joined = []
    for r in range(rows):
        parts = [scratch[output * (splits * rows) + s * rows + r] for s in range(splits)]
        joined.append(let(functools.reduce(add, parts)))
    return joined
