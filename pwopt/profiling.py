"""Where the time goes, before and after: ONNX Runtime's profiler beside the executable's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pwopt import numerics, ort
from pwopt.errors import PwoptError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.ort import OperatorTiming
from pwopt.running import MAX_REWRITTEN_NODES, Runner, exported
from pwopt.timing import Sample, interleaved

if TYPE_CHECKING:
    from pwopt.targets.executable import Executable
    from pwopt.targets.timing import KernelTiming

_MIN_ROUNDS = 3

# What ONNX Runtime adds to the name of a node or result that it rewrote.
_SUFFIXES = re.compile(
    r"^fused |(?:_bn|_mul|_add)?_nchwc$|_token_\d+$|/\w*Fusion\w*/?$|_(?:transformed|reshape\d*)$"
)


@dataclass(frozen=True)
class Profile:
    """Time of an inference as a whole and by parts, on one machine, in one go.

    Attributes:
        threads: of both.
        onnxruntime_ms: median of interleaved samples of the original; None where not measured.
        compiled_ms: the same of the executable.
        ratio: median of the rounds' ratios, compiled over ONNX Runtime.
        rounds: of these samples.
        operators: of the original in ONNX Runtime, in order.
        kernels: of the executable, in order.
        reason: why something was not measured; empty where all was.
    """

    threads: int
    onnxruntime_ms: float | None = None
    compiled_ms: float | None = None
    ratio: float | None = None
    rounds: int = 0
    operators: tuple[OperatorTiming, ...] = ()
    kernels: tuple[KernelTiming, ...] = ()
    reason: str = ""


def measure(
    original: Path | bytes | Graph,
    executable: Executable,
    types: Mapping[str, TensorType],
    *,
    nodes: int = 0,
    seconds: float = 1.0,
) -> Profile:
    """Profiles the original and the executable; what cannot be run is left out with a reason.

    Args:
        original: a path, a serialized model or a graph.
        executable: made of it.
        types: static types of the inputs.
        nodes: in the original; ONNX Runtime takes long to load thousands of them.
        seconds: for each of the three measurements, about.
    """
    threads = executable.manifest.threads
    if isinstance(original, Graph):
        with exported(original) as source:
            return measure(source, executable, types, nodes=nodes, seconds=seconds)
    feeds = numerics.random_inputs(types, seed=0)
    kernels = tuple(executable.profile(feeds, seconds=seconds))
    if nodes > MAX_REWRITTEN_NODES:
        reason = f"ONNX Runtime was not profiled: it takes long to load {nodes} nodes"
        return Profile(threads, kernels=kernels, reason=reason)
    try:
        operators = tuple(ort.profile(original, feeds, threads, seconds=seconds))
        runners: list[Runner] = [ort.OrtModel(original, threads), executable]
        samples, _ = interleaved(runners, feeds, seconds=seconds, at_least=_MIN_ROUNDS)
    except PwoptError as error:
        return Profile(threads, kernels=kernels, reason=f"ONNX Runtime was not profiled: {error}")
    ratios = [mine.wall / theirs.wall for theirs, mine in zip(*samples, strict=True)]
    return Profile(
        threads,
        _median_ms(samples[0]),
        _median_ms(samples[1]),
        float(np.median(ratios)),
        len(ratios),
        operators,
        kernels,
    )


def _median_ms(samples: Sequence[Sample]) -> float:
    return float(np.median([1e3 * each.wall for each in samples]))


def original_nodes(
    operators: Iterable[OperatorTiming], names: Mapping[str, str]
) -> list[str | None]:
    """The original's node that each of ONNX Runtime's operators computes, None for its own ones.

    An operator that ONNX Runtime fused of several nodes has the name of one of them, or of the
    last one's result.

    Args:
        operators: of :func:`pwopt.ort.profile`.
        names: node by name, and by the names of its results.
    """
    return [names.get(each.name) or names.get(_plain(each.name)) for each in operators]


def _plain(name: str) -> str:
    """A name without what ONNX Runtime added, which may be several suffixes."""
    while (shorter := _SUFFIXES.sub("", name)) != name:
        name = shorter
    return name
