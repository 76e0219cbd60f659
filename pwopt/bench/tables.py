"""The benchmark's tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pwopt.bench.build import BuildCost
from pwopt.bench.calibrate import CalibrationRow
from pwopt.bench.claims import ClaimRow
from pwopt.bench.cuda_evidence import KernelEvidence
from pwopt.bench.kernels import ALGORITHMS, KernelRow, WinogradRow
from pwopt.bench.lossy import LossyRow, SweepRow
from pwopt.bench.memory import MemoryRow
from pwopt.bench.passes import MAX_SLOWDOWN, PassRow
from pwopt.bench.suite import MAX_GEOMEAN, MAX_RATIO, Latency, SuiteRow, summarize
from pwopt.timing import Spread
from pwopt.units import human

_MARK = {True: "yes", False: "[bold red]no[/]"}


def suite_table(rows: Sequence[SuiteRow]) -> Table:
    """Latency, ratio and error of each network."""
    openvino = next((n for r in rows for n in r.latency_ms if n.startswith("openvino")), "")
    table = Table(title="median ms, ratios (quartiles), share of the multiply-add peak")
    table.add_column("model")
    contenders = ["onnxruntime", "onnxruntime, optimized"]
    contenders += [*([openvino] if openvino else []), "compiled"]
    columns = [name.removeprefix("onnxruntime, ") for name in contenders]
    columns += ["ratio", "best peer", "peak", "error opt.", "error comp."]
    columns += ["accuracy", "kernels", "in ORT", "build s", "same"]
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        if row.failure:
            table.add_row(row.name, f"[red]{escape(row.failure)}[/]", *[""] * (len(columns) - 1))
            continue
        cells = [
            *(f"{row.latency_ms[name].median:.3g}" for name in contenders),
            _spread(row.ratio["compiled"]),
            _red(f"{row.best_ratio:.2f}", row.best_ratio <= MAX_RATIO),
            f"{row.share['compiled']:.0%}",
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
    """The goals of the suite, each with what was measured."""
    good = [row for row in rows if not row.failure]
    lines = []
    if good:
        means, worst = summarize(rows), max(row.best_ratio for row in good)
        lines += [
            f"geometric mean over ONNX Runtime: {means.onnxruntime:.3f}",
            _goal("geometric mean over the best peer", means.best_peer, MAX_GEOMEAN),
            _goal("largest ratio to the best peer", worst, MAX_RATIO),
        ]
    passed = sum(r.passed for r in rows)
    lines.append(f"within tolerance (1e-4 in float32), same accuracy: {passed} of {len(rows)}")
    return lines


def kernel_table(rows: Sequence[KernelRow]) -> Table:
    """Pointwise kernels beside the multiply-add peak."""
    table = Table(title="pointwise kernels, one thread, operands in cache")
    table.add_column("shape")
    for column in ("GFLOP/s", "peak GFLOP/s", "share", "goal", "reached"):
        table.add_column(column, justify="right")
    for r in rows:
        cells = f"{r.gflops:.1f}", f"{r.peak_gflops:.1f}", f"{r.share:.1%}", f"{r.goal:.0%}"
        table.add_row(r.shape, *cells, _MARK[r.passed])
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


def evidence_table(rows: Sequence[KernelEvidence]) -> Table:
    """Machine code of the CUDA target: the kernels of one kind of a network in one row."""
    table = Table(title="kernels of the CUDA target; predicted: the least that peaks allow")
    for column in ("network", "arch", "kind"):
        table.add_column(column)
    columns = ("kernels", "calls", "registers", "shared KB", "tensor instr.", "occupancy")
    for column in (*columns, "predicted us", "problems"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str, str], list[KernelEvidence]] = {}
    for r in rows:
        groups.setdefault((f"{r.network}, batch {r.batch}", r.arch, r.kind), []).append(r)
    for key, group in groups.items():
        cores = [r.tensor_core_instructions for r in group]
        shares = [r.occupancy for r in group]
        bad = sum(bool(r.problem) for r in group)
        table.add_row(
            *key,
            str(len(group)),
            str(sum(r.calls for r in group)),
            f"{min(r.registers for r in group)}-{max(r.registers for r in group)}",
            f"{max(r.shared_bytes for r in group) / 1024:.0f}",
            f"{min(cores)}-{max(cores)}" if max(cores) else "",
            f"{min(shares):.0%}-{max(shares):.0%}",
            f"{sum(r.predicted_us for r in group):.0f}",
            f"[red]{bad}[/]" if bad else "",
        )
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


def lossy_table(rows: Sequence[LossyRow]) -> Table:
    """What the steps of a recipe made of the networks."""
    table = Table(title="lossy passes and recovery: median (quartiles), test pictures, one thread")
    for column in ("network", "step"):
        table.add_column(column)
    for column in ("seconds", "parameters", "accuracy", "points", "us", "speed-up"):
        table.add_column(column, justify="right")
    before = 0.0
    for r in rows:
        cells = [f"{r.accuracy:.2%}", "", _spread(r.latency_us), ""]
        if r.step:
            cells[1::2] = [f"{100 * (r.accuracy - before):+.2f}", _spread(r.speedup)]
        else:
            before = r.accuracy
        spent = f"{r.seconds:.0f}" if r.step else ""
        table.add_row("" if r.step else r.network, r.step, spent, human(r.parameters), *cells)
    return table


def sweep_table(rows: Sequence[SweepRow]) -> Table:
    """Predicted and measured latency of bottlenecks of fixed ranks."""
    table = Table(title="bottlenecks of fixed ranks, one thread: median (quartiles)")
    table.add_column("network")
    for column in ("rank", "predicted ms", "measured ms", "predicted speed-up", "speed-up"):
        table.add_column(column, justify="right")
    for r in rows:
        times = f"{r.predicted_ms:.3g}", _spread(r.measured_ms)
        gains = f"{r.predicted_speedup:.2f}", _spread(r.speedup)
        table.add_row(r.network, f"{r.rank:g}", *times, *gains)
    return table


def claim_table(rows: Sequence[ClaimRow]) -> Table:
    """What texts say of 1x1 convolutions, what the work says, and what the clock says."""
    table = Table(title="1x1 convolutions: how many times as fast as the larger ones")
    for column in ("claim", "measured in"):
        table.add_column(column)
    for column in ("before", "after", "ratio", "claimed", "holds"):
        table.add_column(column, justify="right")
    for r in rows:
        claimed = f"{r.claimed:.1f}x"
        table.add_row(r.title, "parameters", *_counts(r.parameters))
        table.add_row("", "multiply-adds", *_counts(r.macs))
        for name, pair in r.measured.items():
            times = f"{pair.slow_ms:.3f} ms", f"{pair.fast_ms:.3f} ms", f"{pair.speedup:.1f}x"
            table.add_row("", name, *times, claimed, "yes" if name in r.holds_in else "no")
        table.add_section()
    return table


def _counts(pair: tuple[int, int]) -> tuple[str, str, str]:
    return f"{pair[0]:,}", f"{pair[1]:,}", f"{pair[0] / pair[1]:.1f}x"


def memory_table(rows: Sequence[MemoryRow]) -> Table:
    """Peak memory of running each network."""
    table = Table(title="MB from loading to the third run, a process each, above its imports")
    table.add_column("model")
    for runtime in ("onnxruntime", "compiled"):
        for column in ("file", "peak", "private", "process", "libraries"):
            table.add_column(f"{runtime}\n{column}", justify="right")
    for column in ("ratio", "no more"):
        table.add_column(f"\n{column}", justify="right")
    for row in rows:
        if row.failure:
            table.add_row(row.name, f"[red]{escape(row.failure)}[/]")
            continue
        cells = []
        files = {"onnxruntime": row.model_bytes, "compiled": row.executable_bytes}
        for runtime, file in files.items():
            r = row.resident[runtime]
            sizes = (file, r.peak, r.private, r.process, r.libraries)
            cells += [f"{size / 1e6:.3g}" if size < 1e8 else f"{size / 1e6:.0f}" for size in sizes]
        table.add_row(row.name, *cells, f"{row.ratio:.2f}", _MARK[row.passed])
    return table


def _spread(value: Latency | Spread, limit: float = math.inf) -> str:
    text = f"{value.median:.3g} ({value.q1:.3g}-{value.q3:.3g})"
    return _red(text, value.median <= limit)


def _red(text: str, good: bool) -> str:
    return text if good else f"[red]{text}[/]"


def _goal(what: str, value: float, limit: float) -> str:
    verdict = "reached" if value <= limit else "[bold red]missed[/]"
    return f"{what}: {value:.3f} (goal: at most {limit}; {verdict})"
