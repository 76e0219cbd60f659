"""What a layer does to its channels: how many, how they mix, and how many directions that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pwopt.pictures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

_KEPT = 99.5  # percentile of the weights that the colours reach to
_ENERGY = (0.9, 0.99)  # of which the picture says how many directions they take


@dataclass(frozen=True)
class Chain:
    """Convolutions one after another.

    Attributes:
        widths: channels, one more than kernels.
        kernels: such as "1x1" and "3x3".
    """

    widths: tuple[int, ...]
    kernels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Channels:
    """One layer.

    Attributes:
        node: as the report calls it.
        name: the user's.
        macs: multiply-accumulates.
        before: the layer.
        after: what took its place, if anything did.
        matrix: (outputs, inputs) of a 1x1 convolution, None for other kernels.
        rank_in, rank_out: channels that were kept of either side, None where all are.
        spectrum, spectrum_in: share of the responses' energy in each direction, of outputs and
            inputs; empty where not known.
    """

    node: str
    name: str
    macs: int
    before: Chain
    after: Chain | None = None
    matrix: np.ndarray | None = None
    rank_in: int | None = None
    rank_out: int | None = None
    spectrum: tuple[float, ...] = ()
    spectrum_in: tuple[float, ...] = ()


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Of a mixing matrix, falling; float64."""
    values: np.ndarray = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return values


def directions(energy: np.ndarray, share: float) -> int:
    """How many directions hold a share of the energy."""
    total = float(energy.sum()) or 1.0
    enough = int(np.searchsorted(np.cumsum(energy) / total, share - 1e-9)) + 1
    return min(enough, len(energy))


def draw_channels(layer: Channels, title: str) -> Figure:
    """A layer as a picture: channels as bars, the matrix as a heat map, and the spectrum."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with style.style():
        panels = [_draw_chains, *([_draw_matrix] if layer.matrix is not None else [])]
        panels += [_draw_spectrum] if layer.matrix is not None or layer.spectrum else []
        ratios = {_draw_chains: 1.0, _draw_matrix: 1.25, _draw_spectrum: 1.35}
        widths = [ratios[each] for each in panels]
        if len(panels) == 2:
            widths = [1.2, 1.5]
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06)
        figure = Figure(figsize=(3.3 * sum(widths), 3.9), layout=layout)
        figure.suptitle(title, x=0.012, ha="left", fontweight="bold")
        grid = figure.add_gridspec(1, len(panels), width_ratios=widths)
        for number, draw in enumerate(panels):
            draw(figure, grid[0, number], layer)
    return figure


def _draw_chains(figure: Figure, cell: SubplotSpec, layer: Channels) -> None:
    """The number of channels before and, below, after."""
    chains = [layer.before, *([layer.after] if layer.after else [])]
    names = ["before", "after"] if layer.after else [""]
    grid = cell.subgridspec(len(chains), 1)
    top = max(width for chain in chains for width in chain.widths)
    steps = max(len(chain.widths) for chain in chains)
    for number, (chain, name) in enumerate(zip(chains, names, strict=True)):
        axes = figure.add_subplot(grid[number])
        _draw_chain(axes, chain, top, steps)
        if number == 0:
            axes.set_title("channels", loc="left", fontsize=10)
        axes.set_ylabel(name, color=style.GREY)


def _draw_chain(axes: Axes, chain: Chain, top: int, steps: int) -> None:
    width, widths = 0.34, chain.widths
    places = np.linspace(0, steps - 1, len(widths)) if len(widths) > 1 else np.zeros(1)
    last = len(widths) - 1
    colors = [style.BLUE if i in (0, last) else style.GREEN for i in range(len(widths))]
    for left, right, a, b, kernel in zip(
        places, places[1:], widths, widths[1:], chain.kernels, strict=False
    ):
        x = (left + width / 2, right - width / 2)
        axes.fill_between(x, (a, b), color=style.BLUE, alpha=0.13, linewidth=0)
        axes.text(sum(x) / 2, (a + b) / 4, kernel, ha="center", va="center", color="0.2")
    bars = axes.bar(places, widths, width, color=colors)
    axes.bar_label(bars, [str(each) for each in widths], padding=2, fontweight="bold")
    axes.set_xlim(-0.45, steps - 1 + 0.45)
    axes.set_ylim(0, 1.22 * top)
    ends = [places[0], places[-1]]
    axes.set_xticks(ends, ["in", "out"])
    axes.tick_params(axis="both", length=0)
    axes.set_yticks([])
    style.strip(axes, "top", "right", "left")


def _draw_matrix(figure: Figure, cell: SubplotSpec, layer: Channels) -> None:
    """The mixing matrix, a row for each output channel."""
    assert layer.matrix is not None
    axes = figure.add_subplot(cell)
    sizes = np.abs(layer.matrix)
    largest = float(sizes.max(initial=0.0))
    reach = float(np.percentile(sizes, _KEPT)) or largest or 1.0
    image = axes.imshow(
        layer.matrix, cmap=style.DIVERGING, vmin=-reach, vmax=reach,
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    bar = figure.colorbar(
        image, ax=axes, extend="both" if largest > reach else "neither", aspect=30, pad=0.02
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    axes.set_title("mixing matrix", loc="left", fontsize=10, pad=22)
    axes.set_xlabel("input channel")
    axes.set_ylabel("output channel")
    for axis, size in ((axes.xaxis, layer.matrix.shape[1]), (axes.yaxis, layer.matrix.shape[0])):
        axis.set_ticks(_marks(size))
    axes.tick_params(labelsize=8)
    style.strip(axes, "top", "right", "left", "bottom")


def _draw_spectrum(figure: Figure, cell: SubplotSpec, layer: Channels) -> None:
    """Bars for the directions, lines for the energy of the first so many of them."""
    axes = figure.add_subplot(cell)
    if layer.matrix is not None:
        bars = singular_values(layer.matrix)
        energy, title = bars**2, "singular values, and the energy of the first so many"
    else:
        bars = energy = np.asarray(layer.spectrum)
        title = "energy of the responses by direction, and of the first so many"
    places = np.arange(1, len(bars) + 1)
    axes.bar(places, bars, 0.8 if len(bars) <= 80 else 1.0, color=style.pale(style.BLUE))
    axes.set_title(title, loc="left", fontsize=10, pad=22)
    some, most = (f"{share:.0%}" for share in _ENERGY)
    few, many = (directions(energy, share) for share in _ENERGY)
    axes.set_xlabel(f"direction: {some} of the energy in {few}, {most} in {many} of {len(bars)}")
    axes.set_xlim(0.4, len(bars) + 0.6)
    axes.set_xticks([max(1, mark) for mark in _marks(len(bars) + 1)])
    axes.set_ylim(0, 1.08 * (float(bars.max(initial=0.0)) or 1.0))
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", labelcolor=style.BLUE)
    style.strip(axes, "top", "right")
    shares = axes.twinx()
    name = "weights" if layer.matrix is not None else "outputs"
    _draw_energy(shares, energy, style.BLUE, name, "-")
    if layer.matrix is not None and layer.spectrum:
        _draw_energy(shares, np.asarray(layer.spectrum), style.GREEN, "responses", "--")
    if layer.matrix is None and layer.spectrum_in:
        _draw_energy(shares, np.asarray(layer.spectrum_in), style.ORANGE, "inputs", "--")
        axes.set_xlim(0.4, max(len(bars), len(layer.spectrum_in)) + 0.6)
        axes.set_xticks([max(1, m) for m in _marks(max(len(bars), len(layer.spectrum_in)) + 1)])
    shares.set_ylim(0, 1.08)
    shares.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    shares.tick_params(labelsize=8, length=0)
    style.strip(shares, "top", "left", "right")
    _mark_ranks(shares, layer)
    shares.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=4, fontsize=8, frameon=False,
        handlelength=1.6, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip


def _draw_energy(axes: Axes, energy: np.ndarray, color: str, name: str, line: str) -> None:
    total = float(energy.sum()) or 1.0
    places = np.arange(1, len(energy) + 1)
    axes.plot(places, np.cumsum(energy) / total, line, color=color, linewidth=1.8, label=name)


def _mark_ranks(axes: Axes, layer: Channels) -> None:
    """Lines at the ranks that were chosen."""
    outputs = "outputs kept" if layer.rank_in is not None else "kept"
    ranks: Sequence[tuple[int | None, str, str, str, float]] = (
        (layer.rank_out, outputs, style.RED, "-", 1.4),
        (layer.rank_in, "inputs kept", style.ORANGE, ":", 2.8),  # both show at one place
    )
    for rank, text, color, line, width in ranks:
        if rank is not None:
            axes.axvline(
                rank + 0.5, color=color, linewidth=width, linestyle=line, label=f"{rank} {text}"
            )


def _marks(size: int) -> list[int]:
    """A few round places on an axis of so many channels."""
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, size) if size <= 6 * s)
    return list(range(0, size, step))
