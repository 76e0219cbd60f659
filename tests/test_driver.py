"""optimize: never changes its argument, checks its result, and names the pass that broke it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pwopt
from pwopt import checks, compilation, driver, numerics, sources
from pwopt.errors import FrontendError, NumericsError, UsageError
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.models.builder import ModelBuilder
from pwopt.pipeline import Context, Pass

MODEL = Path(__file__).parents[1] / "models" / "data" / "mnist-conv.onnx"


@dataclass(frozen=True)
class ScaleConstants(Pass):
    """Multiplies every floating-point constant, which no correct pass would."""

    name: ClassVar[str] = "scale-constants"
    factor: float = 1.01

    def run(self, graph: Graph, context: Context) -> None:
        for node in graph.nodes():
            if node.is_constant and node.attributes["value"].dtype == np.float32:
                scaled = node.attributes["value"] * np.float32(self.factor)
                graph.replace_uses(node.out, graph.constant(scaled))
                graph.erase(node)


@dataclass(frozen=True)
class AddIdentity(Pass):
    """Changes the graph without changing what it computes; once."""

    name: ClassVar[str] = "add-identity"

    def run(self, graph: Graph, context: Context) -> None:
        if any(node.is_op("Identity") for node in graph.nodes()):
            return
        value = graph.inputs[0].out
        users = graph.uses(value)
        same = graph.add("Identity", [value]).out
        for use in users:
            graph.replace_operand(use, same)


def custom_op_model() -> onnx.ModelProto:
    node = helper.make_node("Mystery", ["x"], ["y"], domain="example.org")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.org", 1)]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_optimizes_and_checks() -> None:
    result = pwopt.optimize(MODEL)
    report = result.report
    assert report.verification.status == "passed"
    assert report.verification.reference.startswith("ONNX Runtime")
    assert all(d.ok for d in report.verification.outputs)
    assert report.after.nodes < report.before.nodes
    assert report.after.macs == report.before.macs > 0
    assert report.source.path == str(MODEL)
    assert len(report.source.sha256) == 64


def test_argument_is_not_changed() -> None:
    graph = pwopt.load(MODEL)
    version, nodes = graph.version, graph.nodes()
    result = pwopt.optimize(graph)
    assert result.graph is not graph
    assert (graph.version, graph.nodes()) == (version, nodes)
    model = onnx.load(MODEL)
    before = model.SerializeToString()
    pwopt.optimize(model)
    assert model.SerializeToString() == before


def test_result_is_deterministic() -> None:
    first, second = (pwopt.optimize(MODEL, verify=False) for _ in range(2))
    assert first.graph.to_onnx().SerializeToString() == second.graph.to_onnx().SerializeToString()


def test_report_is_json() -> None:
    report = pwopt.optimize(MODEL).report
    content = json.loads(report.dumps())
    assert content["generator"] == "pwopt"
    assert content["schema"] == 1
    assert content["target"] == "cpu"
    assert content["before"]["ops"]["Conv"] == 2
    assert content["compilation"] is None
    row = content["passes"][0]
    fields = {"spec", "changed", "seconds", "nodes_before", "nodes_after", "remarks"}
    assert fields <= row.keys()
    assert content["verification"]["outputs"][0]["error"] <= 1e-4


def test_a_wrong_pass_is_named() -> None:
    passes = [AddIdentity(), ScaleConstants()]
    with pytest.raises(NumericsError, match=r"error .* tolerance 0\.0001; pass scale-constants"):
        pwopt.optimize(MODEL, passes=passes)
    assert pwopt.optimize(MODEL, passes=passes, verify=False).report.verification.reason


def test_passes_by_spec() -> None:
    assert not pwopt.optimize(MODEL, passes="").report.passes
    with pytest.raises(UsageError, match="did you mean 'fold-constants'"):
        pwopt.optimize(MODEL, passes="fold-constant")


def test_unknown_target() -> None:
    with pytest.raises(UsageError, match="unknown target 'cpi', did you mean 'cpu'"):
        pwopt.optimize(MODEL, target="cpi")
    with pytest.raises(UsageError, match="--arch sm_1: unknown architecture"):
        pwopt.compile(MODEL, target="cuda", arch="sm_1")
    with pytest.raises(UsageError, match="at least one"):
        pwopt.compile(MODEL, threads=0)


def test_custom_operators_pass_through_unchecked() -> None:
    result = pwopt.optimize(custom_op_model())
    assert result.report.verification.status == "skipped"
    assert "ONNX Runtime cannot load the model" in result.report.verification.reason
    assert [node.op_type for node in result.graph.to_onnx().graph.node] == ["Mystery"]


def test_open_dimensions_are_closed_for_the_check() -> None:
    model = blocks.bottleneck()
    for value in (*model.graph.input, *model.graph.output):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    del model.graph.value_info[:]
    result = pwopt.optimize(model)
    assert result.report.verification.status == "passed"
    assert result.report.verification.inputs == {"input": "float32[1x16x64x64]"}
    closed = pwopt.optimize(model, input_shapes={"input": (2, 16, 8, 8)})
    assert closed.report.verification.inputs == {"input": "float32[2x16x8x8]"}


def test_indices_are_fed_with_what_runs() -> None:
    table = numpy_helper.from_array(np.eye(3, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, [40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [40, 3])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert pwopt.optimize(model).report.verification.status == "passed"


def test_dump_writes_the_graph_after_each_change(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    pwopt.optimize(MODEL, passes=[AddIdentity()], dump=folder)
    (file,) = folder.iterdir()
    assert file.name == "001-add-identity.txt"
    assert "Identity" in file.read_text()
    with pytest.raises(UsageError, match="cannot be written"):
        pwopt.optimize(MODEL, passes=[], dump=file)


def test_ill_conditioned_models_get_room() -> None:
    """Fractional parts of large numbers move by more than any table allows."""
    factor = numpy_helper.from_array(np.array(1e5, np.float32), "factor")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in "xy"]
    nodes = [helper.make_node("Mul", ["x", "factor"], ["m"]), helper.make_node("Sin", ["m"], ["y"])]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [factor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    original = pwopt.load(model)
    reference = checks.reference(original, model.SerializeToString())
    assert isinstance(reference, checks.Reference)
    found = reference.relaxed(0, checks.check(reference, original))
    assert found[0].tolerance > 1e-2


def test_shapes_belong_to_loading() -> None:
    with pytest.raises(UsageError, match="where a model is loaded"):
        sources.read(pwopt.load(MODEL), {"Input3": (1, 1, 28, 28)})
    with pytest.raises(UsageError):
        pwopt.optimize(MODEL, input_shapes={"nothing": (1, 1, 28, 28)})


def test_missing_file() -> None:
    with pytest.raises(FrontendError, match=r"nowhere\.onnx: no such file"):
        pwopt.optimize("nowhere.onnx")


def test_pointwise_work_is_counted_before_and_after() -> None:
    report = pwopt.optimize(blocks.bottleneck(16, 8, 8)).report
    assert report.before.pointwise_macs == report.after.pointwise_macs == 2 * 16 * 8 * 64


def test_the_tail_of_a_sigmoid_is_rounding() -> None:
    """ONNX Runtime's Sigmoid is off by more than its value where that is 1e-8."""
    b = ModelBuilder("tail")
    x = b.conv(b.input((1, 8, 6, 6)), weight=np.full((4, 8, 1, 1), 0.01, np.float32), bias=False)
    shift = b.constant(np.full((1, 4, 1, 1), -17.0))
    graph = pwopt.load(b.build(b.op("Sigmoid", b.op("Add", x, shift))))
    _, made = compilation.compile_optimized(pwopt.optimize(graph))
    assert made.report.compilation is not None
    checked = made.report.compilation.verification
    assert checked is not None
    assert checked.status == "passed"
    assert {d.scale for d in checked.outputs} == {numerics.BOUNDED_SCALE}
    with pytest.raises(NumericsError, match="output"):  # 1e-7 is the tail; 1e-4 is wrong
        pwopt.optimize(graph, passes=[ScaleConstants(0.5)])


def zeros_before_a_max_pool() -> onnx.ModelProto:
    """Keras' ResNetV2: ONNX Runtime makes the zeros, which win, pads of the pool, which do not."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Neg", ["r"], ["n"]),
        helper.make_node("Conv", ["n", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Pad", ["c", "pads"], ["p"]),
        helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    weight = np.abs(np.random.default_rng(3).standard_normal((4, 4, 1, 1))) + 1
    constants = [
        numpy_helper.from_array(weight.astype(np.float32), "w"),
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_onnx_runtime_rewrites_wrongly_is_compared_as_it_stands() -> None:
    model = zeros_before_a_max_pool()
    executable, made = compilation.compile_optimized(driver.optimize(model))
    compiled = made.report.compilation
    assert compiled is not None
    assert compiled.verification is not None
    assert compiled.verification.status == "passed"
    assert "ONNX Runtime's own rewriting of the original is off" in compiled.verification.reason
    x = np.random.default_rng(4).standard_normal((1, 4, 8, 8)).astype(np.float32)
    (want,) = map(np.asarray, onnx.reference.ReferenceEvaluator(model).run(None, {"x": x}))
    np.testing.assert_allclose(executable.run({"x": x})["y"], want, rtol=1e-5, atol=1e-5)
    table = pwopt.compare(model, executable, runs=1)
    assert table["compiled"].error < 1e-5
    assert "is to the model as it stands" in "".join(table.notes)


def test_no_other_way_to_run_the_original_hides_a_wrong_rewrite() -> None:
    with pytest.raises(NumericsError, match="scale-constants"):
        driver.optimize(zeros_before_a_max_pool(), passes=[ScaleConstants()])
