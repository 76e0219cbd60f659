"""``pwopt visualize``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from pwopt.cli.console import Progress, print_json
from pwopt.cli.options import JsonOption, ModelArgument, QuietOption, ShapeOption, parse_shapes
from pwopt.errors import UsageError


def visualize(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="[OUT]",
            help="What `pwopt optimize --bottleneck` or --replace-fc-head wrote.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the pictures go.")
    ] = Path("pictures"),
    format_: Annotated[
        str, typer.Option("--format", metavar="png|svg", help="Of the pictures.")
    ] = "png",
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Layers whose channels are drawn; may stand several times."
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=0, help="Else so many 1x1 convolutions, the most work first.")
    ] = 6,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="BUDGETS", help="Bottlenecks within each, e.g. 0.005,0.01,0.02."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Examples for the sweep: .npz, .npy, images' folder."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="Of images or bytes: imagenet, unit, scale=255,mean=..."),
    ] = None,
    input_shape: ShapeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Draws what MODEL's 1x1 convolutions do, and what approximating it cost and won."""
    from pwopt.visualize import Request
    from pwopt.visualize import visualize as draw

    request = Request(
        model=model,
        out=out,
        folder=output,
        format=format_,
        layers=tuple(layers or ()),
        top=top,
        sweep=_budgets(sweep),
        calibration=calibration,
        preprocessing=preprocessing,
        input_shapes=parse_shapes(input_shape),
    )
    with Progress(quiet) as progress:
        made = draw(request, progress)
    if json_:
        print_json(made.to_json())
        return
    for file in made.files:
        print(file)


def _budgets(text: str | None) -> tuple[float, ...]:
    """Budgets from ``0.005,0.01``."""
    try:
        budgets = tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        budgets = (-1.0,)
    if not all(0 <= each < math.inf for each in budgets):
        raise UsageError(f"--sweep {text}: write budgets such as 0.005,0.01,0.02")
    return budgets
