"""``pwopt passes``."""

from __future__ import annotations

from pwopt.cli.console import console, print_json
from pwopt.cli.options import JsonOption, LoadOption


def passes(load: LoadOption = None, json_: JsonOption = False) -> None:
    """Lists the passes with their options; default ones are marked."""
    from rich.markup import escape
    from rich.table import Table

    from pwopt import passlist

    passlist.load(load or ())
    rows = passlist.describe()
    if json_:
        print_json([row._asdict() for row in rows])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "default", "options", "what it does"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        options = ", ".join(f"{k}={v}" for k, v in row.options.items())
        table.add_row(row.name, "yes" if row.default else "", escape(options), escape(row.summary))
    console().print(table)
