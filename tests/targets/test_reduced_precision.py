"""bfloat16 products, maps stored as bfloat16, and weight-only formats of fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

import pwopt
from pwopt import checks, compilation, driver, hardware
from pwopt.compilation import CodeOptions
from pwopt.errors import NumericsError, UsageError
from pwopt.precision import Precision
from pwopt.targets.cpu import bfloat16
from pwopt.targets.cpu.bfloat16 import DTYPE
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.compile import compile_graph
from pwopt.targets.cpu.kernels.copy import copy, fill
from pwopt.targets.cpu.narrowing import narrow_values
from tests.targets.guarding import compile_guarded
from tests.targets.kernel_helpers import aligned, callables
from tests.targets.lowering_helpers import model, node, normal

BF16 = Precision("bf16")
needs_bf16 = pytest.mark.skipif(
    not hardware.host().bf16, reason="this processor has no AVX512-BF16"
)


def nearest(array: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16 and widened again, by another implementation."""
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def exact(source: ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A model's outputs in float64."""
    wide = ModelProto.FromString(source.SerializeToString())
    for tensor in wide.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for info in (*wide.graph.input, *wide.graph.output):
        info.type.tensor_type.elem_type = 11
    found = ReferenceEvaluator(wide).run(None, {n: a.astype(np.float64) for n, a in inputs.items()})
    return list(found)


def scaled_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def run(
    source: ModelProto,
    inputs: Mapping[str, np.ndarray],
    precision: Precision = BF16,
    threads: int = 1,
) -> list[np.ndarray]:
    """The outputs of the executable, twice the same."""
    graph = pwopt.optimize(source, verify=False).graph
    executable = compile_graph(graph, hardware.host(), threads, precision=precision)
    assert not executable.report["fallback"]
    first, second = executable.run(inputs), executable.run(inputs)
    assert all(np.array_equal(first[n], second[n]) for n in first)
    return list(first.values())


def convolution(
    x: tuple[int, ...], out: int, kernel: tuple[int, ...], residual: bool = False, **attributes: Any
) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Conv, perhaps a residual, and Relu on operands that bfloat16 represents."""
    groups = attributes.get("group", 1)
    weight = nearest(normal(out, x[1] // groups, *kernel, seed=1))
    inputs = {"x": nearest(normal(*x))}
    nodes = [node("Conv", "x w b", "c", **attributes)]
    if residual:
        convolved = model(nodes, inputs, "c", {"w": weight, "b": normal(out, seed=2)})
        inputs["r"] = normal(*exact(convolved, inputs)[0].shape, seed=3)
        nodes.append(node("Add", "c r", "s"))
    nodes.append(node("Relu", "s" if residual else "c", "y"))
    return model(nodes, inputs, "y", {"w": weight, "b": normal(out, seed=2)}), inputs


CONVOLUTIONS: dict[str, tuple[ModelProto, dict[str, np.ndarray]]] = {
    "pointwise": convolution((1, 32, 7, 9), 48, (1, 1)),
    "odd channels": convolution((1, 33, 7, 7), 17, (1, 1)),
    "odd channels, padded": convolution((2, 7, 13, 11), 19, (3, 3), pads=[1, 1, 1, 1]),
    "uneven padding": convolution((1, 10, 9, 12), 24, (3, 2), pads=[2, 0, 1, 1]),
    "no padding": convolution((1, 8, 9, 9), 24, (5, 5)),
    "strided": convolution((1, 24, 13, 13), 40, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    "strided pointwise": convolution((2, 24, 13, 13), 40, (1, 1), strides=[2, 2]),
    "dilated": convolution((1, 6, 13, 13), 17, (3, 3), pads=[2, 3, 2, 3], dilations=[2, 3]),
    "groups": convolution((1, 24, 9, 9), 40, (3, 3), group=4, pads=[1, 1, 1, 1]),
    "groups of odd size": convolution((1, 15, 9, 9), 20, (3, 3), group=5, pads=[1, 1, 1, 1]),
    "one dimension": convolution((1, 12, 31), 20, (5,), pads=[2, 2]),
    "residual": convolution((2, 16, 7, 7), 40, (3, 3), residual=True, pads=[1, 1, 1, 1]),
    "depthwise": convolution((1, 24, 9, 9), 24, (3, 3), group=24, pads=[1, 1, 1, 1]),
    "groups of odd size, strided": convolution(
        (2, 21, 11, 14), 12, (3, 3), group=3, pads=[1, 0, 1, 1], strides=[2, 1]
    ),
    "groups of one channel, several results": convolution((1, 6, 9, 9), 24, (3, 3), group=6),
    "dilated and strided, odd channels": convolution(
        (1, 9, 17, 15), 18, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2], strides=[2, 2]
    ),
    "five channels": convolution((1, 5, 9, 11), 33, (5, 5), pads=[2, 2, 2, 2]),
    "photo": convolution((1, 3, 15, 15), 24, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2]),
    "photo, every pixel": convolution((2, 3, 13, 14), 40, (3, 3), pads=[1, 1, 1, 1]),
    "photo without padding": convolution((1, 3, 30, 27), 40, (7, 7), strides=[2, 2]),
    "photo, long strides": convolution((1, 3, 35, 39), 32, (11, 11), strides=[4, 4]),
    "photo, strides of three": convolution((1, 3, 17, 20), 24, (4, 3), strides=[1, 3]),
    "photo, rows apart": convolution((1, 3, 15, 15), 24, (3, 3), dilations=[2, 1]),
    "photo, columns apart": convolution((1, 3, 15, 15), 24, (3, 3), dilations=[1, 2]),
    "photo, residual": convolution((1, 3, 9, 9), 24, (3, 3), residual=True, pads=[1, 1, 1, 1]),
    "one channel": convolution((1, 1, 17, 19), 20, (5, 5), pads=[2, 2, 2, 2]),
    "two channels": convolution((1, 2, 11, 13), 37, (3, 2), pads=[0, 1, 1, 1]),
    "four channels": convolution((1, 4, 11, 13), 48, (3, 3), strides=[1, 2]),
    "pointwise of three channels": convolution((1, 3, 9, 7), 33, (1, 1)),
    "sound": convolution((2, 2, 40), 64, (7,), pads=[3, 3], strides=[2]),
    "one pixel": convolution((1, 40, 1, 1), 33, (1, 1)),
}


@needs_bf16
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_is_exact_on_operands_that_bfloat16_represents(case: str, threads: int) -> None:
    source, inputs = CONVOLUTIONS[case]
    (got,) = run(source, inputs, threads=threads)
    assert scaled_error(got, exact(source, inputs)[0]) < 3e-6


PHOTOS = [name for name in CONVOLUTIONS if name.startswith("photo")]


@needs_bf16
@pytest.mark.parametrize("case", [*PHOTOS, "one channel", "two channels", "sound"])
def test_few_channels_are_paired_along_kernel_rows(case: str) -> None:
    source, inputs = CONVOLUTIONS[case]
    graph = pwopt.optimize(source, verify=False).graph
    made, guard = compile_guarded(graph, separate=True, precision="bf16")
    stored = {k["weights"] for k in made.report["kernels"] if k["kernel"] == "conv"}
    assert stored == {"fp32" if case == "photo, columns apart" else "bf16 products"}
    (got,) = guard.run(made, inputs).values()  # memory that nothing wrote holds NaN
    assert scaled_error(got, exact(source, inputs)[0]) < 3e-6


@needs_bf16
@pytest.mark.parametrize(("winograd", "kernel"), [("off", "conv"), ("auto", "winograd_4x4_3x3")])
def test_winograd_reads_and_writes_bfloat16_where_it_beats_its_dot_products(
    winograd: str, kernel: str
) -> None:
    pads = {"pads": [1, 1, 1, 1]}
    inputs = {"x": normal(1, 64, 28, 28)}
    weights = {f"w{i}": normal(64, 64, 3, 3, seed=i + 1) / np.float32(24) for i in range(2)}
    nodes = [node("Conv", "x w0", "c", **pads), node("Conv", "c w1", "y", **pads)]
    source = model(nodes, inputs, "y", weights)
    graph = pwopt.optimize(source, verify=False).graph
    made = compile_graph(graph, hardware.host(), precision=BF16, winograd=winograd)
    assert [k["kernel"] for k in made.report["kernels"] if k["macs"]].count(kernel) >= 2
    error = scaled_error(made.run(inputs)["y"], exact(source, inputs)[0])
    assert 1e-4 < error < 6e-3


@needs_bf16
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("depth", [64, 65])
def test_linear_rounds_its_operands_and_nothing_else(rows: int, depth: int) -> None:
    weight, bias = normal(depth, 37, seed=1), normal(37, seed=2)
    inputs = {"x": normal(rows, depth)}
    source = model([node("Gemm", "x w b", "y")], inputs, "y", {"w": weight, "b": bias})
    (got,) = run(source, inputs)
    want = nearest(inputs["x"]).astype(np.float64) @ nearest(weight) + bias
    assert scaled_error(got, want) < 3e-6


def network() -> tuple[ModelProto, dict[str, np.ndarray]]:
    """Convolutions with everything between them that reads or writes maps of either kind."""
    constants = {
        f"w{i}": normal(*shape, seed=i) / np.float32(np.sqrt(np.prod(shape[1:])))
        for i, shape in enumerate(
            [(24, 3, 3, 3), (24, 24, 1, 1), (17, 24, 3, 3), (32, 41, 1, 1), (32, 1, 3, 3)]
        )
    }
    constants |= {
        "s": normal(32, 32, 1, 1, seed=9) / np.float32(6),
        "k": normal(32, 16, 2, 2, seed=10) / np.float32(6),
        "g": normal(32, seed=11),
        "l": normal(16, 1, 1, seed=12),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x w0", "a", **pads),
        node("Relu", "a", "a1"),
        node("Conv", "a1 w1", "b"),
        node("Add", "a1 b", "b1"),
        node("Conv", "b1 w2", "c", **pads),
        node("Sigmoid", "c", "c1"),
        node("Concat", "b1 c1", "d", axis=1),  # 41 channels, the second operand at an odd one
        node("MaxPool", "d", "e", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "e w3", "f"),
        node("Conv", "f w4", "h", group=32, **pads),
        node("GlobalAveragePool", "h", "p"),
        node("Conv", "p s", "q"),
        node("HardSigmoid", "q", "q1"),
        node("Mul", "h q1", "m"),
        node("InstanceNormalization", "m g g", "n"),  # without a kernel for bfloat16
        node("ConvTranspose", "n k", "t", strides=[2, 2]),
        node("Mul", "t l", "u"),
        node("Softmax", "u", "y", axis=1),
    ]
    inputs = {"x": normal(1, 3, 14, 18)}
    return model(nodes, inputs, "y m", constants), inputs


@needs_bf16
def test_maps_of_either_kind_meet_in_one_network() -> None:
    source, inputs = network()
    for got, want in zip(run(source, inputs), exact(source, inputs), strict=True):
        assert 1e-5 < scaled_error(got, want) < 2e-2


def test_maps_that_lead_to_products_are_narrow() -> None:
    source, _ = network()
    graph = pwopt.load(source)
    names = {value.name for value in narrow_values(graph)}
    assert {"a1", "b1", "c", "c1", "d", "e", "f", "h", "p"} <= names
    assert not {"n", "t", "u", "m", "y"} & names  # read in float32, or by no product


@needs_bf16
def test_maps_take_half_the_memory() -> None:
    nodes = [node("Conv", f"x{i} w", f"x{i + 1}") for i in range(4)]
    source = model(nodes, {"x0": normal(1, 32, 32, 32)}, "x4", {"w": normal(32, 32, 1, 1)})
    graph = pwopt.load(source)
    wide, narrow = (
        compile_graph(graph, hardware.host(), precision=p).report["workspace_bytes"]
        for p in (Precision(), BF16)
    )
    assert narrow < 0.8 * wide  # two of its three maps and the copied input


@pytest.mark.parametrize("mcpu", ["znver4", "sapphirerapids"])
def test_dot_products_are_emitted_for_processors_that_have_them(mcpu: str) -> None:
    source, _ = CONVOLUTIONS["pointwise"]
    machine = hardware.named(mcpu)
    made = compile_graph(pwopt.load(source), machine, precision=BF16)
    assert made.module.inspect_source("asm").count("vdpbf16ps") > 8
    assert made.manifest.bf16
    plain = compile_graph(pwopt.load(source), machine)
    assert "bf16" not in plain.module.inspect_source("asm")
    assert not plain.manifest.bf16


def test_other_processors_compute_in_float32_and_say_so() -> None:
    source, inputs = CONVOLUTIONS["pointwise"]
    machine = hardware.named("x86-64-v3")
    optimized = driver.optimize(source, hardware=machine)
    executable, done = compilation.compile_optimized(optimized, CodeOptions(precision="bf16"))
    (got,) = executable.run(inputs).values()
    plain = compilation.compile(optimized.graph, hardware=machine)
    assert np.array_equal(got, plain.run(inputs)["y"])
    assert done.report.compilation is not None
    assert "x86-64-v3 has no AVX512-BF16" in done.report.compilation.remark


@pytest.mark.parametrize("machine", [hardware.AVX2, hardware.AVX512], ids=lambda h: h.mcpu)
@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_weights_of_one_row_are_widened_as_they_are_read(
    form: str, machine: hardware.Hardware
) -> None:
    if machine.lanes > hardware.host().lanes:
        pytest.skip(f"this processor does not run {machine.mcpu}")
    weight, bias = normal(37, 50, seed=1), normal(37, seed=2)
    weight[3] = 0
    inputs = {"x": normal(1, 50)}
    gemm = node("Gemm", "x w b", "c", transB=1)
    source = model([gemm, node("Relu", "c", "y")], inputs, "y", {"w": weight, "b": bias})
    graph = pwopt.optimize(source, verify=False).graph
    made = compile_graph(graph, machine, precision=Precision("fp32", form))
    assert [k["weights"] for k in made.report["kernels"] if k["macs"]] == [form]
    step = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    step[3] = 1
    stored = nearest(weight) if form == "bf16" else np.rint(weight / step) * step
    want = np.maximum(inputs["x"].astype(np.float64) @ stored.T + bias, 0)
    assert scaled_error(made.run(inputs)["y"], want) < 3e-6


def test_weights_of_several_rows_stay() -> None:
    inputs = {"x": normal(4, 50)}
    source = model([node("Gemm", "x w", "y")], inputs, "y", {"w": normal(50, 37)})
    made = compile_graph(pwopt.load(source), hardware.host(), precision=Precision("fp32", "int8"))
    assert [k["weights"] for k in made.report["kernels"] if k["macs"]] == ["fp32"]


def test_the_check_allows_what_rounding_does_and_no_more() -> None:
    constants = {f"w{i}": normal(32, 32, 3, 3, seed=i) / np.float32(17) for i in range(3)}
    nodes = [node("Conv", f"x{i} w{i}", f"x{i + 1}", pads=[1, 1, 1, 1]) for i in range(3)]
    nodes += [node("Flatten", "x3", "f"), node("Gemm", "f v", "y")]
    constants["v"] = normal(32 * 8 * 8, 10, seed=5)
    source = model(nodes, {"x0": normal(1, 32, 8, 8)}, "y", constants)
    optimized = driver.optimize(source)
    precision = "bf16" if hardware.host().bf16 else "fp32"
    executable, done = compilation.compile_optimized(
        optimized, CodeOptions(precision=precision, fc_weights="int8")
    )
    assert done.report.compilation is not None
    assert done.report.compilation.verification is not None
    (found,) = done.report.compilation.verification.outputs
    assert 1e-4 < found.error < found.tolerance < 0.05
    assert isinstance(optimized.reference, checks.Reference)
    words = executable.constants[: 1 << 13].view(np.uint32)  # 8 KB of weights
    words[:] = words >> 16 | words << 16  # as if channels were paired the wrong way round
    with pytest.raises(NumericsError, match="the executable differs"):
        compilation._check_executable(executable, optimized.reference, Precision(precision, "int8"))


def test_rounding_in_numpy_is_to_nearest_even() -> None:
    values = _patterns()
    want = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(bfloat16.rounded(values), want)
    nan = bfloat16.rounded(np.full(1, np.nan, np.float32))
    assert np.isnan(nan.view(ml_dtypes.bfloat16)).all()


@needs_bf16
@pytest.mark.parametrize("step", [1, 2])
def test_rounding_in_kernels_is_to_nearest_even(step: int) -> None:
    values = _patterns()
    values = values[(np.abs(values) > 1e-37) | (values == 0)]  # the processor flushes denormals
    (count,) = values.shape
    made = View((count,), (step,), 0, DTYPE)  # scattered ones are rounded one by one
    machine = hardware.host()
    run_copy = callables({"k": copy(View.dense((count,)), made, machine)}, machine)["k"]
    result = aligned(np.zeros(step * count, np.uint16))
    run_copy(aligned(values), result)
    assert np.array_equal(result[::step], bfloat16.rounded(values))


def _patterns() -> np.ndarray:
    """float32 numbers of all magnitudes, half of them between two neighbours of bfloat16."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits = np.concatenate([bits, bits & np.uint32(0xFFFF0000) | np.uint32(0x8000)])
    values = bits.view(np.float32)
    return values[~np.isnan(values)]


@needs_bf16
def test_copies_convert() -> None:
    values, machine = normal(3, 5, 37), hardware.host()
    rows, turned = View.dense((3, 5, 37)), View.dense((3, 5, 37), order=(0, 2, 1))
    narrow, turned_narrow = replace(rows, dtype=DTYPE), replace(turned, dtype=DTYPE)
    functions = callables(
        {
            "narrow": copy(rows, narrow, machine),
            "turn": copy(narrow, turned_narrow, machine),
            "widen": copy(turned_narrow, rows, machine),
            "fill": fill(narrow, 1.5, machine),
        },
        machine,
    )
    bits = [aligned(np.zeros(values.size, np.uint16)) for _ in range(2)]
    result = aligned(np.zeros(values.size, np.float32))
    functions["narrow"](aligned(values), bits[0])
    functions["turn"](*bits)
    functions["widen"](bits[1], result)
    assert np.array_equal(result.reshape(values.shape), nearest(values))
    functions["fill"](bits[0])
    assert (bits[0].view(ml_dtypes.bfloat16) == 1.5).all()


@pytest.mark.parametrize("formats", [("fp16", "fp32"), ("fp32", "int4")])
def test_unknown_formats_are_usage_errors(formats: tuple[str, str]) -> None:
    source, _ = CONVOLUTIONS["pointwise"]
    with pytest.raises(UsageError, match=r"one of fp32, bf16"):
        pwopt.compile(source, precision=formats[0], fc_weights=formats[1])
