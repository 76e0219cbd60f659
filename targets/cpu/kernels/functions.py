"""Vectorized float32 transcendental functions as TIR expressions: no library call per element.

Each takes and returns an expression of ``lanes`` elements. NaN arguments give NaN; overflow gives
infinity and underflow denormals. The polynomials are Chebyshev interpolants computed in float64
(relative error of the truncation in a comment at each); measured errors are in the kernel tests.
``T.max(constant, x)`` and ``T.min(constant, x)`` return ``x`` if that is NaN: keep their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cpu.codegen import Expr, broadcast, let

_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860682030941723212e-6

# (exp(r) - 1 - r) / r**2 on |r| <= 0.35: 9e-9
_EXP = (0.5, 0.1666657342385979, 0.041666550162728286, 0.008363767023282865, 0.0013926918055196316)
# (atanh(s) / s - 1) / s**2 over s**2, on |s| <= 0.1716: 2e-11, and on |s| <= 1/3: 1e-11
_ATANH_SHORT = (0.33333333277214316, 0.2000006093928513, 0.14275408341177034, 0.11665288697279606)
_ATANH_LONG = (
    *(0.3333333332501698, 0.20000005384224429, 0.14285152893854403),
    *(0.11132354994102525, 0.08732356302489563, 0.10393792854345918),
)
# Rational minimax approximations x * P(x**2) / Q(x**2) as in Eigen: a few ulp.
_TANH_LIMIT = 7.90531110763549805
_TANH_P = (
    *(4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08),
    *(-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16),
)
_TANH_Q = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
_ERF_LIMIT = 4.0
_ERF_P = (
    *(-1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04),
    *(-5.69250639462346e-05, -2.10102402082508e-06, 2.77068142495902e-08, -2.72614225801306e-10),
)
_ERF_Q = (
    *(-1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03),
    *(-2.13374055278905e-04, -1.45660718464996e-05),
)


def vector_type(kind: str, lanes: int) -> str:
    """TVM's name of a vector type: ``float32`` and 16 lanes are ``float32x16``."""
    return kind if lanes == 1 else f"{kind}x{lanes}"


def bits(x: Expr, lanes: int) -> Expr:
    """The bit pattern as int32."""
    return T.reinterpret(vector_type("int32", lanes), x)


def from_bits(x: Expr, lanes: int) -> Expr:
    """The float32 of a bit pattern."""
    return T.reinterpret(vector_type("float32", lanes), x)


def integers(value: int, lanes: int) -> Expr:
    """An int32 constant in every lane."""
    return T.int32(value) if lanes == 1 else T.broadcast(T.int32(value), lanes)


def polynomial(z: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Horner's scheme, the constant term first."""
    result = broadcast(coefficients[-1], lanes)
    for c in reversed(coefficients[:-1]):
        result = result * z + broadcast(c, lanes)
    return result


def clamp(x: Expr, low: float, high: float, lanes: int) -> Expr:
    """``min(max(x, low), high)``; infinite bounds cost nothing."""
    if low > -math.inf:
        x = T.max(broadcast(low, lanes), x)
    if high < math.inf:
        x = T.min(broadcast(high, lanes), x)
    return x


def _exp_parts(x: Expr, lanes: int) -> tuple[Expr, Expr]:
    """``(n, p)`` with exp(x) = 2**n * (1 + p); n as int32."""
    # Not the usual addition of 1.5 * 2**23: TVM simplifies (a + c) - c to a.
    n = let(T.nearbyint(x * broadcast(math.log2(math.e), lanes)))
    r = let(x - n * broadcast(_LN2_HIGH, lanes) - n * broadcast(_LN2_LOW, lanes))
    p = let(polynomial(r, _EXP, lanes) * (r * r) + r)
    return let(T.cast(n, vector_type("int32", lanes))), p


def _power_of_two(n: Expr, lanes: int) -> Expr:
    """2**n for -126 <= n <= 127, written as exponent bits."""
    return from_bits(T.shift_left(n + integers(127, lanes), integers(23, lanes)), lanes)


def exp_bounded(x: Expr, lanes: int) -> Expr:
    """Exp for -87 <= x <= 88 (or NaN): no overflow, no denormals."""
    n, p = _exp_parts(x, lanes)
    scale = let(_power_of_two(n, lanes))
    return p * scale + scale


def exp_nonpositive(x: Expr, lanes: int) -> Expr:
    """Exp for x <= 0 (or NaN); below -87 the result stays at exp(-87) = 1.6e-38."""
    return exp_bounded(let(T.max(broadcast(-87.0, lanes), x)), lanes)


def exp(x: Expr, lanes: int) -> Expr:
    """Exp over the whole range: overflow to infinity, gradual underflow to 0."""
    n, p = _exp_parts(let(clamp(x, -105.0, 90.0, lanes)), lanes)
    half = let(T.shift_right(n, integers(1, lanes)))  # n reaches -151 and 130: two factors
    value = (p + broadcast(1.0, lanes)) * _power_of_two(half, lanes)
    return value * _power_of_two(n - half, lanes)


def expm1_nonpositive(x: Expr, lanes: int) -> Expr:
    """exp(x) - 1 for x <= 0, without cancellation near 0."""
    n, p = _exp_parts(let(clamp(x, -87.0, 0.0, lanes)), lanes)
    scale = let(_power_of_two(n, lanes))
    return p * scale + (scale - broadcast(1.0, lanes))


def _atanh_twice(s: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    z = let(s * s)
    twice = let(s + s)
    return polynomial(z, coefficients, lanes) * (z * twice) + twice


def log(x: Expr, lanes: int) -> Expr:
    """Natural logarithm; -inf for 0, NaN for negative numbers, inf for inf."""
    smallest, one = broadcast(1.17549435e-38, lanes), broadcast(1.0, lanes)
    tiny = x < smallest  # also zero and negative numbers
    scaled = bits(let(T.Select(tiny, x * broadcast(2.0**23, lanes), x)), lanes)
    # m in [sqrt(1/2), sqrt(2)): the exponent counts from sqrt(1/2) = 0x3F3504F3.
    offset = let(scaled - integers(0x3F3504F3, lanes))
    exponent = let(T.shift_right(offset, integers(23, lanes)))
    m = let(from_bits(scaled - T.shift_left(exponent, integers(23, lanes)), lanes))
    n = T.cast(exponent, vector_type("float32", lanes))
    n = let(n - T.Select(tiny, broadcast(23.0, lanes), broadcast(0.0, lanes)))
    s = let((m - one) / (m + one))
    low = _atanh_twice(s, _ATANH_SHORT, lanes) + n * broadcast(_LN2_LOW, lanes)
    result = let(low + n * broadcast(_LN2_HIGH, lanes))
    infinity = broadcast(math.inf, lanes)
    # Ordered comparisons are false for NaN, which then falls through to x itself.
    special = T.Select(x == broadcast(0.0, lanes), -infinity, x + broadcast(math.nan, lanes))
    special = T.Select(x == infinity, infinity, special)
    normal = T.And(x > broadcast(0.0, lanes), x < infinity)
    return T.Select(normal, result, special)


def log1p_unit(u: Expr, lanes: int) -> Expr:
    """log(1 + u) for 0 <= u <= 1 with a small relative error also at small u."""
    s = let(u / (u + broadcast(2.0, lanes)))
    return _atanh_twice(s, _ATANH_LONG, lanes)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + exp(-x)), which saturates at 1 and 6e-39."""
    one = broadcast(1.0, lanes)
    return one / (one + exp_bounded(let(-clamp(x, -87.0, 87.0, lanes)), lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent."""
    x = let(clamp(x, -_TANH_LIMIT, _TANH_LIMIT, lanes))
    z = let(x * x)
    value = x * polynomial(z, _TANH_P, lanes) / polynomial(z, _TANH_Q, lanes)
    return clamp(value, -1.0, 1.0, lanes)


def erf(x: Expr, lanes: int) -> Expr:
    """Gauss error function."""
    x = let(clamp(x, -_ERF_LIMIT, _ERF_LIMIT, lanes))
    z = let(x * x)
    value = x * polynomial(z, _ERF_P, lanes) / polynomial(z, _ERF_Q, lanes)
    return clamp(value, -1.0, 1.0, lanes)


def softplus(x: Expr, lanes: int) -> Expr:
    """log(1 + exp(x)) as max(x, 0) + log1p(exp(-abs(x)))."""
    small = let(exp(let(-T.fabs(x)), lanes))
    return T.max(broadcast(0.0, lanes), x) + log1p_unit(small, lanes)


def power(x: Expr, y: Expr, lanes: int) -> Expr:
    """x**y for any operands: exp(y * log(abs(x))) with the sign of an odd integer y."""
    zero, one = broadcast(0.0, lanes), broadcast(1.0, lanes)
    x, y = let(x), let(y)
    magnitude = let(exp(let(y * log(let(T.fabs(x)), lanes)), lanes))
    half = let(y * broadcast(0.5, lanes))
    odd = T.Select(T.floor(half) == half, magnitude, -magnitude)
    negative = T.Select(T.floor(y) == y, odd, broadcast(math.nan, lanes))
    value = T.Select(x < zero, negative, magnitude)
    # log(0) * 0 and log(1) * inf are NaN where the power is 1.
    return T.Select(T.Or(y == zero, x == one), one, value)


def power_of_constant(x: Expr, exponent: float, lanes: int) -> Expr | None:
    """x**exponent by multiplications and square roots, or None where that does not serve."""
    one = broadcast(1.0, lanes)
    if exponent < 0:
        positive = power_of_constant(x, -exponent, lanes)
        return None if positive is None else one / positive
    quarters = exponent * 4
    if quarters != int(quarters) or exponent > 8:
        return None
    x = let(x)
    whole, fraction = divmod(int(quarters), 4)
    factors: list[Expr] = []
    square = x
    while whole:
        if whole & 1:
            factors.append(square)
        whole >>= 1
        if whole:
            square = let(square * square)
    if fraction:
        root = let(T.sqrt(x))
        factors += [root] if fraction >= 2 else []
        factors += [T.sqrt(root)] if fraction & 1 else []
    result = one
    for i, factor in enumerate(factors):
        result = factor if i == 0 else result * factor
    return result
