"""Running, saving and loading executables."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import pwopt
from pwopt import CodegenError, Executable, UsageError, hardware
from pwopt.models.blocks import bottleneck
from pwopt.targets import runtime
from tests.targets.lowering_helpers import model, node, normal

SHAPE = (1, 16, 8, 8)


@pytest.fixture(scope="module")
def executable() -> Executable:
    graph = pwopt.optimize(bottleneck(), verify=False).graph
    return pwopt.compile(graph, metadata={"note": "of the test"})


@pytest.fixture(scope="module")
def saved(executable: Executable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("executable") / "model.so"
    executable.save(path)
    return path


@pytest.fixture(scope="module")
def answer(executable: Executable) -> np.ndarray:
    return only(executable, normal(*SHAPE))


def only(executable: Executable, x: np.ndarray) -> np.ndarray:
    (y,) = executable.run({"input": x}).values()
    return y


# --- run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'input' is missing"),
        ({"input": normal(*SHAPE), "more": normal(1)}, "no input 'more'"),
        ({"input": normal(*SHAPE).astype(np.float64)}, r"got float64.*astype\('float32'\)"),
        ({"input": normal(*SHAPE).astype(">f4")}, "got >f4"),
        ({"input": normal(1, 16, 8, 9)}, "got shape 1x16x8x9.*--input-shape"),
        ({"input": normal(16, 8, 8)}, "got shape 16x8x8"),
        ({"input": normal(*SHAPE).tolist()}, "must be a numpy array, got list"),
    ],
)
def test_wrong_inputs_are_refused(executable: Executable, inputs: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        executable.run(inputs)


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    tensor = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("OptionalHasElement", ["x"], ["y"])],
        "optional",
        [helper.make_value_info("x", helper.make_optional_type_proto(tensor))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, [])],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    made = pwopt.compile(source)
    made.save(tmp_path / "model.so")
    for executable in (made, pwopt.load_executable(tmp_path / "model.so")):
        assert not executable.run({})["y"]
        assert not executable.run({"x": None})["y"]
        assert executable.run({"x": normal(2)})["y"]


def odd_arrays() -> dict[str, np.ndarray]:
    x = normal(*SHAPE)
    wide = np.zeros((1, 16, 8, 16), np.float32)
    wide[..., ::2] = x
    frozen = x.copy()
    frozen.setflags(write=False)
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    raw[:] = x.reshape(-1).view(np.uint8)
    return {
        "not contiguous": wide[..., ::2],
        "reversed": np.ascontiguousarray(x[:, ::-1])[:, ::-1],
        "Fortran": np.asfortranarray(x),
        "read-only": frozen,
        "unaligned": raw.view(np.float32).reshape(SHAPE),
    }


@pytest.mark.parametrize("kind", list(odd_arrays()))
def test_odd_arrays(executable: Executable, answer: np.ndarray, kind: str) -> None:
    assert np.array_equal(only(executable, odd_arrays()[kind]), answer)


def test_nothing_is_read_behind_the_last_page() -> None:
    x = normal(1, 16, 8, 8)
    executable = pwopt.compile(model([node("Relu", "x", "y")], {"x": x}, "y"))
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    array = np.frombuffer(pages, np.float32, x.size, mmap.PAGESIZE).reshape(x.shape)
    array[:] = x
    assert array.nbytes == mmap.PAGESIZE
    assert np.array_equal(executable.run({"x": array})["y"], np.maximum(x, 0))


def test_outputs_are_independent(executable: Executable, answer: np.ndarray) -> None:
    x = normal(*SHAPE)
    first = only(executable, x)
    first[:] = 7
    second = only(executable, x)
    assert np.array_equal(second, answer)
    only(executable, normal(*SHAPE, seed=1))
    assert np.array_equal(second, answer)
    assert np.array_equal(x, normal(*SHAPE))


def test_outputs_do_not_alias_inputs() -> None:
    x = normal(2, 3)
    nodes = [node("Identity", "x", "a"), node("Reshape", "x s", "b")]
    executable = pwopt.compile(model(nodes, {"x": x}, "a b", {"s": np.asarray([3, 2])}))
    outputs = executable.run({"x": x})
    assert not any(np.shares_memory(x, y) for y in outputs.values())
    assert not np.shares_memory(outputs["a"], outputs["b"])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_an_executable(threads: int) -> None:
    graph = pwopt.optimize(bottleneck(size=20), verify=False).graph
    executable = pwopt.compile(graph, threads=threads)
    inputs = [normal(1, 16, 20, 20, seed=i) for i in range(4)]
    wanted = [only(executable, x) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            if not np.array_equal(only(executable, inputs[i]), wanted[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_constants_are_not_copied(executable: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[np.ndarray] = []
    original = runtime.tensor

    def tensor(array: np.ndarray) -> object:
        taken.append(array)
        return original(array)

    monkeypatch.setattr(runtime, "tensor", tensor)
    copy = Executable(executable.manifest, executable.module, executable.constants, b"")
    only(copy, normal(*SHAPE))
    assert any(a is executable.constants for a in taken)
    others = sum(a.nbytes for a in taken if a is not executable.constants)
    workspace = executable.manifest.segments[0].workspace_bytes
    assert others <= workspace + 4 * 2 * np.prod(SHAPE) + 1024


# --- save and load --------------------------------------------------------------------------------

FRESH = """
import json, sys
import numpy as np
import pwopt
executable = pwopt.load_executable(sys.argv[1])
(y,) = executable.run({"input": np.load(sys.argv[2])}).values()
np.save(sys.argv[3], y)
print(json.dumps({"modules": sorted(sys.modules), "metadata": executable.metadata}))
"""


def test_a_fresh_process_gives_the_same_bits(
    saved: Path, answer: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", normal(*SHAPE))
    files = [str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), answer)
    told = json.loads(done.stdout)
    assert not {"tvm", "onnx", "onnxruntime", "networkx"} & set(told["modules"])
    assert told["metadata"]["note"] == "of the test"
    assert told["metadata"]["target"] == "cpu"


def test_loading_again_after_a_rebuild_gives_the_new_one(tmp_path: Path) -> None:
    path, x = tmp_path / "model.so", normal(2, 3)
    for op, function in (("Relu", lambda a: np.maximum(a, 0)), ("Neg", np.negative)):
        pwopt.compile(model([node(op, "x", "y")], {"x": x}, "y")).save(path)
        assert np.array_equal(pwopt.load_executable(path).run({"x": x})["y"], function(x))


def test_a_part_for_onnxruntime_is_saved_too(tmp_path: Path) -> None:
    x = np.asarray([["b", "a"]], dtype=object)
    nodes = [node("Identity", "x", "y"), node("Shape", "x", "n")]
    info, kinds = helper.make_tensor_value_info, onnx.TensorProto
    graph = helper.make_graph(
        nodes,
        "strings",
        [info("x", kinds.STRING, [1, 2])],
        [info("y", kinds.STRING, [1, 2]), info("n", kinds.INT64, [2])],
    )
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    pwopt.compile(made).save(tmp_path / "model.so")
    outputs = pwopt.load_executable(tmp_path / "model.so").run({"x": x})
    assert outputs["y"].tolist() == [["b", "a"]]
    assert outputs["n"].tolist() == [1, 2]


# --- profile --------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_every_kernel_is_measured(threads: int) -> None:
    graph = pwopt.optimize(bottleneck(size=20), verify=False).graph
    executable = pwopt.compile(graph, threads=threads)
    found = executable.profile(seconds=0)
    kernels = executable.report["kernels"]
    assert [(k.node, k.kernel) for k in found] == [(k["node"], k["kernel"]) for k in kernels]
    assert all(0 < k.us < 1e6 for k in found)
    assert sum(k.predicted_us for k in found) == sum(k["predicted_us"] for k in kernels)


def test_a_part_for_onnxruntime_is_measured_as_a_whole(tmp_path: Path) -> None:
    x, y = np.asarray([["b", "a"]], dtype=object), normal(1, 8)
    info, kinds = helper.make_tensor_value_info, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["u"]), helper.make_node("Relu", ["y"], ["v"])],
        "both",
        [info("x", kinds.STRING, [1, 2]), info("y", kinds.FLOAT, [1, 8])],
        [info("u", kinds.STRING, [1, 2]), info("v", kinds.FLOAT, [1, 8])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    pwopt.compile(made).save(tmp_path / "model.so")
    executable = pwopt.load_executable(tmp_path / "model.so")
    times = {k.origin: k for k in executable.profile({"x": x, "y": y}, seconds=0)}
    assert times["u",].kernel == "onnxruntime"
    assert times["u",].node == "1 operator in ONNX Runtime"
    assert times["v",].kernel != "onnxruntime"
    assert all(k.us > 0 for k in times.values())
    with pytest.raises(UsageError, match="got shape 1x9"):
        executable.profile({"x": x, "y": normal(1, 9)})


def test_an_executable_that_cannot_tell_times_says_so(executable: Executable) -> None:
    report = {k: v for k, v in executable.report.items() if k != "segments"}
    manifest = dataclasses.replace(executable.manifest, report=report)
    old = Executable(manifest, executable.module, executable.constants, executable.models)
    with pytest.raises(CodegenError, match="build it again"):
        old.profile(seconds=0)


def test_files_that_are_no_executables(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CodegenError, match="no such file"):
        pwopt.load_executable(tmp_path / "missing.so")
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(CodegenError, match="no executable of pwopt"):
        pwopt.load_executable(tmp_path / "text.so")
    (tmp_path / "short.so").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CodegenError, match="incomplete"):
        pwopt.load_executable(tmp_path / "short.so")
    source = tmp_path / "other.c"
    source.write_text("int answer(void) { return 42; }")
    other = tmp_path / "other.so"
    subprocess.run(["cc", "-shared", "-o", str(other), str(source)], check=True)
    with pytest.raises(CodegenError, match="no executable of pwopt"):
        pwopt.load_executable(other)


def test_wider_vectors_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = pwopt.load_executable(saved).manifest.lanes
    narrow = hardware.Hardware("x86-64-v2", lanes // 2, 16, masks=False)
    monkeypatch.setattr(hardware, "host", lambda: narrow)
    with pytest.raises(CodegenError, match=f"vectors of {lanes} floats.*rebuild"):
        pwopt.load_executable(saved)


def test_a_loaded_executable_says_which_file_to_copy(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CodegenError, match=f"loaded from {saved}"):
        pwopt.load_executable(saved).save(tmp_path / "copy.so")


def test_no_compiler(
    executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CodegenError, match=r"C\+\+ compiler.*install g\+\+ or clang"):
        executable.save(tmp_path / "model.so")
    assert not list(tmp_path.iterdir())


def test_a_linker_that_fails(
    executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-cxx"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(CodegenError, match="out of luck"):
        executable.save(tmp_path / "model.so")
    assert [p.name for p in tmp_path.iterdir()] == ["broken-cxx"]


def test_folders_that_cannot_be_written(executable: Executable, tmp_path: Path) -> None:
    with pytest.raises(CodegenError, match="does not exist"):
        executable.save(tmp_path / "none" / "model.so")
    (tmp_path / "model.so").mkdir()
    with pytest.raises(CodegenError, match="cannot write"):
        executable.save(tmp_path / "model.so")
    assert [p.name for p in tmp_path.iterdir()] == ["model.so"]


def test_an_interrupted_write_leaves_the_old_file(
    executable: Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "model.so"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        executable.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    executable = pwopt.compile(bottleneck(), hardware=hardware.NEON)
    kernels = tmp_path / "kernels.o"
    executable.module.write_to_file(str(kernels), "o")
    assert int.from_bytes(kernels.read_bytes()[18:20], "little") == 183  # EM_AARCH64
    if os.uname().machine == "aarch64":
        return
    with pytest.raises(CodegenError, match="built for aarch64-linux-gnu"):
        only(executable, normal(*SHAPE))
    path = tmp_path / "model.so"
    if shutil.which("aarch64-linux-gnu-g++") or shutil.which("aarch64-linux-gnu-gcc"):
        executable.save(path)
        with pytest.raises(CodegenError, match="built for aarch64"):
            pwopt.load_executable(path)
    else:
        with pytest.raises(CodegenError, match=r"cross compiler.*aarch64-linux-gnu-gcc"):
            executable.save(path)
