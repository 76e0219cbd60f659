"""``pwopt tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pwopt.cli.console import Progress, console, print_json
from pwopt.cli.options import (
    DatabaseOption,
    FcWeightsOption,
    JsonOption,
    ModelArgument,
    QuietOption,
    ShapeOption,
    TargetPrecisionOption,
    ThreadsOption,
    parse_shapes,
)
from pwopt.errors import UsageError


def tune(
    model: ModelArgument,
    seconds: Annotated[float, typer.Option(help="Time to spend.")] = 60.0,
    threads: ThreadsOption = 1,
    database: DatabaseOption = None,
    input_shape: ShapeOption = None,
    target: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    arch: Annotated[
        str | None, typer.Option(metavar="sm_80", help="Of the code for a GPU; default: its own.")
    ] = None,
    precision: TargetPrecisionOption = None,
    fc_weights: FcWeightsOption = "fp32",
    tracker: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="TVM's RPC tracker: measure on its machines."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the machines at the tracker.")
    ] = None,
    mcpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Processor of those machines.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add what is faster, measured again, to shipped ones."),
    ] = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Measures schedules of MODEL's kernels; `optimize` takes the fastest from then on."""
    from pwopt import hardware, report, tuning

    if (tracker is None) != (key is None) or (mcpu and not tracker):
        raise UsageError("--tracker and --key go together, and --mcpu needs both")
    machine = hardware.named(mcpu) if mcpu else hardware.host()
    with Progress(quiet) as progress:
        found = tuning.tune(
            model,
            seconds,
            threads,
            database=database,
            fleet=tuning.Fleet(tracker, key, machine) if tracker and key else None,
            input_shapes=parse_shapes(input_shape),
            progress=progress,
            precision=precision,
            fc_weights=fc_weights,
            export=export,
            target=target,
            arch=arch,
        )
    if json_:
        print_json(report.plain_json(found))
    else:
        console().print(str(found))
