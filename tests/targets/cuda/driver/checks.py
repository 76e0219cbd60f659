"""What is checked with the emulated driver, each in a process of its own: see test_device.py."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from pwopt.bench import cuda
from pwopt.errors import CodegenError, UsageError
from pwopt.targets.executable import Executable, load_executable
from pwopt.targets.launches import Access, Address, Launch, LaunchList, Window
from pwopt.targets.manifest import Manifest, Port, SegmentSpec

N = 64
BYTES = 4 * N


def address(kind: str, offset: int = 0) -> Address:
    return Address(kind, 0, offset)


def access(start: Address, size: int = BYTES) -> Access:
    return Access(start, size, size, size)


def launch(kernel: str, reads: list[Address], writes: list[Address], *, shared: int = 0) -> Launch:
    seen = tuple(access(a, 4 if a.kind == "constant" else BYTES) for a in reads)
    made = tuple(access(a) for a in writes)
    arguments = tuple(reads) if reads == writes else (*reads, *writes)
    return Launch(kernel, (2, 1, 1), N // 2, shared, arguments, seen, made)


X, Y = address("input"), address("output")
A, B, C = (address("workspace", i * 256) for i in range(3))
THREE, FIVE = address("constant", 4096), address("constant", 128)

# y = (2x + 3 + 1) * (2x + 5), with two branches, an increment in place, and memory used twice
DIAMOND = (
    launch("twice", [X], [A]),
    launch("add_constant", [A, THREE], [B]),
    launch("add_constant", [A, FIVE], [C]),
    launch("increment", [B], [B], shared=100 * 1024),
    launch("product", [B, C], [A]),
    Launch(
        "through_map",
        (1, 1, 1),
        32,
        0,
        (Window(A, "float32", (N,), (), (N,), (1,), 0), Y),
        (access(A),),
        (access(Y),),
    ),
)


def expected(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = (2 * x + 4) * (2 * x + 5)
    return result


def executable(folder: Path, archs: tuple[str, ...] = ("sm_90",)) -> Executable:
    image = np.frombuffer((folder / "kernels.so").read_bytes(), np.uint8)
    constants = np.full(8192, 0xFF, np.uint8)
    for place, number in ((THREE, 3.0), (FIVE, 5.0)):
        constants[place.offset : place.offset + 4] = np.float32(number).reshape(1).view(np.uint8)
    port = {name: (Port(name, "float32", (4, N // 4), f"v_{name}"),) for name in ("x", "y")}
    inner = {name: (Port(f"v_{name}", "float32", (4, N // 4), f"v_{name}"),) for name in ("x", "y")}
    whole = {launch.kernel: (0, image.size) for launch in DIAMOND}
    lists = {arch: LaunchList(DIAMOND, 4 * 256) for arch in archs}
    manifest = Manifest(
        port["x"],
        port["y"],
        (SegmentSpec(inner["x"], inner["y"], launches=lists),),
        lanes=0,
        cubins=dict.fromkeys(archs, whole),
        metadata={"target": "cuda"},
    )
    return Executable(manifest, None, constants, b"", cubins=image)


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((4, N // 4), np.float32)


def live(what: str) -> int:
    """How many of something the driver has given out and not got back."""
    count = ctypes.CDLL("libcuda.so.1").emulated_live
    count.restype = ctypes.c_long
    return int(count(what.encode()))


def check_arrays(folder: Path) -> None:
    made = executable(folder)
    for seed in range(50):  # the driver takes another order each time
        x = values(seed)
        assert np.array_equal(made.run({"x": x})["y"], expected(x))
    strided = values(99).T.copy().T
    assert np.array_equal(made.run({"x": strided})["y"], expected(strided))


def check_saved(folder: Path) -> None:
    executable(folder).save(folder / "model.so")
    made = load_executable(folder / "model.so")
    x = values(0)
    assert np.array_equal(made.run({"x": x})["y"], expected(x))
    assert made.manifest == load_executable(folder / "model.so").manifest


def check_tensors(folder: Path) -> None:
    made = executable(folder)
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    from pwopt.targets.cuda import device

    gpu = device.current()

    def tensor(array: np.ndarray) -> object:
        with gpu.active() as driver:
            place = gpu.memory(array.nbytes)
            driver.cuMemcpyHtoD(place, array.ctypes.data, array.nbytes)
            driver.cuCtxSynchronize()
        buffer = Buffer.from_handle(place, array.nbytes, owner=array)
        return StridedMemoryView.from_buffer(buffer, array.shape, dtype=array.dtype)

    def contents(view: object) -> np.ndarray:
        pointer = ctypes.cast(view.ptr, ctypes.POINTER(ctypes.c_float))  # type: ignore[attr-defined]
        return np.ctypeslib.as_array(pointer, (4, N // 4)).copy()

    x, z = values(1), values(2)
    a, b, y = tensor(x), tensor(z), tensor(np.zeros_like(x))
    before = live("updates")
    assert np.array_equal(contents(made.run({"x": a})["y"]), expected(x))
    moved = live("updates") - before
    assert moved == 2  # of six nodes, the one that reads and the one that writes
    out = made.run({"x": b}, out={"y": y})["y"]
    assert out is y
    assert np.array_equal(contents(y), expected(z))
    before = live("updates")
    made.run({"x": b}, out={"y": y})
    assert live("updates") == before  # nothing moved
    assert np.array_equal(made.run({"x": x})["y"], expected(x))  # arrays still do
    assert made.seconds_on_device({"x": x}, 10) == pytest.approx(11e-6)  # as many blocks
    for wrong, message in (
        ({"x": tensor(np.zeros((4, 4), np.float32))}, "got float32"),
        ({"x": tensor(np.zeros((4, N // 4), np.int32))}, "got int32"),
        ({}, "is missing"),
        ({"x": a, "more": a}, "no input 'more'"),
    ):
        with pytest.raises(UsageError, match=message):
            made.run(wrong, out={"y": y})


def check_threads(folder: Path) -> None:
    made, wrong = executable(folder), list[int]()

    def work(seed: int) -> None:
        for i in range(50):
            x = values(100 * seed + i)
            if not np.array_equal(made.run({"x": x})["y"], expected(x)):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def in_three_segments(folder: Path) -> Executable:
    """Y = (x + 3) * -(2x), of which ONNX Runtime negates."""
    a, b, c = (Port(f"v_{name}", "float32", (4, N // 4), f"v_{name}") for name in "abc")
    x, y = (Port(f"v_{name}", "float32", (4, N // 4), f"v_{name}") for name in "xy")
    first, second = Address("output", 0, 0), Address("output", 1, 0)
    before = launch("twice", [X], [first]), launch("add_constant", [X, THREE], [second])
    after = launch("product", [X, Address("input", 1, 0)], [Y])
    whole = executable(folder)
    given, negated = (helper.make_tensor_value_info(p.key, 1, p.shape) for p in (a, c))
    node = helper.make_node("Neg", ["v_a"], ["v_c"])
    graph = helper.make_graph([node], "g", [given], [negated])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = made.SerializeToString()
    manifest = dataclasses.replace(
        whole.manifest,
        segments=(
            SegmentSpec((x,), (a, b), launches={"sm_90": LaunchList(before, 256)}),
            SegmentSpec((a,), (c,), model=(0, len(model))),
            SegmentSpec((b, c), (y,), launches={"sm_90": LaunchList((after,), 256)}),
        ),
    )
    return Executable(manifest, None, whole.constants, model, cubins=whole.cubins)


def check_segments(folder: Path) -> None:
    """Only what the host reads crosses; what stays is not overwritten by other runs."""
    made = in_three_segments(folder)

    def check(seed: int) -> bool:
        x = values(seed)
        return np.array_equal(made.run({"x": x})["y"], (x + 3) * -(2 * x))

    assert check(0)
    before = [live("bytes to the device"), live("bytes to the host")]
    assert check(1)
    after = [live("bytes to the device"), live("bytes to the host")]
    assert np.subtract(after, before).tolist() == [2 * BYTES, 2 * BYTES]  # x and c, a and y
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(200)))
    streams = live("stream")
    assert check(2)
    assert live("stream") == streams  # sessions come back


def check_benchmark(folder: Path) -> None:
    """A kernel that breaks the context costs its own row alone."""
    os.environ["EMULATED_FAULT"] = "1024"
    numbers = {name: np.float32(value) for name, value in (("two", 2), ("four", 4), ("five", 5))}
    nodes = [
        helper.make_node(op, inputs.split(), [result])
        for op, inputs, result in (
            ("Mul", "x two", "t"),
            ("Add", "t four", "a"),
            ("Add", "t five", "b"),
            ("Mul", "a b", "y"),
        )
    ]
    x, y = (helper.make_tensor_value_info(name, 1, (4, N // 4)) for name in "xy")
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in numbers.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for name, shared in (("bad", 100 * 1024), ("good", 0)):
        whole = executable(folder)
        launches = tuple(each._replace(shared_bytes=shared) for each in DIAMOND)
        segment = dataclasses.replace(
            whole.manifest.segments[0], launches={"sm_90": LaunchList(launches, 4 * 256)}
        )
        manifest = dataclasses.replace(whole.manifest, segments=(segment,))
        made = Executable(manifest, None, whole.constants, b"", cubins=whole.cubins)
        made.save(folder / f"{name}.so")
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    cases = [cuda.Case(name, name, "none", {}) for name in ("bad", "good")]
    bad, good = cuda.measure(folder, cases, 1e3)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in bad.failure
    assert not good.failure
    assert good.error < 1e-6
    assert good.ms["pwopt"] > 0


def check_nothing_is_left(folder: Path) -> None:
    made, x = executable(folder), values(0)
    made.run({"x": x})
    kinds = ("memory", "pinned", "graph", "instance", "stream", "event", "module")
    before = {what: live(what) for what in kinds}
    assert min(before.values()) >= 1
    for _ in range(10_000):
        made.run({"x": x})
    assert {what: live(what) for what in kinds} == before
    del made
    gc.collect()
    assert {what: live(what) for what in kinds} == dict.fromkeys(kinds, 0)


def check_profile(folder: Path) -> None:
    made = executable(folder)
    rows = [
        {"node": f"node {i}", "kernel": each.kernel, "predicted_us": 1.0, "macs": 0, "origin": []}
        for i, each in enumerate(DIAMOND)
    ]
    made.manifest.report |= {"kernels": rows, "segments": [{"kernels": len(rows), "origin": []}]}
    found = made.profile({"x": values(0)}, seconds=0.01)
    assert [t.kernel for t in found] == [each.kernel for each in DIAMOND]
    assert [round(t.us) for t in found] == [2, 2, 2, 2, 2, 1]  # as many blocks


def check_another_gpu(folder: Path) -> None:
    with pytest.raises(
        CodegenError,
        match=r"holds machine code for sm_80, sm_86; Emulated GPU has compute capability 9\.0: "
        "build it again with --arch",
    ):
        executable(folder, ("sm_80", "sm_86")).run({"x": values(0)})


def check_a_fat_executable(folder: Path) -> None:
    x = values(0)
    made = executable(folder, ("sm_80", "sm_90a"))
    assert np.array_equal(made.run({"x": x})["y"], expected(x))


def check_no_gpu(folder: Path) -> None:
    with pytest.raises(CodegenError, match=r"cannot run here: .* no GPU .*CUDA_ERROR_NO_DEVICE"):
        executable(folder).run({"x": values(0)})


if __name__ == "__main__":
    globals()[f"check_{sys.argv[1]}"](Path(sys.argv[2]))
