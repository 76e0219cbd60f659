"""``pwopt compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pwopt.cli.console import Progress, command_line, console, print_json
from pwopt.cli.options import (
    JsonOption,
    ModelArgument,
    QuietOption,
    ShapeOption,
    parse_shapes,
)


def compare(
    model: ModelArgument,
    compiled: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|EXE|ONNX",
            help="What `pwopt optimize` wrote, its model.so, or another ONNX model.",
            show_default=False,
        ),
    ],
    runs: Annotated[
        int | None, typer.Option(min=1, help="Samples per contender; default: about ten seconds.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of one inference; default: the executable's.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime (always there), openvino, openvino-bf16, onnxruntime-cuda, tensorrt, "
            "torch-compile; comma-separated."
        ),
    ] = None,
    input_shape: ShapeOption = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page to write; default: report.html in the folder of `pwopt optimize`.",
        ),
    ] = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Measures what was compiled against ONNX Runtime on MODEL, interleaved.

    MODEL may be an executable, too: the other one is then measured against it.
    """
    from pwopt import page as pages
    from pwopt.comparison import compare as measure

    names = [n.strip() for each in baseline or ["onnxruntime"] for n in each.split(",")]
    with Progress(quiet) as progress:
        progress("measuring")
        table = measure(
            model,
            compiled,
            runs=runs,
            threads=threads,
            baselines=names,
            input_shapes=parse_shapes(input_shape),
            profile=True,
        )
    table = replace(table, command=command_line())
    written = pages.write_comparison(table, compiled, html)
    if json_:
        print_json(table.to_json())
    else:
        screen = console()
        screen.print(table.render())
        if written is not None:
            screen.print(f"written {written}", markup=False)
