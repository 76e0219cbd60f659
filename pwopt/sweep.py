"""How much accuracy a model loses and how much time it wins, for several budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pwopt import driver, hardware, layers
from pwopt.approximation import Approximation
from pwopt.calibration import Calibration
from pwopt.driver import Optimized
from pwopt.errors import CodegenError, PwoptError
from pwopt.ir.graph import Graph
from pwopt.lossy import load_examples


@dataclass(frozen=True)
class Point:
    """The model for one budget.

    Attributes:
        budget: of ``insert-bottlenecks``; None for the original.
        quality: by the sweep's metric, more is better.
        predicted_us: of one inference by the cost model, one core.
        measured_us: its kernels' time, None where one cannot be measured.
        replaced: layers that were.
        parameters: of the model.
    """

    budget: float | None
    quality: float
    predicted_us: float
    measured_us: float | None
    replaced: int
    parameters: int


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
    points = [_point(None, best, original)]
    for budget, each in made:
        points.append(_point(budget, _quality(each.report.approximations[0])[1], each))
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


def _point(budget: float | None, quality: float, made: Optimized) -> Point:
    report = made.report
    replaced = sum(len(each.layers) for each in report.approximations)
    after, time = report.after, _measured(made)
    return Point(budget, quality, after.predicted_us, time, replaced, after.parameters)


def _measured(made: Optimized) -> float | None:
    try:
        return sum(layers.measure(made.graph, made.report.hardware).values())
    except CodegenError:
        return None
