"""Pass specs: passes with options as the command line spells them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pwopt.errors import UsageError, nearest
from pwopt.pipeline import Pass


def parse_specs(
    text: str,
    known: Mapping[str, type[Pass]],
    sequences: Mapping[str, Callable[[], Sequence[Pass]]] = MappingProxyType({}),
) -> list[Pass]:
    """Passes from a spec such as ``fold-batch-norm,insert-bottlenecks{budget=0.01}``.

    Args:
        text: the spec.
        known: the passes by name.
        sequences: names that stand for several passes.

    Raises:
        UsageError: an unknown pass or option, or a value of the wrong kind; names the nearest.
    """
    passes: list[Pass] = []
    for part in _split(text):
        name, _, options = part.partition("{")
        name = name.strip()
        if name in sequences and not options:
            passes.extend(sequences[name]())
            continue
        if name not in known:
            close = nearest(name, [*known, *sequences])
            raise UsageError(f"unknown pass {name!r}{close}; see `pwopt passes`")
        if options and not options.endswith("}"):
            raise UsageError(f"pass spec {part!r}: missing }}")
        passes.append(known[name](**_options(known[name], options.rstrip("}"))))
    return passes


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for c in text:
        depth += (c == "{") - (c == "}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p for p in parts if p.strip()]


def _options(cls: type[Pass], text: str) -> dict[str, Any]:
    fields = {f.name.replace("_", "-"): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for item in filter(str.strip, text.split(",")):
        key, separator, value = (s.strip() for s in item.partition("="))
        if key not in fields or not separator:
            raise UsageError(
                f"pass {cls.name}: option {item.strip()!r} is not key=value with a key of "
                f"{sorted(fields) or 'none'}{nearest(key, list(fields))}"
            )
        kind: Any = type(fields[key].default)
        try:
            values[fields[key].name] = (
                {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            )
        except (ValueError, KeyError) as error:
            raise UsageError(f"pass {cls.name}: {key}={value} is not a {kind.__name__}") from error
    return values
