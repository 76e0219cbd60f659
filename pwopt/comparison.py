"""Latency and output error of a compiled model beside its baselines, measured interleaved.

All contenders use the same number of threads and take turns: see :mod:`pwopt.timing`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt import contenders, numerics, rounding
from pwopt.baselines import check_baselines
from pwopt.compared import Side, opened, static_types, threads_of
from pwopt.environment import cpu_name
from pwopt.errors import UsageError
from pwopt.gpu_baselines import GPU_BASELINES
from pwopt.ir.types import TensorType
from pwopt.ort import OrtModel
from pwopt.precision import Precision
from pwopt.report import plain_json
from pwopt.running import running
from pwopt.timing import Spread, device_samples, interleaved

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pwopt.profiling import Profile

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: e.g. "compiled".
        version: of its runtime.
        latency_ms: median and quartiles of the samples.
        ratio: its latency over the baseline's, within the same round.
        cpu_ms: processor time of the process instead of wall time; where other processes compete
            for the machine it says more.
        cpu_ratio: its processor time over the baseline's.
        error: largest difference from the baseline's outputs, relative to the output's scale.
        tolerance: what the error may be.
        calls: per sample.
        settings: what was asked of the runtime.
        device_ms: of what runs on a GPU, without copies to and from it; None on the CPU.
    """

    name: str
    version: str
    latency_ms: Spread
    ratio: Spread
    cpu_ms: Spread
    cpu_ratio: Spread
    error: float
    tolerance: float
    calls: int
    settings: str
    device_ms: Spread | None = None


@dataclass(frozen=True)
class Comparison:
    """The table that :func:`compare` makes; the first row is the baseline.

    Attributes:
        model: path of the original.
        rows: one per contender.
        inputs: types of the inputs.
        threads: of every contender.
        rounds: samples per contender.
        cpu: the processor's name.
        notes: what a reader should know.
        profile: where the time goes in the original and in the executable; None where not asked
            for.
        command: the command line; empty where it was called from Python.
    """

    model: str
    rows: tuple[Row, ...]
    inputs: Mapping[str, str]
    threads: int
    rounds: int
    cpu: str
    notes: tuple[str, ...] = ()
    profile: Profile | None = None
    command: str = ""

    def __getitem__(self, name: str) -> Row:
        """The row of a contender."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """The comparison in JSON's types."""
        plain = plain_json(
            {"generator": "pwopt", "schema": 1}
            | {name: getattr(self, name) for name in self.__dataclass_fields__}
        )
        assert isinstance(plain, dict)
        return plain

    def html(self, page: str | Path | None = None) -> str:
        """The comparison as a page that needs no network.

        Args:
            page: the ``report.html`` of the optimization, to show what it did, too.
        """
        from pwopt import page as pages

        known = pages.read(Path(page)) if page is not None else None
        return pages.render(pages.of_comparison(self, known))

    def render(self) -> RenderableType:
        """The comparison as a table for the terminal."""
        return _render(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()


def compare(
    model: Any,
    executable: Any,
    *,
    optimized: Any = None,
    runs: int | None = None,
    threads: int | None = None,
    baselines: Sequence[str] = ("onnxruntime",),
    input_shapes: Shapes | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    profile: bool = False,
) -> Comparison:
    """Measures two models against each other, usually a compiled one against its original.

    Args:
        model: the reference: an ONNX model in any form that :func:`optimize` takes, which runs in
            ONNX Runtime, or an :class:`Executable`, its file or its folder.
        executable: an :class:`Executable`, its file, the folder that ``pwopt optimize`` wrote, or
            another ONNX model.
        optimized: the optimized ONNX model; the folder's own where a folder is given.
        runs: samples per contender; None for as many as fit ten seconds.
        threads: of every contender; the number that the executable was compiled for if left out,
            or one.
        baselines: further ones among :data:`pwopt.baselines.BASELINES`.
        input_shapes: sizes for open dimensions, by input name.
        inputs: an array per graph input; seeded random numbers if left out.
        seed: of the random inputs.
        profile: whether to measure the parts of both, too.

    Raises:
        UsageError: an unknown or missing baseline, shapes that are missing or do not fit, or
            models whose outputs have different names.
        FrontendError: a model that cannot be read.
        CodegenError: an executable that cannot be loaded.
    """
    if (threads is not None and threads < 1) or (runs is not None and runs < 1):
        raise UsageError(f"threads={threads}, runs={runs}: both must be at least 1")
    check_baselines(baselines)
    first, second = opened(model), opened(executable)
    if first.program is not None:
        first = Side(program=first.program)
    if optimized is not None:
        second = Side(opened(optimized).source, second.program, True)
    programs = [side.program for side in (first, second) if side.program is not None]
    threads = threads_of(programs, threads)
    parties = [contenders.reference(first, threads)]
    types = static_types(first, second, input_shapes)
    feeds = dict(inputs) if inputs is not None else numerics.random_inputs(types, seed)
    if second.source is not None:
        role = ", optimized" if second.from_folder else ", second"
        parties.append(contenders.onnxruntime(second.source, threads, role if first.source else ""))
    for baseline in ("openvino", "openvino-bf16"):
        if baseline in baselines:
            parties.append(contenders.openvino(baseline, first.source, types, threads))
    for baseline in (name for name in GPU_BASELINES if name in baselines):
        parties.append(contenders.on_gpu(baseline, first.source, types))
    if second.program is not None:
        parties.append(contenders.compiled("compiled", second.program))
    contenders.check_inputs(parties, list(feeds))
    outputs = [c.runner.run(feeds) for c in parties]
    contenders.check_outputs(parties, outputs)
    errors = _rounding_errors(first.source, programs, types, feeds, outputs[0])
    steps = _step_errors(first.source, types, feeds, outputs)
    samples, calls = interleaved([c.runner for c in parties], feeds, runs)
    on_device = device_samples([c.runner for c in parties], feeds, calls, len(samples[0]))
    first_wall, first_cpu = zip(*samples[0], strict=True)
    rows, remarks = [], []
    plain: dict[str, np.ndarray] | None = None
    for c, mine, given, n, device in zip(parties, samples, outputs, calls, on_device, strict=True):
        found = _judged(c.name, numerics.differences(outputs[0], given), errors, steps)
        if first.source is not None and not all(d.ok for d in found):
            plain = plain or OrtModel(first.source, optimize=False).run(feeds)
            other = _judged(c.name, numerics.differences(plain, given), errors, steps)
            if all(d.ok for d in other):
                off = max(d.error for d in found)
                remarks.append(
                    f"ONNX Runtime's own rewriting of the model is off by {off:.1e}: the error of "
                    f"{c.name} is to the model as it stands"
                )
                found = other
        worst = max(found, key=lambda d: (d.error / d.tolerance, d.error))
        wall, cpu = zip(*mine, strict=True)
        rows.append(
            Row(
                name=c.name,
                version=c.version,
                latency_ms=Spread.of([1e3 * s for s in wall]),
                ratio=Spread.of([a / b for a, b in zip(wall, first_wall, strict=True)]),
                cpu_ms=Spread.of([1e3 * s for s in cpu]),
                cpu_ratio=Spread.of([a / b for a, b in zip(cpu, first_cpu, strict=True)]),
                error=worst.error,
                tolerance=worst.tolerance,
                calls=n,
                settings=c.settings,
                device_ms=Spread.of([1e3 * s for s in device]) if device else None,
            )
        )
    found_profile = None
    if profile and first.source is not None and second.program is not None:
        from pwopt import profiling

        found_profile = profiling.measure(first.source, second.program, types)
    return Comparison(
        model=str(first.source or first.program.path or ""),
        rows=tuple(rows),
        inputs={name: str(t) for name, t in types.items()},
        threads=threads,
        rounds=len(samples[0]),
        cpu=cpu_name(),
        notes=(*remarks, *_notes(rows, second)),
        profile=found_profile,
    )


def _rounding_errors(
    source: Path | bytes | None,
    programs: Sequence[Any],
    types: Mapping[str, TensorType],
    feeds: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """By output how far the original is off once rounded as an executable is; none if exact."""
    keys = ("precision", "fc_weights")
    used = [Precision(*(p.metadata.get(k, "fp32") for k in keys)) for p in programs]
    rounds = [formats for formats in used if not formats.exact]
    if not rounds:
        return {}
    if source is None:  # executables alone: how much rounding may cost is not known
        return dict.fromkeys(expected, math.inf)
    formats = rounds[0]
    from pwopt import frontend

    graph = frontend.load(source, {n: t.static_shape for n, t in types.items() if t.static_shape})
    found = []
    for variation in rounding.VARIATIONS:
        with running(rounding.rounded(graph, formats, variation)) as runner:
            found.append(numerics.differences(expected, runner.run(feeds)))
    return {d.output: d.error for d in numerics.worst(found)}


def _step_errors(
    source: Path | bytes | None,
    types: Mapping[str, TensorType],
    feeds: Mapping[str, np.ndarray],
    outputs: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, float]:
    """By output how far a quantized original moves with rounding, if anything is off that far."""
    off = (d for given in outputs for d in numerics.differences(outputs[0], given) if not d.ok)
    if source is None or next(off, None) is None:
        return {}
    from pwopt import frontend

    shapes = {n: t.static_shape for n, t in types.items() if t.static_shape}
    graph = frontend.load(source, shapes)
    if not rounding.quantizes(graph):
        return {}
    with running(rounding.jittered(graph)) as runner:
        found = numerics.differences(outputs[0], runner.run(feeds))
    return {d.output: d.error for d in found}


def _judged(
    contender: str,
    found: Sequence[numerics.Difference],
    errors: Mapping[str, float],
    steps: Mapping[str, float],
) -> list[numerics.Difference]:
    """The differences with the tolerances of reduced precision where a contender has it."""
    if contender in ("openvino-bf16", *GPU_BASELINES):  # no promise of ours
        return [replace(d, tolerance=math.inf) for d in found]

    def allowed(output: str) -> float:
        rounding_error = errors.get(output, 0.0) if contender == "compiled" else 0.0
        return numerics.ROUNDING_FACTOR * max(rounding_error, steps.get(output, 0.0))

    return [replace(d, tolerance=max(d.tolerance, allowed(d.output))) for d in found]


def _notes(rows: Sequence[Row], second: Side) -> Iterator[str]:
    for row in rows:
        if row.error > row.tolerance:
            yield f"WRONG: {row.name} is off by {row.error:.1e}, tolerance {row.tolerance:.0e}"
    if second.from_folder and second.program is None:
        yield "the folder holds no executable"
    load = os.getloadavg()[0]
    if load > len(os.sched_getaffinity(0)) + 0.5:
        yield f"the machine was busy (load {load:.1f}): the CPU ratio says more than the others"


def _device_cells(row: Row) -> tuple[str, str]:
    ms = row.device_ms
    return (f"{ms.median:.3f}", f"{ms.q1:.3f} - {ms.q3:.3f}") if ms else ("", "")


def _render(comparison: Comparison) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    on_gpu = any(row.device_ms is not None for row in comparison.rows)
    device = ("on the GPU", "quartiles") if on_gpu else ()
    for heading in ("median ms", "quartiles", "ratio", "quartiles", "CPU ratio", *device, "error"):
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        ms, ratio = row.latency_ms, row.ratio
        table.add_row(
            row.name,
            f"{ms.median:.3f}",
            f"{ms.q1:.3f} - {ms.q3:.3f}",
            f"{ratio.median:.3f}",
            f"{ratio.q1:.3f} - {ratio.q3:.3f}",
            f"{row.cpu_ratio.median:.3f}",
            *(_device_cells(row) if on_gpu else ()),
            "" if row is comparison.rows[0] else f"{row.error:.1e}",
        )
    versions = dict.fromkeys(row.version for row in comparison.rows)
    inputs = ", ".join(f"{n} {t}" for n, t in comparison.inputs.items())
    lines = [
        f"{comparison.rounds} interleaved samples each, {comparison.threads} thread"
        f"{'s' * (comparison.threads != 1)}, {comparison.cpu}",
        f"inputs {inputs}; {'; '.join(versions)}",
        *comparison.notes,
    ]
    from rich.markup import escape

    return Group(table, "", *(escape(line) for line in lines))
