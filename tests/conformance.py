"""The test cases that the onnx package gives to backends, and how pwopt is held against them.

A case counts where ONNX Runtime itself gives the expected outputs.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime as ort
from onnx import ModelProto, numpy_helper

import pwopt
from pwopt import numerics
from tests.targets.guarding import compile_guarded

DATA = Path(next(iter(onnx.backend.test.__path__))) / "data"
FOLDERS = ("simple", "pytorch-operator", "pytorch-converted")
OLDEST = 7  # operator set that pwopt reads
RANDOM = re.compile(r"random|bernoulli|training_dropout")


@dataclass(frozen=True)
class Case:
    """A model with inputs, in the model's order, and the outputs expected of it."""

    name: str
    model: ModelProto
    inputs: Sequence[Any]
    outputs: Sequence[Any]


@dataclass(frozen=True)
class Ready:
    """A case that ONNX Runtime passes, with its answers by output name."""

    model: ModelProto
    feeds: dict[str, Any]
    outputs: dict[str, Any]


@functools.cache
def cases() -> tuple[Case, ...]:
    """All cases; takes ten seconds."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about the reference's arithmetic
        generated = collect_testcases(None)
    found = []
    for case in generated:
        assert case.model is not None
        assert case.data_sets is not None
        if _opset(case.model) >= OLDEST:
            inputs, outputs = (list(map(_plain, part)) for part in case.data_sets[0])
            found.append(Case(case.name, case.model, inputs, outputs))
    return (*found, *_stored())


def _opset(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if not o.domain), default=OLDEST)


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _stored() -> Iterator[Case]:
    for path in sorted(p for f in FOLDERS for p in DATA.glob(f"{f}/*/model.onnx")):
        model = onnx.load(path)
        if _opset(model) < OLDEST:
            try:
                model = onnx.version_converter.convert_version(model, 13)
            except Exception:  # the converter's own limits
                continue
        data = path.parent / "test_data_set_0"

        def read(kind: str, values: Any, data: Path = data) -> list[Any]:
            files = (data / f"{kind}_{i}.pb" for i in range(len(values)))
            return [_read(f, v) for f, v in zip(files, values, strict=True) if f.exists()]

        yield Case(
            path.parent.name,
            model,
            read("input", model.graph.input),
            read("output", model.graph.output),
        )


def _read(path: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
    if value.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(path.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def ready(case: Case) -> Ready | None:
    """The case with ONNX Runtime's answers; None where it cannot give them or they are wrong."""
    if RANDOM.search(case.name):
        return None
    model = ModelProto.FromString(case.model.SerializeToString())
    # Versions newer than this ONNX Runtime knows; most operators have not changed since.
    model.ir_version = min(model.ir_version, 10)
    while (made := _session(model)) is None:
        entry = next((o for o in model.opset_import if not o.domain), None)
        if entry is None or entry.version <= 23:
            return None
        entry.version -= 1
    names = [v.name for v in model.graph.input]
    wanted = {i.name for i in made.get_inputs()}
    feeds = {
        n: v for n, v in zip(names, case.inputs, strict=False) if v is not None and n in wanted
    }
    try:
        answers = made.run(None, feeds)
    except Exception:  # no kernel for an element type, and the like
        return None
    if not all(map(same, case.outputs, answers)):
        return None
    outputs = [v.name for v in model.graph.output]
    return Ready(model, feeds, dict(zip(outputs, answers, strict=True)))


def _session(model: ModelProto) -> ort.InferenceSession | None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:
        return None


def same(expected: Any, actual: Any) -> bool:
    """Whether two outputs agree within the tolerance of their type; sequences by element."""
    if isinstance(expected, list):
        return (
            isinstance(actual, list)
            and len(expected) == len(actual)
            and all(map(same, expected, actual))
        )
    if expected is None or actual is None:
        return expected is actual
    return numerics.difference("", np.asarray(expected), np.asarray(actual)).ok


def check_export(case: Ready, optimized: pwopt.Graph) -> str:
    """What is wrong with the optimized graph in ONNX Runtime; empty if nothing is."""
    model = optimized.to_onnx()
    if is_valid(case.model) and not is_valid(model):
        return "onnx's checker refuses the optimized model"
    made = _session(model)
    if made is None:
        return "ONNX Runtime refuses the optimized model"
    wanted = {i.name for i in made.get_inputs()}
    answers = made.run(None, {k: v for k, v in case.feeds.items() if k in wanted})
    names = [o.name for o in made.get_outputs()]
    return _compare(case, dict(zip(names, answers, strict=True)))


def is_valid(model: ModelProto) -> bool:
    """Whether onnx's checker takes a model."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # the checker's, and those of inference
        return False
    return True


def check_compiled(case: Ready, graph: pwopt.Graph, *, separate: bool) -> str:
    """What is wrong with the executable of a graph; empty if nothing is.

    It runs twice in guarded memory; ``separate``: its buffers share none.
    """
    try:
        executable, guard = compile_guarded(graph, separate=separate)
        return _compare(case, guard.run(executable, case.feeds))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _compare(case: Ready, actual: dict[str, Any]) -> str:
    if list(actual) != list(case.outputs):
        return f"outputs {list(actual)}, expected {list(case.outputs)}"
    wrong = [n for n, want in case.outputs.items() if not same(want, actual[n])]
    return f"outputs {wrong} differ" if wrong else ""
