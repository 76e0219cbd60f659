"""The errors that pwopt raises: one root, so that a caller can catch them all.

A message says what is wrong, where (the ONNX name), the values, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class PwoptError(Exception):
    """Root of every error that pwopt raises on purpose."""


class UsageError(PwoptError):
    """An argument, flag, pass spec or environment variable that cannot be used."""


class FrontendError(PwoptError):
    """A model that cannot be read or written: missing, malformed, unsafe or invalid."""


class IRError(PwoptError):
    """A graph operation that would break the graph."""


class VerificationError(IRError):
    """A graph that breaks one of the numbered invariants of :mod:`pwopt.ir.verify`."""


class PassError(PwoptError):
    """A pass that failed; the message names it, ``__cause__`` keeps why."""


class CodegenError(PwoptError):
    """A graph that could not be compiled, or an executable that could not be saved or loaded."""


class TuningError(PwoptError):
    """A tuning database or a machine to measure on that cannot be used."""


class NumericsError(PwoptError):
    """Outputs that differ from the reference by more than the tolerance."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ", did you mean 'relu'?", or nothing."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
