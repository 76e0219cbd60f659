"""What the shell may complete; nothing heavy is imported before Tab is pressed."""

from __future__ import annotations


def passes(incomplete: str) -> list[str]:
    """The last pass of a spec: names with commas between them."""
    from pwopt.passes import PASSES

    before, comma, last = incomplete.rpartition(",")
    return [before + comma + n for n in ("default", *PASSES) if n.startswith(last)]


def processors(incomplete: str) -> list[str]:
    """Some of the names for ``--mcpu``."""
    from pwopt.hardware import COMMON

    return [name for name in COMMON if name.startswith(incomplete)]
