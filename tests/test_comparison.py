"""compare: the statistics, the fairness of the schedule, and the table."""

from __future__ import annotations

import gc
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import environment, timing
from pwopt.errors import FrontendError, UsageError
from pwopt.models import blocks
from pwopt.timing import Spread

MODEL = Path(__file__).parents[1] / "models" / "data" / "mnist-conv.onnx"


class Recorder:
    """Counts calls and notes their order."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.log.append(self.name)
        return {}


def test_spread() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_CALLS", 2)
    log: list[str] = []
    enabled = gc.isenabled()
    samples, calls = timing.interleaved([Recorder(n, log) for n in "abc"], {}, runs=3)
    assert gc.isenabled() == enabled
    assert calls == [2, 2, 2]
    assert [len(s) for s in samples] == [3, 3, 3]
    warm_up, rounds = log[:9], log[9:]
    assert sorted(warm_up) == list("aaabbbccc")
    # Each turn is one call that is not counted and two that are; each round starts one further.
    assert "".join(rounds) == "aaabbbccc" + "bbbcccaaa" + "cccaaabbb"


def test_error_is_against_the_original(tmp_path: Path) -> None:
    model = blocks.pointwise()
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    weights = next(t for t in wrong.graph.initializer if len(t.dims) == 4)
    changed = onnx.numpy_helper.to_array(weights) * np.float32(1.5)
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    table = pwopt.compare(model, None, optimized=wrong.SerializeToString(), runs=2)
    assert table["onnxruntime"].error == 0.0
    assert table["onnxruntime, optimized"].error > 0.05
    with pytest.raises(KeyError):
        table["tensorrt"]


def test_table_states_its_conditions() -> None:
    table = pwopt.compare(MODEL, None, optimized=MODEL, runs=2, threads=2)
    assert (table.threads, table.rounds) == (2, 2)
    text = str(table)
    for part in ("2 interleaved samples", "2 threads", "ONNX Runtime", "float32[1x1x28x28]"):
        assert part in text
    content = table.to_json()
    json.dumps(content)
    assert content["cpu"] == environment.cpu_name()
    assert "2 threads, sequential" in content["rows"][0]["settings"]


def test_compiled_executable() -> None:
    result = pwopt.optimize(MODEL)
    executable = pwopt.compile(result.graph)
    table = pwopt.compare(MODEL, executable, runs=2)
    assert [row.name for row in table.rows] == ["onnxruntime", "compiled"]
    assert table["compiled"].error <= table["compiled"].tolerance
    with pytest.raises(UsageError, match="compiled for 1 thread"):
        pwopt.compare(MODEL, executable, runs=2, threads=2)


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        pwopt.compare(MODEL, None, runs=0)
    with pytest.raises(UsageError, match="unknown baseline 'openvin', did you mean 'openvino'"):
        pwopt.compare(MODEL, None, baselines=["openvin"])
    with pytest.raises(FrontendError, match="no such file"):
        pwopt.compare("nowhere.onnx", None)


def test_openvino_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'pwopt\[openvino\]'"):
        pwopt.compare(MODEL, None, baselines=["openvino"])


def test_any_two_models_or_executables(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result = pwopt.optimize(MODEL)
    pwopt.save(result.graph, folder / "model.onnx")
    pwopt.compile(result.graph).save(folder / "model.so")

    def names(first: object, second: object) -> list[str]:
        table = pwopt.compare(first, second, runs=2)
        assert all(row.error <= row.tolerance for row in table.rows)
        assert table.rows[0].error == 0
        return [row.name for row in table.rows]

    both = ["onnxruntime", "onnxruntime, optimized", "compiled"]
    assert names(MODEL, folder) == both
    assert names(MODEL.read_bytes(), str(folder / "model.so")) == ["onnxruntime", "compiled"]
    assert names(onnx.load(MODEL), folder / "model.onnx") == ["onnxruntime", "onnxruntime, second"]
    assert names(MODEL, result.graph) == ["onnxruntime", "onnxruntime, second"]
    assert names(folder / "model.so", folder) == ["baseline", "onnxruntime", "compiled"]
    assert names(folder, MODEL) == ["baseline", "onnxruntime"]
    assert pwopt.compare(MODEL, pwopt.compile(MODEL, threads=2), runs=1).threads == 2


def test_executables_of_reduced_precision_are_not_called_wrong() -> None:
    graph = pwopt.optimize(MODEL, verify=False).graph
    exact, coarse = pwopt.compile(graph), pwopt.compile(graph, fc_weights="int8")
    table = pwopt.compare(exact, coarse, runs=2)
    assert 1e-4 < table["compiled"].error < 0.1
    assert "WRONG" not in str(table)


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no output 'Plus214_Output_0', only \['output'\]"):
        pwopt.compare(MODEL, _of_the_same_input(), runs=2)
    with pytest.raises(UsageError, match=r"holds neither model\.onnx nor model\.so"):
        pwopt.compare(MODEL, tmp_path)
    with pytest.raises(UsageError, match="no such file; make it with `pwopt optimize`"):
        pwopt.compare(MODEL, tmp_path / "model.so")
    with pytest.raises(UsageError, match=r"second has an input 'input', .* \['Input3'\]"):
        pwopt.compare(MODEL, blocks.pointwise(), runs=2)


def _of_the_same_input() -> onnx.ModelProto:
    """A model that takes what MODEL takes, and gives something else."""
    shape = [1, 1, 28, 28]
    info = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["Input3"], ["output"])],
        "other",
        [info("Input3", kind, shape)],
        [info("output", kind, shape)],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
