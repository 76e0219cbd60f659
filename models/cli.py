"""``pwopt models list | build | fetch``, the reference networks on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pwopt.errors import PwoptError, UsageError

app = typer.Typer(
    help="The reference networks of tests and benchmarks.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def _names(incomplete: str) -> list[str]:
    """For the shell to complete."""
    from pwopt.models.registry import REGISTRY

    return [name for name in REGISTRY if name.startswith(incomplete)]


@app.command("list")
def list_models(json_: JsonOption = False) -> None:
    """Lists the networks, their options, and whether their files are here."""
    from pwopt.models import store
    from pwopt.models.registry import REGISTRY

    absent = set(store.missing())
    rows = [
        {
            "name": e.name,
            "kind": e.kind,
            "description": e.summary,
            "options": e.options,
            "package": e.package,
            "available": e.package not in absent,
        }
        for e in REGISTRY.values()
    ]
    if json_:
        typer.echo(json.dumps(rows, indent=1))
    else:
        _print_table(rows)


@app.command()
def fetch(json_: JsonOption = False) -> None:
    """Downloads what the suite's trained networks and photos need (50 MB, pinned and checked)."""
    from pwopt.models import store

    folder = store.fetch(log=lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps({"folder": str(folder)}) if json_ else str(folder))


@app.command()
def build(
    name: Annotated[
        str, typer.Argument(help="A name from `pwopt models list`.", autocompletion=_names)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write.", show_default="NAME.onnx"),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the input.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    batch: Annotated[int | None, typer.Option(help="Number of images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and representative inputs.")] = None,
    batch_norm: Annotated[
        bool | None,
        typer.Option("--batch-norm/--no-batch-norm", help="Whether to normalize."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Another option, e.g. depths=2,2,2."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Also write representative inputs.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Writes the network NAME as an ONNX file."""
    import numpy as np

    from pwopt.models import registry

    chosen = registry.entry(name)
    given = {"size": size, "classes": classes, "batch": batch, "batch_norm": batch_norm}
    options = {key: value for key, value in given.items() if value is not None}
    options |= _parsed(chosen.options, set_ or [])
    if seed is not None and "seed" in chosen.options:
        options["seed"] = seed
    model = chosen.build(**options)
    path = output or Path(f"{name}.onnx")
    try:
        path.write_bytes(model.SerializeToString(deterministic=True))
        if inputs is not None:
            np.savez(inputs, allow_pickle=False, **chosen.inputs(model, seed or 0))
    except OSError as error:
        raise PwoptError(f"cannot write {error.filename or path}: {error.strerror}") from None
    parameters = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    if json_:
        facts = {"name": name, "file": str(path), "options": chosen.options | options}
        sizes = {"nodes": len(model.graph.node), "parameters": parameters}
        typer.echo(json.dumps(facts | sizes | {"bytes": path.stat().st_size}))
    else:
        typer.echo(f"{path}: {len(model.graph.node)} nodes, {parameters:,} parameters")


def _parsed(known: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Options given as ``OPTION=VALUE``; unknown ones stay text, for the entry to refuse."""
    from pwopt.models import registry

    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {text}: write OPTION=VALUE, such as width=32")
        key = key.replace("-", "_")
        found[key] = registry.parse(key, value, known[key]) if key in known else value
    return found


def _print_table(rows: list[dict[str, Any]]) -> None:
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "kind", "here", "options", "description"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "kind"))
    for row in rows:
        here = "yes" if row["available"] else "fetch"
        cells = (row["name"], row["kind"], here, ", ".join(row["options"]), row["description"])
        table.add_row(*map(escape, cells))
    width = None if sys.stdout.isatty() else 160  # a pipe or file has no width to fit into
    Console(width=width, highlight=False).print(table)


def main() -> None:
    """Runs the command line in a process of its own."""
    run_app(app)


def run_app(chosen: typer.Typer) -> None:
    """Runs a command line: one line on stderr for an error, exit code 1 (2 for wrong usage)."""
    try:
        chosen()
    except PwoptError as error:
        typer.echo(f"pwopt.models: {error}", err=True)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
