"""The picture of accuracy against latency."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.pictures.sweep import draw_sweep
from pwopt.sweep import Point, Sweep

POINTS = (
    Point(None, 0.92, 1500.0, 1400.0, 0, 60_000),
    Point(0.01, 0.915, 1200.0, 1000.0, 2, 50_000),
    Point(0.02, 0.915, 1200.0, 1000.0, 2, 50_000),
    Point(0.05, 0.88, 800.0, 750.0, 4, 20_000),
)


def lines(sweep: Sweep) -> dict[str, np.ndarray]:
    (axes,) = draw_sweep(sweep, "net").axes
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def test_points_are_latency_and_quality() -> None:
    found = lines(Sweep("accuracy", POINTS, ""))
    wanted = [[p.predicted_us / 1e3, p.quality] for p in POINTS[1:]]
    assert found["predicted"].tolist() == wanted
    wanted = [[(p.measured_us or 0) / 1e3, p.quality] for p in POINTS[1:]]
    assert found["measured"].tolist() == wanted


def test_the_original_is_a_star() -> None:
    (axes,) = draw_sweep(Sweep("accuracy", POINTS, ""), "net").axes
    stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
    places = [np.asarray(line.get_xydata()).tolist() for line in stars]
    assert places == [[[1.5, 0.92]], [[1.4, 0.92]]]
    assert axes.get_ylabel() == "accuracy"
    assert axes.get_xlabel().strip() == "latency, ms"


def test_budgets_at_one_place_share_a_label() -> None:
    (axes,) = draw_sweep(Sweep("accuracy", POINTS, "250 examples"), "net").axes
    assert [t.get_text() for t in axes.texts] == ["0.01, 0.02", "0.05"]


@pytest.mark.parametrize("quality", [0.9, 0.1])
def test_without_measurements_and_without_a_loss(quality: float) -> None:
    points = tuple(Point(b, quality, 100.0, None, 0, 1) for b in (None, 0.01))
    assert "measured" not in lines(Sweep("accuracy", points, ""))
