"""The suite as a picture: latencies relative to the best peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pwopt.bench.suite import SuiteRow, geometric_mean, summarize
from pwopt.errors import PwoptError, UsageError
from pwopt.pictures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO, bf16",
    "compiled": "pwopt, compiled",
}
# A shape of its own for each; sizes show both of two at one place.
_STYLES: Mapping[str, dict[str, Any]] = {
    "onnxruntime": {"color": style.BLUE, "marker": "o", "s": 90},
    "openvino": {"color": style.ORANGE, "marker": "D", "s": 30},
    "openvino-bf16": {"color": style.ORANGE, "marker": "D", "s": 30},
    "compiled": {"color": style.GREEN, "marker": "s", "s": 40},
}
_MEAN = "geometric mean"


def check_plot(path: Path) -> None:
    """Makes sure, before anything is measured, that a picture can be drawn into a file.

    Raises:
        UsageError: matplotlib is missing, or the name says no known format.
    """
    if path.suffix[1:] not in style.FORMATS:
        endings = " or ".join(f".{name}" for name in style.FORMATS)
        raise UsageError(f"--plot {path}: its name must end in {endings}")
    style.require_matplotlib("--plot")


def draw_suite(rows: Sequence[SuiteRow], path: Path, caption: str) -> None:
    """Draws the networks that ran, and their geometric means.

    Args:
        rows: of the suite.
        path: file to write; its suffix is the format.
        caption: where it was measured.

    Raises:
        PwoptError: nothing ran, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    good = [row for row in rows if not row.failure]
    if not good:
        raise PwoptError("nothing to draw: no network ran")
    points = {row.name: relative(row) for row in good}
    points[_MEAN] = _means(list(points.values()))
    latencies = {row.name: _latencies(row) for row in good}
    latencies[_MEAN] = f"{summarize(good).onnxruntime:.2f} of ONNX Runtime"
    with style.style():
        figure = Figure(figsize=(8.6, 1.5 + 0.34 * len(points)), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, points, latencies)
        axes.set_title("latency relative to the faster of the other runtimes", pad=26, loc="left")
        axes.set_xlabel(caption, loc="left", color=style.GREY, fontsize=9)
    style.save(figure, path)


def relative(row: SuiteRow) -> dict[str, float]:
    """Latency over the best peer's, by contender that is drawn."""
    ratios = {"onnxruntime": 1.0} | {name: r.median for name, r in row.ratio.items()}
    return {name: ratios[name] / ratios[row.best_peer] for name in _LABELS if name in ratios}


def _means(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: geometric_mean([each[name] for each in points]) for name in points[0]}


def _latencies(row: SuiteRow) -> str:
    before, after = row.latency_ms[row.best_peer].median, row.latency_ms["compiled"].median
    return f"{before:.3g} → {after:.3g} ms"


def _draw(
    axes: Axes, points: Mapping[str, Mapping[str, float]], latencies: Mapping[str, str]
) -> None:
    from matplotlib.ticker import MultipleLocator

    names = list(points)
    heights = [-float(i) - 0.4 * (name == _MEAN) for i, name in enumerate(names)]
    compiled = [points[name]["compiled"] for name in names]
    axes.barh(heights, compiled, height=0.62, color=style.GREEN, alpha=0.25, zorder=1)
    axes.axvline(1.0, color="0.35", linewidth=1, zorder=2)
    contenders = list(points[names[0]])
    for contender in contenders:
        across = [points[name][contender] for name in names]
        label, look = _LABELS[contender], _STYLES[contender]
        axes.scatter(
            across,
            heights,
            label=label,
            zorder=3,
            edgecolors="white",
            linewidths=0.8,
            **look,
        )
    for y, x in zip(heights, compiled, strict=True):
        axes.annotate(
            f"{x:.2f}", (x, y), (-7, 0), textcoords="offset points", ha="right", va="center"
        )
    right = max(1.05, *(x for each in points.values() for x in each.values()))
    for name, y in zip(names, heights, strict=True):
        axes.annotate(
            latencies[name],
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color="0.3",
        )
    axes.set_xlim(0, 1.04 * right)
    axes.set_ylim(heights[-1] - 0.6, 0.6)
    axes.xaxis.set_major_locator(MultipleLocator(0.5))
    axes.set_yticks(heights, names)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(contenders), frameon=False,
        borderaxespad=0.2, handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip
