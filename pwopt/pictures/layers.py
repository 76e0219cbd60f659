"""Parameters and multiply-accumulates by layer, before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pwopt.pictures import style
from pwopt.units import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 60
_LOG_FROM = 30  # times the median that the largest may be on a linear scale


@dataclass(frozen=True)
class LayerSize:
    """One layer.

    Attributes:
        node: as the report calls it; "" for several together.
        name: the user's.
        pointwise: whether it is a 1x1 convolution.
        parameters, macs: weights and biases, and multiply-accumulates.
        parameters_after, macs_after: of what stands in its place now.
    """

    node: str
    name: str
    pointwise: bool
    parameters: int
    macs: int
    parameters_after: int
    macs_after: int

    @property
    def changed(self) -> bool:
        """Whether something else stands in its place."""
        before, after = (self.parameters, self.macs), (self.parameters_after, self.macs_after)
        return before != after


def draw_layers(sizes: Sequence[LayerSize], name: str) -> Figure:
    """Layers from top to bottom, parameters on the left and multiply-accumulates on the right.

    Args:
        sizes: in the order of the network, at least one.
        name: of the model.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    rows = largest(sizes)
    compared = any(each.changed for each in rows)
    with style.style():
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
        figure = Figure(figsize=(9.6, 1.5 + 0.27 * len(rows)), layout=layout)
        figure.suptitle(_title(sizes, name), x=0.012, ha="left", fontweight="bold")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw(left, rows, lambda s: (s.parameters, s.parameters_after), "parameters", compared)
        _draw(right, rows, lambda s: (s.macs, s.macs_after), "multiply-accumulates", compared)
        left.set_yticks(range(len(rows)), [style.short(each.name) for each in rows])
        for tick, each in zip(left.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if each.changed else "normal")
        left.set_ylim(len(rows) - 0.4, -0.6)
        colors = {_color(each) for each in rows}
        kinds = {style.GREEN: "1x1 convolution", style.BLUE: "other layer"}
        legend = [Patch(color=c, label=kind) for c, kind in kinds.items() if c in colors]
        if compared:
            legend += [Patch(color="0.8", label="before"), Patch(color="0.35", label="after")]
        figure.legend(handles=legend, loc="outside lower left", ncols=4, frameon=False)
    return figure


def largest(sizes: Sequence[LayerSize]) -> list[LayerSize]:
    """At most :data:`MAX_ROWS` of them, in order: changed ones and the largest, and the others."""
    if len(sizes) <= MAX_ROWS:
        return list(sizes)
    order = sorted(range(len(sizes)), key=lambda i: (not sizes[i].changed, -sizes[i].macs))
    kept, rest = sorted(order[: MAX_ROWS - 1]), [sizes[i] for i in order[MAX_ROWS - 1 :]]
    others = replace(
        rest[0],
        node="",
        name=f"{len(rest)} others",
        pointwise=False,
        parameters=sum(s.parameters for s in rest),
        macs=sum(s.macs for s in rest),
        parameters_after=sum(s.parameters_after for s in rest),
        macs_after=sum(s.macs_after for s in rest),
    )
    return [*(sizes[i] for i in kept), others]


def _title(sizes: Sequence[LayerSize], name: str) -> str:
    parts = []
    for word, before, after in (
        ("parameters", [s.parameters for s in sizes], [s.parameters_after for s in sizes]),
        ("MACs", [s.macs for s in sizes], [s.macs_after for s in sizes]),
    ):
        change = "" if before == after else f" → {human(sum(after))}"
        parts.append(f"{human(sum(before))}{change} {word}")
    return f"{name}: {', '.join(parts)}"


def _color(size: LayerSize) -> str:
    if not size.node:
        return style.GREY
    return style.GREEN if size.pointwise else style.BLUE


def _draw(
    axes: Axes,
    rows: Sequence[LayerSize],
    of: Callable[[LayerSize], tuple[int, int]],
    title: str,
    compared: bool,
) -> None:
    """Bars of what was before, pale where there is a comparison, and of what is now upon them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    colors = [_color(each) for each in rows]
    places = np.arange(len(rows))
    before, after = ([of(each)[i] for each in rows] for i in (0, 1))
    if compared:
        axes.barh(places, before, 0.78, color=[style.pale(c) for c in colors])
    axes.barh(places, after, 0.46 if compared else 0.7, color=colors)
    positive = [v for v in (*before, *after) if v > 0] or [1]
    top = max(positive)
    if top > _LOG_FROM * float(np.median(positive)):
        axes.set_xscale("log")
        axes.set_xlim(0.5 * min(positive), (6 if compared else 2) * top)
        title += ", logarithmic"
    else:
        axes.set_xlim(0, 1.2 * top)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for y, each, a, b in zip(places, rows, before, after, strict=True):
        if each.changed and a and a != b:
            axes.annotate(
                f"{b / a:.2f}x", (max(a, b), y), (4, 0),
                textcoords="offset points", va="center", fontsize=8, color="0.2",
            )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
    axes.xaxis.set_minor_formatter("")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8)
    style.strip(axes, "top", "right", "left")
