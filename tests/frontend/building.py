"""Small models, and what the frontend's tests ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pwopt.frontend import export, load

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, shape: Sequence[Any] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Sequence[str] = (),
    **graph: Any,
) -> ModelProto:
    """A model of the given parts."""
    tensors = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    built = helper.make_graph(nodes, "test", inputs, outputs, tensors, **graph)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(built, opset_imports=opsets, ir_version=ir_version)


def round_trip(source: ModelProto) -> ModelProto:
    """The model through load and export, checked; a second trip must not change it."""
    before = source.SerializeToString(deterministic=True)
    result: ModelProto = export(load(source))
    assert source.SerializeToString(deterministic=True) == before, "load changed its argument"
    onnx.checker.check_model(result)
    again = export(load(result))
    assert again.SerializeToString(deterministic=True) == result.SerializeToString(
        deterministic=True
    )
    return result


def session(source: ModelProto | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    data = source if isinstance(source, str) else source.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(source: ModelProto | str, feeds: dict[str, Any]) -> list[Any]:
    """The model's outputs from ONNX Runtime."""
    outputs: list[Any] = session(source).run(None, feeds)
    return outputs


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are equal bit for bit."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return bool(a is b or a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()


def assert_same_outputs(source: ModelProto, feeds: dict[str, Any]) -> ModelProto:
    """Round-trips a model and compares its outputs bit for bit; returns the new one."""
    result = round_trip(source)
    for expected, actual in zip(run(source, feeds), run(result, feeds), strict=True):
        assert same(expected, actual)
    return result
