"""Work counted in lines of Python: unlike time, the same on every machine, however busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pwopt

ROOT = str(Path(pwopt.__file__).parent.parent)


class Lines:
    """Counts the lines of pwopt that run in a ``with`` block, loops of one line per turn."""

    count = 0

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return self._trace if frame.f_code.co_filename.startswith(ROOT) else None
        self.count += event == "line"
        return self._trace


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Makes sure that ``work(n)`` runs a number of lines that grows with n and no faster."""

    def lines(size: int) -> int:
        with Lines() as lines:
            work(size)
        return lines.count

    lines(size)  # fills caches
    small, medium, large = (lines(factor * size) for factor in (1, 2, 4))
    # Twice as many lines are added from 2n to 4n as from n to 2n, four times if they grow as n * n.
    assert large - medium <= 2.02 * (medium - small), (small, medium, large)
