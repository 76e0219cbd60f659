"""Resize, against ONNX Runtime, whose choice among equally near elements is the standard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.resize import resize
from pwopt.targets.resampling import axis_table, pack
from tests.targets.kernel_cases import RUNNABLE, Case, Layout, check, isa, place, result
from tests.targets.kernel_helpers import aligned, assembly

RNG = np.random.default_rng(7)


@dataclass(frozen=True)
class Spec:
    """One Resize operator; sizes and scales of height and width."""

    mode: str
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    size: tuple[int, int] = (5, 7)
    scale: tuple[float, float] = (2.0, 3.0)
    channels: int = 5
    exclude_outside: bool = False


def _reference(spec: Spec, x: np.ndarray) -> np.ndarray:
    attributes: dict[str, Any] = {
        "mode": spec.mode,
        "coordinate_transformation_mode": spec.coordinates,
        "nearest_mode": spec.nearest,
        "exclude_outside": int(spec.exclude_outside),
    }
    node = onnx.helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)
    scales = np.array([1, 1, *spec.scale], np.float32)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(scales, "s")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x.transpose(0, 3, 1, 2)})
    return np.asarray(y).transpose(0, 2, 3, 1)


def _case(spec: Spec, machine: Hardware, threads: int = 1) -> Case:
    a = RNG.standard_normal((2, *spec.size, spec.channels)).astype(np.float32)
    expected = _reference(spec, a).astype(np.float64)
    rows, columns = (
        axis_table(
            spec.mode,
            spec.size[d],
            expected.shape[1 + d],
            spec.scale[d],
            coordinates=spec.coordinates,
            nearest=spec.nearest,
            exclude_outside=spec.exclude_outside,
        )
        for d in (0, 1)
    )
    indices, weights = (aligned(t) for t in pack(rows, columns))
    x = place(a, Layout(before=[0, 1, 1, 3], after=[0, 1, 1, 0]))
    y = result(expected.shape, Layout(after=[0, 0, 0, 3]))
    function = resize(spec.mode, x.view, y.view, machine, threads)
    return Case(function, [x.flat, indices, weights], y, expected, 2e-6)


MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_coordinates(machine: Hardware) -> None:
    cases = {}
    for mode in ("nearest", "linear", "cubic"):
        for i, coordinates in enumerate(MODES):
            up = Spec(mode, coordinates)
            down = Spec(mode, coordinates, size=(9, 13), scale=(0.5, 0.6), channels=17)
            cases[f"{mode}{i}up"] = _case(up, machine)
            cases[f"{mode}{i}down"] = _case(down, machine)
    cases["outside"] = _case(Spec("cubic", exclude_outside=True), machine)
    check(cases, machine)


@pytest.mark.parametrize("machine", RUNNABLE, ids=isa)
def test_nearest_modes_and_channels(machine: Hardware) -> None:
    cases = {
        nearest: _case(Spec("nearest", "asymmetric", nearest, scale=(1.5, 0.8)), machine)
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    }
    for channels in (1, 3, 16, 33):
        cases[f"c{channels}"] = _case(Spec("linear", channels=channels), machine)
    cases["threads"] = _case(Spec("linear", size=(13, 17), channels=33), machine, threads=2)
    check(cases, machine, threads=2)


def test_crop_region() -> None:
    table = axis_table("linear", 9, 5, 1.0, coordinates="tf_crop_and_resize", region=(0.25, 0.75))
    at = (table.indices * table.weights).sum(axis=1)
    assert np.allclose(at, [2, 3, 4, 5, 6])
    with pytest.raises(ValueError, match="leaves the input"):
        axis_table("linear", 9, 5, 1.0, coordinates="tf_crop_and_resize", region=(0.5, 1.5))


def test_neon_compiles() -> None:
    x, y = View.dense((1, 4, 4, 6)), View.dense((1, 8, 8, 6))
    assert "fmul" in assembly({"k": resize("linear", x, y, hardware.NEON)}, hardware.NEON)
