"""Does an optimized graph still compute what the original computes? Runs both and compares."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pwopt import numerics, rounding
from pwopt.errors import NumericsError, PwoptError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.numerics import Difference
from pwopt.ort import OrtError, OrtModel, version
from pwopt.precision import Precision
from pwopt.running import Runner, exported, in_ort, input_types, running

SEEDS = (0, 1, 2)
# Seeds and magnitudes of further samples, for what a wrong rewrite may hide behind: pixels that
# nobody scaled, values that reach the bounds of what clips, and values near zero.
FURTHER = {3: 255.0, 4: 8.0, 6: 0.125}
# Sizes tried for dimensions that the model leaves open, the first axis aside, which gets 1.
OPEN_SIZES = (64, 224, 32, 16, 8, 4, 2, 1)
# An ill-conditioned model may move this much by itself; beyond, no comparison means anything.
MAX_TOLERANCE = 0.1
INTERPRETER = "the reference interpreter"  # for models that ONNX Runtime does not know

Sample = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  # inputs, outputs


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
        types: of the inputs, by name.
        seeds: of the random inputs.
        samples: inputs and outputs by seed.
        remark: what a comparison so far found out about the original, or nothing.
    """

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        name: str,
        further: Mapping[int, float] | None = None,
        seeds: Sequence[int] = SEEDS,
        plain: Callable[[], Runner] | None = None,
    ) -> None:
        """Runs the original.

        Args:
            runner: the original.
            graph: its graph.
            name: see above.
            further: magnitudes by seed of samples that are tried besides :data:`SEEDS`; those are
                left out where the original's answers are not finite or move with rounding.
            seeds: of the samples.
            plain: makes the original run as it stands, without ONNX Runtime's own rewriting.

        Raises:
            PwoptError: it cannot be run on any inputs that its declared types allow.
        """
        self.name = name
        self._runner, self._graph = runner, graph
        self._make_plain = plain
        self._plain: Runner | None = None
        self.remark = ""
        self._bounded = _bounded_outputs(graph)
        self.types = _runnable_types(runner, graph)
        samples = {seed: _sample(runner, self.types, seed) for seed in seeds}
        for seed, magnitude in (further or {}).items():
            sample = _sample(runner, self.types, seed, magnitude)
            if _is_meaningful(runner, sample):
                samples[seed] = sample
        self._allowed: dict[int, list[float]] = {}
        self.seeds = tuple(samples)
        self.samples = list(samples.values())

    def differences(self, runner: Runner) -> list[Difference]:
        """Per output the largest difference of ``runner`` over the samples.

        An ill-conditioned original gets the tolerance that its own movement asks for.
        """
        return numerics.worst([self._of_sample(i, runner) for i in range(len(self.samples))])

    @property
    def interpreted(self) -> bool:
        """Whether the original runs in the reference interpreter."""
        return self.name == INTERPRETER

    def worst_sample(self, runner: Runner) -> int:
        """Index of the sample at which ``runner`` is furthest off."""
        found = [self._of_sample(i, runner) for i in range(len(self.samples))]
        off = [max((d.error / d.tolerance for d in each), default=0.0) for each in found]
        return off.index(max(off))

    def _of_sample(self, index: int, runner: Runner) -> list[Difference]:
        feeds, want = self.samples[index]
        given = runner.run(feeds)
        found = self._scaled(numerics.differences(want, given))
        if all(d.ok for d in found) or not all(np.isfinite(d.error) for d in found if not d.ok):
            return found
        found = self.relaxed(index, found)
        return found if all(d.ok for d in found) else self._as_it_stands(feeds, given, found)

    def _scaled(self, found: Sequence[Difference]) -> list[Difference]:
        return [
            d.at_scale(numerics.BOUNDED_SCALE) if d.output in self._bounded else d for d in found
        ]

    def _as_it_stands(
        self,
        feeds: Mapping[str, np.ndarray],
        given: Mapping[str, np.ndarray],
        found: list[Difference],
    ) -> list[Difference]:
        """Differences to the original without ONNX Runtime's own rewriting, if those are none.

        That rewriting is wrong for some models: version 1.31 merges a Pad by zeros into the MaxPool
        behind it, which pads by the lowest number.
        """
        if self._make_plain is None:
            return found
        self._plain = self._plain or self._make_plain()
        plain = self._scaled(numerics.differences(self._plain.run(feeds), given))
        if not all(d.ok for d in plain):
            return found
        off = max(d.error for d in found)
        self.remark = (
            f"ONNX Runtime's own rewriting of the original is off by {off:.1g} of an output's "
            "scale; compared without it"
        )
        return plain

    def relaxed(self, index: int, found: Sequence[Difference]) -> list[Difference]:
        """Differences at a sample with the tolerances that the original's conditioning asks for.

        Where it is quantized, those also allow for sums that fall on the other side of a half,
        which are a whole step off.
        """
        if index not in self._allowed:
            feeds, want = self.samples[index]
            again = numerics.differences(want, self._runner.run(numerics.perturbed(feeds)))
            allowed = [numerics.CONDITION_FACTOR * d.error for d in again]
            if rounding.quantizes(self._graph) and not self.interpreted:
                with running(rounding.jittered(self._graph)) as runner:
                    steps = numerics.differences(want, runner.run(feeds))
                errors = [numerics.ROUNDING_FACTOR * d.error for d in steps]
                allowed = [max(pair) for pair in zip(allowed, errors, strict=True)]
            self._allowed[index] = [min(MAX_TOLERANCE, a) for a in allowed]
        return [
            replace(d, tolerance=max(d.tolerance, a))
            for d, a in zip(found, self._allowed[index], strict=True)
        ]

    def rounded(self, found: Sequence[Difference], precision: Precision) -> list[Difference]:
        """The differences with the tolerances that reduced precision of the operands asks for."""
        moved = numerics.worst(
            [
                check(self, rounding.rounded(self._graph, precision, variation))
                for variation in rounding.FEW_VARIATIONS
            ]
        )
        return [
            replace(d, tolerance=max(d.tolerance, numerics.ROUNDING_FACTOR * m.error))
            for d, m in zip(found, moved, strict=True)
        ]


def reference(
    original: Graph,
    source: Path | bytes | None,
    further: Mapping[int, float] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> Reference | str:
    """What the original computes, or the reason why that cannot be known.

    Args:
        original: the graph before any pass.
        source: the model as it came, where there is one: the frontend is checked along with it.
        further: see :class:`Reference`.
        seeds: likewise.
    """
    if any(not isinstance(node.types[0], TensorType) for node in original.inputs):
        return "an input is not a tensor"
    name = f"ONNX Runtime {version()}"
    try:
        if source is not None:
            return _in_ort(source, original, name, further, seeds)
        with exported(original) as file:
            return _in_ort(file, original, name, further, seeds)
    except OrtError as error:
        from pwopt.frontend.reference import ReferenceModel

        try:
            return Reference(ReferenceModel(original), original, INTERPRETER, further, seeds)
        except PwoptError:
            return str(error)


def _in_ort(
    source: Path | bytes,
    original: Graph,
    name: str,
    further: Mapping[int, float] | None,
    seeds: Sequence[int],
) -> Reference:
    def plain() -> Runner:
        return OrtModel(source, optimize=False)

    runner = in_ort(source, original)
    return Reference(runner, original, name, further, seeds, plain)


def verify(original: Reference, optimized: Graph) -> Verification:
    """Compares the optimized graph in ONNX Runtime with the original's answers.

    Raises:
        NumericsError: an output is further off than its tolerance.
    """
    start = time.perf_counter()
    found = check(original, optimized)
    if bad := [d for d in found if not d.ok]:
        raise NumericsError(f"the optimized model differs from the original: {bad[0]}")
    remark = original.remark
    if any(d.error > numerics.tolerance(d.dtype) for d in found):
        remark = "ill-conditioned: rounding moves the original's outputs, too"
    return Verification(
        "passed",
        original.name,
        original.seeds,
        {name: str(t) for name, t in original.types.items()},
        tuple(found),
        remark,
        time.perf_counter() - start,
    )


def check(original: Reference, graph: Graph) -> list[Difference]:
    """The differences between a graph and the original."""
    with running(graph, original.interpreted) as runner:
        return original.differences(runner)


def disagreement(original: Reference, graph: Graph) -> str:
    """What is wrong with a graph; empty where it computes what the original computes."""
    try:
        bad = [d for d in check(original, graph) if not d.ok]
    except PwoptError as error:
        return str(error)
    return str(bad[0]) if bad else ""


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


_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def _bounded_outputs(graph: Graph) -> frozenset[str]:
    """The outputs that a function onto a bounded range gives; see :data:`numerics.BOUNDED`."""
    found = set()
    for name, value in graph.outputs:
        node = value.node
        while node.is_op(*_VIEWS) and (operand := graph.operand(node, 0)) is not None:
            node = operand.node
        if node.is_op(*numerics.BOUNDED):
            found.add(name)
    return frozenset(found)


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


def _sample(
    runner: Runner, types: Mapping[str, TensorType], seed: int, magnitude: float = 1.0
) -> Sample:
    """Random inputs and their outputs; integers are zero where random ones fail (as indices)."""
    feeds = numerics.random_inputs(types, seed, magnitude)
    try:
        return feeds, runner.run(feeds)
    except PwoptError:
        feeds = {n: np.zeros_like(a) if a.dtype.kind in "iu" else a for n, a in feeds.items()}
        return feeds, runner.run(feeds)


def _is_meaningful(runner: Runner, sample: Sample) -> bool:
    """Whether rounding leaves a sample's outputs what they are: none is saturated or infinite."""
    feeds, outputs = sample
    floats = [a for a in outputs.values() if numerics.dtype_name(a) in numerics.FLOAT_DTYPES]
    if not all(np.isfinite(a.astype(np.float64)).all() for a in floats):
        return False
    moved = numerics.differences(outputs, runner.run(numerics.perturbed(feeds)))
    return all(numerics.CONDITION_FACTOR * d.error <= d.tolerance for d in moved)
