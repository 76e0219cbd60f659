"""Executables in C and C++ programs, and in Python where little is installed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import pwopt
from pwopt import Executable
from pwopt.models.blocks import bottleneck
from pwopt.targets import native
from tests.targets.lowering_helpers import model, node, normal

ROOT = Path(__file__).parents[2]
PACKAGES = Path(sysconfig.get_paths()["platlib"])
SHAPE = (1, 16, 20, 20)


def made(folder: Path, threads: int = 1) -> tuple[Path, np.ndarray]:
    """An executable's file, and what it computes of seed 0."""
    executable = pwopt.compile(bottleneck(size=20), threads=threads)
    executable.save(folder / "model.so")
    (y,) = executable.run({"input": normal(*SHAPE)}).values()
    return folder / "model.so", y


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    return made(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    return made(tmp_path_factory.mktemp("two"), 2)


# --- C++ ------------------------------------------------------------------------------------------


def program(executable: Path) -> Path:
    """The example, built for an executable."""
    source, built = ROOT / "examples" / "deploy.cc", executable.with_name("deploy")
    include = Path(native.__file__).parent
    linked = ["-I", str(include), str(source), str(executable), "-Wl,-rpath,$ORIGIN"]
    subprocess.run(["g++", "-Wall", "-Werror", *linked, "-o", str(built)], check=True)
    return built


def run(built: Path, x: np.ndarray) -> subprocess.CompletedProcess[bytes]:
    """Runs the example where nothing but the system's libraries is found."""
    return subprocess.run([built], input=x.tobytes(), capture_output=True, check=False, env={})


def test_a_program_needs_nothing_but_the_executable(one: tuple[Path, np.ndarray]) -> None:
    path, y = one
    done = run(program(path), normal(*SHAPE))
    assert done.returncode == 0, done.stderr
    assert done.stdout == y.tobytes()
    assert done.stderr.decode().splitlines()[0] == f"input: float32, {4 * 16 * 400} bytes"


def test_several_threads_need_the_runtime_beside_it(two: tuple[Path, np.ndarray]) -> None:
    path, y = two
    built = program(path)
    done = run(built, normal(*SHAPE))
    assert done.returncode == 1
    assert "libtvm_runtime.so must lie beside the executable" in done.stderr.decode()
    for library in ("tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so"):
        shutil.copy(PACKAGES / library, path.parent)
    done = run(built, normal(*SHAPE))
    assert done.returncode == 0, done.stderr
    assert done.stdout == y.tobytes()


def test_a_part_for_onnxruntime_is_refused_with_its_node(tmp_path: Path) -> None:
    info, kinds = helper.make_tensor_value_info, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], name="copy")],
        "strings",
        [info("x", kinds.STRING, [1, 2])],
        [info("y", kinds.STRING, [1, 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    pwopt.compile(made).save(tmp_path / "model.so")
    done = run(program(tmp_path / "model.so"), normal(1))
    assert done.returncode == 1
    assert "runs in ONNX Runtime: Identity 'copy'" in done.stderr.decode()
    assert "pwopt.load_executable" in done.stderr.decode()


# --- the functions of pwopt.h, called from Python -------------------------------------------------


class Tensor(ctypes.Structure):
    """``pwopt_tensor``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


def tensors(function: Callable[..., int]) -> list[tuple[str, str, tuple[int, ...], int]]:
    found = ctypes.POINTER(Tensor)()
    count = function(ctypes.byref(found))
    each = (found[i] for i in range(count))
    return [(t.name.decode(), t.dtype.decode(), tuple(t.shape[: t.rank]), t.bytes) for t in each]


def call(library: ctypes.CDLL, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
    def pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))

    return int(library.pwopt_run(pointers(inputs), pointers(outputs)))


def test_ports_keep_the_models_order_and_names(tmp_path: Path) -> None:
    x, y = normal(2, 3), normal(3, seed=1)
    source = model([node("Neg", "b", "n"), node("Add", "a n", "s")], {"a": x, "b": y}, "n s")
    source.graph.input[0].name = source.graph.node[1].input[0] = 'a"é\\n'
    source.graph.input.add().CopyFrom(source.graph.input[1])
    source.graph.input[2].name = "unused"
    executable = pwopt.compile(source)
    executable.save(tmp_path / "model.so")
    library = ctypes.CDLL(str(tmp_path / "model.so"))
    wide, narrow = ("float32", (2, 3), 24), ("float32", (3,), 12)
    assert tensors(library.pwopt_inputs) == [('a"é\\n', *wide), ("b", *narrow), ("unused", *narrow)]
    assert tensors(library.pwopt_outputs) == [("n", *narrow), ("s", *wide)]
    n, s = np.empty(3, np.float32), np.empty((2, 3), np.float32)
    assert call(library, [x, y, y], [n, s]) == 0
    assert np.array_equal(n, -y)
    assert np.array_equal(s, x - y)


def together(work: Callable[[int], None], count: int) -> None:
    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@pytest.mark.parametrize("offset", [0, 4])
def test_threads_share_a_library_whatever_the_alignment(
    one: tuple[Path, np.ndarray], offset: int
) -> None:
    path, _ = one
    library, executable = ctypes.CDLL(str(path)), pwopt.load_executable(path)
    right: list[bool] = []

    def unaligned() -> np.ndarray:
        raw = np.zeros(4 * np.prod(SHAPE) + 64 + 4, np.uint8)
        start = -raw.ctypes.data % 64 + offset
        return raw[start : start + 4 * np.prod(SHAPE)].view(np.float32).reshape(SHAPE)

    def work(i: int) -> None:
        x, y = unaligned(), unaligned()
        x[:] = normal(*SHAPE, seed=i)
        (wanted,) = executable.run({"input": x}).values()
        for _ in range(30):
            y[:] = 0
            right.append(call(library, [x], [y]) == 0 and np.array_equal(y, wanted))

    together(work, 4)
    assert right == [True] * 120


# --- Python ---------------------------------------------------------------------------------------


def test_each_thread_runs_an_executable_of_its_own(one: tuple[Path, np.ndarray]) -> None:
    path, answer = one
    other = pwopt.compile(model([node("Neg", "x", "y")], {"x": normal(*SHAPE)}, "y"))
    programs: list[tuple[Executable, str, np.ndarray]] = [
        (pwopt.load_executable(path), "input", answer),
        (other, "x", -normal(*SHAPE)),
    ]
    right: list[bool] = []

    def work(i: int) -> None:
        executable, name, wanted = programs[i]
        for _ in range(50):
            (y,) = executable.run({name: normal(*SHAPE)}).values()
            right.append(np.array_equal(y, wanted))

    together(work, 2)
    assert right == [True] * 100


SMALL = """
import sys
import numpy as np
import pwopt
(y,) = pwopt.load_executable(sys.argv[1]).run({"input": np.load(sys.argv[2])}).values()
np.save(sys.argv[3], y)
"""
NEEDED = ("numpy", "numpy.libs", "ml_dtypes", "tvm_ffi", "typing_extensions.py")


@pytest.mark.parametrize("threads", [1, 2])
def test_python_needs_few_packages(
    threads: int,
    one: tuple[Path, np.ndarray],
    two: tuple[Path, np.ndarray],
    tmp_path: Path,
) -> None:
    path, y = one if threads == 1 else two
    site = tmp_path / "site"
    site.mkdir()
    (site / "pwopt").symlink_to(ROOT / "pwopt")
    for name in NEEDED:
        (site / name).symlink_to(PACKAGES / name)
    shutil.copy(path, tmp_path / "model.so")
    np.save(tmp_path / "x.npy", normal(*SHAPE))

    def load() -> subprocess.CompletedProcess[str]:
        files = [str(tmp_path / name) for name in ("model.so", "x.npy", "y.npy")]
        command = [sys._base_executable, "-S", "-c", SMALL, *files]  # type: ignore[attr-defined]
        environment = {"PYTHONPATH": str(site)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    done = load()
    if threads == 2:
        assert "put the file beside the executable" in done.stderr
        shutil.copy(PACKAGES / "tvm" / "lib" / "libtvm_runtime.so", tmp_path)
        done = load()
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), y)
