"""From an optimized graph to machine code, checked against the original."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pwopt import __version__, limits
from pwopt.checks import Reference, Verification
from pwopt.errors import CodegenError, NumericsError, UsageError, nearest
from pwopt.growth import MAX_SIZE_GROWTH
from pwopt.hardware import Hardware, check_target, host
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.pipeline import Context
from pwopt.precision import Precision
from pwopt.report import Compilation, Report
from pwopt.running import input_types
from pwopt.sources import Model, Shapes, as_it_came, example_shape, read

if TYPE_CHECKING:
    from pwopt.driver import Optimized
    from pwopt.targets.executable import Executable

WINOGRAD = ("off", "f2", "auto")
PROFILE_SECONDS = 0.4  # of each of three measurements


@dataclass(frozen=True)
class CodeOptions:
    """How an executable is made; see :func:`compile`."""

    threads: int = 1
    winograd: str = "auto"
    precision: str | None = None
    fc_weights: str = "fp32"
    database: Path | None = None
    max_size_growth: float = MAX_SIZE_GROWTH
    arch: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is none."""
        if self.threads < 1:
            raise UsageError(f"{self.threads} threads: at least one is needed")
        if not self.max_size_growth >= 1:
            raise UsageError(f"--max-size-growth {self.max_size_growth:g}: 1 is the model's size")
        if self.winograd not in WINOGRAD:
            hint = nearest(self.winograd, WINOGRAD)
            raise UsageError(f"winograd {self.winograd!r}{hint}; {list(WINOGRAD)}")
        if self.precision is not None:
            Precision(self.precision, self.fc_weights)

    def formats(self, target: str) -> Precision:
        """The number formats.

        Raises:
            UsageError: the target has not one of them.
        """
        return Precision.of(target, self.precision, self.fc_weights)


def compile(
    model: Model,
    target: str = "cpu",
    threads: int = 1,
    *,
    hardware: Hardware | None = None,
    input_shapes: Shapes | None = None,
    metadata: Mapping[str, str] | None = None,
    winograd: str = "auto",
    precision: str | None = None,
    fc_weights: str = "fp32",
    database: Path | None = None,
    max_size_growth: float = MAX_SIZE_GROWTH,
    arch: str | None = None,
) -> Executable:
    """Compiles a model, usually an optimized graph, to machine code.

    Args:
        model: usually a :class:`Graph`, else whatever :func:`optimize` takes; it is not changed.
        target: "cpu" or "cuda".
        threads: that one call of the executable uses.
        hardware: what to generate code for; this machine if left out.
        input_shapes: sizes for open dimensions, by input name; 1 for a batch that is left out.
        metadata: carried inside the executable.
        winograd: how stride-1 convolutions may be computed: "off" is directly, "f2" also by
            Winograd's algorithm in tiles of 2x2 outputs, "auto" in those or 4x4.
        precision: of convolutions and products: "fp32" (the default) or "bf16" on "cpu"; "tf32"
            (the default), "fp16", "bf16" or "fp32" on "cuda".
        fc_weights: "fp32", "bf16" or "int8": see :class:`pwopt.precision.Precision`.
        database: of tuned schedules: see :func:`pwopt.tune`; ``PWOPT_DATABASE`` or one in the
            user's cache folder if left out.
        max_size_growth: of packed weights over the model's: Winograd's are 1.8 and 4 times as
            large, and convolutions get them in the order of what that saves for a byte. 16 MiB are
            always allowed.
        arch: of GPUs, for "cuda": e.g. "sm_80", or several as in "sm_80,sm_90a"; that of the GPU
            here if left out, or "sm_80".

    Raises:
        UsageError: an unknown target or option, or a number of threads that is not positive.
        CodegenError: the graph cannot be compiled.
        TuningError: the database cannot be read.
    """
    options = CodeOptions(threads, winograd, precision, fc_weights, database, max_size_growth, arch)
    return _compile(model, target, options, hardware or host(), input_shapes, metadata)


def _compile(
    model: Model,
    target: str,
    options: CodeOptions,
    machine: Hardware,
    input_shapes: Shapes | None,
    metadata: Mapping[str, str] | None,
) -> Executable:
    check_target(target)
    formats = options.formats(target)
    if options.arch is not None and target != "cuda":
        raise UsageError(f"--arch {options.arch}: only --target cuda has it")
    from pwopt.targets import compile_graph

    graph, source = read(model, input_shapes)
    limits.check_sizes(graph)
    graph = with_types(graph)
    facts = {"pwopt": __version__, "target": target, "sha256": source.sha256, **(metadata or {})}
    used = formats if target == "cuda" else formats.used(machine)
    facts |= {"precision": used.compute, "fc_weights": used.fc_weights}
    return compile_graph(
        graph,
        target,
        machine,
        options.threads,
        metadata=facts,
        winograd=options.winograd,
        precision=formats,
        database=options.database,
        max_size_growth=options.max_size_growth,
        arch=options.arch,
    )


def compile_optimized(
    optimized: Optimized, options: CodeOptions | None = None
) -> tuple[Executable, Optimized]:
    """Compiles and checks what :func:`optimize` made, and completes its report.

    Where Winograd's algorithm costs more accuracy than the check allows, the executable is made
    again with smaller tiles, or without.

    Args:
        optimized: of :func:`optimize`.
        options: how; the default ones if left out.

    Raises:
        CodegenError: the graph cannot be compiled.
        NumericsError: the executable differs from the original.
        TuningError: the database cannot be read.
    """
    options = options or CodeOptions()
    start = time.perf_counter()
    for choice in reversed(WINOGRAD[: WINOGRAD.index(options.winograd) + 1]):
        try:
            chosen = dataclasses.replace(options, winograd=choice)
            executable, compilation = _compile_and_check(optimized, chosen)
        except _WinogradError:
            continue
        break
    report = optimized.report
    total = report.seconds + time.perf_counter() - start
    report = dataclasses.replace(report, compilation=compilation, seconds=total)
    return executable, dataclasses.replace(optimized, report=report)


def profiled(optimized: Optimized, executable: Executable, model: Model) -> Optimized:
    """Completes the report by where the time goes, before and after.

    Args:
        optimized: of :func:`compile_optimized`.
        executable: likewise, for this machine.
        model: the original, as :func:`optimize` got it.
    """
    from pwopt import profiling

    report, reference = optimized.report, optimized.reference
    types = reference.types if reference else input_types(optimized.graph)
    original = as_it_came(model) or optimized.original
    if original is None or any(t.static_shape is None for t in types.values()):
        return optimized
    nodes = report.before.nodes
    found = profiling.measure(original, executable, types, nodes=nodes, seconds=PROFILE_SECONDS)
    return dataclasses.replace(optimized, report=dataclasses.replace(report, profile=found))


def compile_as(report: Report, graph: Graph, options: CodeOptions) -> Executable:
    """Compiles a graph for the target and machine of a report."""
    passes = ",".join(dict.fromkeys(row.spec for row in report.passes))
    facts = {"sha256": report.source.sha256, "passes": passes}
    return _compile(graph, report.target, options, report.hardware, None, facts)


class _WinogradError(NumericsError):
    """An executable with Winograd kernels differs from the original."""


def _compile_and_check(
    optimized: Optimized, options: CodeOptions
) -> tuple[Executable, Compilation]:
    report, start = optimized.report, time.perf_counter()
    formats = options.formats(report.target)
    executable = compile_as(report, optimized.graph, options)
    seconds = time.perf_counter() - start
    made = executable.report
    kernels = list(made.get("kernels", ()))
    verification = None
    if optimized.reference is not None:
        if reason := why_not_here(executable, formats.on(report.hardware)):
            verification = Verification("skipped", reason=reason)
        else:
            used = formats if report.target == "cuda" else formats.used(report.hardware)
            try:
                verification = _check_executable(executable, optimized.reference, used)
            except NumericsError as error:
                if any(k["kernel"].startswith("winograd") for k in kernels):
                    raise _WinogradError(str(error)) from error
                raise
    return executable, Compilation(
        target=report.target,
        threads=options.threads,
        seconds=seconds,
        kernels=kernels,
        fallbacks=list(made.get("fallback", ())),
        precision=str(formats),
        remark=_remark(executable, formats, report.hardware, options),
        arch=str(executable.metadata.get("arch", "")),
        predicted=dict(made.get("predicted", {})),
        verification=verification,
        winograd=options.winograd,
        open_inputs=_open_inputs(optimized.graph),
    )


def _check_executable(
    executable: Executable, reference: Reference, precision: Precision
) -> Verification:
    start = time.perf_counter()
    found = reference.differences(executable)
    if not precision.exact:
        found = reference.rounded(found, precision)
    if bad := [d for d in found if not d.ok]:
        raise NumericsError(f"the executable differs from the original: {bad[0]}")
    seconds = time.perf_counter() - start
    return Verification(
        "passed", reference.name, reference.seeds, None, tuple(found), reference.remark, seconds
    )


def runs_here(machine: Hardware) -> bool:
    """Whether code for ``machine`` can run on the host."""
    here = host()
    return machine == here or (
        machine.triple == here.triple
        and machine.lanes <= here.lanes
        and (here.masks or not machine.masks)
        and (here.bf16 or not machine.bf16)
    )


def why_not_here(executable: Executable, machine: Hardware) -> str:
    """Why an executable that was just made cannot run on this machine, or nothing."""
    if executable.metadata.get("target") != "cuda":
        return "" if runs_here(machine) else "the code is for another machine"
    from pwopt.targets.cuda.arch import best
    from pwopt.targets.cuda.device import current

    try:
        gpu = current()
    except CodegenError as error:
        return f"there is no GPU to run it on: {error}"
    archs = str(executable.metadata["arch"])
    return "" if best(archs.split(","), gpu.capability) else f"{gpu.name} does not run {archs}"


def _remark(
    executable: Executable, formats: Precision, machine: Hardware, options: CodeOptions
) -> str:
    """What a reader should know of how the code was chosen, or nothing."""
    if executable.metadata.get("target") != "cuda":
        return formats.remark(machine)
    if options.arch is not None:
        return ""
    return str(executable.metadata.get("arch_remark", ""))


def with_types(graph: Graph) -> Graph:
    """The graph, or a copy of it with what else can be known of its types."""
    types = (t for node in graph.nodes() for t in node.types if isinstance(t, TensorType))
    if all(t.dtype is not None and t.static_shape is not None for t in types):
        return graph
    from pwopt.passes.infer_shapes import InferShapes

    graph = graph.copy()
    InferShapes().run(graph, Context())
    return graph


def _open_inputs(graph: Graph) -> dict[str, tuple[str, str]]:
    """Inputs without a static shape: type, and an example of a shape."""
    types = input_types(graph).items()
    return {name: (str(t), example_shape(t)) for name, t in types if t.static_shape is None}
