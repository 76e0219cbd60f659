"""What a benchmark command prints and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from pwopt.environment import environment
from pwopt.errors import PwoptError


class Sheet:
    """Tables as they come, and everything together as JSON at the end."""

    def __init__(self, output: Path | None, to_stdout: bool, threads: int = 1) -> None:
        from rich.console import Console

        self._output, self._to_stdout = output, to_stdout
        width = None if sys.stdout.isatty() else 170
        self._console = Console(stderr=to_stdout, width=width, highlight=False)
        self.failed = False
        self.result: dict[str, Any] = {"environment": {**environment(), "threads": threads}}

    def log(self, line: str) -> None:
        typer.echo(line, err=True)

    def show(self, *things: Any) -> None:
        self._console.print(*things, sep="\n")

    def add(self, section: str, rows: Iterable[Any], *properties: str) -> None:
        """Dataclasses as a list of a section, with some properties beside their fields."""
        listed = [asdict(row) | {name: getattr(row, name) for name in properties} for row in rows]
        self.result[section] = listed

    def finish(self) -> None:
        """Writes the JSON, and exits with 1 if something failed."""
        text = json.dumps(without_nan(self.result), indent=1, allow_nan=False)
        if self._to_stdout:
            typer.echo(text)
        if self._output is not None:
            try:
                self._output.write_text(text + "\n")
            except OSError as error:
                raise PwoptError(f"{self._output}: cannot be written: {error.strerror}") from error
        if self.failed:
            raise typer.Exit(1)


def without_nan(value: Any) -> Any:
    """The same with null for what JSON cannot say: a failed row's numbers."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
