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
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.tiling import choose_tile
from pwopt.targets.cpu.kernels.winograd import pack_winograd, winograd
from pwopt.targets.cpu.kernels.winograd_tiling import choose_winograd_tile, workspace_bytes
from pwopt.targets.windows import Window

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


@dataclass(frozen=True)
class Layer:
    """A convolution of stride 1 with bias, ReLU and as much padding as keeps the size.

    Attributes:
        in_channels, out_channels: of the layer.
        height, width: of the map.
        size: of the kernel.
        m: side of Winograd's output tiles; 0 computes directly.
    """

    in_channels: int
    out_channels: int
    height: int
    width: int
    size: int = 1
    m: int = 0

    @property
    def label(self) -> str:
        """For example "64->256 @56x56"."""
        return f"{self.in_channels}->{self.out_channels} @{self.height}x{self.width}"

    @property
    def gflop(self) -> float:
        """Of the direct algorithm."""
        pixels = self.height * self.width
        return 2e-9 * self.in_channels * self.out_channels * pixels * self.size**2


def measure_layers(
    layers: Sequence[Layer], hardware: Hardware, rounds: int = 40
) -> Iterator[KernelSpeed]:
    """Measures convolutions, one thread, operands in cache where they fit.

    Peak and kernel take turns, because the clock depends on temperature and on the neighbours.

    Args:
        layers: what to measure.
        hardware: this machine.
        rounds: samples of each.
    """
    made = [_layer(each, hardware) for each in layers]
    kernels = {f"k{i}": function for i, (function, _) in enumerate(made)}
    library, peak = _library(kernels, hardware), peak_meter(hardware)
    for i, layer in enumerate(layers):
        run = _bind(library, f"k{i}", made[i][1])
        samples = [(peak(), layer.gflop / _best(run)) for _ in range(rounds)]
        peaks, speeds = np.array(samples).T
        yield KernelSpeed(
            layer.label,
            float(np.median(speeds)),
            float(np.median(peaks)),
            float(np.median(speeds / peaks)),
        )


def peak_meter(hardware: Hardware) -> Callable[[], float]:
    """What measures the multiply-add peak of one core: GFLOP/s of now, in some milliseconds."""
    registers = _peak_registers(hardware)
    library = _library({"peak": _peak_kernel(hardware)}, hardware)
    scratch = _aligned(np.full(registers * hardware.lanes, 0.5, np.float32))
    run = _bind(library, "peak", [scratch])
    gflop = 2e-9 * _PEAK_STEPS * registers * hardware.lanes
    return lambda: gflop / _best(run)


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


def _layer(layer: Layer, hardware: Hardware) -> tuple[tirx.PrimFunc, list[np.ndarray]]:
    """The kernel of a layer and its operands."""
    pad, inside, outside = layer.size // 2, layer.in_channels, layer.out_channels
    hardware = hardware.for_channels(outside)  # as lowering does
    sides = layer.height, layer.width
    x, y = _map(sides, inside, pad), _map(sides, outside)
    window = Window((layer.size, layer.size), pads=(pad, pad))
    geometry = Geometry(x, y, (), window, 1, hardware.lanes)
    rng = np.random.default_rng(0)
    shape = (outside, inside, layer.size, layer.size)
    weights = rng.standard_normal(shape, dtype=np.float32), np.zeros(outside, np.float32)
    operands = (x, y, window, 1, Program().then("Relu"), (), hardware)
    space: list[np.ndarray] = []
    if layer.m:
        fast = choose_winograd_tile(geometry, layer.m, hardware)
        function = winograd(*operands, fast)
        packed = pack_winograd(*weights, 1, fast, hardware.lanes)
        space = [np.zeros(workspace_bytes(geometry, fast, 1) // 4, np.float32)]
    else:
        tile = choose_tile(geometry, hardware)
        function = conv(*operands, tile)
        packed = pack_conv(*weights, 1, tile, hardware.lanes)
    padded = math.prod(side + 2 * pad for side in sides)
    pixels = rng.standard_normal(padded * inside, dtype=np.float32)
    arrays = [pixels, *packed, *space, np.zeros(math.prod(sides) * outside, np.float32)]
    return function, [_aligned(a) for a in arrays]


def _map(sides: tuple[int, int], channels: int, pad: int = 0) -> View:
    height, width = sides
    shape, row = (1, height, width, channels), (width + 2 * pad) * channels
    strides = ((height + 2 * pad) * row, row, channels, 1)
    return View(shape, strides, pad * (row + channels), "float32")


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
