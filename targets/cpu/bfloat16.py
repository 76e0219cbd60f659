"""bfloat16 in kernels: as a format in memory, and as operands of dot products.

TVM computes bfloat16 in float32 and cannot name the processor's instructions for it, so they come
as LLVM functions, which LLVM inlines; all but :func:`widen` need AVX512-BF16. In TIR an element is
a ``uint16`` and a pair of neighbours, the operand of a dot product, an ``int32``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T  # noqa: N812

# dtypes of views and memories, and what TVM sees
DTYPE = "bfloat16"  # kernels load and store float32
PAIR = "pair32"  # the elements are pairs
NEIGHBOURS = "pair16"  # the elements are bfloat16, loaded as pairs of one and the next in memory
PAIRS = (PAIR, NEIGHBOURS)
STORED = {DTYPE: "uint16", PAIR: "int32", NEIGHBOURS: "uint16"}

_INTRINSICS = {16: "512", 8: "256", 4: "128"}  # bits of a vector by float32 lanes


def _functions() -> str:
    """LLVM's text of ``pwopt_dot<lanes>`` and ``pwopt_narrow<lanes>``."""
    parts = []
    for lanes, bits in _INTRINSICS.items():
        floats, pairs, halves = (
            f"<{lanes} x {t}>" if n == 1 else f"<{n * lanes} x {t}>"
            for t, n in (("float", 1), ("i32", 1), ("bfloat", 2))
        )
        name = f"@llvm.x86.avx512bf16.dpbf16ps.{bits}"
        parts.append(f"""
declare {floats} {name}({floats}, {halves}, {halves})
define linkonce_odr {floats} @pwopt_dot{lanes}({floats} %s, {pairs} %a, {pairs} %b) alwaysinline {{
  %x = bitcast {pairs} %a to {halves}
  %y = bitcast {pairs} %b to {halves}
  %r = call {floats} {name}({floats} %s, {halves} %x, {halves} %y)
  ret {floats} %r
}}""")
    for lanes in (*_INTRINSICS, 1):
        floats, halves, bits = (
            f"<{lanes} x {t}>" if lanes > 1 else t for t in ("float", "bfloat", "i16")
        )
        parts.append(f"""
define linkonce_odr {bits} @pwopt_narrow{lanes}({floats} %x) alwaysinline {{
  %h = fptrunc {floats} %x to {halves}
  %r = bitcast {halves} %h to {bits}
  ret {bits} %r
}}""")
    return "\n".join(parts)


_FUNCTIONS = _functions()


@contextmanager
def available() -> Iterator[None]:
    """The code that is emitted inside may use :func:`dot` and :func:`narrow`."""
    with T.attr("bfloat16", "pragma_import_llvm", _FUNCTIONS):
        yield


def dot(total: Any, a: Any, b: Any, lanes: int) -> Any:
    """``total + a[0] * b[0] + a[1] * b[1]`` in float32 for each pair of two vectors of pairs."""
    return T.call_extern(f"float32x{lanes}", f"pwopt_dot{lanes}", total, a, b)


def narrow(value: Any, lanes: int) -> Any:
    """float32 rounded to the nearest bfloat16, ties to even, as ``uint16``."""
    return T.call_extern(_vector("uint16", lanes), f"pwopt_narrow{lanes}", value)


def widen(bits: Any, lanes: int) -> Any:
    """The float32 of bfloat16 elements given as ``uint16``."""
    shifted = T.cast(bits, _vector("uint32", lanes)) << _spread(T.uint32(16), lanes)
    return T.reinterpret(_vector("float32", lanes), shifted)


def neighbours(bits: Any) -> Any:
    """Two adjacent bfloat16 elements given as a vector of ``uint16`` as a pair."""
    return T.reinterpret("int32", bits)


def rounded(array: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as ``uint16``; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    halfway = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    with np.errstate(over="ignore"):
        nearest = ((bits + halfway) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(array), np.uint16(0x7FC0), nearest)


def paired(array: np.ndarray) -> np.ndarray:
    """float32 (2n, ...) as n pairs (n, ...) of bfloat16 neighbours along the first axis."""
    bits = rounded(array).astype(np.uint32)
    return np.ascontiguousarray(bits[0::2] | bits[1::2] << np.uint32(16)).view(np.int32)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _spread(value: Any, lanes: int) -> Any:
    return value if lanes == 1 else T.broadcast(value, lanes)
