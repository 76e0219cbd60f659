"""Numbers with three digits and a unit, as text."""

from __future__ import annotations


def human(number: float) -> str:
    """A number with three digits and a unit prefix: 3.86 G."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def microseconds(us: float) -> str:
    """A time with three digits: 640 us, 5.85 ms."""
    return f"{us:.3g} us" if us < 999.5 else f"{us / 1e3:.3g} ms"
