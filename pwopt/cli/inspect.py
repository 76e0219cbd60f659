"""``pwopt inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pwopt.cli import completion
from pwopt.cli.console import Progress, console, print_json
from pwopt.cli.options import (
    FcWeightsOption,
    JsonOption,
    ModelArgument,
    PrecisionOption,
    QuietOption,
    ShapeOption,
    parse_shapes,
)
from pwopt.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from pwopt.inspection import Kind, Step
    from pwopt.report import Report


def inspect(
    model: ModelArgument,
    input_shape: ShapeOption = None,
    top: Annotated[int, typer.Option(min=0, help="Layers shown, the slowest first.")] = 10,
    mcpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Processor to predict the time on.",
            autocompletion=completion.processors,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Optimize, and measure each kernel on this machine.")
    ] = False,
    precision: PrecisionOption = "fp32",
    fc_weights: FcWeightsOption = "fp32",
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Shows what is in MODEL, how long each layer should take, and what pwopt would do."""
    from pwopt import driver, hardware, inspection, layers, limits, report, sources
    from pwopt.precision import Precision

    if measure and mcpu:
        raise UsageError("--measure runs on this machine; leave out --mcpu")
    machine = hardware.named(mcpu) if mcpu else hardware.host()
    formats = Precision.of("cpu", precision, fc_weights).used(machine)
    with Progress(quiet) as progress:
        progress("reading")
        graph, source = sources.read(model, parse_shapes(input_shape))
        limits.check_sizes(graph)
        progress("optimizing")
        made = driver.optimize(
            graph, verify=False, hardware=machine, precision=precision, fc_weights=fc_weights
        )
        times = None
        if measure:
            progress("measuring")
            times = layers.measure(made.graph, machine, formats)
    shown = made.graph if measure else graph
    facts = {
        "source": source,
        "inputs": {n.names[0]: str(n.types[0]) for n in graph.inputs},
        "outputs": {name: str(v.type) for name, v in graph.outputs},
        "opsets": graph.opsets,
        "layout": inspection.layout(graph),
        "hardware": machine,
        "precision": formats,
        "kinds": inspection.kinds(graph),
        "head": inspection.head(graph),
        "layers": layers.layers(shown, machine, times, formats),
        "summary": report.summarize(shown, machine, formats),
        "plan": inspection.plan(made.report.passes),
        "optimized": made.report.after,
    }
    if json_:
        print_json(report.plain_json(facts))
    else:
        _show(facts, made.report, top)


def _show(facts: dict[str, Any], optimized: Report, top: int) -> None:
    """The facts as text."""
    from rich.markup import escape

    from pwopt import layers, report_text
    from pwopt.units import microseconds

    screen, machine, formats = console(), facts["hardware"], facts["precision"]
    for kind in ("input", "output"):
        for name, text in facts[f"{kind}s"].items():
            screen.print(escape(f"{kind:7} {name} {text}"))
    opsets = ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in facts["opsets"].items())
    screen.print(escape(f"opset   {opsets}; layout {facts['layout']}"))
    if facts["head"]:
        screen.print(escape(f"head    {', '.join(facts['head'])}"))
    screen.print(report_text.render_summary(facts["summary"]), "")
    screen.print(_kinds_table(facts["kinds"]))
    if top and facts["layers"]:
        what = f"one core of {machine.mcpu}" + ("" if formats.exact else f", {formats}")
        screen.print("", f"predicted for {what}:", "", sep="\n")
        screen.print(layers.render(facts["layers"], top))
    before, after = optimized.before, optimized.after
    us = [microseconds(each.predicted_us or 0.0) for each in (before, after)]
    screen.print("", "what pwopt would do, with its default passes:", "", sep="\n")
    screen.print(_plan_table(facts["plan"]))
    screen.print(
        f"\n{before.nodes} -> {after.nodes} operations, {us[0]} -> {us[1]} predicted, both as "
        "pwopt's kernels; `pwopt optimize` does it, and measures"
    )


def _kinds_table(found: Sequence[Kind]) -> Table:
    from rich.table import Table

    from pwopt.units import human

    macs = sum(each.macs for each in found) or 1
    parameters = sum(each.parameters for each in found) or 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kind")
    for heading in ("layers", "MACs", "share", "parameters", "share"):
        table.add_column(heading, justify="right")
    for each in found:
        table.add_row(
            each.name,
            str(each.layers),
            human(each.macs),
            f"{each.macs / macs:.0%}",
            human(each.parameters),
            f"{each.parameters / parameters:.0%}",
        )
    return table


def _plan_table(steps: Sequence[Step]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from pwopt.units import microseconds

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pass")
    for heading in ("rewrites", "declined", "predicted saving"):
        table.add_column(heading, justify="right")
    for each in steps:
        saved = each.saved_us if each.saved_us and abs(each.saved_us) >= 0.05 else 0
        sign = "-" if saved < 0 else ""
        table.add_row(
            escape(each.name),
            str(each.rewrites or ""),
            str(each.declined or ""),
            sign + microseconds(abs(saved)) if saved else "",
        )
    return table
