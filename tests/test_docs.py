"""README and pages are true: their code runs, their commands parse, their links lead somewhere.

Before each block of code a comment says how it is held: ``<!-- run -->`` (here, the blocks of a
page in order, in a folder with the repository's models and examples), ``<!-- run: NAME, ... -->``
(where these modules or programs are installed), or ``<!-- not run: REASON -->``. The blocks after
``<!-- first command -->`` and ``<!-- test command -->`` are run by ``.ci/run``; docs/passes.md has
a test of its own.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

import pwopt
from pwopt.cli.entry import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [page for page in PAGES if page.name not in ("passes.md", "benchmarks.md")]
ELSEWHERE = ("first command", "test command")  # markers of blocks that .ci/run runs
MARKED = re.compile(r"(?:<!-- ([^\n]*) -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)


class Block(NamedTuple):
    """Code of a page: its marker, its language, and itself."""

    marker: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in MARKED.findall(page.read_text())]


def missing(marker: str) -> list[str]:
    """What a block needs that is not installed."""
    names = [n.strip() for n in marker.partition(":")[2].split(",") if n.strip()]
    return [n for n in names if not shutil.which(n) and importlib.util.find_spec(n) is None]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pwopt` and `python` as pages call them."""
    folder = tmp_path_factory.mktemp("programs")
    for name, module in (("pwopt", "-m pwopt"), ("python", ""), ("pdoc", "-m pdoc")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        script.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, programs: Path, tmp_path: Path) -> None:
    for name in ("models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    left_out = []
    for marker, language, code in blocks(page):
        if not marker.startswith("run"):
            assert marker in ELSEWHERE or marker.startswith("not run: "), code
        elif lacking := missing(marker):
            left_out.append(f"{', '.join(lacking)} not installed")
        else:
            shell = ["bash", "-euo", "pipefail", "-c", code]
            command = shell if language == "sh" else [sys.executable, "-c", code]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{code}\n{done.stdout}{done.stderr}"
            assert "Warn:" not in done.stderr  # of pdoc
    if left_out:
        pytest.skip(f"ran but for blocks: {'; '.join(left_out)}")


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every line that calls pwopt, in blocks and among indented lines."""
    text = page.read_text().replace("\\\n", " ")
    indented = re.findall(r"^    (pwopt .*)$", text, re.MULTILINE)
    shell = "\n".join(code for _, language, code in MARKED.findall(text) if language == "sh")
    for line in [*indented, *shell.replace("&&", "\n").splitlines()]:
        if found := re.match(r"\s*(?:\.venv/bin/)?pwopt (.*)", line):
            yield shlex.split(found.group(1), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_parses(page: Path) -> None:
    for arguments in commands(page):
        command: Any = typer.main.get_command(app)
        context = command.make_context("pwopt", list(arguments), resilient_parsing=False)
        rest = [*context._protected_args, *context.args]
        while hasattr(command, "commands"):
            name, command, rest = command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
            rest = [*getattr(context, "_protected_args", ()), *context.args]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert not anchor or anchor in slugs, target


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert not [p.name for p in PAGES[1:] if f"(docs/{p.name})" not in text]


def test_every_public_function_has_an_example() -> None:
    code = "\n".join(b.code for page in PAGES for b in blocks(page) if b.language == "python")
    functions = [n for n in pwopt.__all__ if inspect.isfunction(getattr(pwopt, n))]
    assert "optimize" in functions
    uses = r"(pwopt\.{0}\(|@{0}\b)"
    assert not [n for n in functions if not re.search(uses.format(n), code)]


def test_everything_public_has_a_docstring() -> None:
    def public(owner: Any) -> list[tuple[str, Any]]:
        return [(n, v) for n, v in vars(owner).items() if not n.startswith("_")]

    lacking = []
    for name in pwopt.__all__:
        value = getattr(pwopt, name)
        if callable(value) and not inspect.getdoc(value):
            lacking.append(name)
        if inspect.isclass(value):
            members = [n for n, v in public(value) if inspect.isfunction(v)]
            lacking += [f"{name}.{n}" for n in members if not inspect.getdoc(getattr(value, n))]
    assert not lacking
