"""The command line: ``pwopt optimize | compare | tune | recover | inspect | bench | ...``.

Data goes to stdout, progress and logs to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pwopt import env
from pwopt.bench.cli import app as bench
from pwopt.errors import PwoptError, UsageError
from pwopt.growth import MAX_GROWTH, MAX_SIZE_GROWTH
from pwopt.models.cli import app as models

if TYPE_CHECKING:
    from rich.console import Console

DONE, FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

app = typer.Typer(
    name="pwopt",
    help="Makes trained CNNs in ONNX run faster, and shows what was gained.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelArgument = Annotated[Path, typer.Argument(help="An ONNX model.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", metavar="NAME:DxDx...", help="Sizes for an input's open dimensions."
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
FcWeightsOption = Annotated[
    str, typer.Option(metavar="fp32|bf16|int8", help="Weights of fully connected layers.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of one inference.")]


@app.command()
def optimize(
    model: ModelArgument,
    target: Annotated[str, typer.Option(help="What to optimize for: cpu or cuda.")] = "cpu",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; replaced as a whole.")
    ] = Path("out"),
    threads: ThreadsOption = 1,
    passes: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Passes to run, e.g. 'fold-affine' or 'mine,default'."),
    ] = None,
    load: LoadOption = None,
    input_shape: ShapeOption = None,
    mcpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Processor to generate code for.")
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
    precision: PrecisionOption = "fp32",
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
    explain: Annotated[
        bool, typer.Option("--explain", help="List every rewrite made, and why others were not.")
    ] = False,
    quiet: QuietOption = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every pass that changed something.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Optimizes MODEL, compiles it and writes model.onnx, model.so and report.json."""
    from pwopt import passlist, report
    from pwopt.build import Request, build
    from pwopt.driver import CodeOptions

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
        code=CodeOptions(threads, winograd, precision, fc_weights, database, max_size_growth),
        replace_fc_head=replace_fc_head,
        bottleneck=bottleneck,
        calibration=calibration,
        preprocessing=preprocessing,
        tune_seconds=tune,
    )
    with _Progress(quiet) as progress:
        log = progress.log if verbose else _silent
        made = build(request, progress, log, _raise_if_interrupted)
    if made.taken_back:
        count = len(made.taken_back)
        plural = "rewrites were" if count > 1 else "rewrite was"
        print(f"pwopt: warning: {count} wrong {plural} taken back", file=sys.stderr)
    if json_:
        _print_json(made.to_json())
        return
    console = _console()
    if explain:
        console.print(report.explain(made), "")
    console.print(report.render(made))
    console.print(f"written     {output}", markup=False, highlight=False)


@app.command()
def compare(
    model: ModelArgument,
    compiled: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|EXE",
            help="What `pwopt optimize` wrote, or its model.so.",
            show_default=False,
        ),
    ],
    runs: Annotated[
        int | None, typer.Option(min=1, help="Samples per contender; default: about ten seconds.")
    ] = None,
    threads: ThreadsOption = 1,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="onnxruntime (always there), openvino, openvino-bf16; comma-separated."),
    ] = None,
    input_shape: ShapeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Measures what was compiled against ONNX Runtime on MODEL, interleaved."""
    from pwopt.comparison import compare as measure

    names = [n.strip() for each in baseline or ["onnxruntime"] for n in each.split(",")]
    with _Progress(quiet) as progress:
        progress("measuring")
        table = measure(
            model,
            compiled,
            runs=runs,
            threads=threads,
            baselines=names,
            input_shapes=parse_shapes(input_shape),
        )
    if json_:
        _print_json(table.to_json())
    else:
        _console().print(table.render())


@app.command()
def tune(
    model: ModelArgument,
    seconds: Annotated[float, typer.Option(help="Time to spend.")] = 60.0,
    threads: ThreadsOption = 1,
    database: DatabaseOption = None,
    input_shape: ShapeOption = None,
    precision: PrecisionOption = "fp32",
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
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Measures schedules of MODEL's kernels; `optimize` takes the fastest from then on."""
    from pwopt import hardware, report, tuning

    if (tracker is None) != (key is None) or (mcpu and not tracker):
        raise UsageError("--tracker and --key go together, and --mcpu needs both")
    machine = hardware.named(mcpu) if mcpu else hardware.host()
    with _Progress(quiet) as progress:
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
        )
    if json_:
        _print_json(report.plain_json(found))
    else:
        _console().print(str(found))


@app.command()
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
    with _Progress(quiet) as progress:
        made = recovery.recover(
            model / "model.onnx" if model.is_dir() else model,
            data,
            options,
            teacher=teacher,
            preprocessing=preprocessing,
            input_shapes=parse_shapes(input_shape),
            checkpoint=checkpoint,
            progress=progress,
        )
        frontend.save(made.graph, output)
        checkpoint.unlink(missing_ok=True)
    if json_:
        _print_json(made.to_json())
        return
    console = _console()
    console.print(str(made), markup=False)
    console.print(f"written     {output}", markup=False)


@app.command()
def passes(load: LoadOption = None, json_: JsonOption = False) -> None:
    """Lists the passes with their options; default ones are marked."""
    from rich.markup import escape
    from rich.table import Table

    from pwopt import passlist

    passlist.load(load or ())
    rows = passlist.describe()
    if json_:
        _print_json([row._asdict() for row in rows])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "default", "options", "what it does"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        options = ", ".join(f"{k}={v}" for k, v in row.options.items())
        table.add_row(row.name, "yes" if row.default else "", escape(options), escape(row.summary))
    _console().print(table)


@app.command()
def inspect(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    top: Annotated[int, typer.Option(min=0, help="Layers shown, the slowest first.")] = 10,
    mcpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="Processor to predict the time on.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Optimize, and measure each kernel on this machine.")
    ] = False,
    precision: PrecisionOption = "fp32",
    fc_weights: FcWeightsOption = "fp32",
    json_: JsonOption = False,
) -> None:
    """Shows MODEL's inputs, outputs, operators, size, and how long each layer should take."""
    from rich.markup import escape

    from pwopt import driver, hardware, layers, limits, report
    from pwopt.precision import Precision

    if measure and mcpu:
        raise UsageError("--measure runs on this machine; leave out --mcpu")
    machine = hardware.named(mcpu) if mcpu else hardware.host()
    formats = Precision(precision, fc_weights).used(machine)
    graph, source = driver.read(model, parse_shapes(input_shape))
    limits.check_sizes(graph)
    times = None
    if measure:
        graph = driver.optimize(
            graph, verify=False, precision=precision, fc_weights=fc_weights
        ).graph
        times = layers.measure(graph, machine, formats)
    summary = report.summarize(graph, machine, formats)
    found = layers.layers(graph, machine, times, formats)
    inputs = {n.names[0]: str(n.types[0]) for n in graph.inputs}
    outputs = {name: str(v.type) for name, v in graph.outputs}
    if json_:
        facts = {"inputs": inputs, "outputs": outputs, "opsets": graph.opsets}
        facts |= {"hardware": machine, "precision": formats, "layers": found}
        _print_json(report.plain_json({"source": source, **facts, "summary": summary}))
        return
    console = _console()
    for kind, types in (("input", inputs), ("output", outputs)):
        for name, text in types.items():
            console.print(escape(f"{kind:7} {name} {text}"))
    console.print(report.render_summary(summary))
    if top and found:
        what = f"one core of {machine.mcpu}" + ("" if formats.exact else f", {formats}")
        console.print("", f"predicted for {what}:", "", sep="\n")
        console.print(layers.render(found, top))


@app.command()
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
    with _Progress(quiet) as progress:
        made = draw(request, progress)
    if json_:
        _print_json(made.to_json())
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


app.add_typer(bench, name="bench")
app.add_typer(models, name="models")


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


def main() -> None:
    """Runs the command line in a process of its own, and exits."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    try:
        from pwopt import limits

        limits.confine()
    except KeyboardInterrupt as error:
        sys.exit(_report(error, chain=False))
    code = run(sys.argv[1:])
    if _signal:
        # CPython would end by SIGINT whatever the code where the interrupt hit code inside exec(),
        # as of dataclasses.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    chain = False
    try:
        chain = env.settings().traceback
        code = app(arguments, prog_name="pwopt", standalone_mode=False)
        sys.stdout.flush()
        _raise_if_interrupted()  # typer turns a KeyboardInterrupt into a mere exit code
        return code if isinstance(code, int) else DONE
    except BaseException as error:
        return _report(error, chain)


_signal = 0  # the one that came, if any


def _on_signal(number: int, _: FrameType | None) -> None:
    global _signal
    _signal = number  # compiled code between here and the caller may swallow the exception
    raise KeyboardInterrupt


def _raise_if_interrupted() -> None:
    if _signal:
        raise KeyboardInterrupt


def _report(error: BaseException, chain: bool) -> int:
    """One line on stderr for what went wrong; returns the exit code."""
    if chain and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    if _signal == signal.SIGTERM:
        return _fail("terminated", TERMINATED)
    if _signal or isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, UsageError):
        return _fail(str(error), WRONG_USAGE)
    if isinstance(error, PwoptError):
        return _fail(str(error), FAILED)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return WRONG_USAGE
    if hasattr(error, "format_message"):  # of click, which checks flags and arguments
        return _fail(error.format_message() or "see pwopt --help", WRONG_USAGE)
    if isinstance(error, MemoryError):
        return _fail("out of memory", FAILED)
    if isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return FAILED
    hint = "" if chain else " (a bug in pwopt; PWOPT_TRACEBACK=1 shows where)"
    return _fail(f"{type(error).__name__}: {error}{hint}", FAILED)


def _fail(message: str, code: int) -> int:
    print("pwopt: " + " ".join(message.split()), file=sys.stderr)
    return code


def _console() -> Console:
    from rich.console import Console

    # A pipe or file has no width to fit into.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


class _Progress:
    """A spinner on stderr where that is a terminal, else a line a step."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._status: Any = None

    def __enter__(self) -> _Progress:
        if not self._quiet and self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        if self._status is not None:
            self._status.__exit__(*details)

    def __call__(self, step: str) -> None:
        if self._status is not None:
            self._status.update(step)
        elif not self._quiet:
            self.log(step)

    def log(self, line: str) -> None:
        self._console.print(line, markup=False)


def _silent(_: str) -> None:
    pass


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=1))
