"""The environment variables that pwopt heeds: read once, here, and documented in the README."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pwopt.errors import UsageError

PREFIX = "PWOPT_"
VARIABLES: dict[str, str] = {
    "PWOPT_DATABASE": "a file: the tuning database, instead of one in the user's cache folder",
    "PWOPT_DUMP": "a folder: the graph's text is written there after each pass that changed it",
    "PWOPT_MODELS": "a folder: where `pwopt models fetch` keeps the reference networks",
    "PWOPT_TRACEBACK": "1: an error shows its Python traceback and the chain of its causes",
}


@dataclass(frozen=True)
class Settings:
    """What the environment asks for; see :data:`VARIABLES`."""

    database: Path | None = None
    dump: Path | None = None
    models: Path | None = None
    traceback: bool = False


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in ``environ``.

    Raises:
        UsageError: an unknown ``PWOPT_`` variable, or a value that a variable cannot take.
    """
    for name in environ:
        if name.startswith(PREFIX) and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f", did you mean {close[0]!r}?" if close else f"; there are {list(VARIABLES)}"
            raise UsageError(f"unknown environment variable {name}{hint}")
    return Settings(
        database=_path(environ.get("PWOPT_DATABASE", "")),
        dump=_path(environ.get("PWOPT_DUMP", "")),
        models=_path(environ.get("PWOPT_MODELS", "")),
        traceback=_flag("PWOPT_TRACEBACK", environ.get("PWOPT_TRACEBACK", "")),
    )


@functools.cache
def settings() -> Settings:
    """The settings of this process, read at the first call."""
    return read(os.environ)


def _path(value: str) -> Path | None:
    return Path(value) if value else None


def _flag(name: str, value: str) -> bool:
    values = {"": False, "0": False, "false": False, "no": False}
    values |= {"1": True, "true": True, "yes": True}
    if value.lower() not in values:
        raise UsageError(f"{name}={value!r} is neither 1 nor 0")
    return values[value.lower()]
