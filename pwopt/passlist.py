"""The passes as a user sees them: names, options and one line each, and files with more passes."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pwopt.errors import UsageError
from pwopt.pipeline import Pass

_LOADED = "pwopt_loaded_"  # begins the names of modules that load() made


class Description(NamedTuple):
    """One pass: its name, whether it runs by default, its options and what it does."""

    name: str
    default: bool
    options: dict[str, Any]
    summary: str


def describe() -> list[Description]:
    """All passes, the default ones first and in the order that they run."""
    from pwopt.passes import PASSES, default_pipeline

    order = list(dict.fromkeys(each.name for each in default_pipeline()))
    names = order + sorted(PASSES.keys() - set(order))
    return [
        Description(name, name in order, _options(PASSES[name]), _summary(PASSES[name]))
        for name in names
    ]


def load(files: Sequence[Path]) -> None:
    """Runs Python files, which register passes of their own with ``@pwopt.register_pass``.

    Raises:
        UsageError: a file that cannot be read, fails, or registers no pass.
    """
    from pwopt.passes import PASSES

    for file in files:
        name = f"{_LOADED}{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if not file.is_file() or spec is None or spec.loader is None:
            raise UsageError(f"--load {file}: no such Python file")
        before = dict(PASSES)
        # Where dataclasses look a class's module up.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f", line {f.lineno}" for f in frames[::-1] if f.filename == str(file)), "")
            raise UsageError(f"--load {file}{line}: {type(error).__name__}: {error}") from error
        if before == PASSES:
            raise UsageError(
                f"--load {file}: registers no pass; decorate one with @pwopt.register_pass"
            )


def loaded_from(cls: type[Pass]) -> Path | None:
    """The file that :func:`load` took a pass from, None for others."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file).resolve() if file and cls.__module__.startswith(_LOADED) else None


def _options(cls: type[Pass]) -> dict[str, Any]:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {f.name.replace("_", "-"): f.default for f in fields}


def _summary(cls: type[Pass]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
