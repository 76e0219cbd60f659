"""Operators without a kernel of ours: through TVM's own, or in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pwopt
from pwopt.targets.cpu import fallback, fallback_ops
from tests.targets.lowering_helpers import Arrays, check, model, node, normal

INFINITE = np.full((3, 4), -np.inf, np.float32)


def integers(*shape: int, low: int = -9, high: int = 9, dtype: Any = np.int64) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


def booleans(*shape: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) > 0.5


def single(
    op: str, inputs: Arrays, constants: Arrays | None = None, opset: int = 18, **attributes: Any
) -> Any:
    """A model of one node that reads its inputs, then its constants, in order."""
    names = " ".join([*inputs, *(constants or {})])
    return model([node(op, names, "y", **attributes)], inputs, "y", constants, opset=opset)


CASES: dict[str, tuple[Any, ...]] = {
    "ArgMax": ({"x": normal(2, 30, 64)}, {}, {"axis": 1}),
    "ArgMax, ties, last axis": ({"x": integers(9, 40)}, {}, {"axis": -1, "keepdims": 0}),
    "ArgMax, last of ties": ({"x": integers(9, 4)}, {}, {"axis": 1, "select_last_index": 1}),
    "ArgMax, infinities": ({"x": INFINITE}, {}, {"axis": 1}),
    "ArgMin, infinities": ({"x": -INFINITE}, {}, {"axis": 0}),
    "Where": ({"c": booleans(5, 1), "x": normal(5, 37), "z": normal(37, seed=1)}, {}, {}),
    "Where, int8": (
        {"c": booleans(3, 5), "x": integers(5, dtype=np.int8), "z": integers(3, 5, dtype=np.int8)},
        {},
        {},
    ),
    "CumSum": ({"x": normal(5, 9)}, {"axis": np.int64(1)}, {"exclusive": 1, "reverse": 1}),
    "GatherND": ({"x": normal(4, 3, 2), "i": integers(5, 2, low=-3, high=3)}, {}, {}),
    "GatherElements": ({"x": normal(5, 7), "i": integers(3, 7, low=-5, high=5)}, {}, {}),
    "Gather, indices of two axes": (
        {"x": normal(5, 7), "i": integers(2, 3, low=0, high=5)},
        {},
        {},
    ),
    "ScatterElements": (
        {"x": normal(5, 7), "i": np.array([[0, -1], [2, 1]]), "u": normal(2, 2)},
        {},
        {"axis": 1},
    ),
    "ScatterElements, add": (
        {"x": normal(5, 7), "i": np.array([[3, -4], [2, 1]]), "u": normal(2, 2)},
        {},
        {"axis": 1, "reduction": "add"},
    ),
    "ScatterND": ({"x": normal(6, 3), "i": np.array([[0], [-1]]), "u": normal(2, 3)}, {}, {}),
    "Tile": ({"x": normal(2, 3, 4, 5)}, {"r": np.array([7, 6, 4, 2])}, {}),
    "Trilu": ({"x": normal(2, 5, 7)}, {"k": np.int64(-1)}, {"upper": 0}),
    "Mod": ({"x": integers(5, 7), "z": np.array([-3, 2, 5, -7, 1, 3, 4])}, {}, {}),
    "Mod, C": ({"x": integers(5, 7), "z": np.array([-3, 2, 5, -7, 1, 3, 4])}, {}, {"fmod": 1}),
    "Div, int32": (
        {"x": integers(5, 33, dtype=np.int32), "z": np.full(33, -4, np.int32)},
        {},
        {},
    ),
    "Add, int64": ({"x": integers(5, 33), "z": integers(33)}, {}, {}),
    "Not": ({"x": booleans(3, 333)}, {}, {}),
    "And": ({"x": booleans(3, 100), "z": booleans(3, 1, seed=3)}, {}, {}),
    "Greater": ({"x": normal(3, 100), "z": normal(3, 1)}, {}, {}),
    "Cast": ({"x": normal(3, 21) * 5}, {}, {"to": 7}),
    "Cast, to bool": ({"x": integers(3, 21, low=-1, high=2)}, {}, {"to": 9}),
    "Cast, half": ({"x": normal(3, 21).astype(np.float16)}, {}, {"to": 11}),
    "MatMul, float64": (
        {"x": normal(2, 7, 5).astype(np.float64), "w": normal(5, 9).astype(np.float64)},
        {},
        {},
    ),
    "ReduceSum, int64": ({"x": integers(5, 33)}, {"axes": np.array([1])}, {}),
    "Max, float64": ({"x": normal(5, 9).astype(np.float64), "z": np.array([0.5])}, {}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_tvm_computes_what_we_have_no_kernel_for(name: str) -> None:
    inputs, constants, attributes = CASES[name]
    executable = check(single(name.split(",")[0], inputs, constants, **attributes), inputs)
    assert [entry["node"].split()[0] for entry in executable.report["tvm"]] == [name.split(",")[0]]
    assert "from_tvm" in {k["kernel"] for k in executable.report["kernels"]}


# --- among our kernels ----------------------------------------------------------------------


def convolution(x: str, y: str, w: str, **attributes: Any) -> Any:
    return node("Conv", f"{x} {w}", y, pads=[1, 1, 1, 1], **attributes)


@pytest.mark.parametrize("threads", [1, 2])
def test_between_convolutions(threads: int) -> None:
    inputs = {"x": normal(1, 16, 40, 40), "c": booleans(1, 16, 40, 40)}
    weights = {"w": normal(16, 16, 3, 3) / 12, "v": normal(8, 16, 3, 3, seed=4) / 12}
    nodes = [
        convolution("x", "a", "w"),
        node("Where", "c a x", "b"),
        convolution("b", "y", "v"),
    ]
    executable = check(model(nodes, inputs, "y", weights), inputs, threads=threads)
    assert {k["kernel"] for k in executable.report["kernels"]} > {"from_tvm"}


def test_slices_borders_and_views() -> None:
    """Results that belong into a slice or a border, and operands that are views."""
    inputs = {"x": normal(1, 6, 8, 8), "w": normal(4, 3, 3, 3), "v": normal(4, 3, 3, 3, seed=2)}
    weights = {"u": normal(5, 8, 3, 3)}
    nodes = [
        node("Split", "x", "a b", axis=1),
        convolution("a", "p", "w"),  # weights computed at run time: no kernel of ours
        convolution("b", "q", "v"),
        node("Concat", "p q", "r", axis=1),
        convolution("r", "y", "u"),
        convolution("a", "s", "w"),
        node("Relu", "s", "z"),
    ]
    check(model(nodes, inputs, "y z q", weights), inputs)


def test_one_padded_reader() -> None:
    inputs = {"x": normal(1, 6, 8, 8), "w": normal(4, 6, 3, 3)}
    nodes = [convolution("x", "p", "w"), convolution("p", "y", "u")]
    check(model(nodes, inputs, "y", {"u": normal(5, 4, 3, 3)}), inputs)


def test_both_fallbacks_in_one_executable() -> None:
    inputs = {"x": normal(1, 8, 10, 10)}
    constants = {"w": normal(8, 8, 3, 3) / 9, "k": np.array([3])}
    nodes = [
        convolution("x", "a", "w"),
        node("ArgMax", "a", "m", axis=1),
        node("TopK", "a k", "t i"),
        node("Relu", "t", "y"),
    ]
    executable = check(model(nodes, inputs, "m y i", constants), inputs, fallback=["TopK"])
    assert [entry["node"].split()[0] for entry in executable.report["tvm"]] == ["ArgMax"]
    assert len(executable.manifest.segments) > 1


def test_recurrent_layers_run_in_onnx_runtime() -> None:
    inputs = {"x": normal(4, 2, 3)}
    constants = {"w": normal(1, 20, 3), "r": normal(1, 20, 5)}
    nodes = [node("LSTM", "x w r", "h", hidden_size=5), node("Relu", "h", "y")]
    check(model(nodes, inputs, "y", constants), inputs, fallback=["LSTM"])


def test_many_threads_share_the_work() -> None:
    inputs = {"c": booleans(64, 1024), "x": normal(64, 1024), "z": normal(1024, seed=5)}
    check(single("Where", inputs), inputs, threads=2)
    check(single("ArgMax", {"x": inputs["x"]}, axis=0), {"x": inputs["x"]}, threads=2)


# --- what must not happen -------------------------------------------------------------------


def test_indices_out_of_range_stay_inside_the_tensor() -> None:
    inputs = {"x": normal(4, 3), "i": np.array([[10**6], [-(10**12)]])}
    executable = pwopt.compile(pwopt.load(single("GatherND", inputs)))
    assert executable.report["tvm"]
    (got,) = executable.run(inputs).values()
    assert np.array_equal(got, inputs["x"][[3, 0]])


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("IsInf", {"x": normal(3, 4)}, {"detect_negative": 0}),
        ("Erf", {"x": normal(3, 4).astype(np.float64)}, {}),
        (
            "MatMul",
            {"x": normal(3, 4).astype(np.float16), "z": normal(4, 3).astype(np.float16)},
            {},
        ),
        ("Mod", {"x": normal(3, 4), "z": INFINITE}, {}),
    ],
)
def test_what_tvm_gets_wrong_runs_in_onnx_runtime(
    op: str, inputs: Arrays, attributes: dict[str, Any]
) -> None:
    executable = pwopt.compile(pwopt.load(single(op, inputs, **attributes)))
    assert not executable.report["tvm"]
    assert len(executable.report["fallback"]) == 1


def test_training_mode_is_refused() -> None:
    inputs = {"x": normal(2, 3, 4)}
    given = {n: np.ones(3, np.float32) for n in "sbmv"}
    nodes = [node("BatchNormalization", "x s b m v", "y n o", training_mode=1)]
    check(model(nodes, inputs, "y n o", given), inputs, fallback=["BatchNormalization"])


def test_failing_attempts_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    inputs = {"i": integers(3, low=0, high=4), "v": normal(2)}
    nodes = [node("OneHot", "i d v", "y")]
    source = model(nodes, inputs, "y", {"d": np.array(4)})
    capfd.readouterr()
    executable = pwopt.compile(pwopt.load(source))
    assert executable.report["fallback"]
    assert capfd.readouterr() == ("", "")


def test_each_distinct_node_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    made = fallback._recipe

    def recorded(lowering: Any, node: Any, *rest: Any) -> Any:
        tried.append(node.op)
        return made(lowering, node, *rest)

    monkeypatch.setattr(fallback, "_recipe", recorded)
    inputs = {"x": integers(3, 4), "z": integers(3, 4)}
    constants = {"k": np.array([2])}
    nodes = [
        node("Mod", "x z", "a"),
        node("Mod", "z x", "b"),
        node("TopK", "a k", "t i"),
        node("Mod", "t t", "c"),
    ]
    pwopt.compile(pwopt.load(model(nodes, inputs, "b c", constants)))
    assert sorted(tried) == ["Mod", "Mod"]  # of two and of one operand; TopK is not asked for


def test_models_with_kernels_never_ask_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_recipe", lambda *a: pytest.fail("asked"))
    inputs = {"x": normal(1, 8, 10, 10)}
    check(model([convolution("x", "y", "w")], inputs, "y", {"w": normal(8, 8, 3, 3)}), inputs)


def test_builds_are_equal() -> None:
    inputs = {"x": normal(2, 30, 64)}
    graph = pwopt.load(single("ArgMax", inputs, axis=1))
    first, second = (pwopt.compile(graph) for _ in range(2))
    assert first.manifest == second.manifest
    assert first.module.inspect_source("asm") == second.module.inspect_source("asm")


def test_the_list_and_its_conditions_agree() -> None:
    assert fallback_ops.CONDITIONS.keys() <= fallback_ops.ALLOWED
