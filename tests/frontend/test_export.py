"""What the exported model looks like."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, StringStringEntryProto, TensorProto, helper

from pwopt.errors import FrontendError, IRError
from pwopt.frontend import export, load, save
from pwopt.ir.graph import Graph, Opaque
from pwopt.ir.types import NUMPY_DTYPES, TensorType
from tests.frontend.building import assert_same_outputs, model, round_trip, run, value

ONES = np.ones((3,), np.float32)
F3 = TensorType("float32", (3,))


def checked(graph: Graph) -> ModelProto:
    result: ModelProto = export(graph)
    onnx.checker.check_model(result, full_check=True)
    assert export(graph).SerializeToString() == result.SerializeToString()
    return result


def test_outputs_that_are_inputs_or_constants_or_twice_the_same() -> None:
    graph = Graph("g")
    x = graph.add_input("x", F3)
    c = graph.constant(ONES, "c")
    r = graph.add("Relu", [x], types=[F3], names=["r"]).out
    for name, each in (("x", x), ("x2", x), ("c", c), ("c2", c), ("a", r), ("b", r)):
        graph.add_output(name, each)
    result = checked(graph)
    assert [o.name for o in result.graph.output] == ["x", "x2", "c", "c2", "a", "b"]
    outputs = run(result, {"x": -ONES})
    assert [o.tolist() for o in outputs] == [[-1] * 3] * 2 + [[1] * 3] * 2 + [[0] * 3] * 2


def test_outputs_of_a_file_that_are_inputs_or_initializers() -> None:
    source = model([], [value("x", [3])], [value("x", [3]), value("w", [3])], {"w": ONES})
    result = round_trip(source)
    assert [o.name for o in result.graph.output] == ["x", "w"]


def test_names_are_unique() -> None:
    graph = Graph("g")
    x = graph.add_input("x", F3)
    for name in ("x", "t", "t", "y", "", ""):
        x = graph.add("Relu", [x], types=[F3], names=[name]).out
    graph.add_output("y", x)
    result = checked(graph)
    names = [n.output[0] for n in result.graph.node]
    assert len(set(names)) == 6
    assert names[1] == "t"
    assert names[-1] == "y"


def test_shared_constants_stay_shared() -> None:
    graph = Graph("g")
    x, c = graph.add_input("x", F3), graph.constant(ONES)
    t = graph.add("Add", [x, c], types=[F3]).out
    graph.add_output("y", graph.add("Mul", [t, c], types=[F3]).out)
    assert len(checked(graph).graph.initializer) == 1


def test_kinds_come_from_the_schema() -> None:
    graph = Graph("g")
    x = graph.add_input("x", F3)
    x = graph.add("LeakyRelu", [x], {"alpha": 1}, types=[F3]).out
    graph.add_output("y", graph.add("LeakyRelu", [x], {"alpha": np.float32(0.1)}, types=[F3]).out)
    assert checked(graph).graph.node[0].attribute[0].type == onnx.AttributeProto.FLOAT


def test_attribute_without_onnx_form() -> None:
    graph = Graph("g")
    x = graph.add_input("x", F3)
    graph.add_output("y", graph.add("Relu", [x], {"a": object()}, types=[F3], name="r").out)
    with pytest.raises(FrontendError, match=r"Relu 'r'.*'a'"):
        export(graph)


def test_default_inputs_are_overridable() -> None:
    graph = Graph("g")
    x, w = graph.add_input("x", F3), graph.add_input("w", F3, ONES)
    graph.add_output("y", graph.add("Add", [x, w], types=[F3]).out)
    result = checked(graph)
    assert run(result, {"x": ONES})[0].tolist() == [2, 2, 2]
    assert run(result, {"x": ONES, "w": 2 * ONES})[0].tolist() == [3, 3, 3]


def test_ir_version_follows_the_types() -> None:
    graph = Graph("g", {"": 25})
    graph.add_output("y", graph.constant(np.zeros(3, NUMPY_DTYPES["int2"])))
    assert checked(graph).ir_version >= 13


def test_what_the_graph_cannot_express_is_kept() -> None:
    source = model(
        [helper.make_node("Relu", ["x"], ["y"], name="r", doc_string="why")],
        [value("x", ["N", 3])],
        [value("y", ["N", 3])],
        {"w": ONES},
        doc_string="graph",
    )
    source.producer_name, source.producer_version = "maker", "1.2"
    source.model_version, source.doc_string, source.domain = 7, "model", "org.example"
    source.metadata_props.append(StringStringEntryProto(key="k", value="v"))
    source.graph.input[0].doc_string = "an image"
    source.graph.input[0].type.denotation = "IMAGE"
    source.graph.node[0].metadata_props.append(StringStringEntryProto(key="a", value="b"))
    note = source.graph.quantization_annotation.add(tensor_name="x")
    note.quant_parameter_tensor_names.append(StringStringEntryProto(key="SCALE", value="w"))
    note = source.graph.quantization_annotation.add(tensor_name="gone")
    training = source.training_info.add()
    training.algorithm.name = "t"
    assert load(source).metadata["producer"] == "maker 1.2"
    result = round_trip(source)
    del source.graph.quantization_annotation[1]
    assert result.SerializeToString() == source.SerializeToString()


def test_captures_follow_their_values() -> None:
    inner = helper.make_graph(
        [
            helper.make_node("Relu", ["t"], ["s"]),
            helper.make_node("Add", ["s", "w"], ["u"]),
        ],
        "inner", [], [value("u", [3])],
    )  # fmt: skip
    nested = helper.make_graph(
        [helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner)],
        "nested", [], [value("v", [3])],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Neg", ["t"], ["n"])], "o", [], [value("n", [3])])
    nodes = [
        helper.make_node("Neg", ["x"], ["t"]),
        helper.make_node("If", ["c"], ["y"], then_branch=nested, else_branch=other),
    ]
    inputs = [value("x", [3]), value("c", [], TensorProto.BOOL)]
    source = model(nodes, inputs, [value("y", [3])], {"w": ONES})
    for condition in (True, False):
        assert_same_outputs(source, {"x": -ONES, "c": np.array(condition)})

    graph = load(source)
    branch = graph.outputs[0][1].node
    assert set(branch.captures) == {"c", "t", "w"}
    assert isinstance(branch.get("then_branch"), Opaque)
    graph.erase_dead()
    assert len(graph) == 2

    # A new value with a name of the subgraph's takes the place of the captured one.
    captured = graph.operands(branch)[1 + branch.captures.index("t")]
    assert captured is not None
    x = graph.inputs[0].out
    graph.replace_uses(captured, graph.add("Abs", [x], types=[F3], names=["s"]).out)
    graph.erase_dead()
    result = checked(graph)
    feeds = {"x": -2 * ONES, "c": np.array(True)}
    assert run(result, feeds)[0].tolist() == [3, 3, 3]


def test_scan_and_loop_round_trip() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "w"], ["s2"]), helper.make_node("Identity", ["k"], ["k2"])],
        "body",
        [value("i", [], 7), value("k", [], 9), value("s", [3])],
        [value("k2", [], 9), value("s2", [3])],
    )
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
    constants = {"n": np.array(5), "w": ONES}
    source = model(nodes, [value("x", [3])], [value("y", [3])], constants)
    assert_same_outputs(source, {"x": ONES})


def test_internal_ops_are_expanded(tmp_path: Path) -> None:
    from pwopt.ir.program import Program

    graph = Graph("g")
    x = graph.add_input("x", F3)
    node = graph.add("Map", [x], {"program": Program().then("Relu")}, domain="pwopt", types=[F3])
    graph.add_output("y", node.out)
    result = checked(graph)
    assert [n.op_type for n in result.graph.node] == ["Relu"]
    assert [o.domain for o in result.opset_import] == [""]


class TestSave:
    """Files are whole or not there."""

    graph = load(model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [3])],
                       [value("y", [3])], {"w": ONES}))  # fmt: skip

    def test_writes_and_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(b"old")
        save(self.graph, path)
        assert path.read_bytes() == export(self.graph).SerializeToString(deterministic=True)
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]

    def test_writes_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
        save(self.graph, str(tmp_path / "link.onnx"))
        assert (tmp_path / "link.onnx").is_symlink()
        assert load(tmp_path / "m.onnx").outputs

    @pytest.mark.parametrize("external", [False, True])
    def test_failure_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
    ) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(b"old")

        def fail(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(FrontendError, match="No space left"):
            save(self.graph, path, external_data=external)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]

    def test_bad_targets(self, tmp_path: Path) -> None:
        with pytest.raises(FrontendError, match="directory"):
            save(self.graph, tmp_path)
        with pytest.raises(FrontendError, match="cannot be written"):
            save(self.graph, tmp_path / "no" / "m.onnx")

    def test_cycle(self, tmp_path: Path) -> None:
        graph = Graph("g")
        x = graph.add_input("x", F3)
        a = graph.add("Relu", [x], types=[F3]).out
        b = graph.add("Relu", [a], types=[F3]).out
        graph.replace_operand(graph.uses(x)[0], b)
        graph.add_output("y", b)
        with pytest.raises(IRError, match="cycle"):
            save(graph, tmp_path / "m.onnx")
        assert not list(tmp_path.iterdir())


def test_every_export_is_of_the_graph_as_it_is_then() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType("float32", (1, 4)))
    y = graph.add("Relu", [x], names=("y",)).out
    graph.add_output("out", y)
    before = export(graph)
    before.graph.node[0].op_type = "Neg"  # the caller's own copy
    assert [n.op_type for n in export(graph).graph.node] == ["Relu"]
    kept = graph.copy()
    graph.set_outputs([("out", graph.add("Sigmoid", [y]).out)])
    assert [n.op_type for n in export(graph).graph.node] == ["Relu", "Sigmoid"]
    kept.set_outputs([("out", kept.add("Tanh", [y]).out)])
    assert kept.version == graph.version
    graph.restore(kept)
    assert [n.op_type for n in export(graph).graph.node] == ["Relu", "Tanh"]
    graph.opsets[""] = 18
    assert export(graph).opset_import[0].version == 18
    graph.name = "renamed"
    assert export(graph).graph.name == "renamed"
