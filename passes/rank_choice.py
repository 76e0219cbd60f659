"""Choosing the ranks of all layers together: least time for a price on error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_PRICES = 96  # of error in time, tried on a logarithmic scale


@dataclass(frozen=True)
class Choice:
    """One way to replace a layer, or to keep it.

    Attributes:
        rank_in, rank_out: channels kept on either side, None for all.
        us: predicted time.
        error: share of the responses' energy that is lost, weighted by what the output makes of it.
    """

    rank_in: int | None
    rank_out: int | None
    us: float
    error: float

    @property
    def keeps(self) -> bool:
        """Whether the layer stays as it is."""
        return self.rank_in is None and self.rank_out is None


Plan = tuple[Choice, ...]  # one for each layer


def pareto(choices: Sequence[Choice]) -> list[Choice]:
    """Those of which no other one is both faster and more exact, the fastest first."""
    best: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.us, c.error)):
        if not best or choice.error < best[-1].error:
            best.append(choice)
    return best


def plans(layers: Sequence[Sequence[Choice]]) -> list[Plan]:
    """What is fastest for each price on error, the most aggressive first; the last keeps all.

    The last choice of each layer is the one that keeps it.

    For a given sum of errors no choice for all layers is predicted to be faster (on the lower hull
    of what can be chosen).
    """
    times = [c.us for choices in layers for c in choices]
    errors = [c.error for choices in layers for c in choices if c.error > 0]
    unchanged = tuple(choices[-1] for choices in layers)
    if not errors or max(times) <= 0:
        return [unchanged]
    low = 1e-3 * min(t for t in times if t > 0) / max(errors)
    high = 1e3 * max(times) / min(errors)
    found: dict[Plan, None] = {}
    for price in np.geomspace(low, high, _PRICES):
        found[tuple(_cheapest(choices, price) for choices in layers)] = None
    found.pop(unchanged, None)
    return [*found, unchanged]


def _cheapest(choices: Sequence[Choice], price: float) -> Choice:
    return min(choices, key=lambda c: (c.us + price * c.error, c.error))


def most_aggressive(ordered: Sequence[Plan], fits: Callable[[Plan], bool]) -> Plan:
    """The first plan that fits, by bisection; the last one is taken to fit."""
    low, high = 0, len(ordered) - 1
    while low < high:
        middle = (low + high) // 2
        if fits(ordered[middle]):
            high = middle
        else:
            low = middle + 1
    return ordered[high]
