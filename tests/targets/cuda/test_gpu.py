"""On a GPU: whole networks, odd sizes, tensors on the device, memory. Run with -m cuda."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pwopt
from pwopt import CodegenError, ort
from pwopt.models.registry import entry
from pwopt.precision import COMPUTE
from pwopt.targets.cuda import device
from tests.targets.lowering_helpers import model, node

DATA = Path(__file__).parents[3] / "models" / "data"
NETWORKS = sorted(path.name for path in DATA.glob("fashion-*.onnx"))
# Of the output's scale; what is stored between layers rounds, see pwopt/numerics.py.
BOUNDS = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 8e-2}

BLOCKS = ("bottleneck", "inverted_residual", "inception", "fire", "squeeze_excite", "dense_block")

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Any:
    try:
        return device.current()
    except CodegenError as error:
        pytest.skip(f"no GPU to test on: {error}")


def feeds_of(model: Any, seed: int = 1) -> dict[str, np.ndarray]:
    graph = pwopt.load(model)
    rng = np.random.default_rng(seed)
    return {n.names[0]: rng.random(n.out.shape, np.float32) for n in graph.inputs}


def check(model: Any, precision: str) -> None:
    source = model if isinstance(model, Path) else model.SerializeToString()
    feeds = feeds_of(model)
    made = pwopt.compile(
        pwopt.optimize(model, "cuda", verify=False).graph, "cuda", precision=precision
    )
    for name, wanted in ort.OrtModel(source).run(feeds).items():
        given = made.run(feeds)[name]
        assert np.abs(given - wanted).max() <= BOUNDS[precision] * np.abs(wanted).max()


@pytest.mark.parametrize("precision", COMPUTE["cuda"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_onnxruntime(name: str, precision: str) -> None:
    check(DATA / name, precision)


@pytest.mark.parametrize("precision", ["fp16", "tf32", "fp32"])
@pytest.mark.parametrize("size", [1, 7, 13, 31])
@pytest.mark.parametrize("channels", [3, 33, 64, 116])
def test_pointwise_convolutions_of_odd_sizes(channels: int, size: int, precision: str) -> None:
    for out in (1, 17, 128):
        for batch in (1, 3):
            options = {"channels": channels, "out_channels": out, "size": size, "batch": batch}
            check(entry("pointwise").build(**options), precision)


@pytest.mark.parametrize(("name", "kind"), [("sm_90", "conv"), ("sm_90a", "wgmma")])
def test_tf32_operands_are_rounded_not_truncated(gpu: Any, name: str, kind: str) -> None:
    if gpu.capability != (9, 0):
        pytest.skip(f"{gpu.name} runs no code for {name}")
    channels, between = 512, np.float32(1 + 1.5 * 2**-11)  # nearer to 1 + 2**-10 than to 1
    x = np.full((32, channels, 28, 28), between)
    w = np.full((channels, channels, 1, 1), between)
    source = model([node("Conv", "x w", "y")], {"x": x}, "y", {"w": w})
    made = pwopt.compile(source, "cuda", precision="tf32", arch=name)
    assert kind in {each["kernel"] for each in made.report["kernels"]}
    np.testing.assert_allclose(made.run({"x": x})["y"], channels * (1 + 2**-10) ** 2, rtol=1e-4)


@pytest.mark.parametrize(
    "block",
    ["bottleneck", "inverted_residual", "inception", "fire", "squeeze_excite", "dense_block"],
)
@pytest.mark.parametrize("size", [7, 14, 33])
def test_blocks_of_odd_sizes(block: str, size: int) -> None:
    check(entry(block).build(size=size), "fp16")


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2_seeded", "densenet"])
def test_large_networks_agree_with_onnxruntime(name: str) -> None:
    check(entry(name).build(), "fp16")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = DATA / "fashion-resnet.onnx"
    graph = pwopt.optimize(model, "cuda", verify=False).graph
    path = tmp_path_factory.mktemp("gpu") / "model.so"
    pwopt.compile(graph, "cuda", precision="fp16").save(path)
    return path


def test_tensors_on_the_device_are_not_copied(small: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    made = pwopt.load_executable(small)
    feeds = feeds_of(DATA / "fashion-resnet.onnx")
    wanted = made.run(feeds)
    placed = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
    for name, tensor in made.run(placed).items():
        np.testing.assert_array_equal(torch.from_dlpack(tensor).cpu().numpy(), wanted[name])
    out = {name: torch.empty(array.shape, device="cuda") for name, array in wanted.items()}
    given: dict[str, Any] = made.run(placed, out=out)
    for name, tensor in out.items():
        assert given[name] is tensor
        np.testing.assert_array_equal(tensor.cpu().numpy(), wanted[name])


def test_ten_thousand_runs_take_no_more_memory(small: Path, gpu: Any) -> None:
    made = pwopt.load_executable(small)
    feeds = feeds_of(DATA / "fashion-resnet.onnx")
    wanted = made.run(feeds)
    before = gpu.free_bytes()
    for _ in range(10_000):
        made.run(feeds)
    assert gpu.free_bytes() >= before - (1 << 20)
    for name, given in made.run(feeds).items():
        np.testing.assert_array_equal(given, wanted[name])


RUN = """
import sys, numpy as np, pwopt
made = pwopt.load_executable(sys.argv[1])
made.run({p.name: np.ones(p.shape, np.float32) for p in made.inputs})
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_sanitizer_finds_nothing(small: Path, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "-c", RUN]
    done = subprocess.run([*command, str(small)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_compare_measures_on_the_device(small: Path) -> None:
    table = pwopt.compare(DATA / "fashion-resnet.onnx", small, runs=3)
    assert table["onnxruntime"].device_ms is None
    on_device = table["compiled"].device_ms
    assert on_device is not None
    assert on_device.median > 0


def test_tuned_kernels_agree_with_onnxruntime(tmp_path: Path) -> None:
    model, database = DATA / NETWORKS[0], tmp_path / "tuning.sqlite"
    found = pwopt.tune(model, 60, target="cuda", precision="fp16", database=database)
    assert found.measured > 0
    feeds = feeds_of(model)
    made = pwopt.compile(model, "cuda", precision="fp16", database=database)
    for name, wanted in ort.OrtModel(model).run(feeds).items():
        given = made.run(feeds)[name]
        assert np.abs(given - wanted).max() <= BOUNDS["fp16"] * np.abs(wanted).max()
