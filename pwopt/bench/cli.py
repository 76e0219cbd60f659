"""The benchmark's command line: ``pwopt bench``, or ``python -m pwopt.bench``.

What a command needs is imported when it runs, because ``pwopt --help`` imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pwopt.bench.sheet import Sheet
from pwopt.errors import UsageError

if TYPE_CHECKING:
    from pwopt.models.suite import SuiteModel

app = typer.Typer(
    help="Measures what pwopt promises, on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Networks, or kinds of them: suite (the default), fashion, network, block.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of one inference.")]
RunsOption = Annotated[
    int | None, typer.Option(min=1, help="Interleaved samples; default: about ten seconds.")
]
OpenVinoOption = Annotated[bool, typer.Option("--openvino", help="OpenVINO as a second peer.")]
PlotOption = Annotated[
    Path | None, typer.Option(metavar="FILE.svg|png", help="Draw the result, too.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result as JSON.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def suite(
    names: NamesArgument = None,
    threads: ThreadsOption = 1,
    runs: RunsOption = None,
    openvino: OpenVinoOption = False,
    accuracy: Annotated[
        bool, typer.Option("--accuracy/--no-accuracy", help="Labelled data, too.")
    ] = True,
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16", help="Of the executables, and of OpenVINO.")
    ] = "fp32",
    fc_weights: Annotated[
        str, typer.Option(metavar="fp32|bf16|int8", help="Weights of fully connected layers.")
    ] = "fp32",
    plot: PlotOption = None,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Networks: correctness, latency beside the peers, share of the peak.

    The exit code is 1 if one fails or differs.
    """
    if plot is not None:
        from pwopt.bench.plot import check_plot

        check_plot(plot)
    sheet = Sheet(output, json_, threads)
    _suite(
        sheet,
        _chosen(names),
        plot,
        threads=threads,
        runs=runs,
        openvino=openvino,
        accuracy=accuracy,
        precision=precision,
        fc_weights=fc_weights,
    )
    sheet.finish()


@app.command("cuda-kernels")
def cuda_kernels(
    names: NamesArgument = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Of an inference; default: 1 and 32.")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="Architectures; default: sm_80 and sm_90a.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="fp16|bf16|tf32|fp32", help="Of products.")
    ] = "fp16",
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Machine code of the CUDA target, kernel by kernel: registers, tensor cores, occupancy.

    Needs a CUDA compiler and disassembler, no GPU. By default of five well-known networks.
    """
    from pwopt.bench import tables
    from pwopt.bench.cuda_evidence import ARCHS, BATCHES, NETWORKS, measure

    sheet = Sheet(output, json_)
    chosen = (names or NETWORKS, batch or BATCHES, arch or ARCHS, precision)
    rows = list(measure(*chosen, progress=sheet.log))
    sheet.show(tables.evidence_table(rows))
    sheet.add("kernels", rows, "kind", "problem")
    sheet.failed |= any(row.problem for row in rows)
    sheet.finish()


@app.command()
def kernels(output: OutputOption = None, json_: JsonOption = False) -> None:
    """Pointwise and 3x3 kernels beside the multiply-add peak, one thread."""
    sheet = Sheet(output, json_)
    _kernels(sheet)
    sheet.finish()


@app.command()
def claims(
    threads: ThreadsOption = 1,
    runs: RunsOption = None,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """The classic claims about 1x1 convolutions, by work and by the clock."""
    sheet = Sheet(output, json_, threads)
    _claims(sheet, threads, runs)
    sheet.finish()


@app.command()
def memory(
    names: NamesArgument = None,
    threads: ThreadsOption = 1,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Peak memory of running each network, a fresh process each."""
    sheet = Sheet(output, json_, threads)
    _memory(sheet, _chosen(names), threads)
    sheet.finish()


@app.command()
def passes(
    names: NamesArgument = None,
    runs: RunsOption = None,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Work and latency without and with each structural pass, one thread."""
    sheet = Sheet(output, json_)
    _passes(sheet, names, runs)
    sheet.finish()


@app.command()
def lossy(
    names: NamesArgument = None,
    runs: RunsOption = None,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Bottlenecks, FC heads and recovery: accuracy, latency, and what was predicted, one thread.

    The names are fashion_vgg, fashion_cnn, fashion_squeezenet, fashion_mobilenet, fashion_lenet,
    which need PyTorch and Fashion-MNIST's files, and alexnet and vgg19.
    """
    sheet = Sheet(output, json_)
    _lossy(sheet, names, runs)
    sheet.finish()


@app.command()
def calibrate(
    precision: Annotated[str, typer.Option(metavar="fp32|bf16", help="Of the kernels.")] = "fp32",
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """The cost model's predictions beside measured kernels, one thread."""
    sheet = Sheet(output, json_)
    _calibrate(sheet, precision)
    sheet.finish()


@app.command()
def build(
    scale: Annotated[
        bool, typer.Option("--scale", help="Graphs of up to 100,000 nodes instead.")
    ] = False,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Time and memory of `pwopt optimize` as a process."""
    sheet = Sheet(output, json_)
    _build(sheet, networks=not scale, graphs=scale)
    sheet.finish()


@app.command()
def cuda(
    build_: Annotated[
        Path | None, typer.Option("--build", metavar="DIR", help="Only build, for a GPU elsewhere.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Measure what --build built.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="sm_80,...", help="GPUs to build for; default: this one.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time to spend on measuring.")] = 540.0,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Networks and 1x1 convolutions on a GPU, beside PyTorch, ONNX Runtime and cuBLAS."""
    import tempfile

    from pwopt.bench import cuda as section
    from pwopt.targets.cuda.device import usual_arch

    if build_ is not None and run is not None:
        raise UsageError("--build and --run are for two machines: leave out one, or both")
    sheet, cases = Sheet(output, json_), section.cases()
    if build_ is not None:
        section.build(build_, arch or usual_arch()[0], cases, sheet.log)
        return
    sheet.result["environment"] |= section.facts()
    with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
        if run is None:
            section.build(Path(folder), arch or usual_arch()[0], cases, sheet.log)
        rows = list(section.measure(run or Path(folder), cases, seconds, sheet.log))
    sheet.show(section.table(rows))
    sheet.add("cuda", rows, "share")
    sheet.failed |= any(row.failure for row in rows)
    sheet.finish()


@app.command("all")
def all_(
    threads: ThreadsOption = 1,
    runs: RunsOption = None,
    openvino: OpenVinoOption = False,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Every section, one after the other: an hour and a half."""
    sheet, models = Sheet(output, json_, threads), _chosen(None)
    _suite(sheet, models, None, threads=threads, runs=runs, openvino=openvino)
    _kernels(sheet)
    _claims(sheet, threads, runs)
    _memory(sheet, models, threads)
    _passes(sheet, None, runs)
    _lossy(sheet, None, runs)
    _calibrate(sheet)
    _build(sheet, networks=True, graphs=True)
    sheet.finish()


def _suite(
    sheet: Sheet,
    models: Sequence[SuiteModel],
    plot: Path | None,
    *,
    openvino: bool,
    precision: str = "fp32",
    **options: Any,
) -> None:
    from pwopt.bench import tables
    from pwopt.bench.suite import run_suite, summarize

    peer = "openvino-bf16" if precision == "bf16" else "openvino"
    baselines = ["onnxruntime", *([peer] if openvino else [])]
    rows = list(
        run_suite(models, baselines=baselines, precision=precision, progress=sheet.log, **options)
    )
    sheet.show(tables.suite_table(rows), *tables.suite_summary(rows))
    sheet.add("suite", rows, "passed", "best_peer", "best_ratio", "share")
    sheet.result["geometric_mean"] = asdict(summarize(rows))
    sheet.failed |= not all(row.passed for row in rows)
    if plot is not None:
        from pwopt.bench.plot import draw_suite

        facts = sheet.result["environment"]
        threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
        draw_suite(rows, plot, f"{facts['cpu']}, {threads}, ONNX Runtime {facts['onnxruntime']}")


def _kernels(sheet: Sheet) -> None:
    from pwopt.bench import tables
    from pwopt.bench.kernels import measure_kernels, measure_winograd

    speeds = list(measure_kernels())
    sheet.show(tables.kernel_table(speeds))
    sheet.add("kernels", speeds, "passed")
    layers = list(measure_winograd())
    sheet.show(tables.winograd_table(layers))
    sheet.add("winograd", layers)


def _claims(sheet: Sheet, threads: int, runs: int | None) -> None:
    from pwopt.bench import tables
    from pwopt.bench.claims import measure_claims

    rows = list(measure_claims(threads, runs, progress=sheet.log))
    sheet.show(tables.claim_table(rows))
    sheet.add("claims", rows, "by_work", "claimed", "holds_in")


def _memory(sheet: Sheet, models: Sequence[SuiteModel], threads: int) -> None:
    from pwopt.bench import tables
    from pwopt.bench.memory import measure_memory

    rows = list(measure_memory(models, threads, sheet.log))
    sheet.show(tables.memory_table(rows))
    sheet.add("memory", rows, "passed")
    sheet.failed |= any(row.failure for row in rows)


def _passes(sheet: Sheet, names: list[str] | None, runs: int | None) -> None:
    from pwopt.bench import tables
    from pwopt.bench.passes import measure_passes

    rows = list(measure_passes(names, runs=runs, progress=sheet.log))
    sheet.show(tables.pass_table(rows))
    sheet.add("passes", rows, "passed")


def _lossy(sheet: Sheet, names: list[str] | None, runs: int | None) -> None:
    from pwopt.bench import lossy, tables
    from pwopt.models.registry import entry

    trained, swept = lossy.chosen(names)
    if trained:
        train, test = lossy.examples("train"), lossy.examples("test")
        rows = [
            row
            for name in trained
            for row in lossy.measure_steps(
                name,
                entry(name).build(),
                lossy.recipes()[name],
                train,
                test,
                runs=runs,
                progress=sheet.log,
            )
        ]
        sheet.show(tables.lossy_table(rows))
        sheet.add("lossy", rows)
    if swept:
        models = {name: entry(name).build() for name in swept}
        points = list(lossy.measure_sweep(models, runs=runs, progress=sheet.log))
        sheet.show(tables.sweep_table(points))
        sheet.add("sweep", points)


def _calibrate(sheet: Sheet, precision: str = "fp32") -> None:
    from pwopt.bench import tables
    from pwopt.bench.calibrate import measure
    from pwopt.precision import Precision

    rows = list(measure(precision=Precision.of("cpu", precision)))
    sheet.show(tables.calibration_table(rows))
    sheet.add("calibration", rows, "ratio")


def _build(sheet: Sheet, *, networks: bool, graphs: bool) -> None:
    from pwopt.bench import tables
    from pwopt.bench.build import measure_builds, measure_scale

    rows = list(measure_builds()) if networks else []
    rows += list(measure_scale()) if graphs else []
    sheet.show(tables.build_table(rows))
    sheet.add("build", rows, "passed")
    sheet.failed |= any(row.failure for row in rows)


def _chosen(names: list[str] | None) -> list[SuiteModel]:
    from pwopt.models.registry import measured

    return measured(names or ["suite"])
