"""Ranks of all layers together: every plan is the fastest for its error."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pwopt.passes.rank_choice import (
    Choice,
    Plan,
    apart,
    milder,
    most_aggressive,
    pareto,
    plans,
    refined,
)

numbers = st.integers(0, 12)
lossy = st.builds(Choice, st.integers(1, 99), st.just(None), numbers.map(float), numbers.map(float))


@st.composite
def layers(draw: st.DrawFn) -> list[list[Choice]]:
    """Up to three layers: choices that are faster than keeping, which is the last."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        found = draw(st.lists(lossy, max_size=5))
        made.append([*pareto(found), Choice(None, None, draw(st.integers(13, 20)), 0.0)])
    return made


def us(plan: Plan) -> float:
    return sum(choice.us for choice in plan)


def error(plan: Plan) -> float:
    return sum(choice.error for choice in plan)


@given(st.lists(lossy, max_size=8))
def test_pareto_keeps_what_nothing_beats(choices: list[Choice]) -> None:
    found = pareto(choices)
    assert found == sorted(found, key=lambda c: c.us)
    for choice in choices:
        beaten = [
            c
            for c in choices
            if c.us <= choice.us
            and c.error <= choice.error
            and (c.us, c.error) != (choice.us, choice.error)
        ]
        kept = any((c.us, c.error) == (choice.us, choice.error) for c in found)
        assert kept == (not beaten)


@settings(max_examples=200)
@given(layers())
def test_no_plan_is_beaten_by_any_other(choices: list[list[Choice]]) -> None:
    found = plans(choices)
    everything = list(itertools.product(*choices))
    for plan in found[:-1]:
        assert us(plan) == min(us(p) for p in everything if error(p) <= error(plan))
    assert us(found[0]) == min(us(p) for p in everything)


@given(layers(), st.floats(0.01, 100))
def test_some_plan_is_best_for_every_price(choices: list[list[Choice]], price: float) -> None:
    def cost(plan: Plan) -> float:
        return us(plan) + price * error(plan)

    best = min(cost(p) for p in itertools.product(*choices))
    assert min(cost(p) for p in plans(choices)) <= best * (1 + 1e-12)


@given(layers())
def test_plans_become_more_exact_and_the_last_keeps_all(choices: list[list[Choice]]) -> None:
    found = plans(choices)
    assert all(choice.keeps for choice in found[-1])
    assert len(set(found)) == len(found)
    for slower, plan in itertools.pairwise(reversed(found[:-1])):
        assert error(slower) < error(plan)
        assert us(slower) > us(plan)


def test_errors_of_any_scale_are_told_apart() -> None:
    exact = Choice(None, 8, 50.0, 1e-17)
    coarse = [Choice(None, 16 * i, 10.0 * i, 1e-2 / i**3) for i in range(1, 9)]
    keep = Choice(None, None, 1000.0, 0.0)
    found = plans([[exact, keep], [*coarse, keep]])
    assert [plan[1] for plan in found if plan[0] == exact][:8] == coarse


@given(st.integers(1, 40), st.integers(0, 60))
def test_bisection_finds_the_most_aggressive_plan_that_fits(count: int, first: int) -> None:
    ordered: list[Plan] = [(Choice(None, i + 1, float(i), 0.0),) for i in range(count)]
    asked = []

    def fits(plan: Plan) -> bool:
        asked.append(plan)
        return ordered.index(plan) >= first

    assert most_aggressive(ordered, fits) == ordered[min(first, count - 1)]
    assert len(asked) <= count.bit_length()


@settings(max_examples=200)
@given(layers(), st.lists(st.floats(0, 3), min_size=3, max_size=3), st.floats(0, 60), st.data())
def test_no_layer_of_a_refined_plan_has_a_faster_choice_that_fits(
    choices: list[list[Choice]], weights: list[float], budget: float, data: st.DataObject
) -> None:
    def fits(plan: Plan) -> bool:
        # Layers weigh otherwise than their estimated errors say.
        return sum(w * c.error for w, c in zip(weights, plan, strict=False)) <= budget

    begun = data.draw(st.sampled_from([plan for plan in plans(choices) if fits(plan)]))
    found = refined(begun, choices, fits)
    assert fits(found)
    assert us(found) <= us(begun)
    for number, layer in enumerate(choices):
        for choice in layer:
            other = (*found[:number], choice, *found[number + 1 :])
            assert choice.us >= found[number].us or not fits(other)


def test_choices_that_are_nearly_as_fast_are_left_out() -> None:
    choices = [Choice(rank, None, us, 0.0) for rank, us in enumerate((1.0, 1.9, 2.0, 3.5, 4.0))]
    assert [c.us for c in apart(choices, 1.0)] == [1.0, 2.0, 4.0]
    assert [c.us for c in apart(choices, 5.0)] == [4.0]
    assert apart(choices, 0.0) == choices


def test_a_milder_plan_gives_up_the_least_time_for_the_error() -> None:
    def layer(*figures: tuple[float, float]) -> list[Choice]:
        return [Choice(None, None, us, error) for us, error in figures]

    cheap, dear = layer((1, 0.6), (2, 0.2), (9, 0.0)), layer((1, 0.4), (8, 0.0))
    plan = (cheap[0], dear[0])
    assert milder(plan, [cheap, dear], 1.0) == plan
    assert milder(plan, [cheap, dear], 0.7) == (cheap[1], dear[0])
    assert milder(plan, [cheap, dear], 0.5) == (cheap[1], dear[1])
    assert milder(plan, [cheap, dear], 0.0) == (cheap[2], dear[1])
