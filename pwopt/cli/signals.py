"""Ctrl-C and SIGTERM: what came is remembered until the command line ends."""

from __future__ import annotations

import signal
from types import FrameType

_came = 0  # the signal that came, if any


def install() -> None:
    """From now on SIGINT and SIGTERM raise KeyboardInterrupt."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def came() -> int:
    """The signal that came, 0 for none."""
    return _came


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt where a signal came, though something swallowed its exception."""
    if _came:
        raise KeyboardInterrupt


def _on_signal(number: int, _: FrameType | None) -> None:
    global _came
    _came = number  # compiled code between here and the caller may swallow the exception
    raise KeyboardInterrupt
