"""How much accuracy a model loses and how much time it wins, for several budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pwopt import calibration, compilation, driver, hardware
from pwopt.approximation import Approximation
from pwopt.calibration import Calibration
from pwopt.driver import Optimized
from pwopt.errors import PwoptError
from pwopt.ir.graph import Graph
from pwopt.lossy import load_examples
from pwopt.running import input_types
from pwopt.timing import interleaved

_QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Point:
    """The model for one budget.

    Attributes:
        budget: of ``insert-bottlenecks``; None for the original.
        quality: by the sweep's metric, more is better.
        predicted_us: of one inference by the cost model, one core.
        measured_us: of one inference, compiled; the median of runs that take turns with those of
            the other points. None where they cannot be compiled or run here.
        quartiles_us: the first and the third of these runs.
        replaced: layers that were.
        parameters: of the model.
    """

    budget: float | None
    quality: float
    predicted_us: float
    measured_us: float | None
    replaced: int
    parameters: int
    quartiles_us: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sweep:
    """Models for several budgets.

    Attributes:
        metric: "accuracy", "agreement with the original" or "1 - relative error".
        points: the original after the exact passes, then one for each budget.
        note: on what and where it was measured.
    """

    metric: str
    points: tuple[Point, ...]
    note: str


def run_sweep(
    model: Graph,
    budgets: Sequence[float],
    *,
    calibration: Calibration | Path | None = None,
    preprocessing: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Sweep:
    """Optimizes a model for this machine once for each budget.

    Args:
        model: is not changed.
        budgets: of ``insert-bottlenecks``.
        calibration: examples, or a file or folder of them; random numbers if left out.
        preprocessing: of images and bytes.
        progress: called with a few words at the start of each step.

    Raises:
        PwoptError: no layer can be replaced, or an optimization failed.
    """
    data = None if calibration is None else load_examples(calibration, model, preprocessing)
    progress("the original")
    machine = hardware.host()
    original, made = driver.optimize(model, verify=False, hardware=machine), []
    for budget in budgets:
        progress(f"budget {budget:g}")
        found = driver.optimize(
            model, verify=False, hardware=machine, bottleneck=budget, calibration=data
        )
        if not found.report.approximations:
            raise PwoptError("nothing to sweep: no convolution or FC layer can be made narrower")
        made.append((budget, found))
    first = made[0][1].report.approximations[0]
    metric, best = _quality(first, original=True)
    progress("measuring")
    times = _measured([original, *(each for _, each in made)], data)
    points = [_point(None, best, original, times[0])]
    for (budget, each), time in zip(made, times[1:], strict=True):
        points.append(_point(budget, _quality(each.report.approximations[0])[1], each, time))
    source = Path(first.source).name
    note = f"{first.loss.examples} held-out examples of {source}; one core of {machine.mcpu}"
    return Sweep(metric, tuple(points), note)


def _quality(made: Approximation, original: bool = False) -> tuple[str, float]:
    """What is drawn for a metric, and its value."""
    loss = made.loss
    accuracy = loss.accuracy_before if original else loss.accuracy_after
    if accuracy is not None and not made.random:
        return "accuracy", accuracy
    if loss.agreement is not None and not made.random:
        return "agreement with the original", 1.0 if original else loss.agreement
    return "1 - relative error", 1.0 if original else 1.0 - loss.l2


def _point(
    budget: float | None, quality: float, made: Optimized, times: tuple[float, ...] | None
) -> Point:
    report = made.report
    replaced = sum(len(each.layers) for each in report.approximations)
    point = Point(
        budget, quality, report.after.predicted_us or 0.0, None, replaced, report.after.parameters
    )
    if times is None:
        return point
    first, median, third = times
    return replace(point, measured_us=median, quartiles_us=(first, third))


def _measured(
    made: Sequence[Optimized], data: Calibration | None
) -> list[tuple[float, ...]] | list[None]:
    """Quartiles of an inference's time for each model, microseconds; one thread."""
    types = input_types(made[0].graph)
    try:
        examples = data or calibration.random(types, calibration.batch_size(types, 1))
        feeds = next(examples.batches(calibration.batch_size(types, 1)))
        executables = [compilation.compile(each.graph) for each in made]
        samples, _ = interleaved(executables, feeds)
    except PwoptError:
        return [None] * len(made)
    return [tuple(np.quantile([1e6 * s.wall for s in each], _QUARTILES)) for each in samples]
