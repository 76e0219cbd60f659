"""Kernels whose result replaces an operand: asked for around the template that makes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_same_memory: ContextVar[tuple[int, int] | None] = ContextVar("_same_memory", default=None)


@contextmanager
def in_place(operand: int, result: int) -> Iterator[None]:
    """Kernels made inside take two of their pointers for the same memory, given by position."""
    token = _same_memory.set((operand, result))
    try:
        yield
    finally:
        _same_memory.reset(token)


def same_memory() -> tuple[int, int] | None:
    """(operand, result) as positions of pointers to the same memory, inside :func:`in_place`."""
    return _same_memory.get()
