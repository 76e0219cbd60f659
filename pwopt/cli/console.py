"""What commands print: data on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Of stdout."""
    from rich.console import Console

    # A pipe or file has no width to fit into.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


class Progress:
    """A spinner on stderr where that is a terminal, else a line a step."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._status: Any = None

    def __enter__(self) -> Progress:
        if not self._quiet and self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        if self._status is not None:
            self._status.__exit__(*details)

    def __call__(self, step: str) -> None:
        if self._status is not None:
            self._status.update(step)
        elif not self._quiet:
            self.log(step)

    def log(self, line: str) -> None:
        self._console.print(line, markup=False)


def silent(_: str) -> None:
    """Logs nothing."""


def print_json(content: Any) -> None:
    """Prints JSON on stdout."""
    print(json.dumps(content, indent=1))
