"""Inferred types against onnx.shape_inference, and against themselves with dimensions unknown."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwopt.errors import IRError
from pwopt.frontend import export
from pwopt.frontend.tensors import decode_type
from pwopt.ir.graph import Graph
from pwopt.ir.program import Program
from pwopt.ir.shapes import broadcast, explicit_pads, has_rule, infer, window_output
from pwopt.ir.types import Dim, TensorType
from tests.ir.cases import IDS, PAIRS, Case


@pytest.mark.parametrize(("case", "opset"), PAIRS, ids=IDS)
def test_rule_agrees_with_onnx(case: Case, opset: int) -> None:
    graph, node = case.graph(opset)
    model = export(graph)
    onnx.checker.check_model(model)
    for output in model.graph.output:
        output.ClearField("type")
    if "ceil_mode" in case.attributes:  # the first version that says what runtimes always did
        model.opset_import[0].version = max(opset, 22)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for value, ours in zip(inferred.graph.output, node.types, strict=True):
        theirs = decode_type(value.type)
        assert isinstance(ours, TensorType)
        assert ours.static_shape is not None
        assert ours.dtype is not None
        assert theirs.accepts(ours), f"{ours}, ONNX infers {theirs}"


@given(data=st.data(), index=st.integers(0, len(PAIRS) - 1))
@settings(max_examples=600, deadline=None)
def test_unknown_dimensions_never_become_wrong(data: st.DataObject, index: int) -> None:
    case, opset = PAIRS[index]
    _, exact = case.graph(opset)
    shapes: dict[int, tuple[Dim, ...] | None] = {}
    for slot, shape in enumerate(case.operands):
        if isinstance(shape, tuple):
            # A symbol carries its number, so that it can be checked wherever it comes out.
            dims = [data.draw(st.sampled_from([d, f"={d}", None])) for d in shape]
            shapes[slot] = None if data.draw(st.integers(0, 9)) == 0 else tuple(dims)
    _, node = case.graph(opset, shapes)
    for ours, truth in zip(node.types, exact.types, strict=True):
        assert isinstance(ours, TensorType)
        assert isinstance(truth, TensorType)
        assert ours.accepts(truth), f"{ours} from {shapes}, but it is {truth}"
        for dim, number in zip(ours.shape or (), truth.shape or (), strict=ours.shape is not None):
            assert not isinstance(dim, str) or dim == f"={number}"


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "expected"),
    [
        ("Relu", [("N", 3, "h", "w")], {}, ("N", 3, "h", "w")),
        ("Conv", [("N", 3, "h", "w"), (8, 3, 1, 1)], {}, ("N", 8, "h", "w")),
        ("Conv", [("N", 3, "h", "w"), (8, 3, 3, 3)], {"pads": (1,) * 4}, ("N", 8, "h", "w")),
        ("Conv", [("N", 3, "h", "w"), (8, 3, 3, 3)], {}, ("N", 8, None, None)),
        ("Conv", [("N", 3, "h", 9), (8, 3, 3, 3)], {"strides": (2, 2)}, ("N", 8, None, 4)),
        ("Conv", [None, (8, 3, 3, 3)], {}, (None, 8, None, None)),
        ("GlobalAveragePool", [("N", 3, "h", "w")], {}, ("N", 3, 1, 1)),
        ("Flatten", [("N", 512, 7, 7)], {}, ("N", 25088)),
        ("Flatten", [("N", 512, "h", 7)], {}, ("N", None)),
        ("Add", [("N", 3), ("N", 1)], {}, ("N", 3)),
        ("Add", [("N",), ("M",)], {}, (None,)),
        ("Add", [("N",), (4,)], {}, (4,)),
        ("Add", [(None,), (1,)], {}, (None,)),
        ("Concat", [("N", "c"), ("N", 4)], {"axis": 1}, ("N", None)),
        ("Concat", [("N", 2), (4, 4)], {"axis": 1}, (4, 6)),
        ("MatMul", [("N", 3), (3, 4)], {}, ("N", 4)),
        ("Gemm", [("N", 3), (3, 4)], {}, ("N", 4)),
        ("ReduceMean", [("N", 3, "h", "w")], {"axes": (2, 3)}, ("N", 3, 1, 1)),
    ],
)
def test_symbols(
    op: str,
    shapes: list[tuple[Dim, ...] | None],
    attributes: dict[str, object],
    expected: tuple[Dim, ...],
) -> None:
    graph = Graph()
    operands = [graph.add_input(f"x{i}", TensorType("float32", s)) for i, s in enumerate(shapes)]
    assert graph.add(op, operands, attributes).types == (TensorType("float32", expected),)


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [
        (("N", 512, 7, 7), (0, -1), ("N", 25088)),
        (("N", 512, 7, 7), (-1, 25088), ("N", 25088)),
        (("N", 512, 7, 7), (-1, 512), (None, 512)),
        (("N", 512, "h", "w"), (0, 512, -1), ("N", 512, None)),
        (("N", "h"), (0, -1), ("N", "h")),
        ((None, 4), (0, 2, 2), (None, 2, 2)),
        ((0, 4), (0, -1), (0, 4)),
        (None, (2, -1), (2, None)),
    ],
)
def test_reshape_of_open_shapes(
    shape: tuple[Dim, ...] | None, wanted: tuple[int, ...], expected: tuple[Dim, ...]
) -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType("float32", shape))
    target = graph.constant(np.array(wanted, np.int64))
    assert graph.add("Reshape", [x, target]).out.tensor.shape == expected


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "message"),
    [
        ("Conv", [(1, 3, 8, 8), (4, 2, 3, 3)], {}, "Conv: X has 3 channels, W 2 with group=1"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 9, 9)], {}, "window 9 does not fit spatial size 8"),
        ("Conv", [(1, 3, 8), (4, 3, 1, 1)], {}, "differ in rank"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 1, 1)], {"auto_pad": "SAME"}, "auto_pad 'SAME'"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 1, 1)], {"pads": (1, 1)}, "do not fit"),
        ("Conv", [(1, 3, 8, 8), (4, 3, 1, 1)], {"strides": (0, 1)}, "do not fit"),
        ("Add", [(3,), (4,)], {}, "3 and 4 do not broadcast"),
        ("Concat", [(3, 1), (4, 1)], {"axis": 1}, "dimensions 3 and 4 differ"),
        ("Concat", [(3, 1), (4, 1)], {"axis": 2}, "axis 2 does not exist in rank 2"),
        ("MatMul", [(3, 4), (5, 6)], {}, "4 and 5 differ"),
        ("Transpose", [(3, 4)], {"perm": (0, 0)}, "does not permute"),
        ("Relu6", [(3,)], {}, "Relu6: no shape inference rule"),
    ],
)
def test_contradictions_are_errors(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, object], message: str
) -> None:
    graph = Graph()
    operands = [graph.add_input(f"x{i}", TensorType("float32", s)) for i, s in enumerate(shapes)]
    with pytest.raises(IRError, match=message.replace("(", r"\(")):
        graph.add(op, operands, attributes)


def test_rules_survive_any_attribute() -> None:
    """A model file may hold anything; only IRError may come out."""
    graph = Graph()
    x = graph.add_input("x", TensorType("float32", (1, 2, 3, 4)))
    junk: list[object] = ["text", b"\xff", (), (1, 2, 3), -1, 1.5, (1.5,), 2**40]
    names = ("axes", "axis", "pads", "strides", "kernel_shape", "group", "auto_pad", "to", "perm")
    for op in ("Conv", "MaxPool", "Concat", "ReduceMax", "Cast", "Transpose", "Unsqueeze", "Pad"):
        for name in names:
            for value in junk:
                with contextlib.suppress(IRError):
                    infer(graph, op, "", {"kernel_shape": (1, 1), name: value}, [x, x])


def test_internal_ops() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType("float32", ("N", 4, 9, 7)))
    w = graph.constant(np.ones((6, 2), np.float32))
    add = Program().then_with_argument("Add")
    attributes = {"strides": (2, 2), "group": 2, "epilogue": Program().then("Relu")}
    pointwise = graph.add("Pointwise", [x, w], attributes, domain="pwopt")
    assert pointwise.out.tensor.shape == ("N", 6, 5, 4)
    conv = graph.add(
        "Conv",
        [x, graph.constant(np.ones((6, 4, 3, 3), np.float32)), None, graph.constant(np.ones(1))],
        {"pads": (1, 1, 1, 1), "epilogue": add},
        domain="pwopt",
    )
    assert conv.out.tensor.shape == ("N", 6, 9, 7)
    vector = graph.add_input("v", TensorType("float32", ("N", 2)))
    assert graph.add("Linear", [vector, w], domain="pwopt").out.tensor.shape == ("N", 6)
    mapped = graph.add("Map", [vector, vector], {"program": _sum()}, domain="pwopt")
    assert mapped.out.tensor.shape == ("N", 2)
    assert has_rule("Map", "pwopt")
    assert not has_rule("Map")


def _sum() -> Program:
    return Program().then_with_argument("Add")


def test_extra_operand_may_not_widen_the_result() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType("float32", (1, 4, 3, 3)))
    w = graph.constant(np.ones((6, 4), np.float32))
    extra = graph.constant(np.ones((2, 1, 1, 1), np.float32))
    with pytest.raises(IRError, match="extra operand 3"):
        graph.add("Pointwise", [x, w, None, extra], {"epilogue": _sum()}, domain="pwopt")


def test_mask_of_dropout_became_boolean() -> None:
    for opset, dtype in ((7, "float32"), (9, "float32"), (10, "bool"), (13, "bool")):
        graph = Graph("dropout", {"": opset})
        x = graph.add_input("x", TensorType("float32", (2,)))
        assert infer(graph, "Dropout", "", {}, [x], results=2)[1] == TensorType(dtype, (2,))


def test_broadcast() -> None:
    assert broadcast((3, 1), (1, 4), ()) == (3, 4)
    assert broadcast(("n", 1, None), (5, 2)) == ("n", 5, 2)
    assert broadcast((0,), (1,)) == (0,)
    assert broadcast((3,), None) is None
    assert broadcast() == ()


@pytest.mark.parametrize(
    ("auto", "size", "kernel", "stride", "dilation", "expected"),
    [
        ("SAME_UPPER", 5, 2, 1, 1, (0, 1)),
        ("SAME_LOWER", 5, 2, 1, 1, (1, 0)),
        ("SAME_UPPER", 7, 3, 2, 1, (1, 1)),
        ("SAME_UPPER", 8, 3, 2, 1, (0, 1)),
        ("SAME_UPPER", 9, 1, 3, 1, (0, 0)),
        ("SAME_UPPER", 9, 3, 1, 2, (2, 2)),
        ("SAME_UPPER", None, 3, 1, 1, (1, 1)),
        ("SAME_UPPER", None, 3, 2, 1, None),
        ("VALID", None, 3, 2, 1, (0, 0)),
        ("NOTSET", None, 3, 2, 1, (0, 0)),
    ],
)
def test_explicit_pads(
    auto: str, size: Dim, kernel: int, stride: int, dilation: int, expected: tuple[int, ...] | None
) -> None:
    assert explicit_pads(auto, [size], [kernel], [stride], [dilation]) == expected


def test_window_output() -> None:
    assert window_output([7, "h"], [3, 3], pads=(1, 1, 1, 1)) == (7, "h")
    assert window_output([6], [3], [2]) == (2,)
    assert window_output([6], [3], [2], ceil_mode=True) == (3,)
    # The last window would start in the end pads only.
    assert window_output([4], [2], [3], pads=(0, 3), ceil_mode=True) == (2,)
    assert window_output([6], [3], pads=None) == (None,)
