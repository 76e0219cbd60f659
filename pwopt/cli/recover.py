"""``pwopt recover``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pwopt.cli.console import Progress, console, print_json
from pwopt.cli.options import JsonOption, QuietOption, ShapeOption, parse_shapes
from pwopt.errors import UsageError


def recover(
    model: Annotated[
        Path, typer.Argument(help="An ONNX model, or the folder that optimize wrote.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="DATA", help="Examples: .npz with labels, or images' folder.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "recovered.onnx"
    ),
    mode: Annotated[
        str, typer.Option(help="feature-extraction trains the new layers, finetune all.")
    ] = "feature-extraction",
    teacher: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The original, to learn from.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="Layers to train, not the new ones.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="At most.")] = 10,
    patience: Annotated[
        int, typer.Option(help="Epochs without gain on held-out examples, in the second half.")
    ] = 3,
    rate: Annotated[float | None, typer.Option(help="Peak of the learning rate.")] = None,
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the split and the order.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of PyTorch; default: all.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Saved every epoch; default: OUTPUT.checkpoint."),
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option(metavar="HOW", help="Of images or bytes; see optimize.")
    ] = None,
    input_shape: ShapeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Trains MODEL's accuracy back after lossy passes; needs PyTorch. Goes on after a stop."""
    from pwopt import frontend, recovery

    options = recovery.RecoveryOptions(
        mode=mode,
        layers=tuple(layer or ()),
        epochs=epochs,
        patience=patience,
        rate=rate,
        batch=batch,
        seed=seed,
        threads=threads or len(os.sched_getaffinity(0)),
    )
    if output.is_dir():
        raise UsageError(f"--output {output}: is a folder; name a file")
    checkpoint = checkpoint or output.with_name(output.name + ".checkpoint")
    for file in (output, checkpoint):
        file.parent.mkdir(parents=True, exist_ok=True)
    with Progress(quiet) as progress:
        made = recovery.recover(
            model / "model.onnx" if model.is_dir() else model,
            data,
            options,
            teacher=teacher,
            preprocessing=preprocessing,
            input_shapes=parse_shapes(input_shape),
            checkpoint=checkpoint,
            progress=progress,
            done=progress.share,
        )
        frontend.save(made.graph, output)
        checkpoint.unlink(missing_ok=True)
    if json_:
        print_json(made.to_json())
        return
    screen = console()
    screen.print(str(made), markup=False)
    screen.print(f"written     {output}", markup=False)
