"""What takes part in a comparison: ONNX Runtime, executables and peers, each with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pwopt import ort
from pwopt.baselines import OpenVinoModel
from pwopt.compared import Side
from pwopt.errors import UsageError
from pwopt.gpu_baselines import PROVIDERS, OrtGpuModel
from pwopt.ir.types import TensorType
from pwopt.running import Runner


class Contender(NamedTuple):
    """What is measured.

    Attributes:
        name: e.g. "compiled".
        version: of its runtime.
        runner: runs it.
        settings: what was asked of the runtime.
    """

    name: str
    version: str
    runner: Runner
    settings: str


def reference(side: Side, threads: int) -> Contender:
    """What the others are measured against: the model in ONNX Runtime, else its executable."""
    if side.source is None:
        return compiled("baseline", side.program)
    return onnxruntime(side.source, threads)


def onnxruntime(source: Path | bytes, threads: int, role: str = "") -> Contender:
    """A model in ONNX Runtime; ``role`` tells it from another one there."""
    runner = ort.OrtModel(source, threads)
    name = f"ONNX Runtime {ort.version()}"
    return Contender(f"onnxruntime{role}", name, runner, runner.settings)


def compiled(name: str, program: Any) -> Contender:
    """An executable."""
    return Contender(name, _tvm_version(), program, _facts(program))


def on_gpu(name: str, source: Path | bytes | None, types: Mapping[str, TensorType]) -> Contender:
    """One of :data:`pwopt.gpu_baselines.GPU_BASELINES`.

    Raises:
        UsageError: there is no ONNX model.
    """
    if source is None:
        raise UsageError(f"--baseline {name} needs an ONNX model as the first argument")
    if name in PROVIDERS:
        runner = OrtGpuModel(source, name)
        return Contender(name, f"ONNX Runtime {ort.version()}", runner, runner.settings)
    from pwopt import frontend
    from pwopt.training.torch_gpu import TorchGpuModel

    sizes = {n: t.static_shape for n, t in types.items() if t.static_shape is not None}
    graph = frontend.load(source, sizes)
    model = TorchGpuModel(graph)
    return Contender(name, model.version, model, model.settings)


def openvino(
    name: str, source: Path | bytes | None, types: Mapping[str, TensorType], threads: int
) -> Contender:
    """OpenVINO, in float32 or bfloat16.

    Raises:
        UsageError: there is no ONNX model.
    """
    if source is None:
        raise UsageError(f"--baseline {name} needs an ONNX model as the first argument")
    precision = "bf16" if name.endswith("bf16") else "f32"
    outputs = ort.OrtModel(source, threads).output_names
    runner = OpenVinoModel(source, types, threads, outputs, precision)
    return Contender(name, runner.version, runner, runner.settings)


def check_inputs(contenders: Sequence[Contender], given: Sequence[str]) -> None:
    """Makes sure that every contender gets its inputs.

    Raises:
        UsageError: one does not.
    """
    for contender in contenders:
        runner: Any = contender.runner
        names = getattr(runner, "input_names", None) or [
            p.name for p in getattr(runner, "inputs", ())
        ]
        if missing := [name for name in names if name not in given]:
            raise UsageError(
                f"{contender.name} has an input {missing[0]!r}, the first model {list(given)}: "
                "models that are compared have the same inputs and outputs"
            )


def check_outputs(
    contenders: Sequence[Contender], outputs: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Makes sure that every contender has the first one's outputs.

    Raises:
        UsageError: one has not.
    """
    wanted = list(outputs[0])
    for contender, given in zip(contenders, outputs, strict=True):
        if missing := [name for name in wanted if name not in given]:
            raise UsageError(
                f"{contender.name} has no output {missing[0]!r}, only {list(given)}: models that "
                "are compared have the same inputs and outputs"
            )


def _tvm_version() -> str:
    from importlib.metadata import version

    import pwopt

    return f"pwopt {pwopt.__version__}, TVM {version('apache-tvm')}"


def _facts(program: Any) -> str:
    keys = [k for k in ("mcpu", "arch", "threads", "precision") if k in program.metadata]
    return ", ".join(f"{k}={program.metadata[k]}" for k in keys)
