"""``pwopt bench`` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pwopt import cli


def test_the_suite_as_tables_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, drawn = tmp_path / "result.json", tmp_path / "result.svg"
    options = ["--runs", "2", "--no-accuracy", "--json", "-o", str(written), "--plot", str(drawn)]
    assert cli.run(["bench", "suite", "mnist_conv", *options]) == cli.DONE
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result == json.loads(written.read_text())
    (row,) = result["suite"]
    assert row["best_peer"] == "onnxruntime"
    assert row["best_ratio"] == pytest.approx(result["geometric_mean"]["best_peer"])
    assert 0 < row["share"]["compiled"] < 10
    assert "within tolerance" in captured.err
    assert "mnist_conv" in drawn.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["suite", "resnet51"], "no model 'resnet51'"),
        (["memory", "resnet51"], "no model 'resnet51'"),
        (["passes", "resnet51"], "no network resnet51, did you mean 'resnet50'?"),
        (["suite", "--plot", "a.pdf"], "must end in .svg or .png"),
        (["suite", "--precision", "fp16"], "fp16"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", *arguments]) == cli.WRONG_USAGE
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("pwopt: ")


def test_the_module_is_the_command() -> None:
    texts = [
        subprocess.run(
            [sys.executable, "-m", *words, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for words in (["pwopt.bench"], ["pwopt", "bench"])
    ]
    assert texts[0] == texts[1]
    for section in ("suite", "kernels", "claims", "memory", "passes", "calibrate", "build", "all"):
        assert f"  {section} " in texts[0]


def test_help_imports_nothing_large() -> None:
    script = (
        "import sys, pwopt.cli; "
        "print(*{'tvm', 'onnx', 'onnxruntime', 'matplotlib', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "\n"
