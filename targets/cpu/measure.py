"""Speed of single kernels, and of the machine's multiply-add units that bounds them."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import (
    SLACK_BYTES,
    Memory,
    Register,
    View,
    build,
    kernel,
    loop,
    target,
)
from pwopt.targets.cpu.kernels.conv import conv, pack_conv
from pwopt.targets.cpu.kernels.geometry import Geometry, Window
from pwopt.targets.cpu.kernels.tiling import choose_tile

_PEAK_STEPS = 20_000


@dataclass(frozen=True)
class KernelSpeed:
    """A kernel's speed beside the peak that was measured around it.

    Attributes:
        label: e.g. "64->256 @56x56".
        gflops: of the kernel, median.
        peak_gflops: of multiply-adds on registers alone, median of the same rounds.
        share: median of the rounds' ratios.
    """

    label: str
    gflops: float
    peak_gflops: float
    share: float


Run = Callable[[], None]


def measure_pointwise(
    shapes: Sequence[tuple[int, int, int]], hardware: Hardware, rounds: int = 40
) -> Iterator[KernelSpeed]:
    """Measures 1x1 convolutions with bias and ReLU, one thread, operands in cache where they fit.

    Peak and kernel take turns, because the clock depends on temperature and on the neighbours.

    Args:
        shapes: (in_channels, out_channels, side of the square map).
        hardware: this machine.
        rounds: samples of each.
    """
    kernels = {"peak": _peak_kernel(hardware)}
    kernels |= {f"k{i}": _pointwise(shape, hardware)[0] for i, shape in enumerate(shapes)}
    library = _library(kernels, hardware)
    scratch = _aligned(np.full(_peak_registers(hardware) * hardware.lanes, 0.5, np.float32))
    peak = _bind(library, "peak", [scratch])
    peak_work = 2e-9 * _PEAK_STEPS * _peak_registers(hardware) * hardware.lanes
    for i, shape in enumerate(shapes):
        inside, outside, side = shape
        run = _bind(library, f"k{i}", _pointwise(shape, hardware)[1])
        work = 2e-9 * inside * outside * side * side
        seconds = [(_best(peak), _best(run)) for _ in range(rounds)]
        peaks = np.array([peak_work / p for p, _ in seconds])
        speeds = np.array([work / k for _, k in seconds])
        yield KernelSpeed(
            f"{inside}->{outside} @{side}x{side}",
            float(np.median(speeds)),
            float(np.median(peaks)),
            float(np.median(speeds / peaks)),
        )


def _best(run: Run, samples: int = 3) -> float:
    """Seconds of a call: the best of a few samples of about a millisecond, after one to warm up."""
    run()
    start = time.perf_counter()
    run()
    calls = max(1, math.ceil(1e-3 / (time.perf_counter() - start)))
    seconds = []
    for _ in range(samples):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)


def _peak_registers(hardware: Hardware) -> int:
    """Accumulators: enough to hide the latency of two units, few enough not to spill."""
    return min(hardware.registers - 4, 24)


def _peak_kernel(hardware: Hardware) -> tirx.PrimFunc:
    """Multiply-adds on registers, each accumulator a chain of its own."""
    lanes, count = hardware.lanes, _peak_registers(hardware)

    def body(memory: Memory) -> None:
        factor = Register(lanes, memory.load(0, lanes))
        registers = [Register(lanes, memory.load(i * lanes, lanes)) for i in range(count)]
        with loop(_PEAK_STEPS):
            for register in registers:
                register.set(register.get() * factor.get() + factor.get())
        for i, register in enumerate(registers):
            memory.store(i * lanes, register.get(), lanes)

    return kernel(["float32"], body)


def _pointwise(
    shape: tuple[int, int, int], hardware: Hardware
) -> tuple[tirx.PrimFunc, list[np.ndarray]]:
    inside, outside, side = shape
    x, y = _map(side, inside), _map(side, outside)
    geometry = Geometry(x, y, (), Window(), 1, hardware.lanes)
    tile = choose_tile(geometry, hardware)
    function = conv(x, y, Window(), 1, Program().then("Relu"), (), hardware, tile)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outside, inside, 1, 1), dtype=np.float32)
    bias = rng.standard_normal(outside, dtype=np.float32)
    packed = pack_conv(weight, bias, 1, tile, hardware.lanes)
    pixels = rng.standard_normal(side * side * inside, dtype=np.float32)
    arrays = [pixels, *packed, np.zeros(side * side * outside, np.float32)]
    return function, [_aligned(a) for a in arrays]


def _map(side: int, channels: int) -> View:
    shape = (1, side, side, channels)
    return View(shape, (side * side * channels, side * channels, channels, 1), 0, "float32")


def _library(kernels: dict[str, tirx.PrimFunc], hardware: Hardware) -> tvm.runtime.Module:
    """One module with a public entry ``run_<name>`` for each kernel."""
    module = tvm.IRModule(dict(kernels))
    for name, function in kernels.items():
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(f"run_{name}")
            T.func_attr({"tirx.is_scheduled": True})
            count = len(function.params)
            handles = [T.arg(f"p{i}", T.handle("float32")) for i in range(count)]
            T.evaluate(module.get_global_var(name)(*handles))
        module[f"run_{name}"] = builder.get()
    return build(module, target(hardware))


def _bind(library: tvm.runtime.Module, name: str, arrays: Sequence[np.ndarray]) -> Run:
    function = library[f"run_{name}"]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]

    def run(keep: Sequence[np.ndarray] = arrays) -> None:
        function(*pointers)

    return run


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + SLACK_BYTES + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy
