"""--target cuda from the model to the executable, without a GPU: emulated, and as machine code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import pwopt
from pwopt import CodegenError, UsageError, hardware, numerics
from pwopt.cli.entry import run
from pwopt.models.blocks import bottleneck, inception
from pwopt.targets.cuda import toolchain
from pwopt.targets.cuda.arch import archs
from pwopt.targets.cuda.compile import compile_graph
from pwopt.targets.cuda.toolchain import Cubin, Usage
from pwopt.targets.executable import Executable
from tests.targets.cuda.emulator.device import EmulatedDevice

DATA = Path(__file__).parents[3] / "models" / "data"
# Of the output's scale: eleven or eight bits of the operands, a few layers.
BOUNDS = {"fp16": 4e-3, "tf32": 4e-3, "bf16": 3e-2, "fp32": 1e-5}


def as_text(sources: Mapping[str, str], arch: str) -> dict[str, Cubin]:
    """What the emulator takes for machine code."""
    return {name: Cubin(text.encode(), {name: Usage(0)}) for name, text in sources.items()}


def emulated(made: Executable, capability: tuple[int, int], seed: int | None) -> Executable:
    device = EmulatedDevice(capability, seed)
    return Executable(
        made.manifest, None, made.constants, made.models, cubins=made.cubins, device=device
    )


@pytest.mark.parametrize(
    ("arch", "precision"),
    [("sm_80", "fp16"), ("sm_80", "tf32"), ("sm_80", "fp32"), ("sm_90a", "bf16")],
)
def test_launches_in_any_order_give_what_the_cpu_gives(arch: str, precision: str) -> None:
    graph = pwopt.optimize(inception(size=7), "cuda", verify=False).graph
    made = compile_graph(graph, archs(arch), precision, assemble=as_text)
    assert not made.report["fallback"]
    x = {p.name: np.random.default_rng(0).random(p.shape, np.float32) for p in made.inputs}
    (wanted,) = pwopt.compile(graph).run(x).values()
    capability = archs(arch)[0].capability
    results = [emulated(made, capability, seed).run(x) for seed in (None, 1, 2)]
    for result in results:
        (given,) = result.values()
        assert numerics.difference("y", wanted, given).error <= BOUNDS[precision]
        assert np.array_equal(given, next(iter(results[0].values())))


def test_a_fat_executable_holds_code_for_each_architecture(tmp_path: Path) -> None:
    graph = pwopt.optimize(bottleneck(size=7), "cuda", verify=False).graph
    pwopt.compile(graph, "cuda", precision="fp16", arch="sm_80,sm_90a").save(tmp_path / "model.so")
    made = pwopt.load_executable(tmp_path / "model.so")
    assert list(made.manifest.segments[0].launches) == ["sm_80", "sm_90a"]
    assert made.metadata["arch"] == "sm_80,sm_90a"
    assert made.metadata["precision"] == "fp16"
    for arch, kernels in made.manifest.cubins.items():
        used = {each.kernel for each in made.manifest.segments[0].launches[arch].launches}
        assert used == set(kernels)
    assert all(row["registers"] and not row["spill_bytes"] for row in made.report["kernels"])


def test_formats_are_those_of_the_gpu_not_of_the_host() -> None:
    narrow = hardware.named("x86-64-v3")
    made = pwopt.compile(
        DATA / "fashion-lenet.onnx", "cuda", precision="bf16", arch="sm_80", hardware=narrow
    )
    assert made.metadata["precision"] == "bf16"


def test_predictions_are_those_of_the_gpus_that_code_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(DATA / "fashion-lenet.onnx"), tmp_path / "out"
    arguments = ["--target", "cuda", "--arch", "sm_86,sm_90a", "-o", str(out), "-q"]
    assert run(["optimize", model, *arguments]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["before"]["predicted_us"] is found["after"]["predicted_us"] is None
    assert all(row["us_before"] is row["us_after"] is None for row in found["passes"])
    made = found["compilation"]
    gpus = {arch: each["gpu"] for arch, each in made["predicted"].items()}
    assert gpus == {"sm_86": "A10", "sm_90a": "H200"}
    first = sum(kernel["predicted_us"] for kernel in made["kernels"])
    assert made["predicted"]["sm_86"]["us"] == pytest.approx(first)
    told, page = capsys.readouterr().out, (out / "report.html").read_text()
    assert re.search(r"predicted +[\d.]+ us on A10 \(sm_86\), [\d.]+ us on H200 \(sm_90a\)", told)
    assert "one core" not in told
    assert f"{made['predicted']['sm_90a']['us']:.3g} \u00b5s on H200 (sm_90a)" in page
    assert 'id="roofline"' not in page  # whose roofs are a processor's


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = str(DATA / "fashion-lenet.onnx"), tmp_path / "out"
    assert run(["optimize", model, "--target", "cuda", "-o", str(out), "-q"]) == 0
    told = capsys.readouterr().out
    assert "kernels for sm_" in told
    assert "tf32" in told
    assert {p.name for p in out.iterdir()} >= {"model.onnx", "model.so", "report.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cuda", "--arch", "sm_91"], "--arch sm_91: unknown architecture, did you"),
        (["--target", "cuda", "--precision", "int8"], "--precision int8: one of "),
        (["--target", "cuda", "--fc-weights", "int8"], "only --target cpu has it"),
        (["--target", "cuda", "--tune", "1", "--arch", "sm_80,sm_90"], "one --arch"),
        (["--precision", "tf32"], "--precision tf32: one of fp32, bf16 is wanted for --target cpu"),
        (["--arch", "sm_80"], "--arch sm_80: only --target cuda has it"),
    ],
)
def test_what_does_not_go_together(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(DATA / "fashion-lenet.onnx")
    assert run(["optimize", model, *arguments, "-o", str(tmp_path / "out"), "-q"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    with pytest.raises(UsageError):
        pwopt.compile(model, precision="tf32")


def test_without_a_compiler_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toolchain, "nvrtc_include_folders", lambda: None)
    monkeypatch.setattr(toolchain, "find_tool", lambda name: None)
    model = str(DATA / "fashion-lenet.onnx")
    assert run(["optimize", model, "--target", "cuda", "-o", str(tmp_path / "out"), "-q"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'pwopt[cuda]'" in line
    with pytest.raises(CodegenError, match=r"pwopt\[cuda\]"):
        pwopt.compile(model, "cuda")
