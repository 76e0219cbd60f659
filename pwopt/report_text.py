"""The record of an optimization as text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pwopt.approximation import Approximation
from pwopt.bisection import TakenBack
from pwopt.checks import Verification
from pwopt.growth import allowance
from pwopt.numerics import tolerance
from pwopt.output import REPORT
from pwopt.pipeline import PassReport
from pwopt.report import Compilation, FileSize, GraphSummary, Report, runs_by_pass
from pwopt.units import human, microseconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pwopt.pass_timing import PassTiming


def render(report: Report) -> RenderableType:
    """The report as a few lines and a table of the passes that found something."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    foreseen = ["predicted"] if report.after.predicted_us is not None else []
    timing = report.pass_timing
    measured = timing is not None and timing.latency_ms is not None
    columns = [*foreseen, *(["measured", "spread", "error"] if measured else [])]
    for heading in ("pass", "rewrites", "missed", "nodes", "MACs", *columns, "took"):
        table.add_column(heading, justify="left" if heading == "pass" else "right")
    runs = [(row.spec, row.changed) for row in report.passes]
    for name, group in runs_by_pass(runs, apart=measured):
        rows = [report.passes[i] for i in group]
        remarks = [r for row in rows for r in row.remarks]
        if not remarks and not any(row.changed for row in rows):
            continue
        applied = sum(r.applied for r in remarks)
        table.add_row(
            name,
            str(applied or ("yes" if any(row.changed for row in rows) else "")),
            str(len({(r.node, r.text) for r in remarks if not r.applied}) or ""),
            _step(sum(row.nodes_after - row.nodes_before for row in rows)),
            _step(sum(row.macs_after - row.macs_before for row in rows), human),
            *([_step(_saving(rows), microseconds)] if foreseen else []),
            *(_measured_cells(rows) if measured else ()),
            f"{sum(row.seconds for row in rows) * 1e3:.0f} ms",
        )
    return Group(table, "", *_summary(report))


def _measured_cells(rows: Sequence[PassReport]) -> tuple[str, str, str]:
    """What the run that changed the graph saved, half the range of its quartiles, and the error."""
    found = next((row.measured for row in rows if row.measured is not None), None)
    if found is None:
        return "", "", ""
    error = "" if found.error is None else f"{found.error:.1e}"
    if found.same_code:
        return "same code", "", error
    saved, share = found.saved_ms, found.saved_share.median
    text = f"{_step(-saved.median, _milliseconds)} ({-share:+.1%})"
    return text, f"\u00b1 {_milliseconds((saved.q3 - saved.q1) / 2)}", error


def _milliseconds(ms: float) -> str:
    return microseconds(1e3 * ms)


def explain(report: Report) -> RenderableType:
    """Every remark: what was rewritten, and why the rest was not."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "", "node", "remark"):
        table.add_column(heading, overflow="fold")
    seen = set()
    for row in report.passes:
        for r in row.remarks:
            if r in seen:
                continue
            seen.add(r)
            mark = "[green]+[/]" if r.applied else "[yellow]-[/]"
            table.add_row(r.pass_name, mark, _escaped(r.node), _escaped(r.text))
    return table


def render_summary(summary: GraphSummary) -> RenderableType:
    """A graph's size and operators."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("operator")
    table.add_column("count", justify="right")
    for op, count in summary.ops.items():
        table.add_row(op, str(count))
    share = summary.pointwise_macs / summary.macs if summary.macs else 0.0
    return Group(
        f"{summary.nodes} operations, {human(summary.parameters)} parameters "
        f"({human(summary.parameter_bytes)}B), {human(summary.macs)} MACs, "
        f"{share:.0%} of them in 1x1 convolutions",
        "",
        table,
    )


def predicted_text(predicted: Mapping[str, Mapping[str, Any]]) -> str:
    """Of :attr:`Compilation.predicted`: "61 us on H200 (sm_90a), 93 us on A10 (sm_86)"."""
    return ", ".join(
        f"{microseconds(each['us'])} on {each['gpu']} ({arch})" for arch, each in predicted.items()
    )


def _count(items: Sequence[Any], what: str) -> str:
    return f"{len(items)} {what}{'s' * (len(items) != 1)}"


def _saving(rows: list[PassReport]) -> float:
    """Predicted change of a pass, 0 where it is below what the table would show."""
    known = [r.us_after - r.us_before for r in rows if r.us_after and r.us_before]
    change = sum(known)
    return change if abs(change) >= 0.05 else 0


def _summary(report: Report) -> list[str]:
    before, after, check = report.before, report.after, report.verification
    lines = [
        f"nodes       {before.nodes} -> {after.nodes}",
        f"MACs        {human(before.macs)} -> {human(after.macs)}",
        f"parameters  {human(before.parameters)} -> {human(after.parameters)}",
    ]
    if before.predicted_us is not None and after.predicted_us is not None:
        us = f"{microseconds(before.predicted_us)} -> {microseconds(after.predicted_us)}"
        lines.append(f"predicted   {us} on one core of {report.hardware.mcpu}")
    if report.compilation is not None and (text := predicted_text(report.compilation.predicted)):
        lines.append(f"predicted   {text}, the sum of the kernels' rooflines")
    if report.pass_timing is not None:
        lines.append(_timing_text(report.pass_timing, report.passes))
    if report.batch is not None:
        lines.append(_escaped(f"batch       {report.batch.text}"))
    lines.append(_file_text(report.file))
    lines += [line for each in report.approximations for line in _approximation_lines(each)]
    lines += [line for each in report.taken_back for line in _taken_back_lines(each)]
    lines.append(f"checked     {_check_text(check)}")
    if report.compilation is not None:
        c = report.compilation
        on = f"{report.hardware.mcpu}, {c.threads} thread{'s' * (c.threads != 1)}"
        lines.append(
            f"compiled    {_count(c.kernels, 'kernel')} for {c.arch or on}, in {c.seconds:.1f} s"
        )
        if c.precision != "fp32":
            lines.append(_escaped(f"precision   {_precision_text(c)}"))
        lines += [
            _escaped(
                f"open        input {name!r} is {text}: only ONNX Runtime takes open sizes; for "
                f"kernels close them, e.g. --input-shape {name}:{example}"
            )
            for name, (text, example) in c.open_inputs.items()
        ]
        lines += _fallback_lines(c.fallbacks)
        if c.verification is not None:
            lines.append(f"checked     executable: {_check_text(c.verification)}")
    return lines


def _timing_text(timing: PassTiming, passes: Sequence[PassReport]) -> str:
    """How long the network takes without any pass and with all, and how that was measured."""
    if timing.latency_ms is None:
        return _escaped(f"measured    no: {timing.reason}")
    latencies = [row.measured.latency_ms for row in passes if row.measured is not None]
    times = [_milliseconds(each.median) for each in (timing.latency_ms, *latencies[-1:])]
    off = "" if timing.error is None else f", the first off by {timing.error:.1e}"
    return (
        f"measured    {' -> '.join(times)} without passes and with all, {timing.executables} "
        f"executables, {timing.rounds} interleaved samples each{off}"
    )


def _approximation_lines(made: Approximation) -> list[str]:
    """What a lossy pass replaced, and what that cost on examples it had not seen."""
    count = len(made.layers)
    if made.why_nothing:
        return [_escaped(f"lossy       {made.pass_spec}: nothing inserted: {made.why_nothing}")]
    lines = [_escaped(f"lossy       {made.pass_spec}: {count} layer{'s' * (count != 1)} replaced")]
    for each in made.layers:
        times = [each.predicted_before_us, each.predicted_after_us]
        if each.measured_before_us is not None and each.measured_after_us is not None:
            times = [each.measured_before_us, each.measured_after_us]
        took = " -> ".join(microseconds(t) for t in times)
        lines.append(_escaped(f"            {each.node}: {each.text}; {took}"))
    loss = made.loss
    parts = [f"relative error {loss.l2:.2g}"]
    if loss.agreement is not None and not made.random:
        parts.insert(0, f"same class {loss.agreement:.1%}")
    if loss.accuracy_before is not None and loss.accuracy_after is not None:
        parts.insert(0, f"accuracy {loss.accuracy_before:.1%} -> {loss.accuracy_after:.1%}")
    lines.append(f"            {', '.join(parts)} on {loss.examples} held-out examples")
    if made.uncertainty is not None and made.uncertainty > made.budget:
        told = f"a loss of {made.budget:g} only to within {made.uncertainty:.2g}: give more"
        lines.append(f"warning     {loss.examples} held-out examples tell {told}")
    if made.random:
        lines.append("            accuracy unknown: no calibration data (--calibration)")
    return lines


def _taken_back_lines(found: TakenBack) -> list[str]:
    """The warning about a rewrite that was wrong."""
    where = f"at {found.node}" if found.node else "as a whole"
    what = f" ({found.rewrite})" if found.rewrite else ""
    lines = [f"warning     taken back: {found.spec} {where}{what}", f"            {found.problem}"]
    if found.tensor:
        size = "its shape, or its NaN or infinite elements differ"
        if found.error is not None and math.isfinite(found.error):
            size = f"error {found.error:.3g} of its scale {found.scale:.3g}"
        size += f", tolerance {found.tolerance:.3g}"
        lines.append(f"            first different tensor {found.tensor!r}: {size}")
    if found.replay:
        lines.append(f"            shown by: {found.replay}")
    return [_escaped(line) for line in lines]


def _precision_text(made: Compilation) -> str:
    """How much of the work is done in fewer bits, or why none is."""
    if made.target != "cpu":
        return f"{made.precision}; {made.remark}" if made.remark else made.precision
    every = {k["node"]: k["macs"] for k in made.kernels}  # copies for a node name it, too
    reduced = {k["node"] for k in made.kernels if k["weights"] not in ("", "fp32")}
    macs = sum(every.values())
    share = sum(every[node] for node in reduced) / macs if macs else 0.0
    found = made.remark or f"{share:.0%} of the MACs"
    return f"{made.precision}: {found}"


def _fallback_lines(fallbacks: list[Any], shown: int = 5) -> list[str]:
    lines = [
        _escaped(f"fallback    {f['node']} runs in ONNX Runtime: {f['reason']}")
        for f in fallbacks[:shown]
    ]
    if len(fallbacks) > shown:
        lines.append(f"            and {len(fallbacks) - shown} more, see {REPORT}")
    return lines


def _file_text(file: FileSize) -> str:
    text = f"file        {human(file.before)}B -> {human(file.after)}B"
    allowed = f"--max-growth {file.max_growth:g}"
    if file.after > file.before + allowance(file.before, file.max_growth):
        text += f", more than {allowed} allows: it is names and attributes that grew"
    if file.refused:
        text += (
            f"; {allowed} held back {file.refused} rewrites that would add "
            f"{human(file.refused_bytes)}B, see --explain"
        )
    return text


def _check_text(check: Verification) -> str:
    if check.status != "passed":
        return _escaped(f"no: {check.reason}")
    worst = max(check.outputs, key=lambda d: d.error, default=None)
    error, allowed = (worst.error, worst.tolerance) if worst else (0.0, 0.0)
    text = f"largest error {error:.2g} of an output's scale against {check.reference}"
    if allowed != tolerance("float32") and error:
        text += f", tolerance {allowed:.2g}"
    return _escaped(f"{text} ({check.reason})" if check.reason else text)


def _step(change: float, text: Callable[[Any], str] = str) -> str:
    return "" if change == 0 else f"{'-' if change < 0 else '+'}{text(abs(change))}"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
