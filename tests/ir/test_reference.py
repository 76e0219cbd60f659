"""The float64 reference against ONNX Runtime, operator by operator and on internal ops."""

from __future__ import annotations

import numpy as np
import onnx.helper
import pytest
from onnx.reference import ReferenceEvaluator

from pwopt.errors import FrontendError
from pwopt.frontend import export, load
from pwopt.frontend.reference import ReferenceModel, evaluate, evaluate_node
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from tests.ir.cases import IDS, PAIRS, Case

# Rounding of float32 sums of up to a few hundred products, relative to the result's scale.
TOLERANCE = 2e-6

NOT_IN_ONNXRUNTIME = ("NOT_IMPLEMENTED", "Dilation not supported")


def run_peer(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime without optimization; onnx.reference for what it does not implement."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    model = export(graph)
    data = model.SerializeToString()
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))
    except Exception as error:
        if not any(reason in str(error) for reason in NOT_IN_ONNXRUNTIME):
            raise
        return list(ReferenceEvaluator(model).run(None, feeds))


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    if theirs.dtype.kind != "f":
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
        return
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-6)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("case", "opset"), PAIRS, ids=IDS)
def test_agrees_with_onnxruntime(case: Case, opset: int) -> None:
    graph, node = case.graph(opset)
    feeds = case.feeds()
    if not feeds:
        graph.add_input("unused", TensorType("float32", (1,)))
        feeds = {"unused": np.zeros(1, np.float32)}
    expected = run_peer(graph, feeds)
    results = evaluate(graph, feeds)
    for ours, theirs, declared in zip(results.values(), expected, node.types, strict=True):
        assert isinstance(declared, TensorType)
        assert declared.accepts(TensorType(None, theirs.shape))
        assert ours.dtype == np.float64 or declared.dtype != "float32"
        assert_close(ours, theirs)
    inputs = [
        o if o is None or isinstance(o, np.ndarray) else feeds[f"x{slot}"]
        for slot, o in enumerate(case.operands)
    ]
    for ours, theirs in zip(evaluate_node(node, inputs, opset), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs)


def conv_relu(dtype: str = "float32") -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", TensorType(dtype, (1, 3, 5, 5)))
    w = graph.constant(np.ones((4, 3, 3, 3), dtype) / 3)
    y = graph.add("Relu", [graph.add("Conv", [x, w]).out], name="act").out
    graph.add_output("y", y)
    graph.add_output("same", x)
    return graph


def test_results_come_in_float64_or_in_declared_types() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float16)
    exact = evaluate(conv_relu("float16"), {"x": x})
    assert {k: v.dtype for k, v in exact.items()} == {"y": np.float64, "same": np.float64}
    declared = ReferenceModel(conv_relu("float16")).run({"x": x})
    assert {k: v.dtype for k, v in declared.items()} == {"y": np.float16, "same": np.float16}
    own = evaluate(conv_relu("float16"), {"x": x}, dtype=None)
    assert own["y"].dtype == np.float16
    np.testing.assert_allclose(own["y"], exact["y"], atol=1e-2)


def test_casts_do_not_round() -> None:
    graph = Graph("casts")
    x = graph.add_input("x", TensorType("float32", (1,)))
    half = graph.add("Cast", [x], {"to": 10}).out
    graph.add_output("y", graph.add("Cast", [half], {"to": 1}).out)
    value = np.array([1 / 3], np.float32)
    assert evaluate(graph, {"x": value})["y"] == value.astype(np.float64)
    assert evaluate(graph, {"x": value}, dtype=None)["y"] != value


def test_missing_input_and_failing_node_are_named() -> None:
    with pytest.raises(FrontendError, match="input 'x' is not fed"):
        evaluate(conv_relu(), {})
    graph = Graph("bad")
    x = graph.add_input("x", TensorType("float32", (1,)))
    node = graph.add("Frob", [x], domain="vendor", types=[TensorType()], name="f1")
    graph.add_output("y", node.out)
    with pytest.raises(FrontendError, match="Frob 'f1': the reference cannot compute it"):
        evaluate(graph, {"x": np.zeros(1, np.float32)})


def test_defaults_of_inputs() -> None:
    graph = Graph("default")
    x = graph.add_input("x", TensorType("float32", (1,)), default=np.array([3], np.float32))
    graph.add_output("y", graph.add("Neg", [x]).out)
    assert evaluate(graph, {})["y"] == -3


def test_subgraphs_with_captured_values() -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info("r", 1, [2])
    branches = [
        helper.make_graph([helper.make_node(op, ["v", "v"], ["r"])], op, [], [value])
        for op in ("Add", "Mul")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["v"]), node],
            "net",
            [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", 9, [])],
            [helper.make_tensor_value_info("y", 1, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    graph = load(model)
    x = np.array([3, 4], np.float32)
    assert evaluate(graph, {"x": x, "c": np.array(True)})["y"].tolist() == [-6, -8]
    assert evaluate(graph, {"x": x, "c": np.array(False)})["y"].tolist() == [9, 16]


def test_even_window_of_local_response_normalization() -> None:
    """ONNX Runtime and onnx.reference do not follow the text here: one channel below, two above."""
    graph = Graph("lrn")
    x = graph.add_input("x", TensorType("float32", (1, 5, 1)))
    y = graph.add("LRN", [x], {"size": 4, "alpha": 4.0, "beta": 1.0, "bias": 0.0}).out
    graph.add_output("y", y)
    x_value = np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1)
    squares = [1 + 4 + 9, 1 + 4 + 9 + 16, 4 + 9 + 16 + 25, 9 + 16 + 25, 16 + 25]
    expected = np.arange(1, 6) / np.array(squares)
    np.testing.assert_allclose(evaluate(graph, {"x": x_value})["y"].reshape(-1), expected)


def test_bound_on_results() -> None:
    graph = Graph("large")
    x = graph.constant(np.zeros(1, np.float32))
    shape = graph.constant(np.array([1 << 20, 1 << 20]))
    node = graph.add("Expand", [x, shape])
    inputs = [graph.constant_value(x), graph.constant_value(shape)]
    with pytest.raises(FrontendError, match="exceed 1024 bytes"):
        evaluate_node(node, inputs, 17, max_bytes=1024)
    unknown = graph.add("Expand", [x, shape], types=[TensorType("float32", (None,))])
    with pytest.raises(FrontendError, match="exceed 1024 bytes"):
        evaluate_node(unknown, inputs, 17, max_bytes=1024)
