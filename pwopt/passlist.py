"""The passes as a user sees them: names, options and one line each."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from pwopt.pipeline import Pass


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


def _options(cls: type[Pass]) -> dict[str, Any]:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {f.name.replace("_", "-"): f.default for f in fields}


def _summary(cls: type[Pass]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0].rstrip(".")
