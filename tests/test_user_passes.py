"""Passes of a user's own: the page about them is true, and mistakes are told in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import pwopt
from pwopt import cli, passlist
from pwopt.errors import UsageError
from pwopt.passes import PASSES, default_pipeline, parse, register_pass

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "passes.md").read_text()


@pytest.fixture(autouse=True)
def only_own_passes() -> Iterator[None]:
    before = dict(PASSES)
    yield
    PASSES.clear()
    PASSES.update(before)


def blocks(kind: str) -> dict[str, str]:
    """The page's code blocks of a kind, by name."""
    found = re.findall(rf"<!-- {kind}:? ?(\S*) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/passes.md has no block {kind}"
    return dict(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files."""
    path = tmp_path_factory.mktemp("page")
    for name, text in blocks("file").items():
        (path / name).write_text(text)
    return path


def run(folder: Path, *command: str) -> str:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_prints_what_it_says(folder: Path) -> None:
    for name, expected in blocks("output").items():
        shown = run(folder, sys.executable, name)
        hashes = r"= [0-9a-f]{8}$"  # of weights that a random generator draws
        assert [re.sub(hashes, "", line) for line in shown.strip().splitlines()] == [
            re.sub(hashes, "", line) for line in expected.strip().splitlines()
        ]


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    shown = run(folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert "8 passed" in shown


def test_the_commands_of_the_page_work(folder: Path) -> None:
    shown = ""
    for line in blocks("shell")[""].splitlines():
        program, *arguments = line.split()
        module = ["-m", "pwopt"] if program == "pwopt" else []
        shown += run(folder, sys.executable, *module, *arguments)
    assert "drop-dead-channels" in shown
    assert "dropped 20 of 32 channels between Conv 'reduce' and Conv 'expand'" in shown
    assert (folder / "out" / "model.so").exists()


def test_readme_and_contributing_link_the_page() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "(docs/passes.md)" in (ROOT / name).read_text()


def own(name: str) -> type[pwopt.Pass]:
    """A pass that does nothing."""

    @dataclass(frozen=True)
    class Own(pwopt.Pass):
        def run(self, graph: pwopt.Graph, context: pwopt.Context) -> None:
            pass

    Own.name = name
    return Own


def test_a_registered_pass_is_known_to_specs() -> None:
    cls = register_pass(own("own-pass"))
    assert [type(each) for each in parse("own-pass")] == [cls]
    names = [row.name for row in passlist.describe()]
    assert "own-pass" in names
    register_pass(own("own-pass"))  # as a notebook does that runs a cell again


def test_default_stands_for_the_default_pipeline() -> None:
    names = [each.name for each in default_pipeline()]
    found = [each.name for each in parse("hoist-stride, default,fold-affine")]
    assert found == ["hoist-stride", *names, "fold-affine"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fold-affine", "the name 'fold-affine' is taken"),
        ("default", "the name 'default' is taken"),
        ("OwnPass", "its name 'OwnPass' is not of the form my-pass"),
        ("", "its name '' is not of the form my-pass"),
    ],
)
def test_a_name_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        register_pass(own(name))


def test_only_passes_are_registered() -> None:
    class Loose(pwopt.Pass):
        name: ClassVar[str] = "loose"

        def run(self, graph: pwopt.Graph, context: pwopt.Context) -> None:
            pass

    with pytest.raises(UsageError, match=r"decorate it with @dataclass\(frozen=True\)"):
        register_pass(Loose)
    with pytest.raises(UsageError, match=r"derive it from pwopt\.Pass"):
        register_pass(int)  # type: ignore[type-var]
    with pytest.raises(UsageError, match=r"derive it from pwopt\.Pass"):
        register_pass(pwopt.Rewrite)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"own.py: no such Python file"),
        ("x = 1\n", "registers no pass"),
        ("x = 1\ny = 1 / 0\n", r"own.py, line 2: ZeroDivisionError: division by zero"),
        ("x = = 1\n", "SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_loaded(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.py"
    if text is not None:
        path.write_text(text)
    assert cli.run(["passes", "--load", str(path)]) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown)
    assert shown.count("\n") == 1
