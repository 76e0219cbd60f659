"""The builder of CUDA kernels and the text that it emits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from pwopt.targets.cuda.codegen import (
    Array,
    Block,
    Memory,
    all_of,
    barrier,
    branch,
    kernel,
    let,
    rolled,
    serial,
    source,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernel import Kernel, TensorMap
from pwopt.targets.in_place import in_place
from tests.targets.cuda import emulator

DTYPES = ("float16", "bfloat16", "float32")
THREADS, LANES = 64, 8

DRIVER = """
int cuDeviceGetName() { return 100; } int cuFuncSetAttribute() { return 100; }
int cuGetErrorName() { return 100; } int cuGetErrorString() { return 100; }
int cuLaunchKernelEx() { return 100; } int cuModuleGetFunction() { return 100; }
int cuModuleLoadData() { return 100; } int cuModuleUnload() { return 100; }
int cuTensorMapEncodeTiled() { return 100; }
"""


def numpy_type(dtype: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _neighbours(block: Block, x: Memory, y: Memory, sums: Memory) -> None:
    """Adds to x what the thread's partner holds, through shared memory."""
    place = block.x * THREADS + block.thread
    shared = block.shared("float32", 256)
    values = x.load(place * LANES, LANES)
    shared[block.thread] = values[3]
    barrier()
    partner = let(shared[block.thread ^ 32])
    y.store(place * LANES, [v + partner for v in values])
    total = Array(1)
    total[0] = 0.0
    with serial(3) as i, unrolled(4) as j:
        total[0] = total[0] + x.load(place * LANES + i % 2 * 4 + j)[0]
    branch(
        block.thread < 40,
        lambda: sums.store(place, [total[0]]),
        lambda: sums.store(place, [partner]),
    )


def _kernels() -> dict[str, Kernel]:
    return {
        f"neighbours_{dtype}": kernel(
            [dtype, dtype, "float32"],
            _neighbours,
            grid=(3, 1, 1),
            threads=THREADS,
            shared_bytes=256 + 4 * THREADS,
        )
        for dtype in DTYPES
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_pass_through_float32_and_shared_memory(dtype: str) -> None:
    kernels = _kernels()
    library = emulator.compiled(kernels)
    kind = numpy_type(dtype)
    x = np.random.default_rng(0).standard_normal((3, THREADS, LANES)).astype(kind)
    wide = x.astype(np.float32)
    partner = wide[:, np.arange(THREADS) ^ 32, 3]
    sums = 2 * wide[..., :4].sum(-1) + wide[..., 4:].sum(-1)
    for timing in emulator.TIMINGS:
        y, z = np.zeros_like(x), np.zeros((3, THREADS), np.float32)
        library.run(f"neighbours_{dtype}", kernels[f"neighbours_{dtype}"], [x, y, z], timing)
        np.testing.assert_array_equal(y, (wide + partner[..., None]).astype(kind))
        np.testing.assert_allclose(z[:, :40], sums[:, :40], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(z[:, 40:], partner[:, 40:])


WIDTHS = [(d, a) for d in DTYPES for a in (2, 4, 8, 16) if a >= numpy_type(d).itemsize]


def _copy(dtype: str, align: int) -> Kernel:
    """12 of every 24 elements, from the first address that is aligned so and no better."""
    shift = align // numpy_type(dtype).itemsize

    def body(block: Block, x: Memory, y: Memory) -> None:
        first = block.thread * 24 + shift
        y.store(first, x.load(first, 12, align), align)

    return kernel([dtype, dtype], body, grid=(1, 1, 1), threads=4)


def test_an_access_is_as_wide_as_its_alignment_allows() -> None:
    kernels = {f"{dtype}_{align}": _copy(dtype, align) for dtype, align in WIDTHS}
    library = emulator.compiled(kernels)
    for dtype, align in WIDTHS:
        name, kind = f"{dtype}_{align}", numpy_type(dtype)
        text = source({name: kernels[name]}, "sm_80")
        assert f"pw_copy_{align}(" in text
        assert f"pw_copy_{2 * align}(" not in text
        x = np.random.default_rng(0).standard_normal(128).astype(kind)
        y = np.zeros_like(x)
        library.run(name, kernels[name], [x, y])  # fails on a misaligned access
        places = (np.arange(4)[:, None] * 24 + align // kind.itemsize + np.arange(12)).ravel()
        np.testing.assert_array_equal(y[places], x[places])
        assert not np.delete(y, places).astype(np.float32).any()


def test_parameters_are_all_pointers_and_maps_in_order() -> None:
    window = TensorMap(0, "float16", 0, (8, 8), (16,), (8, 8), (1, 1))

    def body(block: Block, a: Memory, b: Memory, c: Memory) -> None:
        del block, b
        c.store(0, a.load(0))

    made = kernel(
        ["float16", "float32", "bfloat16"], body, grid=(1, 1, 1), threads=32, maps=(window,)
    )
    text = source({"name": made}, "sm_90a")
    assert (
        "__launch_bounds__(32) name(half* __restrict__ p0, float* __restrict__ p1, "
        "nv_bfloat16* __restrict__ p2, const __grid_constant__ CUtensorMap m0) {" in text
    )
    assert emulator.build(text).entries["name"].parameters == ("p0", "p1", "p2", "m0")


def test_a_result_in_place_uses_the_operands_pointer() -> None:
    def body(block: Block, a: Memory, b: Memory) -> None:
        b.store(block.thread, a.load(block.thread))

    with in_place(0, 1):
        made = kernel(["float32", "float32"], body, grid=(1, 1, 1), threads=32)
    assert "p0[((int)threadIdx.x)] = v" in source({"k": made}, "sm_80")


def test_the_register_bound_of_several_blocks_reaches_the_text() -> None:
    made = kernel(
        ["float32"],
        lambda block, a: a.store(block.thread, [1.0]),
        grid=(1, 1, 1),
        threads=32,
        blocks_per_multiprocessor=3,
    )
    assert "__launch_bounds__(32, 3) k(" in source({"k": made}, "sm_80")


def test_a_rolled_loop_is_not_unrolled() -> None:
    def body(block: Block, y: Memory) -> None:
        with rolled(9) as i:
            y[i] = block.thread
        with serial(7) as i:
            y[i] = block.thread
        with rolled(1) as i:
            y[i] = block.thread

    text = source({"k": kernel(["int32"], body, grid=(1, 1, 1), threads=32)}, "sm_80")
    (extent,) = re.findall(r"#pragma unroll 1\n\s*for \(int \w+ = 0; \w+ < (\d+);", text)
    assert extent == "9"
    assert "pw_rolled();" not in text


def test_constant_conditions_leave_no_branch() -> None:
    def body(block: Block, a: Memory) -> None:
        with when(all_of(True, True)):
            a.store(block.thread, [1.0])
        branch(False, lambda: a.store(1, [2.0]), lambda: a.store(2, [3.0]))
        assert all_of(block.thread < 3, False) is False

    text = source({"k": kernel(["float32"], body, grid=(1, 1, 1), threads=4)}, "sm_80")
    assert "if (" not in text[text.rindex(" k(") :]


def test_nothing_is_compiled_where_a_driver_is_found(tmp_path: Path) -> None:
    """TVM compiles the text as soon as its CUDA runtime loads, which wants a driver."""
    (tmp_path / "driver.c").write_text(DRIVER)
    driver = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-w", "-o", str(driver), str(tmp_path / "driver.c")]
    subprocess.run(command, check=True)
    script = """
import tvm, tvm_ffi
from pwopt.targets.cuda.codegen import kernel, source
def compile(text):
    raise SystemExit("compiled")
tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile, override=True)
made = kernel(["float32"], lambda block, a: a.store(block.thread, [1.0]), grid=(1, 1, 1), threads=4)
assert "p0[" in source({"k": made}, "sm_80")
assert tvm.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None
assert tvm_ffi.get_global_func("tvm_callback_cuda_compile")
print("done")
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "done", done.stderr
