"""Environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from pwopt import env
from pwopt.errors import UsageError


def test_defaults() -> None:
    assert env.read({"PATH": "/bin"}) == env.Settings()


def test_all_are_read() -> None:
    values = {"PWOPT_DATABASE": "b", "PWOPT_DUMP": "d", "PWOPT_MODELS": "m", "PWOPT_TRACEBACK": "1"}
    assert env.read(values) == env.Settings(Path("b"), Path("d"), Path("m"), traceback=True)
    assert values.keys() == env.VARIABLES.keys()


def test_unknown_variable_and_value() -> None:
    with pytest.raises(UsageError, match="PWOPT_DUMB, did you mean 'PWOPT_DUMP'"):
        env.read({"PWOPT_DUMB": "x"})
    with pytest.raises(UsageError, match="PWOPT_TRACEBACK='maybe'"):
        env.read({"PWOPT_TRACEBACK": "maybe"})
