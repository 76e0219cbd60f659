"""``pwopt optimize``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pwopt.cli import completion
from pwopt.cli.console import Progress, command_line, console, print_json, silent
from pwopt.cli.options import (
    DatabaseOption,
    FcWeightsOption,
    JsonOption,
    LoadOption,
    ModelArgument,
    QuietOption,
    ShapeOption,
    TargetPrecisionOption,
    ThreadsOption,
    parse_shapes,
)
from pwopt.cli.signals import raise_if_interrupted
from pwopt.growth import MAX_GROWTH, MAX_SIZE_GROWTH


def optimize(
    model: ModelArgument,
    target: Annotated[str, typer.Option(help="What to optimize for: cpu or cuda.")] = "cpu",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; replaced as a whole.")
    ] = Path("out"),
    threads: ThreadsOption = 1,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Passes to run, e.g. 'fold-affine' or 'mine,default'.",
            autocompletion=completion.passes,
        ),
    ] = None,
    load: LoadOption = None,
    input_shape: ShapeOption = None,
    mcpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Processor to generate code for.",
            autocompletion=completion.processors,
        ),
    ] = None,
    winograd: Annotated[
        str,
        typer.Option(
            metavar="off|f2|auto", help="Tiles that convolutions may be computed in by Winograd's."
        ),
    ] = "auto",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check the result against the original.")
    ] = True,
    max_growth: Annotated[
        float, typer.Option(metavar="SHARE", help="How much larger the model's file may become.")
    ] = MAX_GROWTH,
    verify_passes: Annotated[
        bool,
        typer.Option(
            "--verify-passes", help="Check after every pass, and take wrong rewrites back."
        ),
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Make an executable, too.")
    ] = True,
    precision: TargetPrecisionOption = None,
    arch: Annotated[
        str | None,
        typer.Option(metavar="sm_80,...", help="GPUs to generate code for; default: the one here."),
    ] = None,
    max_size_growth: Annotated[
        float,
        typer.Option(metavar="FACTOR", help="Weights of the executable over the model's."),
    ] = MAX_SIZE_GROWTH,
    fc_weights: FcWeightsOption = "fp32",
    replace_fc_head: Annotated[
        bool,
        typer.Option("--replace-fc-head", help="Lossy: 1x1s and a global pool for an FC head."),
    ] = False,
    bottleneck: Annotated[
        float | None,
        typer.Option(metavar="BUDGET", help="Lossy: narrower layers; 0.01 may cost 1 % accuracy."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Examples for lossy passes: .npz, .npy, images' folder."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="Of images or bytes: imagenet, unit, scale=255,mean=..."),
    ] = None,
    tune: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="First measure schedules of the kernels for so long."),
    ] = None,
    database: DatabaseOption = None,
    profile: Annotated[
        bool,
        typer.Option("--profile/--no-profile", help="Measure layer by layer for report.html."),
    ] = True,
    measure_passes: Annotated[
        bool,
        typer.Option(
            "--measure-passes",
            help="Compile after each pass, too, and time what it saved: seconds a pass.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="List every rewrite made, and why others were not.")
    ] = False,
    quiet: QuietOption = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every pass that changed something.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Optimizes MODEL, compiles it and writes model.onnx, model.so and report.html."""
    from pwopt import passlist, report_text
    from pwopt.build import Request, build
    from pwopt.compilation import CodeOptions

    passlist.load(load or ())
    request = Request(
        model=model,
        folder=output,
        target=target,
        passes=passes,
        input_shapes=parse_shapes(input_shape),
        mcpu=mcpu,
        verify=verify,
        max_growth=max_growth,
        verify_passes=verify_passes,
        compile=compile_,
        code=CodeOptions(threads, winograd, precision, fc_weights, database, max_size_growth, arch),
        replace_fc_head=replace_fc_head,
        bottleneck=bottleneck,
        calibration=calibration,
        preprocessing=preprocessing,
        tune_seconds=tune,
        profile=profile,
        measure_passes=measure_passes,
        command=command_line(),
    )
    with Progress(quiet) as progress:
        log = progress.log if verbose else silent
        made = build(request, progress, log, raise_if_interrupted)
    if made.taken_back:
        count = len(made.taken_back)
        plural = "rewrites were" if count > 1 else "rewrite was"
        print(f"pwopt: warning: {count} wrong {plural} taken back", file=sys.stderr)
    if json_:
        print_json(made.to_json())
        return
    screen = console()
    if explain:
        screen.print(report_text.explain(made), "")
    screen.print(report_text.render(made))
    screen.print(f"written     {output}", markup=False, highlight=False)
