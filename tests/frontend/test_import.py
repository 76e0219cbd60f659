"""What of a model the graph gets to see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import pwopt.frontend.inference as inference
from pwopt.errors import FrontendError, UsageError
from pwopt.frontend import export, load
from pwopt.ir.graph import Opaque
from pwopt.ir.types import OpaqueType, TensorType
from tests.frontend.building import INT64, assert_same_outputs, model, round_trip, value

ONES = np.ones((3,), np.float32)


def relu(shape: list[object] | None = None) -> ModelProto:
    shape = [1, 3, 4, 4] if shape is None else shape
    return model([helper.make_node("Relu", ["x"], ["y"], name="r")], [value("x", shape)],
                 [value("y", shape)])  # fmt: skip


def test_dimensions_are_numbers_symbols_or_unknown() -> None:
    graph = load(relu(["N", 3, None, -1]))
    assert graph.inputs[0].types[0] == TensorType("float32", ("N", 3, None, None))
    assert graph.outputs[0][1].type == TensorType("float32", ("N", 3, None, None))


def test_question_marks_are_dimensions_of_their_own() -> None:
    source = model([helper.make_node("Relu", ["x"], ["y"])], [value("x", ("?", 3, "?", "?"))], [])
    source.graph.output.append(value("y", None))
    graph = load(source, {"x": (1, 3, 48, 192)})
    assert graph.outputs[0][1].shape == (1, 3, 48, 192)


def test_generated_symbols_do_not_stay() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    graph = load(model(nodes, [value("x", [3])], [value("y", [1, None], INT64)]))
    assert graph.outputs[0][1].type == TensorType("int64", (1, None))


def test_input_shapes_replace_declared_ones() -> None:
    graph = load(relu(["N", 3, "H", "H"]), {"x": (2, 3, 8, 8)})
    assert graph.outputs[0][1].shape == (2, 3, 8, 8)
    exported = export(graph).graph
    for end in (exported.input[0], exported.output[0]):
        assert [d.dim_value for d in end.type.tensor_type.shape.dim] == [2, 3, 8, 8]


def test_input_shapes_set_symbols_everywhere() -> None:
    nodes = [helper.make_node("Concat", ["a", "b"], ["y"], axis=1)]
    both = model(nodes, [value("a", ["N", 1]), value("b", ["N", 2])], [value("y", ["N", 3])])
    graph = load(both, {"a": (5, 1)})
    assert graph.inputs[1].types[0] == TensorType("float32", (5, 2))
    assert graph.outputs[0][1].shape == (5, 3)


def test_input_shapes_overrule_stale_declarations() -> None:
    node = helper.make_node("Own", ["x"], ["t"], domain="own")
    stale = model(
        [node, helper.make_node("Relu", ["t"], ["y"])],
        [value("x", [1, 3])],
        [value("y", [1, 3])],
        domains=["own"],
        value_info=[value("t", [1, 3])],
    )
    assert load(stale).outputs[0][1].shape == (1, 3)
    assert load(stale, {"x": (4, 3)}).outputs[0][1].type == TensorType("float32", (None, None))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"X1": (1, 3, 4, 4)}, "no such input.*'x'"),
        ({"x": (1, 3)}, "rank 4"),
        ({"x": (-1, 3, 4, 4)}, "not a size"),
    ],
)
def test_wrong_input_shapes(shapes: inference.Shapes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(relu(), shapes)


def test_conflicting_symbols_of_an_input_shape() -> None:
    with pytest.raises(UsageError, match="'H' is 4 elsewhere"):
        load(relu([1, 3, "H", "H"]), {"x": (1, 3, 4, 5)})


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_initializers_that_are_inputs_become_constants(ir_version: int) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    old = model(nodes, [value("x", [3]), value("w", [3])], [value("y", [3])], {"w": ONES},
                opset=7, ir_version=ir_version)  # fmt: skip
    graph = load(old)
    assert [n.out.name for n in graph.inputs] == ["x"]
    assert graph.metadata["overridable"] == ("w",)
    result = assert_same_outputs(old, {"x": ONES})
    assert result.ir_version == max(ir_version, 4)
    assert [v.name for v in result.graph.input] == ["x"]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": helper.make_tensor("v", INT64, [2], [1, 2])}, np.array([1, 2])),
        ({"value_float": 0.1}, np.array(0.1, np.float32)),
        ({"value_floats": [0.1, 2.0]}, np.array([0.1, 2], np.float32)),
        ({"value_int": 3}, np.array(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value_string": "a"}, np.array("a", object)),
        ({"value_strings": ["a", "b"]}, np.array(["a", "b"], object)),
    ],
)
def test_constant_nodes_become_constants(attribute: dict[str, Any], expected: object) -> None:
    node = helper.make_node("Constant", [], ["c"], name="k", **attribute)
    assert isinstance(expected, np.ndarray)
    dtype = {"O": TensorProto.STRING, "f": TensorProto.FLOAT, "i": INT64}[expected.dtype.kind]
    nodes = [node, helper.make_node("Identity", ["c"], ["y"])]
    constant = model(nodes, [], [value("y", expected.shape, dtype)])
    graph = load(constant)
    array = graph.constant_value(graph.operands(graph.outputs[0][1].node)[0])
    assert array is not None
    assert array.dtype == expected.dtype
    assert array.tolist() == expected.tolist()
    assert_same_outputs(constant, {})


def test_sparse_constants_stay_nodes() -> None:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("i", INT64, [1], [1]),
        [3],
    )
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    initializer = model(nodes, [value("x", [3])], [value("y", [3])])
    initializer.graph.sparse_initializer.append(sparse)
    graph = load(initializer)
    node = next(n for n in graph.nodes() if n.is_op("Constant"))
    assert isinstance(node.get("sparse_value"), Opaque)
    assert_same_outputs(initializer, {"x": ONES})


def test_constant_of_shape_stays_a_node() -> None:
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["y"])]
    graph = load(model(nodes, [], [value("y", None)], {"s": np.array([2**40, 2**20])}))
    assert graph.outputs[0][1].shape == (2**40, 2**20)
    assert graph.outputs[0][1].node.is_op("ConstantOfShape")


def test_absent_operands_and_results() -> None:
    nodes = [helper.make_node("Clip", ["x", "", "hi"], ["c"]),
             helper.make_node("LSTM", ["c", "w", "r"], ["", "h", ""], hidden_size=2)]  # fmt: skip
    weights = {"hi": np.array(1, np.float32), "w": np.ones((1, 8, 3), np.float32)}
    weights["r"] = np.ones((1, 8, 2), np.float32)
    lstm = model(nodes, [value("x", [2, 1, 3])], [value("h", [1, 1, 2])], weights)
    graph = load(lstm)
    clip = next(n for n in graph.nodes() if n.op == "Clip")
    assert graph.operands(clip)[1] is None
    result = assert_same_outputs(lstm, {"x": np.ones((2, 1, 3), np.float32)})
    assert list(result.graph.node[1].output) == ["", "h", ""]


def test_sequences_are_opaque() -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
             helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)]  # fmt: skip
    sequences = model(nodes, [value("x", [3])], [value("y", [6])])
    graph = load(sequences)
    node = next(n for n in graph.nodes() if n.op == "SequenceConstruct")
    assert isinstance(node.types[0], OpaqueType)
    assert_same_outputs(sequences, {"x": ONES})


def test_attributes_of_every_kind() -> None:
    tensor = helper.make_tensor("t", TensorProto.BFLOAT16, [2], [1.0, 2.0])
    kinds: dict[str, Any] = {"f": 0.1, "i": 7, "s": "text", "b": b"\xff", "fs": [0.1, 2.0]}
    kinds |= {"is": [1, 2], "ss": ["a", "b"], "t": tensor}
    node = helper.make_node("Own", ["x"], ["y"], domain="own", **kinds)
    for name, kind in (("no_floats", 6), ("no_ints", 7), ("no_strings", 8)):
        node.attribute.add(name=name, type=kind)
    own = model([node], [value("x", [3])], [value("y", [3])], domains=["own"])
    attributes = load(own).outputs[0][1].node.attributes
    assert attributes["f"] == np.float32(0.1)
    assert attributes["fs"] == (float(np.float32(0.1)), 2.0)
    assert (attributes["s"], attributes["b"], attributes["ss"]) == ("text", b"\xff", ("a", "b"))
    assert attributes["t"].dtype.name == "bfloat16"
    assert attributes["no_floats"] == ()
    result = round_trip(own).graph.node[0]
    assert [(a.name, a.type) for a in result.attribute] == [
        (a.name, a.type) for a in node.attribute
    ]
    assert [a for a in result.attribute if a.name != "t"] == [
        a for a in node.attribute if a.name != "t"
    ]


def test_unsorted_nodes_are_sorted() -> None:
    nodes = [helper.make_node("Relu", ["t"], ["y"]), helper.make_node("Neg", ["x"], ["t"])]
    graph = load(model(nodes, [value("x", [3])], [value("y", [3])]))
    assert [n.op for n in graph.nodes() if n.domain == ""] == ["Neg", "Relu"]


def test_local_functions_are_inlined() -> None:
    body = [helper.make_node("Neg", ["a"], ["t"]), helper.make_node("Relu", ["t"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("F", ["x"], ["y"], domain="own")]
    called = model(nodes, [value("x", [3])], [value("y", [3])], domains=["own"])
    called.functions.append(function)
    assert [n.op for n in load(called).nodes() if n.domain == ""] == ["Neg", "Relu"]
    assert_same_outputs(called, {"x": -ONES})


def test_function_that_replaces_an_operator() -> None:
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 9)])
    replaced = relu()
    replaced.functions.append(function)
    with pytest.raises(FrontendError, match="'Relu' replaces an operator"):
        load(replaced)


@pytest.mark.parametrize("dtype", ["INT4", "UINT4", "INT2", "UINT2", "FLOAT8E4M3FN", "FLOAT4E2M1"])
def test_narrow_types_round_trip(dtype: str) -> None:
    number = TensorProto.DataType.Value(dtype)
    tensor = helper.make_tensor("w", number, [5], [0, 1, 1, 0, 1])
    node = helper.make_node("Own", ["w"], ["y"], domain="own")
    own = model([node], [], [value("y", [5])], opset=25, ir_version=13, domains=["own"])
    own.graph.initializer.append(tensor)
    graph = load(own)
    array = next(n for n in graph.nodes() if n.is_constant).attributes["value"]
    assert array.astype(np.float32).tolist() == [0, 1, 1, 0, 1]
    result = round_trip(own).graph.initializer[0]
    assert result.raw_data == tensor.raw_data or not tensor.HasField("raw_data")
    assert result.data_type == number


@pytest.mark.parametrize("dtype", ["FLOAT6E2M3", "FLOAT6E3M2"])
def test_types_that_the_ir_lacks_are_carried(dtype: str) -> None:
    number = TensorProto.DataType.Value(dtype)
    node = helper.make_node("Own", ["w"], ["y"], domain="own")
    own = model([node], [], [value("y", [4])], opset=25, ir_version=14, domains=["own"])
    own.graph.initializer.append(TensorProto(name="w", dims=[4], data_type=number, raw_data=b"abc"))
    assert load(own).outputs
    assert export(load(own)).graph.node[0].attribute[0].t.raw_data == b"abc"
