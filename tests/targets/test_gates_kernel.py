"""The squeeze-excite kernel against float64 NumPy, and where lowering uses it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

import pwopt
from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.kernels.gates import Layer, gates, pack_layer, scratch_bytes
from tests.targets.kernel_cases import (
    RUNNABLE,
    Case,
    Layout,
    check,
    isa,
    place,
    relative_error,
    result,
)
from tests.targets.kernel_helpers import aligned
from tests.targets.lowering_helpers import check as check_model
from tests.targets.lowering_helpers import model, node, normal, reference

RNG = np.random.default_rng(11)
HARD = Program().then("HardSigmoid", 0.2, 0.5)


def _case(shape: Sequence[int], widths: Sequence[int], machine: Hardware, threads: int = 1) -> Case:
    x = RNG.standard_normal(shape).astype(np.float32)
    value = x.astype(np.float64).mean(axis=(1, 2), keepdims=True)
    layers, packed, inputs = [], [], shape[3]
    for i, outputs in enumerate(widths):
        weight = (RNG.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)
        bias = RNG.standard_normal(outputs).astype(np.float32) if i % 2 == 0 else None
        last = i == len(widths) - 1
        layers.append(Layer(inputs, outputs, HARD if last else Program().then("Relu")))
        packed += [aligned(a) for a in pack_layer(weight, bias, machine.lanes)]
        value = value @ weight.T.astype(np.float64) + (0 if bias is None else bias)
        value = np.clip(0.2 * value + 0.5, 0, 1) if last else np.maximum(value, 0)
        inputs = outputs
    a, y = place(x, Layout(after=[0, 1, 1, 3])), result(value.shape, Layout(after=[0, 0, 0, 5]))
    scratch = aligned(np.full(scratch_bytes(a.view, layers) // 4, np.nan, np.float32))
    kernel = gates(a.view, y.view, tuple(layers), machine, threads)
    return Case(kernel, [a.flat, *packed, scratch], y, value, 2e-6)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_channel_counts(machine: Hardware) -> None:
    cases = {
        f"b{batch}_c{channels}_h{hidden}_k{outputs}": _case(
            (batch, 3, 5, channels), (hidden, outputs), machine
        )
        for batch, channels, hidden, outputs in (
            *((1, 1, 1, 1), (1, 7, 2, 7), (2, 33, 5, 33), (1, 200, 50, 200), (3, 88, 22, 88)),
            *((1, 64, 16, 31), (2, 130, 17, 64), (1, 16, 80, 16)),
        )
    }
    cases["one_layer"] = _case((2, 1, 1, 19), (21,), machine)
    cases["three_layers"] = _case((2, 4, 1, 19), (21, 3, 18), machine)
    check(cases, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_two_threads(machine: Hardware) -> None:
    cases = {
        "large": _case((1, 9, 7, 333), (130, 333), machine, threads=2),
        "batch": _case((2, 9, 17, 150), (75, 150), machine, threads=2),
        "small": _case((1, 2, 2, 12), (3, 12), machine, threads=2),
    }
    check(cases, machine, threads=2)


def _block(
    batch: int = 1,
    channels: int = 24,
    hidden: int = 6,
    *,
    pool: str = "GlobalAveragePool",
    gate: str = "Sigmoid",
    bias: bool = True,
    outputs: str = "y",
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A convolution, its gates and their product; ``outputs`` may name p, h, s or g besides."""
    weights = {
        "w": normal(channels, 3, 3, 3, seed=1),
        "a": normal(hidden, channels, 1, 1, seed=2),
        "b": normal(channels, hidden, 1, 1, seed=3),
    }
    biases = {"c": normal(hidden, seed=4), "d": normal(channels, seed=5)} if bias else {}
    pooled = node(pool, "f", "p", **({"axes": [2, 3]} if pool == "ReduceMean" else {}))
    nodes = [
        node("Conv", "x w", "f", pads=[1] * 4),
        pooled,
        node("Conv", "p a c" if bias else "p a", "h"),
        node("Relu", "h", "s"),
        node("Conv", "s b d" if bias else "s b", "e"),
        node(gate, "e", "g"),
        node("Mul", "f g", "y"),
    ]
    inputs = {"x": normal(batch, 3, 9, 11)}
    return model(nodes, inputs, outputs, {**weights, **biases}), inputs


def _kernels(source: onnx.ModelProto, inputs: dict[str, np.ndarray], threads: int = 1) -> list[str]:
    made = check_model(source, inputs, optimized=True, threads=threads)
    return [k["kernel"] for k in made.report["kernels"]]


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "ReduceMean"])
@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
@pytest.mark.parametrize(("batch", "channels", "hidden"), [(1, 24, 6), (2, 17, 5), (1, 3, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_mean_and_two_convolutions_are_one_kernel(
    pool: str, gate: str, batch: int, channels: int, hidden: int, bias: bool
) -> None:
    source, inputs = _block(batch, channels, hidden, pool=pool, gate=gate, bias=bias)
    kernels = _kernels(source, inputs)
    assert kernels.count("gates") == 1
    assert "reduce" not in kernels
    assert kernels.count("conv") == 1


def test_two_threads_share_a_network() -> None:
    assert "gates" in _kernels(*_block(2, 130, 140), threads=2)


def test_gates_that_are_an_output_are_written_there() -> None:
    kernels = _kernels(*_block(2, 19, 5, outputs="y g"))
    assert "gates" in kernels


@pytest.mark.parametrize("read", ["p", "s"])
def test_what_something_else_reads_is_computed_apart(read: str) -> None:
    kernels = _kernels(*_block(outputs=f"y {read}"))
    assert "gates" not in kernels
    assert "reduce" in kernels


def test_large_batches_are_products_of_several_rows() -> None:
    assert "gates" not in _kernels(*_block(8))


def test_report_counts_all_three_layers() -> None:
    source, inputs = _block(1, 24, 6)
    made = check_model(source, inputs, optimized=True)
    (each,) = (k for k in made.report["kernels"] if k["kernel"] == "gates")
    assert each["macs"] >= 2 * 24 * 6
    assert {"node_p", "node_h", "node_e"} <= set(each["origin"])


def test_gates_read_by_a_padded_convolution_get_a_border() -> None:
    source, inputs = _block(1, 24, 6, outputs="g")
    source.graph.node.append(node("Conv", "g k", "z", pads=[1, 1, 1, 1]))
    del source.graph.node[6]
    kernel = onnx.numpy_helper.from_array(normal(4, 24, 3, 3, seed=8), "k")
    source.graph.initializer.append(kernel)
    source.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 4, 1, 1])
    )
    assert "gates" in _kernels(source, inputs)


@pytest.mark.parametrize(
    ("precision", "fc_weights", "fused"),
    [("bf16", "fp32", True), ("fp32", "bf16", True), ("fp32", "int8", False)],
)
def test_reduced_formats(precision: str, fc_weights: str, fused: bool) -> None:
    source, inputs = _block(1, 40, 10)
    graph = pwopt.optimize(source, verify=False).graph
    made = pwopt.compile(graph, precision=precision, fc_weights=fc_weights)
    assert ("gates" in [k["kernel"] for k in made.report["kernels"]]) == fused
    want = reference(source, inputs)["y"]
    assert relative_error(made.run(inputs)["y"], want) < 0.02
