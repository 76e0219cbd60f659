"""What all pictures share: colours, fonts, and how they become files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pwopt.errors import PwoptError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY = "0.45"  # of remarks
DIVERGING = "RdBu_r"  # red above zero, blue below


def require_matplotlib(what: str) -> None:
    """Makes sure, before anything is computed, that pictures can be drawn.

    Args:
        what: needs it, for the message.

    Raises:
        UsageError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} needs matplotlib; pip install 'pwopt[plot]'")


@contextmanager
def style() -> Iterator[None]:
    """Fonts of the figures that are made and saved inside."""
    import matplotlib as mpl

    # Without random names the same numbers give the same file. A $ in a name is no formula.
    with mpl.rc_context({"svg.hashsalt": "pwopt", "font.size": 10, "text.parse_math": False}):
        yield


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the file's suffix is the format.

    Raises:
        PwoptError: the file cannot be written.
    """
    try:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with style():
            figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise PwoptError(f"{path}: cannot be written: {error.strerror}") from error


def strip(axes: Axes, *spines: str) -> None:
    """Takes lines away that frame nothing."""
    axes.spines[list(spines)].set_visible(False)


def pale(color: str) -> tuple[float, ...]:
    """A colour on its way to white; opaque, so that nothing shines through."""
    from matplotlib.colors import to_rgb

    return tuple(0.28 * part + 0.72 for part in to_rgb(color))


def bare(label: str) -> str:
    """A node's name without its operator: ``conv1`` of ``Conv 'conv1'``."""
    name = label.partition(" '")[2]
    return name.removesuffix("'") if name else label


def short(name: str, limit: int = 34) -> str:
    """A name, the middle left out where it is long."""
    if len(name) <= limit:
        return name
    keep = (limit - 1) // 2
    return f"{name[:keep]}…{name[-keep:]}"
