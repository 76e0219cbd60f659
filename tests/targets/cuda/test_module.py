"""Plans to launch lists and executables: what launches touch, and what needs no GPU and no TVM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pwopt
from pwopt.errors import CodegenError
from pwopt.targets.cuda import codegen
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.module import Code, generate
from pwopt.targets.cuda.toolchain import compile_sources
from pwopt.targets.executable import Executable
from pwopt.targets.launches import Access, Address, dependencies
from pwopt.targets.manifest import Manifest, Port, SegmentSpec
from pwopt.targets.plan import (
    Buffer,
    Plan,
    Pointer,
    Step,
    Tensor,
    assign_offsets,
    pack_constants,
    place,
)
from pwopt.targets.views import View
from tests.targets.cuda.emulator.device import EmulatedDevice

PIXELS, CHANNELS = 10, 16
ROWS = (PIXELS, CHANNELS)


def scaled(source: View, target: View) -> Kernel:
    """y[p, c] = x[p, c] * s[c], a block per pixel."""

    def body(block: codegen.Block, *memory: codegen.Memory) -> None:
        x, s, y = memory
        c = block.thread
        y[target.at(block.x, c)] = x[source.at(block.x, c)] * s[c]

    floats = ["float32"] * 3
    return codegen.kernel(floats, body, grid=(PIXELS, 1, 1), threads=CHANNELS)


def increment(view: View) -> Kernel:
    """y[p, c] = x[p, c] + 1."""

    def body(block: codegen.Block, *memory: codegen.Memory) -> None:
        x, y = memory
        at = view.at(block.x, block.thread)
        y[at] = x[at] + 1.0

    floats = ["float32"] * 2
    return codegen.kernel(floats, body, grid=(PIXELS, 1, 1), threads=CHANNELS)


def plan() -> Plan:
    """Doubles x, and writes three functions of that into slices of y."""
    made, view = Plan(), View.dense(ROWS)
    size = view.elements * 4
    x, y = Buffer("input", size, index=0), Buffer("output", 3 * size, index=0)
    made.inputs.append(("x", x, view))
    made.outputs.append(("y", y, View.dense((PIXELS, 3 * CHANNELS))))
    whole = View.dense((PIXELS, 3 * CHANNELS))
    slices = [Tensor(y, whole.slice(1, i * CHANNELS, CHANNELS)) for i in range(3)]
    a, b = (Tensor(Buffer("workspace", size), view) for _ in range(2))

    def scale(source: Tensor, number: float, target: Tensor) -> None:
        factors = np.full(CHANNELS, number, np.float32)
        (sp, sv), (tp, tv) = place(source), place(target)
        pointers = (sp, Pointer(Buffer("constant", 0, data=lambda: factors)), tp)
        made.steps.append(Step(scaled, (sv, tv), pointers, (2,)))

    scale(Tensor(x, view), 2.0, a)
    scale(a, 3.0, slices[0])
    scale(a, 4.0, slices[1])
    (ap, av), (bp, _) = place(a), place(b)
    made.steps.append(Step(increment, (av,), (ap, bp), (1,), in_place=(0, 1)))
    scale(b, 5.0, slices[2])
    return made


def expected(x: np.ndarray) -> np.ndarray:
    return np.concatenate([2 * x * 3, 2 * x * 4, (2 * x + 1) * 5], axis=1)


@pytest.fixture(scope="module")
def built() -> tuple[Code, np.ndarray]:
    made = plan()
    assign_offsets(made)
    constants = pack_constants([made])
    return generate([made], "sm_80"), constants


def executable(
    built: tuple[Code, np.ndarray], images: dict[str, bytes], device: EmulatedDevice | None = None
) -> Executable:
    code, constants = built
    places, at = {}, 0
    for name, image in images.items():
        places[name] = (at, at + len(image))
        at += len(image)
    x, y = (Port("x", "float32", ROWS, "x"),), (Port("y", "float32", (PIXELS, 3 * CHANNELS), "y"),)
    manifest = Manifest(
        x,
        y,
        (SegmentSpec(x, y, launches={"sm_80": code.launches[0]}),),
        lanes=0,
        cubins={"sm_80": places},
        metadata={"target": "cuda"},
    )
    cubins = np.frombuffer(b"".join(images.values()), np.uint8)
    return Executable(manifest, None, constants, b"", cubins=cubins, device=device)


def test_equal_steps_share_a_kernel(built: tuple[Code, np.ndarray]) -> None:
    code, _ = built
    (launches,) = code.launches
    assert [each.kernel for each in launches.launches] == [
        "k0_scaled",
        "k1_scaled",
        "k1_scaled",
        "k2_increment",
        "k1_scaled",
    ]
    assert list(code.sources) == ["k0_scaled", "k1_scaled", "k2_increment"]


def test_slices_are_written_side_by_side(built: tuple[Code, np.ndarray]) -> None:
    launches = built[0].launches[0].launches
    # The increment is in place: it waits for who reads what was there.
    assert dependencies(launches) == [(), (0,), (0,), (1, 2), (3,)]
    row = 3 * CHANNELS * 4
    assert launches[2].writes == (
        Access(Address("output", 0, CHANNELS * 4), 9 * row + 64, CHANNELS * 4, row),
    )


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_every_order_that_the_dependencies_allow_gives_the_same(
    built: tuple[Code, np.ndarray], seed: int | None
) -> None:
    images = {name: text.encode() for name, text in built[0].sources.items()}
    made = executable(built, images, EmulatedDevice(seed=seed))
    x = np.random.default_rng(0).random(ROWS, np.float32)
    np.testing.assert_array_equal(made.run({"x": x})["y"], expected(x))


@pytest.fixture(scope="module")
def saved(built: tuple[Code, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = built[0].sources
    cubins = compile_sources(list(sources.values()), "sm_80")
    images = {name: cubin.image for name, cubin in zip(sources, cubins, strict=True)}
    path = tmp_path_factory.mktemp("cuda") / "model.so"
    executable(built, images).save(path)
    return path


def test_a_file_has_everything(saved: Path, built: tuple[Code, np.ndarray]) -> None:
    made = pwopt.load_executable(saved)
    assert made.manifest.segments[0].launches["sm_80"] == built[0].launches[0]
    start, end = made.manifest.cubins["sm_80"]["k1_scaled"]
    assert made.cubins[start:end].tobytes().startswith(b"\x7fELF")
    assert np.array_equal(made.constants, built[1])


def test_without_a_gpu_it_loads_and_says_so_when_run(saved: Path) -> None:
    made = pwopt.load_executable(saved)
    x = {"x": np.zeros(ROWS, np.float32)}
    for use in (made.run, made.seconds_on_device, made.profile):
        with pytest.raises(
            CodegenError, match=r"for GPUs \(sm_80\) and cannot run here: "
        ) as caught:
            use(x)
        assert "\n" not in str(caught.value)


ALONE = """
import sys
sys.modules.update(dict.fromkeys(("tvm", "tvm_ffi", "onnx", "onnxruntime", "networkx")))
import numpy as np, pwopt
from pwopt.errors import CodegenError
made = pwopt.load_executable(sys.argv[1])
print([str(p) for p in made.inputs], made.metadata["target"])
try:
    made.run({"x": np.zeros((10, 16), np.float32)})
except CodegenError as error:
    print(error)
"""


def test_it_needs_neither_tvm_nor_onnx(saved: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(saved)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "[\"'x' float32[10x16]\"] cuda"
    assert "cannot run here" in second
