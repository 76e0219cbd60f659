"""Matrix products against a float64 NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import tirx

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.gemm import gemm, gemm_geometry, matmul, matmul_geometry, pack_gemm
from pwopt.targets.cpu.kernels.tiling import choose_tile
from tests.targets.kernel_helpers import aligned, callables, error, levels, window_of

RELU = Program().then("Relu")
RESIDUAL = Program().then_with_argument("Add")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
def test_gemm(processor: Hardware, threads: int) -> None:
    rng = np.random.default_rng(5)
    kernels: dict[str, tirx.PrimFunc] = {}
    problems: list[tuple[list[np.ndarray], np.ndarray]] = []
    for m, k, n in ((1, 64, 1000), (1, 33, 7), (7, 17, 33), (31, 128, 10), (33, 1, 49)):
        x, y = View.dense((m, k)), View.dense((m, n))
        tile = choose_tile(gemm_geometry(x, y, (), processor.lanes), processor)
        shapes = (m, k), (k, n), (n,)
        a, w, bias = (rng.standard_normal(s).astype(np.float32) for s in shapes)
        packed = pack_gemm(w, bias, tile, processor.lanes)
        kernels[f"k{len(kernels)}"] = gemm(x, y, RELU, (), processor, tile, threads)
        arrays = [aligned(a), *(aligned(p) for p in packed), aligned(np.zeros((m, n), np.float32))]
        problems.append((arrays, np.maximum(a.astype(np.float64) @ w + bias, 0)))
    for run, (arrays, want) in zip(
        callables(kernels, processor, threads).values(), problems, strict=True
    ):
        run(*arrays)
        assert error(arrays[-1].reshape(want.shape), want) <= 1e-5


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("processor", levels(), ids=lambda h: h.mcpu)
def test_matmul(processor: Hardware, threads: int) -> None:
    rng = np.random.default_rng(6)
    kernels: dict[str, tirx.PrimFunc] = {}
    problems: list[tuple[list[np.ndarray], np.ndarray]] = []
    # Batch, sizes, which factor is stored transposed, and whether B lacks the first batch dim.
    for batch, (m, k, n), left, right, shared in (
        ((), (7, 17, 33), False, False, False),
        ((2, 3), (13, 16, 49), False, False, False),
        ((2, 3), (13, 16, 31), True, False, True),
        ((3,), (17, 33, 20), False, True, False),
        ((3,), (1, 7, 1), True, True, False),
    ):
        sizes = ((k, m) if left else (m, k)), ((n, k) if right else (k, n))
        shapes = (*batch, *sizes[0]), (*(batch[1:] if shared else batch), *sizes[1])
        arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        views: list[View] = []
        for array, swap in zip(arrays, (left, right), strict=True):
            strides = [*View.dense(array.shape).strides]
            strides = [0] * (len(batch) + 2 - len(strides)) + strides
            if swap:
                strides[-2:] = strides[:-3:-1]
            rows, columns = (m, k) if not views else (k, n)
            views.append(View((*batch, rows, columns), tuple(strides)))
        left_view, right_view = views
        y = View.dense((*batch, m, n))
        added = rng.standard_normal(y.shape).astype(np.float32)
        geometry = matmul_geometry(left_view, right_view, y, (y,), processor.lanes)
        tile = choose_tile(geometry, processor)
        name = f"k{len(kernels)}"
        kernels[name] = matmul(left_view, right_view, y, RESIDUAL, (y,), processor, tile, threads)
        flat = [aligned(a) for a in (*arrays, added, np.zeros(y.shape, np.float32))]
        a, b = (window_of(f, v).astype(np.float64) for f, v in zip(flat, views, strict=False))
        problems.append((flat, a @ b + added))
    for run, (flat, want) in zip(
        callables(kernels, processor, threads).values(), problems, strict=True
    ):
        run(*flat)
        assert error(flat[-1].reshape(want.shape), want) <= 1e-5
