"""What each pass brought: the network compiled after every pass that changed it, and measured.

The executables take turns, so that what a pass saved is the difference of two of them within one
round. A pass that leaves the same kernels on the same constants gets no executable of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt import checks, compilation, numerics, sources
from pwopt.checks import Reference
from pwopt.compilation import CodeOptions
from pwopt.driver import Optimized
from pwopt.errors import CodegenError, PwoptError, UsageError
from pwopt.ir.graph import Graph
from pwopt.pipeline import PassMeasurement
from pwopt.report import Report
from pwopt.running import input_types
from pwopt.timing import Spread, device_samples, interleaved

if TYPE_CHECKING:
    from pwopt.targets.executable import Executable
    from pwopt.targets.plan import Pointer

# Of executables that live at a time; but two always do, whose difference is measured. DenseNet-121
# has 50 MB each, VGG-19 650.
MAX_RESIDENT_BYTES = 1 << 30


@dataclass(frozen=True)
class PassTiming:
    """How the passes were measured, and the network before the first of them.

    Attributes:
        threads: of every executable.
        executables: built; passes that left the same code share one.
        rounds: interleaved samples each; the fewest where they were measured in parts.
        latency_ms: of the network as it was read, compiled without any pass; None where nothing
            was measured.
        error: of its outputs from the original's, relative to their scale; None where the original
            cannot be run.
        reference: what ran the original, or why nothing could.
        seconds: wall time of it all.
        reason: why nothing was measured; empty where it was.
    """

    threads: int
    executables: int = 0
    rounds: int = 0
    latency_ms: Spread | None = None
    error: float | None = None
    reference: str = ""
    seconds: float = 0.0
    reason: str = ""


def measure_passes(
    optimized: Optimized,
    options: CodeOptions | None = None,
    executable: Executable | None = None,
    *,
    model: sources.Model | None = None,
    progress: sources.Progress | None = None,
) -> Optimized:
    """Completes the report by what each pass saved on this machine, and how far off it left it.

    Costs a build for every pass that changed the code, seconds each, and about ten seconds of
    measuring; more where the executables do not fit into 1 GiB together.

    Args:
        optimized: of :func:`pwopt.optimize` with ``keep_stages=True``.
        options: how the executables are made; the default ones if left out.
        executable: that of the optimized graph, if there is one.
        model: the original, as :func:`pwopt.optimize` got it, to be independent of the frontend.
        progress: called with a few words at the start of each step.

    Returns:
        the same with ``report.pass_timing``, and ``measured`` in each of ``report.passes`` that
        changed something. Where the network cannot be run here, the former has the reason.

    Raises:
        UsageError: the graphs between the passes were not kept.
    """
    if not optimized.stages:
        raise UsageError(
            "the graphs between the passes were not kept: pwopt.optimize(..., keep_stages=True)"
        )
    options = options or CodeOptions()
    start = time.perf_counter()
    measuring = _Measuring(optimized, options, executable, progress or (lambda _: None))
    try:
        stages, timing = measuring.run(sources.as_it_came(model) if model is not None else None)
    except PwoptError as error:
        stages, timing = [], PassTiming(options.threads, reason=str(error))
    timing = replace(timing, seconds=time.perf_counter() - start)
    report = replace(optimized.report, pass_timing=timing)
    if stages:
        found = iter(stages)
        passes = [replace(r, measured=next(found)) if r.changed else r for r in report.passes]
        report = replace(report, passes=tuple(passes))
    return replace(optimized, report=report)


@dataclass
class _Measuring:
    """Builds the stages in order, and measures as many at a time as fit into memory."""

    optimized: Optimized
    options: CodeOptions
    final: Executable | None
    progress: sources.Progress
    keys: list[Hashable] = field(default_factory=list)  # by stage
    resident: dict[Hashable, Executable] = field(default_factory=dict)
    errors: dict[Hashable, float | None] = field(default_factory=dict)
    latency: dict[int, Spread] = field(default_factory=dict)  # by stage
    saved: dict[int, tuple[Spread, Spread]] = field(default_factory=dict)  # ms, and of what was
    rounds: list[int] = field(default_factory=list)  # by part
    built: int = 0

    def run(self, source: Any) -> tuple[list[PassMeasurement], PassTiming]:
        """What each change brought, and the rest; ``source`` is the model as it came."""
        stages = self.optimized.stages
        if self.final is not None:
            self._check(self.final)
        self.progress("measuring passes: running the original")
        reference = checks.reference(stages[0], source)
        types = reference.types if isinstance(reference, Reference) else input_types(stages[0])
        for name, t in input_types(stages[0]).items():
            if t.static_shape is None:
                raise UsageError(f"input {name!r} is {t}: only ONNX Runtime takes open sizes")
        feeds = numerics.random_inputs(types, seed=0)
        names = ["no pass", *(row.spec for row in self.optimized.report.passes if row.changed)]
        self.progress("measuring passes: looking for equal code")
        self.keys = [_code_key(g, self.optimized.report, self.options) for g in stages]
        part: list[int] = []
        for i in range(len(stages)):
            self._build(i, names[i], reference)
            part.append(i)
            full = len(self.resident) > 1 and self._resident_bytes() > MAX_RESIDENT_BYTES
            if full or i == len(stages) - 1:
                self._measure(part, feeds)
                part = [i]
                self.resident = {self.keys[i]: self.resident[self.keys[i]]}
        timing = PassTiming(
            threads=self.options.threads,
            executables=self.built,
            rounds=min(self.rounds),
            latency_ms=self.latency[0],
            error=self.errors[self.keys[0]],
            reference=reference.name if isinstance(reference, Reference) else reference,
        )
        return [self._row(i) for i in range(1, len(stages))], timing

    def _build(self, i: int, name: str, reference: Reference | str) -> None:
        """Makes the executable of a stage, unless there is one like it."""
        key = self.keys[i]
        if key in self.resident:
            return
        executable = self.final if key == self.keys[-1] else None
        if executable is None:
            count = f"{self.built + 1} of {len(set(self.keys))}"
            self.progress(f"measuring passes: compiling {count} ({name})")
            graph = self.optimized.stages[i]
            executable = compilation.compile_as(self.optimized.report, graph, self.options)
        self._check(executable)
        self.resident[key] = executable
        self.built += 1
        self.errors[key] = None
        if isinstance(reference, Reference):
            found = reference.differences(executable)
            worst = max(found, key=lambda d: (d.error / d.tolerance, d.error), default=None)
            self.errors[key] = worst.error if worst else 0.0

    def _check(self, executable: Executable) -> None:
        report = self.optimized.report
        machine = self.options.formats(report.target).on(report.hardware)
        if reason := compilation.why_not_here(executable, machine):
            raise CodegenError(reason)

    def _resident_bytes(self) -> int:
        return sum(
            each.constants.nbytes + each.cubins.nbytes + len(each.models)
            for each in self.resident.values()
        )

    def _measure(self, part: Sequence[int], feeds: Mapping[str, np.ndarray]) -> None:
        """Times the executables of consecutive stages in turns."""
        runners = {self.keys[i]: self.resident[self.keys[i]] for i in part}
        self.progress(f"measuring passes: timing {len(runners)} executables")
        samples, calls = interleaved(list(runners.values()), feeds)
        on_device = device_samples(list(runners.values()), feeds, calls, len(samples[0]))
        ms = {
            key: [1e3 * s for s in device or (each.wall for each in wall)]
            for key, wall, device in zip(runners, samples, on_device, strict=True)
        }
        self.rounds.append(len(samples[0]))
        for i in part:
            self.latency.setdefault(i, Spread.of(ms[self.keys[i]]))
        for i in part[1:]:
            pairs = list(zip(ms[self.keys[i - 1]], ms[self.keys[i]], strict=True))
            shares = Spread.of([(before - after) / before for before, after in pairs])
            self.saved[i] = Spread.of([before - after for before, after in pairs]), shares

    def _row(self, i: int) -> PassMeasurement:
        key = self.keys[i]
        same = key == self.keys[i - 1]
        return PassMeasurement(self.latency[i], *self.saved[i], self.errors[key], same)


def _code_key(graph: Graph, report: Report, options: CodeOptions) -> Hashable:
    """Equal for graphs that become the same kernels on the same constants.

    Lowering takes a twentieth of the time that machine code takes. Code for GPUs is not looked at:
    its kernels are kept in a cache of their own.
    """
    if report.target != "cpu":
        return object()
    from pwopt.targets.cpu.fallback import TvmFallback
    from pwopt.targets.cpu.lowering import Lowering
    from pwopt.targets.cpu.rules import RULES
    from pwopt.targets.plan import assign_offsets, pack_constants
    from pwopt.targets.segments import lower, with_identities

    formats, threads = options.formats(report.target), options.threads
    machine = formats.on(report.hardware)
    # No tuned schedules: which one a kernel gets depends on the kernel alone.
    how = (machine, threads, None, options.winograd, formats, options.max_size_growth)
    graph = with_identities(compilation.with_types(graph))
    fallback = TvmFallback(machine, threads)
    lowered = lower(graph, [lambda part: Lowering(part, *how)], RULES, fallback)
    (plans,) = lowered.plans
    for plan in plans:
        assign_offsets(plan)
    constants = hashlib.sha256(pack_constants(plans).data).digest()
    steps = tuple((s.key, *map(_place, s.pointers)) for plan in plans for s in plan.steps)
    elsewhere = tuple(
        each.graph.to_onnx().SerializeToString() for each in lowered.segments if not each.compiled
    )
    return constants, steps, elsewhere


def _place(pointer: Pointer) -> tuple[str, int, int]:
    return pointer.buffer.kind, pointer.buffer.index, pointer.buffer.offset + pointer.offset
