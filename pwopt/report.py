"""What an optimization did, as data: the same record feeds report.json and the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pwopt import cost
from pwopt.approximation import Approximation
from pwopt.bisection import TakenBack
from pwopt.checks import Verification
from pwopt.cost_model import cost_model
from pwopt.environment import environment
from pwopt.growth import allowance
from pwopt.hardware import Hardware
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node
from pwopt.numerics import tolerance
from pwopt.output import GENERATOR, REPORT
from pwopt.pipeline import PassReport
from pwopt.precision import Precision

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pwopt.profiling import Profile

SCHEMA = 1  # of report.json; grows when a field changes its meaning or goes


@dataclass(frozen=True)
class GraphSummary:
    """The size of a graph.

    Attributes:
        nodes: operations.
        macs: multiply-accumulates of one inference, of what is known.
        pointwise_macs: those of 1x1 convolutions.
        parameters: floating-point numbers among the constants.
        parameter_bytes: bytes of all constants.
        ops: number of operations by operator.
        predicted_us: time of one inference on one core as the cost model sees it, microseconds.
    """

    nodes: int
    macs: int
    pointwise_macs: int
    parameters: int
    parameter_bytes: int
    ops: dict[str, int]
    predicted_us: float = 0.0


@dataclass(frozen=True)
class Source:
    """Where a model came from."""

    path: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class FileSize:
    """What the model takes as a file.

    Attributes:
        before: bytes of the original, its data file included.
        after: the same of the optimized model.
        max_growth: share of ``before`` by which it may grow.
        refused: rewrites that were not made because it would grow by more.
        refused_bytes: what they would have added.
    """

    before: int
    after: int
    max_growth: float
    refused: int = 0
    refused_bytes: int = 0


@dataclass(frozen=True)
class Compilation:
    """What the target made of the graph.

    Attributes:
        target: "cpu" or "cuda".
        threads: that the executable uses.
        seconds: wall time.
        kernels: one entry per call: node, kernel, origin, macs, predicted_us.
        fallbacks: operators that run in ONNX Runtime: node and reason.
        precision: number formats that were asked for.
        remark: what of them the processor cannot do, if anything.
        verification: of the executable against the original.
        winograd: the tiles that its convolutions might use; fewer than asked for where the result
            would have differed too much.
        open_inputs: those without a static shape: type, and an example of one.
        arch: of GPUs that it holds code for.
    """

    target: str
    threads: int
    seconds: float
    kernels: list[Any]
    fallbacks: list[Any]
    precision: str = "fp32"
    remark: str = ""
    verification: Verification | None = None
    winograd: str = "auto"
    open_inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    arch: str = ""


@dataclass(frozen=True)
class Report:
    """The record of one optimization; ``report.json`` holds exactly this.

    Attributes:
        version: of pwopt.
        source: the model.
        target: "cpu" or "cuda".
        hardware: what was optimized for.
        before, after: the graphs.
        passes: what each run of a pass did.
        verification: of the optimized graph against the original, or what lossy passes made.
        compilation: what the target made of it; None where it was not compiled.
        approximations: what lossy passes did, with the loss on held-out examples.
        taken_back: wrong rewrites that --verify-passes found; they are not in the result.
        seconds: wall time.
        profile: where the time goes in the original and in the executable; None where neither was
            measured.
        environment: versions, and the machine.
        command: the command line; empty where it was called from Python.
        schema: of ``report.json``.
        generator: "pwopt".
    """

    version: str
    source: Source
    target: str
    hardware: Hardware
    before: GraphSummary
    after: GraphSummary
    passes: tuple[PassReport, ...]
    verification: Verification
    file: FileSize
    compilation: Compilation | None = None
    approximations: tuple[Approximation, ...] = ()
    taken_back: tuple[TakenBack, ...] = ()
    seconds: float = 0.0
    profile: Profile | None = None
    environment: Mapping[str, Any] = field(default_factory=environment)
    command: str = ""
    schema: int = SCHEMA
    generator: str = field(default=GENERATOR)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's types; numbers that JSON lacks become null."""
        plain = plain_json(self)
        assert isinstance(plain, dict)
        return plain

    @no_garbage_collection()
    def dumps(self) -> str:
        """The text of ``report.json``."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def summarize(
    graph: Graph,
    hardware: Hardware,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> GraphSummary:
    """The size of a graph, and its predicted time on a machine."""
    operations = [n for n in graph.nodes() if not n.is_input and not n.is_constant]
    macs = {n: cost.node_macs(graph, n) for n in operations}
    return GraphSummary(
        nodes=len(operations),
        macs=sum(macs.values()),
        pointwise_macs=sum(macs[n] for n in operations if is_pointwise(graph, n)),
        parameters=cost.parameters(graph),
        parameter_bytes=graph.constant_bytes,
        ops=dict(Counter(n.op for n in operations).most_common()),
        predicted_us=cost_model(hardware, precision).graph_us(graph),
    )


def is_pointwise(graph: Graph, node: Node) -> bool:
    """Whether a node is a convolution with a 1x1 (1, 1x1x1) kernel."""
    if node.domain == KERNEL_DOMAIN and node.op == "Pointwise":
        return True
    weights = graph.operand(node, 1) if node.op.endswith("Conv") else None
    shape = weights.shape if weights is not None else None
    return shape is not None and len(shape) > 2 and math.prod(shape[2:]) == 1


def plain_json(value: Any) -> Any:
    """A value in JSON's types: dataclasses as objects, tuples as arrays, no NaN or infinity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "items"):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


# --- the terminal ---------------------------------------------------------------------------


def render(report: Report) -> RenderableType:
    """The report as a few lines and a table of the passes that found something."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "rewrites", "missed", "nodes", "MACs", "predicted", "took"):
        table.add_column(heading, justify="left" if heading == "pass" else "right")
    for name, rows in _by_pass(report.passes).items():
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
            _step(_saving(rows), microseconds),
            f"{sum(row.seconds for row in rows) * 1e3:.0f} ms",
        )
    return Group(table, "", *_summary(report))


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


def human(number: float) -> str:
    """A number with three digits and a unit prefix: 3.86 G."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def microseconds(us: float) -> str:
    """A time with three digits: 640 us, 5.85 ms."""
    return f"{us:.3g} us" if us < 999.5 else f"{us / 1e3:.3g} ms"


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
        f"predicted   {microseconds(before.predicted_us)} -> {microseconds(after.predicted_us)}"
        f" on one core of {report.hardware.mcpu}",
    ]
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


def _by_pass(rows: tuple[PassReport, ...]) -> dict[str, list[PassReport]]:
    found: dict[str, list[PassReport]] = {}
    for row in rows:
        found.setdefault(row.spec, []).append(row)
    return found


def _step(change: float, text: Callable[[Any], str] = str) -> str:
    return "" if change == 0 else f"{'-' if change < 0 else '+'}{text(abs(change))}"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
