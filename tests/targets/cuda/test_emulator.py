"""The emulator of CUDA blocks: what it computes, and that it notices wrong synchronization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.codegen import (
    Array,
    Block,
    Memory,
    barrier,
    kernel,
    ptx,
    serial,
    source,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernel import Kernel
from tests.targets.cuda import emulator
from tests.targets.cuda.emulator import EARLY, LATE, TIMINGS, EmulationError

MMA = {
    "float16": ("m16n8k16.row.col.f32.f16.f16.f32", np.dtype(np.float16)),
    "bfloat16": ("m16n8k16.row.col.f32.bf16.bf16.f32", np.dtype(ml_dtypes.bfloat16)),
    "float32": ("m16n8k8.row.col.f32.tf32.tf32.f32", np.dtype(np.float32)),
}
STEPS, STAGES = 8, 3


def _product(dtype: str) -> Kernel:
    """A 16x8 tile of 32 bytes of K, through ldmatrix."""
    width = 32 // MMA[dtype][1].itemsize

    def body(block: Block, a: Memory, b: Memory, c: Memory) -> None:
        shared = block.shared(dtype)
        lane = block.thread
        with when(lane < 24):
            start = lane * width
            with serial(width) as i:
                shared[start + i] = T.if_then_else(
                    lane < 16, a[start + i], b[T.max(start - 16 * width, 0) + i]
                )
        barrier()
        fa, fb, acc = Array(4, "uint32"), Array(2, "uint32"), Array(4)
        with unrolled(4) as i:
            acc[i] = 0.0
        rows = lane % 16 * width + lane // 16 * (width // 2)
        columns = (16 + lane % 8) * width + lane // 8 % 2 * (width // 2)
        load = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
        ptx(load, *(fa[i] for i in range(4)), shared.address(rows))
        pair = "ldmatrix.sync.aligned.m8n8.x2.shared.b16"
        ptx(pair, *(fb[i] for i in range(2)), shared.address(columns))
        registers = [acc[i] for i in range(4)]
        operands = [*(fa[i] for i in range(4)), *(fb[i] for i in range(2))]
        ptx(f"mma.sync.aligned.{MMA[dtype][0]}", *registers, *operands, *registers)
        with unrolled(4) as i:
            c[(lane // 4 + i // 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i]

    return kernel([dtype, dtype, "float32"], body, grid=(1, 1, 1), threads=32, shared_bytes=24 * 32)


def _ring() -> Kernel:
    """Sums STEPS tiles that pass through a ring of STAGES in shared memory."""

    def body(block: Block, x: Memory, y: Memory) -> None:
        ring = block.shared("float32")
        total = Array(1)
        total[0] = 0.0

        def fetch(step: Any) -> None:
            to = ring.address(step % STAGES * 256 + block.thread * 4)
            ptx("cp.async.cg.shared.global", to, x.address(step * 256 + block.thread * 4), 16)

        for step in range(STAGES - 1):
            fetch(step)
            ptx("cp.async.commit_group")
        with serial(STEPS) as step:
            ptx("cp.async.wait_group", STAGES - 2)
            barrier()
            with when(step < STEPS - STAGES + 1):
                fetch(step + STAGES - 1)
            ptx("cp.async.commit_group")
            with serial(4) as i:
                total[0] = total[0] + ring[step % STAGES * 256 + i * 64 + (63 - block.thread)]
        y.store(block.thread, [total[0]])

    size = STAGES * 1024
    return kernel(["float32", "float32"], body, grid=(1, 1, 1), threads=64, shared_bytes=size)


def _shuffles() -> Kernel:
    def body(block: Block, x: Memory, y: Memory) -> None:
        value = Array(1)
        value[0] = x[block.thread]
        mask = T.uint32(0xFFFFFFFF)
        for shift in (16, 8, 4, 2, 1):
            value[0] = value[0] + T.tvm_warp_shuffle_xor(mask, value[0], shift, 32, 32)
        y[block.thread] = value[0] + T.tvm_warp_shuffle(mask, x[block.thread], 5, 32, 32)

    return kernel(["float32", "float32"], body, grid=(1, 1, 1), threads=64)


def _faulty() -> dict[str, Kernel]:
    def deadlock(block: Block, x: Memory) -> None:
        with when(block.thread < 20):
            x[block.thread] = T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), x[block.thread], 5, 32, 32)

    def misaligned(block: Block, x: Memory) -> None:
        x.store(block.thread * 4 + 1, [1.0] * 4)

    def overrun(block: Block, x: Memory) -> None:
        block.shared("float32")[block.thread + 8] = x[0]

    return {
        body.__name__: kernel(["float32"], body, grid=(1, 1, 1), threads=32, shared_bytes=128)
        for body in (deadlock, misaligned, overrun)
    }


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    products = {f"product_{dtype}": _product(dtype) for dtype in MMA}
    return {**products, "ring": _ring(), "shuffles": _shuffles(), **_faulty()}


@pytest.fixture(scope="module")
def text(kernels: dict[str, Kernel]) -> str:
    return source(kernels, "sm_80")


@pytest.mark.parametrize("dtype", MMA)
def test_a_tile_product_is_that_of_the_matrices(
    dtype: str, kernels: dict[str, Kernel], text: str
) -> None:
    kind = MMA[dtype][1]
    width = 32 // kind.itemsize
    rng = np.random.default_rng(0)
    a = (rng.integers(-8, 8, (16, width)) / 4).astype(kind)  # exact in every type
    b = (rng.integers(-8, 8, (8, width)) / 4).astype(kind)
    c = np.zeros((16, 8), np.float32)
    emulator.build(text).run(f"product_{dtype}", kernels[f"product_{dtype}"], [a, b, c])
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32).T)


def test_shuffles_reach_the_lanes_of_their_warp(kernels: dict[str, Kernel], text: str) -> None:
    x = np.arange(64, dtype=np.float32)
    y = np.zeros_like(x)
    emulator.build(text).run("shuffles", kernels["shuffles"], [x, y])
    sums = x.reshape(2, 32).sum(1) + x[[5, 37]]
    np.testing.assert_array_equal(y, sums.repeat(32))


def _run_ring(text: str, kernels: dict[str, Kernel], timing: int) -> bool:
    """Whether the ring computes what it should."""
    x = np.random.default_rng(0).standard_normal((STEPS, 4, 64)).astype(np.float32)
    y = np.zeros(64, np.float32)
    try:
        emulator.build(text).run("ring", kernels["ring"], [x, y], timing)
    except EmulationError:
        return False
    return np.allclose(y, x[:, :, ::-1].sum((0, 1)), atol=1e-4)


@pytest.mark.parametrize("timing", TIMINGS)
def test_a_correct_pipeline_passes(timing: int, kernels: dict[str, Kernel], text: str) -> None:
    assert _run_ring(text, kernels, timing)


def _edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


FAULTS: dict[str, tuple[int, Callable[[str], str]]] = {
    "a wait too weak": (LATE, lambda t: _edited(t, '.wait_group 1;"', '.wait_group 2;"')),
    "no barrier, late": (LATE, lambda t: _edited(t, "    __syncthreads();", ";")),
    "no barrier, early": (EARLY, lambda t: _edited(t, "    __syncthreads();", ";")),
    "one stage too few": (EARLY, lambda t: _edited(t, "% 3", "% 2")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_synchronization_is_caught(fault: str, kernels: dict[str, Kernel], text: str) -> None:
    timing, edit = FAULTS[fault]
    assert not _run_ring(edit(text), kernels, timing)


@pytest.mark.parametrize(
    ("name", "message"),
    [("deadlock", "deadlock"), ("misaligned", "misaligned access"), ("overrun", "past the end")],
)
def test_what_no_device_allows_is_an_error(
    name: str, message: str, kernels: dict[str, Kernel], text: str
) -> None:
    with pytest.raises(EmulationError, match=message):
        emulator.build(text).run(name, kernels[name], [np.zeros(256, np.float32)])


def test_shared_memory_that_nobody_wrote_is_nan() -> None:
    def body(block: Block, y: Memory) -> None:
        y.store(block.thread, [block.shared("float32")[block.thread]])

    made = kernel(["float32"], body, grid=(2, 1, 1), threads=32, shared_bytes=128)
    y = np.zeros(32, np.float32)
    emulator.compiled({"k": made}).run("k", made, [y])
    assert np.isnan(y).all()
