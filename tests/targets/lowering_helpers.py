"""Small ONNX models, compiled and held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper

import pwopt
from pwopt import numerics
from pwopt.hardware import Hardware

Arrays = Mapping[str, np.ndarray]


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by blanks, ``_`` stands for an absent one."""
    read, made = (["" if n == "_" else n for n in text.split()] for text in (inputs, outputs))
    return helper.make_node(op, read, made, name=f"node_{made[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Arrays,
    outputs: str,
    constants: Arrays | None = None,
    *,
    opset: int = 17,
) -> ModelProto:
    """A checked model; ``inputs`` are examples, ``outputs`` names separated by blanks."""
    types = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        types,
        [onnx.ValueInfoProto(name=n) for n in outputs.split()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    for info, known in zip(made.graph.output, inferred.graph.output, strict=True):
        info.CopyFrom(known)
    onnx.checker.check_model(made)
    return made


def reference(source: ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of a model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        source.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


def check(
    source: ModelProto,
    inputs: Arrays,
    *,
    optimized: bool = False,
    threads: int = 1,
    hardware: Hardware | None = None,
    fallback: Sequence[str] = (),
    winograd: str = "auto",
) -> pwopt.Executable:
    """Compiles, runs twice and compares; ``fallback``: operators that may run elsewhere."""
    want = reference(source, inputs)
    graph = loaded(source, inputs)
    if optimized:
        graph = pwopt.optimize(graph, verify=False).graph
    executable = pwopt.compile(graph, threads=threads, hardware=hardware, winograd=winograd)
    left = [f for f in executable.report["fallback"] if f["node"].split()[0] not in fallback]
    assert not left, left
    first, second = executable.run(inputs), executable.run(inputs)
    assert list(first) == list(want)
    wrong = [str(d) for d in numerics.differences(want, first) if not d.ok]
    assert not wrong, wrong
    for name in first:
        assert np.array_equal(first[name], second[name], equal_nan=True)
    return executable


def loaded(source: ModelProto, inputs: Arrays) -> pwopt.Graph:
    """The graph for inputs of these sizes: a batch that is declared as 0 counts as open."""
    return pwopt.load(source, {name: array.shape for name, array in inputs.items()})


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded float32 noise."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
