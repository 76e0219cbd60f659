"""A batch that the model leaves open is 1 for the passes, and open again in what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import pwopt
from pwopt import checks, cli, frontend
from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.ort import OrtModel
from pwopt.running import input_types

Capture = pytest.CaptureFixture[str]
Dim = int | str | None


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(normal(*shape), name)


def numbers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[Dim, ...]],
    outputs: dict[str, tuple[Dim, ...]],
    constants: list[TensorProto],
    opset: int = 17,
) -> ModelProto:
    first, last = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in each.items()]
        for each in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "g", first, last, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def classifier(batch: Dim = "N", opset: int = 17, out: Dim = "N") -> ModelProto:
    """A convolution and a head behind ``x.view(x.size(0), -1)``, as exporters write it."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["b"]),
        helper.make_node("Concat", ["b", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["r", "t"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "u"], ["y"], transB=1),
    ]
    constants = [weight("w", 8, 3, 1, 1), weight("v", 5, 128), weight("u", 5)]
    constants += [numbers("first", 0), numbers("rest", -1)]
    return model(nodes, {"x": (batch, 3, 4, 4)}, {"y": (out, 5)}, constants, opset)


def two_inputs(first: Dim, second: Dim) -> ModelProto:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    return model(nodes, {"a": (first, 4), "b": (second, 4)}, {"y": (None, 4)}, [])


def declared(found: ModelProto) -> list[list[int | str]]:
    return [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*found.graph.input, *found.graph.output)
    ]


def same_at_batch(original: ModelProto, graph: Graph, size: int) -> bool:
    shapes = {n: (size, *(t.static_shape or ())[1:]) for n, t in input_types(graph).items()}
    feeds = {n: normal(*s) for n, s in shapes.items()}
    found = [OrtModel(m.SerializeToString()).run(feeds) for m in (original, frontend.export(graph))]
    return all(np.allclose(found[0][n], found[1][n], rtol=1e-4, atol=1e-5) for n in found[0])


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21])
def test_the_written_model_takes_any_batch(opset: int) -> None:
    original = classifier(opset=opset)
    result = pwopt.optimize(original)
    assert len(result.graph) < len(pwopt.load(original))
    assert result.graph.inputs[0].out.shape == (1, 3, 4, 4)
    assert result.report.batch is not None
    assert (result.report.batch.size, result.report.batch.reason) == (1, "")
    assert declared(frontend.export(result.graph)) == [["N", 3, 4, 4], ["N", 5]]
    assert same_at_batch(original, result.graph, 3)
    executable = pwopt.compile(result.graph)
    assert [i.shape for i in executable.inputs] == [(1, 3, 4, 4)]
    assert not executable.report["fallback"]


@pytest.mark.parametrize("dim", ["N", None, -1, 0])
def test_however_the_batch_is_left_open(dim: Dim) -> None:
    original = classifier(dim, out=dim)
    result = pwopt.optimize(original)
    assert result.report.verification.reference.startswith("ONNX Runtime")
    written = declared(frontend.export(result.graph))
    assert [each[0] for each in written] == [dim or 0] * 2  # which is also what an unset one gives
    assert OrtModel(frontend.export(result.graph).SerializeToString()).run(
        {"x": normal(2, 3, 4, 4)}
    )
    assert same_at_batch(classifier(None, out=None), result.graph, 2)
    assert pwopt.compile(original).inputs[0].shape == (1, 3, 4, 4)
    assert pwopt.compare(original, pwopt.compile(original), runs=1)["compiled"].error < 1e-4


@pytest.mark.parametrize(
    ("first", "second", "given", "shapes"),
    [
        ("N", "N", {}, [1, 1]),
        ("N", "M", {}, [1, 1]),
        ("N", "N", {"a": (3, 4)}, [3, 3]),
        ("N", "M", {"a": (3, 4)}, [3, 3]),
        ("N", 1, {"b": (1, 4)}, [1, 1]),
        (None, None, {"b": (5, 4)}, [5, 5]),
    ],
)
def test_inputs_have_one_batch(
    first: Dim, second: Dim, given: dict[str, tuple[int, ...]], shapes: list[int]
) -> None:
    graph = frontend.load(two_inputs(first, second), given, batch=1)
    assert [node.out.shape for node in graph.inputs] == [(s, 4) for s in shapes]


@pytest.mark.parametrize(
    "shape", [("N", 3, "H", "W"), ("N", "S"), ("S",), ("N", 3, "N", "N"), (1, 3, None, 4)]
)
def test_other_open_dimensions_are_for_the_user_to_close(shape: tuple[Dim, ...]) -> None:
    original = model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {"y": shape}, [])
    graph = frontend.load(original, batch=1)
    assert graph.inputs[0].out.tensor.shape == shape
    assert frontend.close_batch(graph) is graph
    with pytest.raises(UsageError, match="--input-shape x:"):
        pwopt.compare(original, original, runs=1)


def test_a_vector_has_the_batch_of_the_images_beside_it() -> None:
    nodes = [helper.make_node("Add", ["x", "v"], ["y"])]
    for symbol, closed in (("N", (1,)), ("S", ("S",))):
        inputs: dict[str, tuple[Dim, ...]] = {"x": ("N", 4), "v": (symbol,)}
        graph = frontend.load(model(nodes, inputs, {"y": (None, 4)}, []), batch=1)
        assert graph.inputs[1].out.tensor.shape == closed


def test_a_result_that_is_for_one_batch_only_says_so() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["b"]),
        helper.make_node("Cast", ["b"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    original = model(nodes, {"x": ("N", 4)}, {"y": ("N", 4)}, [numbers("first", 0)])
    result = pwopt.optimize(original)
    assert result.report.batch is not None
    assert "with 2, the optimized model differs from the original" in result.report.batch.reason
    assert declared(frontend.export(result.graph)) == [[1, 4], [1, 4]]


def test_nothing_is_opened_unchecked() -> None:
    result = pwopt.optimize(classifier(), verify=False)
    assert result.report.batch is not None
    assert "was not checked" in result.report.batch.reason
    assert declared(frontend.export(result.graph)) == [[1, 3, 4, 4], [1, 5]]


def test_a_shape_that_is_given_is_written() -> None:
    result = pwopt.optimize(classifier(), input_shapes={"x": (2, 3, 4, 4)})
    assert result.report.batch is None
    assert declared(frontend.export(result.graph)) == [[2, 3, 4, 4], [2, 5]]


def test_channel_shuffles_of_any_batch() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "merge"], ["m"]),
        helper.make_node("Reshape", ["m", "pairs"], ["p"]),
        helper.make_node("Softmax", ["p"], ["q"], axis=-1),
        helper.make_node("Reshape", ["q", "back"], ["y"]),
    ]
    constants = [numbers("split", -1, 2, 3, 4, 4), numbers("merge", -1, 6, 4, 4)]
    constants += [numbers("pairs", -1, 16), numbers("back", -1, 6, 16)]
    original = model(nodes, {"x": ("N", 6, 4, 4)}, {"y": ("N", 6, 16)}, constants)
    result = pwopt.optimize(original)
    assert result.report.batch is not None
    assert not result.report.batch.reason
    assert same_at_batch(original, result.graph, 3)


def test_a_loaded_graph_is_closed_in_a_copy() -> None:
    graph = pwopt.load(classifier())
    before = str(graph), graph.version
    result = pwopt.optimize(graph)
    assert (str(graph), graph.version) == before
    assert declared(frontend.export(result.graph)) == [["N", 3, 4, 4], ["N", 5]]
    assert same_at_batch(frontend.export(graph), result.graph, 4)
    assert pwopt.compile(graph).inputs[0].shape == (1, 3, 4, 4)
    assert frontend.close_batch(result.graph) is result.graph


def test_reshapes_that_name_the_batch_name_it_as_one() -> None:
    graph = Graph(opsets={"": 17})
    x = graph.add_input("x", TensorType("float32", (2, 6, 4)))
    for target in ((2, 24), (12, 4), (2, -1, 3), (-1, 6, 4), (4, -1)):
        shape = graph.constant(np.array(target, np.int64))
        graph.add_output(f"y{len(graph.outputs)}", graph.add("Reshape", [x, shape]).out)
    freed = frontend.export(frontend.without_batch(graph))
    values = {t.name: numpy_helper.to_array(t).tolist() for t in freed.graph.initializer}
    found = {node.output[0]: values[node.input[1]] for node in freed.graph.node}
    wanted = ([0, 24], [-1, 4], [0, -1, 3], [-1, 6, 4], [4, -1])
    assert found == {f"y{i}": shape for i, shape in enumerate(wanted)}
    assert checks.disagreement(checked(graph), frontend.without_batch(graph)) == ""


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_resizes_to_a_multiple_take_any_batch(opset: int) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["b"]),
        helper.make_node("Concat", ["b", "rest"], ["sizes"], axis=0),
        helper.make_node("Resize", ["r", "none", "none", "sizes"], ["y"], mode="linear"),
    ]
    constants = [numbers("first", 0), numbers("rest", 3, 8, 12), weight("none", 0)]
    dims: dict[str, tuple[Dim, ...]] = {"x": ("N", 3, 4, 4)}
    original = model(nodes, dims, {"y": ("N", 3, 8, 12)}, constants, opset)
    result = pwopt.optimize(original)
    assert result.report.batch is not None
    assert not result.report.batch.reason
    assert same_at_batch(original, result.graph, 3)


def checked(graph: Graph) -> checks.Reference:
    answers = checks.reference(graph, None)
    assert isinstance(answers, checks.Reference)
    return answers


def test_commands_say_what_they_took_for_the_batch(tmp_path: Path, capsys: Capture) -> None:
    path, out = str(tmp_path / "open.onnx"), str(tmp_path / "out")
    onnx.save(classifier(), path)
    line = "pwopt: input 'x': open batch dimension 'N' set to 1; --input-shape x:8x3x4x4 chooses"
    commands = [
        ["inspect", path],
        ["optimize", path, "-o", out, "--no-compile"],
        ["tune", path, "--seconds", "0.1", "--database", str(tmp_path / "db.sqlite")],
        ["compare", path, f"{out}/model.onnx", "--runs", "1"],
    ]
    for command in commands:
        assert cli.run(command) == 0, command
        assert capsys.readouterr().err.count(line) == 1, command
        assert cli.run([*command, "--quiet"]) == 0, command
        assert capsys.readouterr().err == "", command
    assert cli.run(["optimize", path, "-o", out, "--quiet"]) == 0
    assert (
        "open in x: 1 here, and in the executable; model.onnx takes any" in capsys.readouterr().out
    )
    assert cli.run(["compare", path, out, "--runs", "1"]) == 0  # the executable's size
    assert "open batch" not in capsys.readouterr().err


def test_python_logs_what_it_took_for_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    pwopt.compile(two_inputs("N", "M"))
    (record,) = caplog.records
    assert record.name == "pwopt"
    assert record.getMessage() == (
        "inputs 'a', 'b': open batch dimension set to 1; "
        "--input-shape a:8x4 --input-shape b:8x4 chooses another"
    )
