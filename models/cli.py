"""The command line of the reference models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from rich.console import Console
from rich.table import Table

from pwopt.errors import PwoptError, UsageError
from pwopt.models import store
from pwopt.models.suite import load_suite

app = typer.Typer(help="The reference networks of tests and benchmarks.", no_args_is_help=True)


@app.command("list")
def list_models(
    json_: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Show the fourteen networks and whether their files are here."""
    absent = set(store.missing())
    rows = [
        {
            "name": m.name,
            "description": m.description,
            "trained": m.trained,
            "package": m.package,
            "available": m.package not in absent,
        }
        for m in load_suite()
    ]
    if json_:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "description", "available")
    for row in rows:
        table.add_row(
            str(row["name"]), str(row["description"]), "yes" if row["available"] else "fetch first"
        )
    Console().print(table)


@app.command()
def fetch() -> None:
    """Download what the trained networks and labelled data need (50 MB, pinned and checked)."""
    folder = store.fetch(log=lambda line: typer.echo(line, err=True))
    typer.echo(str(folder))


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="a name from `list`")],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write")],
    inputs: Annotated[
        Path | None, typer.Option(help="also write representative inputs, .npz")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the inputs")] = 0,
) -> None:
    """Write one network as an ONNX file."""
    model = load_suite([name])[0]
    try:
        onnx.save(model.build(), output)
        if inputs is not None:
            np.savez(inputs, allow_pickle=False, **model.inputs(seed))
    except OSError as error:
        raise PwoptError(f"cannot write {error.filename or output}: {error.strerror}") from None


def main() -> None:
    """Run the command line: one line on stderr for an error, exit code 1 (2 for wrong usage)."""
    try:
        app()
    except PwoptError as error:
        typer.echo(f"pwopt.models: {error}", err=True)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None
