"""Winograd's transforms for stride-1 convolutions: F(2x2, 3x3), F(4x4, 3x3) and F(2x2, 5x5).

A tile of m x m outputs of an r x r convolution takes (m + r - 1)**2 products of polynomials'
values in place of m**2 * r**2: Y = A^T [(G w G^T) * (B^T d B)] A (Lavin and Gray, "Fast Algorithms
for Convolutional Neural Networks", 2015). The matrices follow from the points at which the
polynomials are taken: 0, pairs +-p, and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pwopt.targets.cpu.codegen import Expr, broadcast, let

# Pairs by m + r - 1. All coefficients of the transforms are exact in float32. With the customary 1
# and 2, F(4x4, 3x3) of 256 channels errs by 1.1e-5 of the output's scale; with these, by 2.3e-6
# (the direct convolution: 1.4e-6).
_PAIRS = {4: (1.0,), 6: (0.75, 1.5)}

_LARGEST_WEIGHT = 1e15


def _points(size: int) -> tuple[float, ...]:
    """The finite points in the order of the transformed lines; infinity follows them."""
    return (0.0, *(s * p for p in _PAIRS[size] for s in (1.0, -1.0)))


def filter_matrix(m: int, r: int) -> np.ndarray:
    """G: (m + r - 1, r), float64."""
    points = _points(m + r - 1)
    rows = []
    for i, p in enumerate(points):
        scale = math.prod(p - q for j, q in enumerate(points) if j != i)
        rows.append([p**k / scale for k in range(r)])
    return np.array([*rows, [0.0] * (r - 1) + [1.0]])


def transform_filter(weight: np.ndarray, m: int) -> np.ndarray:
    """Weights (OC, IC, R, R) as float32 (P, P, OC, IC) with P = m + R - 1, computed in float64."""
    g = filter_matrix(m, weight.shape[2])
    with np.errstate(over="ignore"):
        half = np.tensordot(g, weight.astype(np.float64), (1, 2))  # P, OC, IC, R
        return np.tensordot(g, half, (1, 3)).transpose(1, 0, 2, 3).astype(np.float32)


def transforms_safely(weight: np.ndarray) -> bool:
    """Whether transformed weights stay finite, with room for what they are multiplied with.

    Nothing else needs looking at: output channels are independent, and the error of each is bounded
    relative to its own weights, however much these differ in magnitude.
    """
    largest = float(np.abs(weight).max(initial=0.0))
    return largest <= _LARGEST_WEIGHT  # not so for NaN


def _times(x: Expr, factor: float, lanes: int) -> Expr:
    return x if factor == 1.0 else x * broadcast(factor, lanes)


def input_line(d: Sequence[Expr], lanes: int) -> list[Expr]:
    """B^T d for one line of 4 or 6 vectors."""
    if len(d) == 4:
        return [let(d[2] - d[0]), let(d[2] + d[1]), let(d[2] - d[1]), let(d[3] - d[1])]
    p, q = _PAIRS[6]
    total, product = p * p + q * q, p * p * q * q
    result = [let(d[4] - _times(d[2], total, lanes) + _times(d[0], product, lanes))]
    for own, other in ((p, q * q), (q, p * p)):
        even = let(d[4] - _times(d[2], other, lanes))
        odd = let(d[3] - _times(d[1], other, lanes))
        result += [let(even + _times(odd, own, lanes)), let(even - _times(odd, own, lanes))]
    return [*result, let(d[5] - _times(d[3], total, lanes) + _times(d[1], product, lanes))]


def output_line(v: Sequence[Expr], m: int, lanes: int) -> list[Expr]:
    """A^T v: a line of 4 or 6 vectors to ``m``."""
    pairs = _PAIRS[len(v)]
    both = [(v[2 * i + 1], v[2 * i + 2]) for i in range(len(pairs))]
    sums = [let(a + b) for a, b in both]
    differences = [let(a - b) for a, b in both]
    result = []
    for k in range(m):
        parts = differences if k % 2 else sums
        terms = [_times(t, p**k, lanes) for t, p in zip(parts, pairs, strict=True)]
        terms += [v[0]] if k == 0 else []
        terms += [v[-1]] if k == m - 1 else []
        value = terms[0]
        for term in terms[1:]:
            value = value + term
        result.append(let(value))
    return result


def input_tile(tile: Sequence[Sequence[Expr]], lanes: int) -> list[list[Expr]]:
    """B^T d B for a square of vectors, rows first."""
    size = len(tile)
    columns = [input_line([tile[i][j] for i in range(size)], lanes) for j in range(size)]
    return [input_line([columns[j][i] for j in range(size)], lanes) for i in range(size)]


def output_tile(tile: Sequence[Sequence[Expr]], m: int, lanes: int) -> list[list[Expr]]:
    """A^T v A: a square of vectors to ``m`` x ``m``."""
    size = len(tile)
    columns = [output_line([tile[i][j] for i in range(size)], m, lanes) for j in range(size)]
    return [output_line([columns[j][i] for j in range(size)], m, lanes) for i in range(m)]
