"""The application: its commands, its exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated

import typer

import pwopt
from pwopt import env
from pwopt.bench.cli import app as bench
from pwopt.cli import signals
from pwopt.cli.compare import compare
from pwopt.cli.console import remember
from pwopt.cli.inspect import inspect
from pwopt.cli.optimize import optimize
from pwopt.cli.passes import passes
from pwopt.cli.profile import profile
from pwopt.cli.recover import recover
from pwopt.cli.tune import tune
from pwopt.cli.visualize import visualize
from pwopt.errors import PwoptError, UsageError
from pwopt.models.cli import app as models

DONE, FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

app = typer.Typer(
    name="pwopt",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

for _command in (optimize, compare, tune, recover, passes, inspect, profile, visualize):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pwopt {pwopt.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Makes trained CNNs in ONNX run faster, and shows what was gained."""


app.add_typer(bench, name="bench")
app.add_typer(models, name="models")


def main() -> None:
    """Runs the command line in a process of its own, and exits."""
    signals.install()
    try:
        from pwopt import limits

        limits.confine()
    except KeyboardInterrupt as error:
        sys.exit(_report(error, chain=False))
    code = run(sys.argv[1:])
    if signals.came():
        # CPython would end by SIGINT whatever the code where the interrupt hit code inside exec(),
        # as of dataclasses.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    chain = False
    remember(arguments)
    try:
        chain = env.settings().traceback
        code = app(arguments, prog_name="pwopt", standalone_mode=False)
        sys.stdout.flush()
        signals.raise_if_interrupted()  # typer turns a KeyboardInterrupt into a mere exit code
        return code if isinstance(code, int) else DONE
    except BaseException as error:
        return _report(error, chain)


def _report(error: BaseException, chain: bool) -> int:
    """One line on stderr for what went wrong; returns the exit code."""
    if chain and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    if signals.came() == signal.SIGTERM:
        return _fail("terminated", TERMINATED)
    if signals.came() or isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, UsageError):
        return _fail(str(error), WRONG_USAGE)
    if isinstance(error, PwoptError):
        return _fail(str(error), FAILED)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
        return WRONG_USAGE
    if hasattr(error, "format_message"):  # of click, which checks flags and arguments
        return _fail(error.format_message() or "see pwopt --help", WRONG_USAGE)
    if isinstance(error, MemoryError):
        return _fail("out of memory", FAILED)
    if isinstance(error, BrokenPipeError):  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return FAILED
    hint = "" if chain else " (a bug in pwopt; PWOPT_TRACEBACK=1 shows where)"
    return _fail(f"{type(error).__name__}: {error}{hint}", FAILED)


def _fail(message: str, code: int) -> int:
    print("pwopt: " + " ".join(message.split()), file=sys.stderr)
    return code
