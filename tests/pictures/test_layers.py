"""The picture of parameters and multiply-accumulates by layer."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from pwopt.pictures import style
from pwopt.pictures.layers import MAX_ROWS, LayerSize, draw_layers, largest

SIZES = [
    LayerSize("Conv 'a'", "a", False, 1728, 1_700_000, 1728, 1_700_000),
    LayerSize("Conv 'b'", "b", True, 2048, 500_000, 1024, 250_000),
    LayerSize("Gemm 'c'", "c", False, 5120, 5000, 5120, 5000),
]


def bars(axes: Axes) -> list[list[float]]:
    """Lengths, one list for before where it is drawn, one for after."""
    return [
        [bar.get_width() for bar in each.patches]
        for each in axes.containers
        if isinstance(each, BarContainer)
    ]


def test_bars_are_parameters_and_macs() -> None:
    left, right = draw_layers(SIZES, "net").axes
    assert bars(left) == [[1728, 2048, 5120], [1728, 1024, 5120]]
    assert bars(right) == [[1.7e6, 5e5, 5000], [1.7e6, 2.5e5, 5000]]
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in left.texts] == ["0.50x"]


def test_the_title_has_the_totals() -> None:
    figure = draw_layers(SIZES, "net")
    assert figure.get_suptitle() == "net: 8.9 k → 7.87 k parameters, 2.21 M → 1.96 M MACs"
    same = [LayerSize("Conv 'a'", "a", True, 10, 20, 10, 20)]
    assert draw_layers(same, "net").get_suptitle() == "net: 10 parameters, 20 MACs"


def test_pointwise_convolutions_have_a_colour_of_their_own() -> None:
    axes = draw_layers(SIZES, "net").axes[0]
    after = axes.containers[-1]
    assert isinstance(after, BarContainer)
    colors = [to_hex(bar.get_facecolor()) for bar in after.patches]
    assert colors == [c.lower() for c in (style.BLUE, style.GREEN, style.BLUE)]


@pytest.mark.parametrize(("top", "scale"), [(5000, "linear"), (5_000_000, "log")])
def test_what_would_be_invisible_is_on_a_logarithmic_scale(top: int, scale: str) -> None:
    sizes = [LayerSize(f"Conv '{i}'", str(i), True, 900, 900, 900, 900) for i in range(3)]
    sizes.append(LayerSize("Conv 'x'", "x", True, top, 900, top, 900))
    left, right = draw_layers(sizes, "net").axes
    assert (left.get_xscale(), right.get_xscale()) == (scale, "linear")
    assert ("logarithmic" in left.get_title(loc="left")) is (scale == "log")


def test_many_layers_leave_the_small_ones_in_one_row() -> None:
    sizes = [LayerSize(f"Conv '{i}'", str(i), True, i, 10 * i, i, 10 * i) for i in range(1, 101)]
    sizes[2] = LayerSize("Conv '3'", "3", True, 3, 30, 1, 10)
    rows = largest(sizes)
    assert len(rows) == MAX_ROWS
    assert [r.name for r in rows[:2]] == ["3", "43"]
    assert rows[-1].name == "41 others"
    for field in ("parameters", "macs", "parameters_after", "macs_after"):
        assert sum(getattr(r, field) for r in rows) == sum(getattr(s, field) for s in sizes)
    labels = [t.get_text() for t in draw_layers(sizes, "net").axes[0].get_yticklabels()]
    assert labels[-1] == "41 others"


def test_long_names_are_cut_in_the_middle() -> None:
    assert style.short("model/features/block_12/expand/Conv2D", 21) == "model/feat…and/Conv2D"
    assert style.short("conv1") == "conv1"
    assert style.bare("Conv 'it's'") == "it's"
    assert style.bare("Conv #3") == "Conv #3"
