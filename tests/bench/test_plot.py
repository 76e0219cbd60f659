"""The picture of the suite."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pwopt.bench.plot import check_plot, draw_suite, relative
from pwopt.bench.suite import Latency, SuiteRow
from pwopt.errors import PwoptError, UsageError


def row(name: str, compiled: float, openvino: float | None = None) -> SuiteRow:
    ratios = {"compiled": compiled} | ({} if openvino is None else {"openvino": openvino})
    latencies = {"onnxruntime": 1.0} | ratios
    return SuiteRow(
        name,
        latency_ms={name: Latency(x, x, x) for name, x in latencies.items()},
        ratio={name: Latency(x, x, x) for name, x in ratios.items()},
    )


def test_latencies_are_relative_to_the_best_peer() -> None:
    assert relative(row("a", 0.5)) == {"onnxruntime": 1.0, "compiled": 0.5}
    expected = {"onnxruntime": 1.25, "openvino": 1.0, "compiled": 0.625}
    assert relative(row("a", 0.5, openvino=0.8)) == pytest.approx(expected)


def test_same_numbers_give_the_same_picture(tmp_path: Path) -> None:
    rows = [row("one", 0.5, 0.8), row("two", 1.2, 1.5), SuiteRow("broken", failure="no")]
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        draw_suite(rows, file, "a processor")
    texts = [file.read_text() for file in files]
    assert texts[0] == texts[1]
    labels = ("one", "two", "geometric mean", "OpenVINO", "a processor", "0.62")
    assert all(f"<!-- {label} -->" in texts[0] for label in labels)
    assert "broken" not in texts[0]


def test_png(tmp_path: Path) -> None:
    draw_suite([row("one", 0.5)], tmp_path / "a.png", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"a\.pdf: its name must end in \.svg or \.png"):
        check_plot(Path("a.pdf"))
    with pytest.raises(PwoptError, match="no network ran"):
        draw_suite([SuiteRow("broken", failure="no")], tmp_path / "a.svg", "")
    with pytest.raises(PwoptError, match="cannot be written"):
        draw_suite([row("one", 0.5)], tmp_path / "missing" / "a.svg", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'pwopt\[plot\]'"):
        check_plot(Path("a.svg"))
