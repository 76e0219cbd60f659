"""Does an optimized graph still compute what the original computes? Runs both and compares."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pwopt import numerics
from pwopt.errors import NumericsError, PwoptError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.numerics import Difference
from pwopt.ort import OrtError, OrtModel, version

SEEDS = (0, 1, 2)
# Sizes tried for dimensions that the model leaves open, the first axis aside, which gets 1.
OPEN_SIZES = (64, 224, 32, 16, 8, 4, 2, 1)
# An ill-conditioned model may move this much by itself; beyond, no comparison means anything.
MAX_TOLERANCE = 0.1
# Protobuf cannot serialize more than 2 GiB; larger graphs go through files.
MAX_SERIALIZED_BYTES = 1 << 30
# ONNX Runtime's own rewriting takes the square of a graph's size: 0.6 s at 2,500 nodes, 8 s at
# 10,000. Beyond this many nodes the check does without, as it is about results only.
MAX_REWRITTEN_NODES = 2000
INTERPRETER = "the reference interpreter"  # for models that ONNX Runtime does not know

Sample = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # inputs, outputs


class Runner(Protocol):
    """Anything that runs a model."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""


@dataclass(frozen=True)
class Verification:
    """The outcome of the numerical check.

    Attributes:
        status: "passed" or "skipped".
        reference: what ran the original.
        seeds: of the random inputs.
        inputs: their types by name.
        outputs: per output the largest difference over the seeds.
        reason: why it was skipped, or a remark.
        seconds: wall time.
    """

    status: str
    reference: str = ""
    seeds: tuple[int, ...] = ()
    inputs: Mapping[str, str] | None = None
    outputs: tuple[Difference, ...] = ()
    reason: str = ""
    seconds: float = 0.0


class Reference:
    """The original's answers to seeded random inputs.

    Attributes:
        name: what gave them.
        samples: inputs and outputs by seed.
    """

    def __init__(self, runner: Runner, graph: Graph, name: str) -> None:
        """Runs the original.

        Raises:
            PwoptError: it cannot be run on any inputs that its declared types allow.
        """
        self.name = name
        self._runner = runner
        self.types = _runnable_types(runner, graph)
        self.samples = [_sample(runner, self.types, seed) for seed in SEEDS]

    def differences(self, runner: Runner) -> list[Difference]:
        """Per output the largest difference of ``runner`` over the samples."""
        found = [numerics.differences(want, runner.run(feeds)) for feeds, want in self.samples]
        return numerics.worst(found)

    def relaxed(self, found: Sequence[Difference]) -> list[Difference]:
        """The differences with the tolerances that the original's own conditioning asks for."""
        moved = numerics.worst(
            [
                numerics.differences(want, self._runner.run(numerics.perturbed(feeds)))
                for feeds, want in self.samples
            ]
        )
        return [
            Difference(
                d.output,
                d.dtype,
                d.error,
                max(d.tolerance, min(MAX_TOLERANCE, numerics.CONDITION_FACTOR * m.error)),
                d.scale,
                d.detail,
            )
            for d, m in zip(found, moved, strict=True)
        ]


def reference(original: Graph, source: Path | bytes | None) -> Reference | str:
    """What the original computes, or the reason why that cannot be known.

    Args:
        original: the graph before any pass.
        source: the model as it came, where there is one: the frontend is checked along with it.
    """
    if any(not isinstance(node.types[0], TensorType) for node in original.inputs):
        return "an input is not a tensor"
    try:
        if source is not None:
            return Reference(_load(source, original), original, f"ONNX Runtime {version()}")
        with exported(original) as file:
            return Reference(_load(file, original), original, f"ONNX Runtime {version()}")
    except OrtError as error:
        from pwopt.frontend.reference import ReferenceModel

        try:
            return Reference(ReferenceModel(original), original, INTERPRETER)
        except PwoptError:
            return str(error)


def verify(original: Reference, optimized: Graph) -> Verification:
    """Compares the optimized graph in ONNX Runtime with the original's answers.

    Raises:
        NumericsError: an output is further off than its tolerance.
    """
    start = time.perf_counter()
    found = check(original, optimized)
    bad = [d for d in found if not d.ok]
    remark = ""
    if bad and all(np.isfinite(d.error) for d in bad):
        found = original.relaxed(found)
        bad = [d for d in found if not d.ok]
        remark = "ill-conditioned: rounding of the inputs moves the original's outputs, too"
    if bad:
        raise NumericsError(f"the optimized model differs from the original: {bad[0]}")
    return Verification(
        "passed",
        original.name,
        SEEDS,
        {name: str(t) for name, t in original.types.items()},
        tuple(found),
        remark,
        time.perf_counter() - start,
    )


def check(original: Reference, graph: Graph) -> list[Difference]:
    """The differences between a graph and the original."""
    if original.name != INTERPRETER:
        with exported(graph) as file:
            return original.differences(_load(file, graph))
    from pwopt.frontend.reference import ReferenceModel

    return original.differences(ReferenceModel(graph))


def _load(source: Path | bytes, graph: Graph) -> OrtModel:
    return OrtModel(source, optimize=len(graph) <= MAX_REWRITTEN_NODES)


@contextmanager
def exported(graph: Graph) -> Iterator[Path | bytes]:
    """The graph as something that ONNX Runtime loads: bytes, or a temporary file where too big."""
    from pwopt import frontend

    if graph.constant_bytes < MAX_SERIALIZED_BYTES:
        yield frontend.export(graph).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
        path = Path(folder) / "model.onnx"
        frontend.save(graph, path)
        yield path


def input_types(graph: Graph) -> dict[str, TensorType]:
    """The types of the inputs that must be fed, by name."""
    return {node.names[0]: node.out.tensor for node in graph.inputs if node.get("default") is None}


def closed(types: Mapping[str, TensorType], size: int) -> dict[str, TensorType]:
    """The types with every open dimension closed: 1 for a first axis, ``size`` for the others."""
    return {
        name: TensorType(
            t.dtype,
            tuple(
                d if isinstance(d, int) else 1 if axis == 0 else size
                for axis, d in enumerate(t.shape or ())
            ),
        )
        for name, t in types.items()
    }


def _runnable_types(runner: Runner, graph: Graph) -> dict[str, TensorType]:
    types = input_types(graph)
    unknown = [name for name, t in types.items() if t.dtype is None or t.shape is None]
    if unknown:
        raise OrtError(f"the type of input {unknown[0]!r} is unknown")
    if all(t.static_shape is not None for t in types.values()):
        return types
    failure: PwoptError = OrtError("no inputs")
    for size in OPEN_SIZES:
        candidate = closed(types, size)
        try:
            _sample(runner, candidate, SEEDS[0])
            return candidate
        except PwoptError as error:
            failure = error
    raise OrtError(f"{failure} (with open dimensions from {OPEN_SIZES}; give --input-shape)")


def _sample(runner: Runner, types: Mapping[str, TensorType], seed: int) -> Sample:
    """Random inputs and their outputs; integers are zero where random ones fail (as indices)."""
    feeds = numerics.random_inputs(types, seed)
    try:
        return feeds, runner.run(feeds)
    except PwoptError:
        feeds = {n: np.zeros_like(a) if a.dtype.kind in "iu" else a for n, a in feeds.items()}
        return feeds, runner.run(feeds)
