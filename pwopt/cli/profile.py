"""``pwopt profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pwopt.cli.console import Progress, console, print_json
from pwopt.cli.options import JsonOption, QuietOption
from pwopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from pwopt.targets.timing import KernelTiming


def profile(
    executable: Annotated[
        Path,
        typer.Argument(
            metavar="EXE|DIR",
            help="An executable, or the folder that `pwopt optimize` wrote.",
            show_default=False,
        ),
    ],
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend, about.")] = 2.0,
    top: Annotated[int, typer.Option(min=0, help="Kernels shown, the slowest first.")] = 20,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Measures every kernel of an executable, in its place among the others."""
    from pwopt import hardware, report
    from pwopt.targets.executable import load_executable

    path = executable / "model.so" if executable.is_dir() else executable
    if not path.is_file():
        raise UsageError(f"{path}: no such file; make it with `pwopt optimize`")
    loaded = load_executable(path)
    with Progress(quiet) as progress:
        progress("measuring")
        found = loaded.profile(seconds=seconds)
    threads = loaded.manifest.threads
    if json_:
        facts = {"file": path, "metadata": loaded.metadata, "threads": threads}
        print_json(report.plain_json({**facts, "hardware": hardware.host(), "kernels": found}))
        return
    console().print(_table(found, top, hardware.host().peak_gflops * threads))


def _table(found: Sequence[KernelTiming], top: int, peak_gflops: float) -> Table:
    """The slowest kernels, and what the others take together."""
    from rich.markup import escape
    from rich.table import Table

    from pwopt.units import human, microseconds

    total = sum(each.us for each in found) or 1.0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("kernel")
    for heading in ("MACs", "measured", "predicted", "share", "of peak"):
        table.add_column(heading, justify="right")
    ordered = sorted(found, key=lambda each: -each.us)
    for each in ordered[:top]:
        works = each.macs and each.predicted_us and each.us  # it does the node's work
        table.add_row(
            escape(each.node or "output"),
            each.kernel,
            human(each.macs) if works else "",
            microseconds(each.us),
            microseconds(each.predicted_us) if each.predicted_us else "",
            f"{each.us / total:.1%}",
            f"{2e-3 * each.macs / each.us / peak_gflops:.0%}" if works else "",
        )
    for name, some in ((f"{len(ordered[top:])} others", ordered[top:]), ("all", ordered)):
        if some:
            us, predicted = sum(e.us for e in some), sum(e.predicted_us for e in some)
            table.add_row(
                name, "", "", microseconds(us), microseconds(predicted), f"{us / total:.1%}", ""
            )
    return table
