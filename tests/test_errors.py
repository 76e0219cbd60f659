"""Bad input: one clear line on stderr, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pwopt import build, cli, driver, limits
from pwopt.errors import FrontendError
from pwopt.models import blocks

MODEL = str(Path(__file__).parents[1] / "models" / "data" / "mnist-conv.onnx")
ROOT = Path(__file__).parents[1]

Check = Callable[..., str]


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs a command that must fail; returns its one line on stderr."""

    def run(*arguments: str | Path, code: int, quiet: bool = True) -> str:
        before = set(tmp_path.rglob("*"))
        command = [str(a) for a in arguments]
        if quiet and command[0] in ("optimize", "compare", "inspect"):
            command.append("--quiet")
        assert cli.run(command) == code
        shown = capsys.readouterr()
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert len(lines) == 1, shown.err
        assert lines[0].startswith("pwopt: ")
        assert set(tmp_path.rglob("*")) == before
        return lines[0]

    return run


def test_missing_file(fails: Check, tmp_path: Path) -> None:
    message = fails("optimize", tmp_path / "no.onnx", "-o", tmp_path / "out", code=1)
    assert message.endswith("no.onnx: no such file")
    assert "no such file" in fails("compare", tmp_path / "no.onnx", tmp_path, code=1)
    assert "no such file" in fails("inspect", tmp_path / "no.onnx", code=1)
    (tmp_path / "resnet.onnx").write_bytes(b"")
    hint = "resne.onnx: no such file, did you mean 'resnet.onnx'?"
    for command in ("optimize", "inspect"):
        assert fails(command, tmp_path / "resne.onnx", code=1).endswith(hint)
    assert fails("compare", tmp_path / "resne.onnx", tmp_path, code=1).endswith(hint)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x08", os.urandom(2000)])
def test_not_onnx(fails: Check, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert "bad.onnx" in fails("optimize", path, "-o", tmp_path / "out", code=1)


def archive(name: str) -> bytes:
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w") as writing:
            writing.writestr(name, b"content")
        return made.getvalue()


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><title>Not found</title>", "it is a web page"),
        (archive("model/data.pkl"), "torch.onnx.export"),
        (archive("config.json"), "it is a Keras file"),
        (archive("model.onnx"), "it is a ZIP archive; unpack it"),
        (b"PK\x03\x04" + bytes(60), "and damaged"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "model.export"),
        (b"\x1f\x8b\x08" + bytes(60), "it is compressed; unpack it"),
    ],
)
def test_what_often_lies_where_a_model_should_be(
    fails: Check, tmp_path: Path, content: bytes, hint: str
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert hint in fails("optimize", path, "-o", tmp_path / "out", code=1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated(fails: Check, tmp_path: Path, share: float) -> None:
    content = Path(MODEL).read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: int(share * len(content))])
    assert "cut.onnx" in fails("optimize", path, "-o", tmp_path / "out", code=1)


def test_a_folder_as_model(fails: Check, tmp_path: Path) -> None:
    assert "is a directory" in fails("optimize", tmp_path, "-o", tmp_path / "out", code=1)


def test_failing_checker(fails: Check, tmp_path: Path) -> None:
    model = onnx.load(MODEL)
    convolution = next(n for n in model.graph.node if n.op_type == "Conv")
    convolution.attribute.append(helper.make_attribute("kernel_shap", [5, 5]))
    path = tmp_path / "invalid.onnx"
    onnx.save(model, path)
    assert "kernel_shap" in fails("optimize", path, "-o", tmp_path / "out", code=1)


def test_wrong_flags(fails: Check, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "out")
    assert "--target" in fails("optimize", MODEL, "--targte", "cpu", *out, code=2)
    assert "optimize" in fails("optimise", MODEL, code=2)
    assert "'cpu'" in fails("optimize", MODEL, "--target", "cpy", *out, code=2)
    assert "did you mean 'bf16'" in fails("optimize", MODEL, "--precision", "bf17", *out, code=2)
    assert "did you mean 'znver4'" in fails("optimize", MODEL, "--mcpu", "zenver4", *out, code=2)
    assert "sm_90a" in fails("optimize", MODEL, "--target", "cuda", "--arch", "x", *out, code=2)
    assert "--threads" in fails("optimize", MODEL, "--threads", "0", *out, code=2)
    assert "--threads" in fails("optimize", MODEL, "--threads", "many", *out, code=2)
    assert "unknown processor" in fails("optimize", MODEL, "--mcpu", "z80", *out, code=2)
    assert "NAME:1x3" in fails("optimize", MODEL, "--input-shape", "1x2", *out, code=2)
    assert "MODEL" in fails("optimize", code=2, quiet=False).upper()


def test_wrong_passes(fails: Check, tmp_path: Path) -> None:
    for spec, hint in (
        ("fold-batchnorm", "did you mean 'fold-batch-norm'"),
        ("fold-constants{max-growth-byte=3}", "did you mean 'max-growth-bytes'"),
        ("fold-constants{max-growth-bytes=many}", "is not a int"),
        ("fold-constants{max-growth-bytes=3", "missing }"),
    ):
        out = tmp_path / "out"
        assert hint in fails("optimize", MODEL, "--passes", spec, "-o", out, code=2)


def test_shape_that_does_not_fit(fails: Check, tmp_path: Path) -> None:
    for text, code, named in (
        ("Input3:1x28x28", 2, "Input3"),
        ("Input:1x1x28x28", 2, "did you mean 'Input3'"),
        ("Input3:1x3x28x28", 1, "Convolution28"),
    ):
        arguments = ("--input-shape", text, "-o", tmp_path / "out")
        assert named in fails("optimize", MODEL, *arguments, code=code)


def test_output_that_cannot_be_written(fails: Check, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in fails("optimize", MODEL, "-o", file, code=2)
    assert "cannot be written" in fails("optimize", MODEL, "-o", file / "out", code=1)
    assert "cannot be written" in fails("optimize", MODEL, "-o", "/proc/out", code=1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    assert "did not write it" in fails("optimize", MODEL, "-o", foreign, code=2)


def test_no_compiler(fails: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_compiler", lambda: False)
    assert "--no-compile" in fails("optimize", MODEL, "-o", tmp_path / "out", code=1)


def test_no_cross_compiler(fails: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    message = fails("optimize", MODEL, "--mcpu", "neoverse-n1", "-o", tmp_path / "out", code=1)
    assert "CXX=aarch64-linux-gnu-g++" in message


def test_compare_with_nothing_to_compare(fails: Check, tmp_path: Path) -> None:
    assert "no such file" in fails("compare", MODEL, tmp_path / "out", code=2)
    assert "neither model.onnx nor model.so" in fails("compare", MODEL, tmp_path, code=2)
    message = fails("compare", MODEL, tmp_path, "--baseline", "openvin", code=2)
    assert "did you mean 'openvino'" in message
    broken = tmp_path / "model.so"
    broken.write_bytes(b"\x7fELF nonsense")
    assert "no executable of pwopt" in fails("compare", MODEL, broken, code=1)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "link.bin", "no.bin"])
def test_external_data_stays_in_its_folder(fails: Check, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to("../secret.bin")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", value[:1], value[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    message = fails("optimize", path, "-o", tmp_path / "out", code=1)
    assert "external data of 'w'" in message
    assert location in message


def bomb(kind: str) -> onnx.ModelProto:
    """A model of a few hundred bytes that asks for terabytes."""
    big = np.array([1 << 20, 1 << 20])
    nodes, constant = {
        "ConstantOfShape": ([helper.make_node(kind, ["c"], ["y"])], big),
        "Expand": ([helper.make_node(kind, ["x", "c"], ["y"])], big),
        "Tile": ([helper.make_node(kind, ["x", "c"], ["y"])], big),
        "Resize": (
            [helper.make_node(kind, ["x", "", "c"], ["y"], mode="nearest")],
            big.astype(np.float32),
        ),
        "Pad": ([helper.make_node(kind, ["x", "c"], ["y"])], np.array([0, 0, 1 << 20, 1 << 20])),
        "folded": (
            [
                helper.make_node("ConstantOfShape", ["c"], ["z"]),
                helper.make_node("ReduceMean", ["z"], ["m"], keepdims=1),
                helper.make_node("Add", ["x", "m"], ["y"]),
            ],
            big,
        ),
        "hidden": (  # behind a value that is only known at run time
            [
                helper.make_node("NonZero", ["x"], ["n"]),
                helper.make_node("Shape", ["n"], ["s"]),
                helper.make_node("Mul", ["s", "c"], ["t"]),
                helper.make_node("ConstantOfShape", ["t"], ["y"]),
            ],
            big,
        ),
    }[kind]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(constant, "c")]
    graph = helper.make_graph(nodes, "bomb", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile", "Resize", "Pad", "folded"])
def test_memory_bombs(fails: Check, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb.onnx"
    onnx.save(bomb(kind), path)
    assert path.stat().st_size < 1000
    message = fails("optimize", path, "-o", tmp_path / "out", code=1)
    assert "makes a tensor of 4 TiB" in message
    assert "makes a tensor" in fails("inspect", path, code=1)


def test_hidden_memory_bomb_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "bomb.onnx"
    onnx.save(bomb("hidden"), path)
    result = driver.optimize(path)
    assert result.report.verification.status == "skipped"


def test_sizes_are_checked_against_the_machine() -> None:
    import pwopt

    graph = pwopt.load(blocks.pointwise())
    limits.check_sizes(graph)
    with pytest.raises(FrontendError, match=r"'input' makes a tensor .* has 1 KiB"):
        limits.check_sizes(graph, 1024)
    assert limits.memory_bytes() > 1 << 28


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pwopt", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize(
    "step", ["optimizing", "compiling", "profiling", "measuring passes: compiling 2"]
)
def test_interrupt_leaves_nothing(
    tmp_path: Path, number: int, code: int, word: str, step: str
) -> None:
    process = start("optimize", MODEL, "-o", tmp_path / "out", "--measure-passes")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(step):
            break
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"pwopt: {word}"
    assert not list(tmp_path.iterdir())


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    process = start("optimize", tmp_path / "no.onnx")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert len(err.splitlines()) == 1


def test_unknown_variable_and_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pwopt", "inspect", str(tmp_path / "no.onnx")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PWOPT_")}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        env = clean | variables
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    done = run(PWOPT_DUMB="1")
    assert done.returncode == 2
    assert "PWOPT_DUMP" in done.stderr
    done = run(PWOPT_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("pwopt: ")
