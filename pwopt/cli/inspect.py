"""``pwopt inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from pwopt.cli.console import console, print_json
from pwopt.cli.options import (
    FcWeightsOption,
    JsonOption,
    ModelArgument,
    PrecisionOption,
    ShapeOption,
    parse_shapes,
)
from pwopt.errors import UsageError


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
        print_json(report.plain_json({"source": source, **facts, "summary": summary}))
        return
    screen = console()
    for kind, types in (("input", inputs), ("output", outputs)):
        for name, text in types.items():
            screen.print(escape(f"{kind:7} {name} {text}"))
    screen.print(report.render_summary(summary))
    if top and found:
        what = f"one core of {machine.mcpu}" + ("" if formats.exact else f", {formats}")
        screen.print("", f"predicted for {what}:", "", sep="\n")
        screen.print(layers.render(found, top))
