"""Fixtures for golden text and for figures below the test summary, and pytest's options."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# What was tuned on this machine must not decide what tests see.
os.environ.setdefault("PWOPT_DATABASE", os.devnull + "-no-database")

FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")
    parser.addoption("--fuzz-examples", type=int, default=1000, help="random networks of -m fuzz")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares text with ``golden/NAME.txt`` beside the test; a missing file fails."""
    folder = Path(str(request.path)).parent / "golden"
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = folder / f"{name}.txt"
        if update:
            folder.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no {path.name}: write it with --update-golden, and read it"
        assert text == path.read_text(encoding="utf-8")

    return compare


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed when all tests are over."""
    return request.config.stash.setdefault(FIGURES, [])
