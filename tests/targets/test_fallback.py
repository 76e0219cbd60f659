"""Nodes without a kernel go through TVM's own lowering, and what TVM cannot do to ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import pwopt
from pwopt import hardware
from pwopt.targets import compile_graph
from pwopt.targets.executable import Executable

Arrays = dict[str, np.ndarray]
_RNG = np.random.default_rng(7)
X = _RNG.standard_normal((2, 5, 7)).astype(np.float32)
Y = _RNG.standard_normal((2, 5, 7)).astype(np.float32)
K = _RNG.integers(-5, 9, (3, 4, 5))
ORDER = _RNG.permuted(np.tile(np.arange(7), (2, 5, 1)), axis=2)
VOLUME = _RNG.standard_normal((1, 3, 7, 8, 9)).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model_of(nodes: list[onnx.NodeProto], inputs: Arrays, constants: Arrays) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def compiled(model: onnx.ModelProto, inputs: Arrays, threads: int = 1) -> Executable:
    """The executable, after its answers were compared with ONNX Runtime's."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    executable = compile_graph(pwopt.load(model), "cpu", hardware.host(), threads)
    got = list(executable.run(inputs).values())
    for mine, theirs in zip(got, session.run(None, inputs), strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        if mine.dtype.kind == "f":
            scale = np.abs(theirs).max() if theirs.size else 1.0
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6 * float(scale))
        else:
            np.testing.assert_array_equal(mine, theirs)
    return executable


CASES: list[tuple[str, list[np.ndarray], list[np.ndarray], dict[str, Any]]] = [
    ("ArgMax", [X], [], {"axis": 1}),
    ("ArgMin", [X], [], {"axis": -1, "keepdims": 0}),
    ("Where", [X > 0, X, Y], [], {}),
    ("Greater", [X, Y], [], {}),
    ("And", [X > 0, Y > 0], [], {}),
    ("Not", [X > 0], [], {}),
    ("Add", [K, K + 1], [], {}),
    ("Div", [K, np.abs(K) + 1], [], {}),
    ("Add", [X.astype(np.float64), Y.astype(np.float64)], [], {}),
    ("Cast", [X], [], {"to": onnx.TensorProto.INT64}),
    ("Cast", [X > 0], [], {"to": onnx.TensorProto.FLOAT}),
    ("CumSum", [X], [ints(1).reshape(())], {}),
    ("Tile", [X], [ints(1, 2, 3)], {}),
    ("Trilu", [X], [], {"upper": 0}),
    ("GatherElements", [X, _RNG.integers(0, 7, (2, 5, 3))], [], {"axis": 2}),
    ("GatherND", [X, _RNG.integers(0, 2, (4, 1))], [], {}),
    ("ScatterElements", [X, ORDER, Y], [], {"axis": 2}),
    ("Einsum", [X[0], Y[0].T.copy()], [], {"equation": "ij,jk->ik"}),
    ("Pad", [X], [ints(0, 1, 1, 0, 1, 1)], {"mode": "reflect"}),
    ("Conv", [VOLUME], [_RNG.standard_normal((5, 3, 3, 3, 3)).astype(np.float32)], {}),
    ("MaxPool", [VOLUME], [], {"kernel_shape": [2, 2, 2]}),
    ("Round", [X * 4], [], {}),
    ("Tan", [X], [], {}),
    ("ReduceSum", [K], [ints(1)], {}),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("op", "inputs", "constants", "attributes"), CASES)
def test_operators_that_tvm_computes(
    op: str,
    inputs: list[np.ndarray],
    constants: list[np.ndarray],
    attributes: dict[str, Any],
    threads: int,
) -> None:
    feeds = {f"i{k}": a for k, a in enumerate(inputs)}
    weights = {f"c{k}": a for k, a in enumerate(constants)}
    node = helper.make_node(op, [*feeds, *weights], ["y"], **attributes)
    executable = compiled(model_of([node], feeds, weights), feeds, threads)
    assert executable.report["tvm"], executable.report
    assert not executable.report["fallback"]


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("Celu", {"alpha": 1.5}, "not among the operators"),
        ("LpNormalization", {"axis": 1, "p": 2}, "not among the operators"),
        ("IsInf", {"detect_negative": 0}, "infinities of both signs"),
    ],
)
def test_others_run_in_onnx_runtime(op: str, attributes: dict[str, Any], reason: str) -> None:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    executable = compiled(model_of([node], {"x": X}, {}), {"x": X})
    assert not executable.report["tvm"]
    assert reason in executable.report["fallback"][0]["reason"]


def test_kernels_of_all_three_in_one_executable() -> None:
    """A convolution of ours, TVM's ArgMax-like middle, ONNX Runtime's Celu, and ours again."""
    image = _RNG.standard_normal((1, 8, 9, 9)).astype(np.float32)
    weight = _RNG.standard_normal((8, 8, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Sin", ["a"], ["b"], "second"),
        helper.make_node("Celu", ["b"], ["c"], "third", alpha=1.5),
        helper.make_node("Conv", ["c", "w"], ["y"], "fourth"),
    ]
    executable = compiled(model_of(nodes, {"x": image}, {"w": weight}), {"x": image})
    report = executable.report
    assert [n["node"] for n in report["tvm"]] == ["Sin 'second'"]
    assert [n["node"] for n in report["fallback"]] == ["Celu 'third'"]
    assert len(executable.manifest.segments) == 3


def test_the_same_graph_gives_the_same_kernels() -> None:
    node = helper.make_node("CumSum", ["i0", "c0"], ["y"])
    model = model_of([node], {"i0": X}, {"c0": ints(1).reshape(())})
    first, second = (compiled(model, {"i0": X}).report for _ in range(2))
    assert first["kernels"] == second["kernels"]
