"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pwopt.errors import UsageError

ModelArgument = Annotated[Path, typer.Argument(help="An ONNX model.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME:DxDx...",
        help="Sizes for an input's open dimensions; an open batch is 1 if left out.",
    ),
]
LoadOption = Annotated[
    list[Path] | None,
    typer.Option("--load", metavar="FILE.py", help="Passes of your own; see docs/passes.md."),
]
DatabaseOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Tuning database; default: PWOPT_DATABASE, or your cache."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
PrecisionOption = Annotated[
    str, typer.Option(metavar="fp32|bf16", help="Of convolutions and matrix products.")
]
TargetPrecisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="fp32|bf16|fp16|tf32",
        help="Of convolutions and matrix products; default: fp32 on cpu, tf32 on cuda.",
    ),
]
FcWeightsOption = Annotated[
    str, typer.Option(metavar="fp32|bf16|int8", help="Weights of fully connected layers.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of one inference.")]


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes from ``NAME:1x3x224x224``.

    Raises:
        UsageError: a text that is none.
    """
    shapes = {}
    for text in texts or ():
        name, separator, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split("x"))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or min(shape) < 1:
            raise UsageError(f"--input-shape {text}: write NAME:1x3x224x224")
        shapes[name] = shape
    return shapes
