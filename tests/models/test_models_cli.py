"""``pwopt models``: what it lists, writes and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from pwopt import cli
from pwopt.models import REGISTRY

Capture = pytest.CaptureFixture[str]


def test_list_shows_every_network(capsys: Capture) -> None:
    assert cli.run(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(REGISTRY)
    assert rows["resnet"]["options"]["depths"] == [3, 4, 6, 3]
    assert rows["fashion_nin"]["available"]
    assert cli.run(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in REGISTRY)


def test_build_takes_every_option(tmp_path: Path, capsys: Capture) -> None:
    path, inputs = tmp_path / "r.onnx", tmp_path / "r.npz"
    command = ["models", "build", "resnet", "-o", str(path), "--inputs", str(inputs)]
    command += ["--size", "32", "--classes", "7", "--batch", "2", "--seed", "5"]
    command += ["--no-batch-norm", "--set", "width=8", "--set", "depths=1,1"]
    assert cli.run([*command, "--set", "stride-on=1x1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    model = onnx.load(path)
    assert facts["nodes"] == len(model.graph.node)
    assert facts["bytes"] == path.stat().st_size
    assert facts["options"]["depths"] == [1, 1]
    assert facts["options"]["stride_on"] == "1x1"
    wanted = {"size": 32, "classes": 7, "batch": 2, "seed": 5, "batch_norm": False, "width": 8}
    assert model == REGISTRY["resnet"].build(**wanted, depths=(1, 1), stride_on="1x1")
    assert np.load(inputs)["input"].shape == (2, 3, 32, 32)


def test_build_writes_what_is_trained(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.onnx"
    assert cli.run(["models", "build", "mnist_conv", "-o", str(path)]) == 0
    assert "parameters" in capsys.readouterr().out
    assert onnx.load(path) == REGISTRY["mnist_conv"].build()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5"], "no model 'resnet5', did you mean 'resnet50'"),
        (["fire", "--classes", "3"], "fire has no option classes; it has channels"),
        (["resnet", "--set", "width"], "--set width: write OPTION=VALUE"),
        (["resnet", "--set", "width=a"], "width=a: write it like width=64"),
        (["resnet", "--size", "0"], "resnet: size=0 is below 1"),
        (["vgg", "--size", "x"], "Invalid value for '--size'"),
    ],
)
def test_build_refuses(arguments: list[str], message: str, capsys: Capture) -> None:
    assert cli.run(["models", "build", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_build_says_where_it_cannot_write(tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["models", "build", "fire", "-o", str(tmp_path / "no" / "f.onnx")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_the_module_is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pwopt.models", "build"]
    path = tmp_path / "f.onnx"
    subprocess.run([*command, "fire", "-o", str(path)], check=True, capture_output=True)
    assert onnx.load(path) == REGISTRY["fire"].build()
    done = subprocess.run([*command, "fier"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("did you mean 'fire'?; `pwopt models list` shows all")


def test_mounting_the_networks_costs_nothing() -> None:
    script = "import sys, pwopt.cli; print({'onnx', 'numpy', 'tvm', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
