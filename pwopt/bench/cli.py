"""The benchmark's command line."""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import pwopt
from pwopt import comparison
from pwopt.bench import calibrate as calibration
from pwopt.bench import tables
from pwopt.bench.build import measure_builds, measure_scale
from pwopt.bench.kernels import measure_kernels, measure_winograd
from pwopt.bench.passes import measure_passes
from pwopt.bench.suite import geometric_mean, run_suite
from pwopt.errors import PwoptError, UsageError
from pwopt.models.suite import load_suite

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Networks of --suite or --passes; all by default.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every section.")] = False,
    suite: Annotated[bool, typer.Option(help="The networks (default section).")] = False,
    kernels: Annotated[
        bool, typer.Option(help="Pointwise and 3x3 kernels beside the peak.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option(help="The cost model's predictions beside measured kernels.")
    ] = False,
    passes: Annotated[
        bool, typer.Option(help="Work and latency without and with each structural pass.")
    ] = False,
    build: Annotated[bool, typer.Option(help="Time and memory of builds.")] = False,
    scale: Annotated[bool, typer.Option(help="Graphs of up to 100,000 nodes.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one inference.")] = 1,
    runs: Annotated[int | None, typer.Option(min=1, help="Interleaved samples.")] = None,
    openvino: Annotated[bool, typer.Option(help="OpenVINO as one more baseline.")] = False,
    accuracy: Annotated[bool, typer.Option(help="Labelled data, too.")] = True,
    precision: Annotated[
        str, typer.Option(help="Of --suite's executables: fp32 or bf16 (and OpenVINO's).")
    ] = "fp32",
    fc_weights: Annotated[str, typer.Option(help="fp32, bf16 or int8, in --suite.")] = "fp32",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write JSON.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Measures what pwopt promises; exit code 1 if a network fails or differs."""
    suite = suite or not (kernels or calibrate or passes or build or scale)
    report = functools.partial(typer.echo, err=True)
    console = Console(stderr=json_, width=None if sys.stdout.isatty() else 170)
    result: dict[str, Any] = {"environment": _environment(threads)}
    failed = False
    if all_ or suite:
        rows = []
        peer = "openvino-bf16" if precision == "bf16" else "openvino"
        baselines = ["onnxruntime", *([peer] if openvino else [])]
        for row in run_suite(
            load_suite(names or None),
            threads=threads,
            runs=runs,
            baselines=baselines,
            accuracy=accuracy,
            precision=precision,
            fc_weights=fc_weights,
            progress=report,
        ):
            rows.append(row)
        console.print(tables.suite_table(rows), *tables.suite_summary(rows), sep="\n")
        ratios = [r.ratio["compiled"].median for r in rows if not r.failure]
        result["suite"] = [asdict(r) | {"passed": r.passed} for r in rows]
        result["geometric_mean"] = geometric_mean(ratios) if ratios else None
        failed = not all(r.passed for r in rows)
    if all_ or kernels:
        speeds = list(measure_kernels())
        console.print(tables.kernel_table(speeds))
        result["kernels"] = [asdict(s) | {"passed": s.passed} for s in speeds]
        layers = list(measure_winograd())
        console.print(tables.winograd_table(layers))
        result["winograd"] = [asdict(layer) for layer in layers]
    if all_ or calibrate:
        predictions = list(calibration.measure())
        console.print(tables.calibration_table(predictions))
        result["calibration"] = [asdict(p) | {"ratio": p.ratio} for p in predictions]
    if all_ or passes:
        changes = list(measure_passes(names or None, runs=runs, progress=report))
        console.print(tables.pass_table(changes))
        result["passes"] = [asdict(c) | {"passed": c.passed} for c in changes]
    if all_ or build or scale:
        costs = list(measure_builds()) if all_ or build else []
        costs += list(measure_scale()) if all_ or scale else []
        console.print(tables.build_table(costs))
        result["build"] = [asdict(c) | {"passed": c.passed} for c in costs]
        failed = failed or any(c.failure for c in costs)
    _write(result, output, json_)
    raise typer.Exit(1 if failed else 0)


def _write(result: dict[str, Any], output: Path | None, to_stdout: bool) -> None:
    # NaN is not JSON: a failed row's numbers become null.
    text = json.dumps(_without_nan(result), indent=1, allow_nan=False)
    if to_stdout:
        typer.echo(text)
    if output is not None:
        try:
            output.write_text(text + "\n")
        except OSError as error:
            raise PwoptError(f"{output}: cannot be written: {error.strerror}") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _environment(threads: int) -> dict[str, Any]:
    return {
        "pwopt": pwopt.__version__,
        "onnxruntime": version("onnxruntime"),
        "tvm": version("apache-tvm"),
        "python": platform.python_version(),
        "cpu": comparison.cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "threads": threads,
    }


def main() -> None:
    """Runs the command line: one line on stderr for an error."""
    try:
        app()
    except PwoptError as error:
        typer.echo(f"pwopt.bench: {error}", err=True)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
