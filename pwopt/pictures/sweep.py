"""Accuracy against latency for a sweep of budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pwopt.pictures import style
from pwopt.sweep import Point, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_sweep(sweep: Sweep, title: str) -> Figure:
    """Latency to the right, quality up; the original is a star."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with style.style():
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        series = [("predicted", [p.predicted_us for p in sweep.points], style.BLUE, "o", "--")]
        measured = [p.measured_us for p in sweep.points if p.measured_us is not None]
        if len(measured) == len(sweep.points):
            series.append(("measured", measured, style.GREEN, "s", "-"))
        quality = [p.quality for p in sweep.points]
        times = [value for _, values, *_ in series for value in values]
        scale, unit = (1e3, "ms") if max(times) >= 1e3 else (1.0, "us")
        axes.axhline(quality[0], color="0.7", linewidth=1, zorder=0)
        for name, values, color, marker, line in series:
            x = [value / scale for value in values]
            order = sorted(range(len(x)), key=lambda i: x[i])
            axes.plot([x[i] for i in order], [quality[i] for i in order], line, color=color)
            axes.plot(x[1:], quality[1:], marker, color=color, markersize=7, label=name)
            axes.plot(x[0], quality[0], "*", color=color, markersize=17)
        for point in sweep.points:
            if point.quartiles_us is not None:
                ends = [value / scale for value in point.quartiles_us]
                axes.plot(ends, [point.quality] * 2, "|-", color=style.GREEN, markersize=9)
        low, high = min(quality), max(quality)
        room = 0.18 * (high - low) or 0.01
        axes.set_ylim(low - room, high + room)
        left = 0.0 if min(times) < 0.5 * max(times) else 0.85 * min(times)
        axes.set_xlim(left / scale, 1.06 * max(times) / scale)
        _label(axes, sweep.points, [v / scale for v in series[-1][1]])
        axes.set_title(title, loc="left", fontweight="bold", pad=12)
        axes.set_ylabel(sweep.metric)
        digits = 1 if high - low > 0.004 else 2
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=digits))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        style.strip(axes, "top", "right")
        axes.legend(loc="lower right", frameon=False, title="star: original\nnumbers: budgets")
        figure.text(0.012, 0.0, sweep.note, fontsize=8, color=style.GREY, va="bottom")
        axes.set_xlabel(f"latency, {unit}\n", linespacing=1.6)
    return figure


def _label(axes: Axes, points: Sequence[Point], x: Sequence[float]) -> None:
    """Budgets beside their points; those at one place share a label."""
    near = 0.02 * (axes.get_xlim()[1] - axes.get_xlim()[0])
    places: list[tuple[float, float, list[str]]] = []
    for point, at in zip(points[1:], x[1:], strict=True):
        same = [b for a, q, b in places if q == point.quality and abs(a - at) < near]
        if same:
            same[0].append(f"{point.budget:g}")
        else:
            places.append((at, point.quality, [f"{point.budget:g}"]))
    for at, quality, budgets in places:
        axes.annotate(
            ", ".join(budgets), (at, quality), (-8, 6),
            textcoords="offset points", ha="right", fontsize=9, color="0.2",
        )  # fmt: skip
