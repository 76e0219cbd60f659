"""What commands print: data on stdout, progress and logs on stderr."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pwopt.cli.signals import raise_if_interrupted

if TYPE_CHECKING:
    from rich.console import Console

_LOGGER = logging.getLogger("pwopt")
_arguments: tuple[str, ...] = ()  # of the command that runs


def remember(arguments: Sequence[str]) -> None:
    """Keeps what a command was called with, for reports."""
    global _arguments
    _arguments = tuple(arguments)


def command_line() -> str:
    """The command that runs, as a shell would take it."""
    return shlex.join(["pwopt", *_arguments])


def console() -> Console:
    """Of stdout."""
    from rich.console import Console

    # A pipe or file has no width to fit into.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


class Progress:
    """A spinner or a bar on stderr where that is a terminal, else a line a step."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._shown: Any = None  # spinner or bar
        self._task: Any = None  # of the bar
        self._step = ""
        self._notices = _Notices(self)

    def __enter__(self) -> Progress:
        _LOGGER.addHandler(self._notices)
        if not self._quiet and self._console.is_terminal:
            self._shown = self._console.status("starting")
            self._shown.start()
        return self

    def __exit__(self, *details: object) -> None:
        _LOGGER.removeHandler(self._notices)
        if self._shown is not None:
            self._shown.stop()

    def __call__(self, step: str) -> None:
        raise_if_interrupted()  # where compiled code swallowed that
        self._step = step
        if self._task is not None:
            self._shown.update(self._task, description=step)
        elif self._shown is not None:
            self._shown.update(step)
        elif not self._quiet:
            self.log(step)

    def share(self, done: float) -> None:
        """Shows as a bar how much is done, from 0 to 1, and how long the rest will take."""
        if self._shown is None:
            return
        if self._task is None:
            self._shown.stop()
            self._shown = self._bar()
            self._shown.start()
            self._task = self._shown.add_task(self._step, total=1.0)
        self._shown.update(self._task, completed=done)

    def _bar(self) -> Any:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
        )
        return progress.Progress(*columns, console=self._console, transient=True)

    def log(self, line: str) -> None:
        self._console.print(line, markup=False)

    def notice(self, line: str) -> None:
        """A line that stays, unless all is to be quiet."""
        if not self._quiet:
            self._console.print(f"pwopt: {line}", markup=False, soft_wrap=True)


class _Notices(logging.Handler):
    """Shows what the library logs."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.notice(record.getMessage())


def silent(_: str) -> None:
    """Logs nothing."""


def print_json(content: Any) -> None:
    """Prints JSON on stdout."""
    print(json.dumps(content, indent=1))
