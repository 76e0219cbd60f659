"""Choosing the ranks of all layers together: least time for a price on error."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass


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


def apart(choices: Sequence[Choice], us: float) -> list[Choice]:
    """Those that save so much against the next slower one, the fastest first.

    Args:
        choices: the fastest first; the last one stays in any case.
        us: to be saved, at least.
    """
    kept = [choices[-1]]
    for choice in reversed(choices[:-1]):
        if choice.us <= kept[-1].us - us:
            kept.append(choice)
    return kept[::-1]


def plans(layers: Sequence[Sequence[Choice]]) -> list[Plan]:
    """What is fastest for each price on error, the most aggressive first; the last keeps all.

    The last choice of each layer is the one that keeps it.

    Every plan takes the least time that its sum of errors allows. From one to the next, one layer
    becomes more exact: the one that gains the most for a unit of time.
    """
    hulls = [_hull(choices) for choices in layers]
    steps = [
        (_gain(a, b), number, b)
        for number, hull in enumerate(hulls)
        for a, b in itertools.pairwise(hull)
    ]
    plan = [hull[0] for hull in hulls]
    found = {tuple(plan): None}
    for _, number, choice in sorted(steps, key=lambda step: -step[0]):
        plan[number] = choice
        found[tuple(plan)] = None
    unchanged = tuple(choices[-1] for choices in layers)
    found.pop(unchanged, None)
    return [*found, unchanged]


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those that are best for some price on error, the fastest first."""
    hull: list[Choice] = []
    for c in pareto(choices):
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], c):
            hull.pop()
        hull.append(c)
    return hull


def _gain(a: Choice, b: Choice) -> float:
    """Error that a slower choice saves for a unit of time."""
    return (a.error - b.error) / (b.us - a.us)


def milder(plan: Plan, layers: Sequence[Sequence[Choice]], share: float) -> Plan:
    """A plan of at most this share of the error, by the steps that cost the least time for it."""
    allowed = share * sum(choice.error for choice in plan)
    while sum(choice.error for choice in plan) > allowed:
        steps = [
            (_gain(old, new), number, new)
            for number, old in enumerate(plan)
            for new in pareto(layers[number])
            if new.us > old.us and new.error < old.error
        ]
        _, number, choice = max(steps, key=lambda step: step[0])
        plan = (*plan[:number], choice, *plan[number + 1 :])
    return plan


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


def refined(plan: Plan, layers: Sequence[Sequence[Choice]], fits: Callable[[Plan], bool]) -> Plan:
    """A plan that fits, with each layer in turn, the slowest first, as fast as still fits.

    Prices rank layers by an estimate of their errors; here each is asked for itself.
    """
    for number in sorted(range(len(plan)), key=lambda i: -plan[i].us):
        faster = [c for c in pareto(layers[number]) if c.us < plan[number].us]
        tried = [(*plan[:number], c, *plan[number + 1 :]) for c in faster]
        plan = most_aggressive([*tried, plan], fits)
    return plan
