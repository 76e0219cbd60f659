"""The benchmark's tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pwopt.bench.build import BuildCost
from pwopt.bench.calibrate import CalibrationRow
from pwopt.bench.kernels import ALGORITHMS, MIN_SHARE, KernelRow, WinogradRow
from pwopt.bench.passes import MAX_SLOWDOWN, PassRow
from pwopt.bench.suite import MAX_GEOMEAN, MAX_RATIO, Latency, SuiteRow, geometric_mean
from pwopt.comparison import Spread
from pwopt.report import human

_MARK = {True: "yes", False: "[bold red]no[/]"}


def suite_table(rows: Sequence[SuiteRow]) -> Table:
    """Latency, ratio and error of each network."""
    openvino = next((n for r in rows for n in r.latency_ms if n.startswith("openvino")), "")
    table = Table(title="fourteen networks: median ms (quartiles), ratio to ONNX Runtime")
    table.add_column("model")
    columns = ["onnxruntime", "optimized", "compiled", "ratio"]
    columns += [openvino] if openvino else []
    columns += ["error opt.", "error comp.", "accuracy", "kernels", "in ORT", "build s", "same"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        if row.failure:
            table.add_row(row.name, f"[red]{escape(row.failure)}[/]", *[""] * (len(columns) - 1))
            continue
        cells = [
            _spread(row.latency_ms["onnxruntime"]),
            f"{row.latency_ms['onnxruntime, optimized'].median:.3g}",
            _spread(row.latency_ms["compiled"]),
            _spread(row.ratio["compiled"], limit=MAX_RATIO),
        ]
        cells += [f"{row.latency_ms[openvino].median:.3g}"] if openvino else []
        cells += [
            f"{row.error['onnxruntime, optimized']:.0e}",
            f"{row.error['compiled']:.0e}",
            "/".join(f"{a:.0%}" for a in row.accuracy.values()),
            str(row.kernels),
            str(row.fallbacks),
            f"{row.optimize_s:.1f}+{row.compile_s:.1f}",
            _MARK[row.passed],
        ]
        table.add_row(row.name, *cells)
    return table


def suite_summary(rows: Sequence[SuiteRow]) -> list[str]:
    """The promises about the suite, each with what was measured."""
    ratios = [r.ratio["compiled"].median for r in rows if not r.failure]
    lines = []
    if ratios:
        mean, worst = geometric_mean(ratios), max(ratios)
        lines.append(
            _promise("geometric mean of ratios", f"{mean:.3f}", mean <= MAX_GEOMEAN, "0.9")
        )
        lines.append(_promise("largest ratio", f"{worst:.3f}", worst <= MAX_RATIO, "1.1"))
    good = sum(r.passed for r in rows)
    lines.append(f"within tolerance (1e-4 in float32), same accuracy: {good} of {len(rows)}")
    return lines


def kernel_table(rows: Sequence[KernelRow]) -> Table:
    """Pointwise kernels beside the multiply-add peak."""
    table = Table(title=f"pointwise kernels, one thread (promised: {MIN_SHARE:.0%} of the peak)")
    table.add_column("shape")
    for column in ("GFLOP/s", "peak GFLOP/s", "share", "reached"):
        table.add_column(column, justify="right")
    for r in rows:
        speeds = f"{r.gflops:.1f}", f"{r.peak_gflops:.1f}"
        table.add_row(r.shape, *speeds, f"{r.share:.1%}", _MARK[r.passed])
    return table


def winograd_table(rows: Sequence[WinogradRow]) -> Table:
    """3x3 convolutions, directly and by Winograd's algorithm."""
    table = Table(title="3x3 convolutions, one thread: GFLOP/s and share of the peak, as if direct")
    table.add_column("shape")
    for name in ALGORITHMS:
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(r.shape, *(f"{r.gflops[n]:.0f} ({r.share[n]:.0%})" for n in ALGORITHMS))
    return table


def calibration_table(rows: Sequence[CalibrationRow]) -> Table:
    """The cost model beside measured kernels."""
    table = Table(title="predicted and measured kernels, one thread, microseconds")
    table.add_column("kernel")
    for column in ("predicted", "measured", "ratio", "bound"):
        table.add_column(column, justify="right")
    for r in rows:
        times = f"{r.predicted_us:.1f}", f"{r.measured_us:.1f}"
        table.add_row(r.name, *times, f"{r.ratio:.2f}", r.bound)
    return table


def build_table(rows: Sequence[BuildCost]) -> Table:
    """Wall time and memory of builds."""
    table = Table(title="`pwopt optimize` as a process: wall time, peak memory above the model's")
    table.add_column("model")
    columns = ("seconds", "limit", "CPU s", "CPU us a node", "memory MB", "model MB")
    for column in (*columns, "within limits"):
        table.add_column(column, justify="right")
    for r in rows:
        sizes = f"{r.memory_bytes / 1e6:.0f}", f"{r.model_bytes / 1e6:.0f}"
        verdict = f"[red]{escape(r.failure)}[/]" if r.failure else _MARK[r.passed]
        table.add_row(
            r.name,
            f"{r.seconds:.1f}",
            f"{r.limit_s:.0f}" if math.isfinite(r.limit_s) else "",
            f"{r.cpu_s:.1f}",
            f"{r.cpu_s / r.nodes * 1e6:.0f}" if r.nodes else "",
            *sizes,
            verdict,
        )
    return table


def pass_table(rows: Sequence[PassRow]) -> Table:
    """Work and latency without and with each pass that found something."""
    table = Table(title="structural passes, one thread: ratios (quartiles)")
    for column in ("model", "passes"):
        table.add_column(column)
    for column in ("rewrites", "MACs before", "after", "compiled", "optimized/original in ORT"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.rewrites or row.name == "all":
            ratios = [
                "" if each is None else _spread(each, limit=MAX_SLOWDOWN)
                for each in (row.compiled, row.onnxruntime)
            ]
            macs = human(row.macs_before), human(row.macs_after)
            table.add_row(row.model, row.name, str(row.rewrites), *macs, *ratios)
    return table


def _spread(value: Latency | Spread, limit: float | None = None) -> str:
    text = f"{value.median:.3g} ({value.q1:.3g}-{value.q3:.3g})"
    return f"[red]{text}[/]" if limit is not None and value.median > limit else text


def _promise(what: str, value: str, kept: bool, limit: str) -> str:
    verdict = "kept" if kept else "[bold red]missed[/]"
    return f"{what}: {value} (promised: at most {limit}; {verdict})"
