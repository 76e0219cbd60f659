"""The main job: read a model, run the passes, check the result, compile it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pwopt import checks, env, growth, hardware, limits
from pwopt.bisection import Guard, guilty_pass
from pwopt.checks import Reference, Verification
from pwopt.errors import CodegenError, NumericsError, UsageError, nearest
from pwopt.growth import MAX_GROWTH, MAX_SIZE_GROWTH, Budget
from pwopt.hardware import Hardware
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.lossy import Examples, approximate
from pwopt.pipeline import AfterPass, Context, Pass, PassReport, Pipeline, run_pass
from pwopt.precision import Precision
from pwopt.reopening import reopen
from pwopt.report import Compilation, FileSize, Report, Source, summarize
from pwopt.running import input_types

if TYPE_CHECKING:
    from pwopt.targets.executable import Executable

TARGETS = ("cpu", "cuda")
WINOGRAD = ("off", "f2", "auto")
PROFILE_SECONDS = 0.4  # of each of three measurements

Model = Any  # a Graph, or what the frontend reads: a path, bytes, an onnx.ModelProto and others
Shapes = Mapping[str, Sequence[int]]
Progress = Callable[[str], None]


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


@dataclass(frozen=True)
class Optimized:
    """An optimized graph and the record of how it came about.

    Attributes:
        graph: the optimized graph.
        report: what each pass did, and the numerical check.
        reference: the original's answers, to check an executable by; None where unknown.
        reproducers: small models by file name; each shows a rewrite in ``report.taken_back``.
        original: the graph as it was.
        precision: number formats that the predictions are for.
        stages: the graph before any pass and after each of ``report.passes`` that changed it; none
            where they were not asked for.
    """

    graph: Graph
    report: Report
    reference: Reference | None = field(default=None, repr=False)
    reproducers: Mapping[str, Graph] = field(default_factory=dict)
    original: Graph | None = field(default=None, repr=False)
    precision: Precision = field(default_factory=Precision)
    stages: tuple[Graph, ...] = field(default=(), repr=False)

    def html(self) -> str:
        """``report.html``: the report as a page that needs no network."""
        from pwopt import page

        return page.render(page.of_optimization(self))


@no_garbage_collection()
def optimize(
    model: Model,
    target: str = "cpu",
    passes: str | Sequence[Pass] | None = None,
    *,
    verify: bool = True,
    verify_passes: bool = False,
    max_growth: float = MAX_GROWTH,
    hardware: Hardware | None = None,
    precision: str | None = None,
    fc_weights: str = "fp32",
    input_shapes: Shapes | None = None,
    replace_fc_head: bool = False,
    bottleneck: float | None = None,
    calibration: Examples | None = None,
    preprocessing: str | None = None,
    dump: str | Path | None = None,
    keep_stages: bool = False,
    progress: Progress | None = None,
) -> Optimized:
    """Rewrites a model so that it runs faster on the target and computes the same.

    Args:
        model: a :class:`Graph`, a path, a model's bytes, an ``onnx.ModelProto``, an
            ``onnx_ir.Model`` or a ``torch.export.ExportedProgram``; it is not changed.
        target: "cpu" or "cuda".
        passes: a spec such as ``"my-pass,default"``, passes, or None for the default.
        verify: compare the result with the original in ONNX Runtime on seeded random inputs.
        verify_passes: compare after every pass that changed something, on more inputs, and take
            wrong rewrites back instead of failing; ``report.taken_back`` tells which.
        max_growth: share by which the model's file may become larger; rewrites that would copy or
            expand more weights are not made.
        hardware: what to optimize for; this machine if left out.
        precision: of the executable that it is for, the target's default if left out: predictions
            depend on it, what the result computes does not.
        fc_weights: likewise.
        input_shapes: sizes for open dimensions, by input name. Where only the first one is open,
            as it is in most models, it is 1 if left out, and the result is written with it open
            where it computes the same for any.
        replace_fc_head: whether ``replace-fc-head`` runs before ``passes``. After a lossy pass the
            check is that the others keep what it made; how far that is from the original stands in
            the report.
        bottleneck: budget of ``insert-bottlenecks``, which does, too; None to leave it out.
        calibration: examples for lossy passes, or a file or folder of them: see
            :func:`pwopt.calibration.load`; random numbers if left out.
        preprocessing: of images and bytes, such as ``"imagenet"``.
        dump: a folder for the graph's text after each pass that changed it; ``PWOPT_DUMP`` if
            left out.
        keep_stages: whether to keep the graph after each pass that changed it, for
            :func:`pwopt.measure_passes`.
        progress: called with a few words at the start of each step.

    Raises:
        UsageError: an unknown target, pass or option, a negative growth, or ``verify_passes``
            without ``verify``.
        FrontendError: the model cannot be read.
        PassError: a pass failed.
        NumericsError: the result differs from the original; the message names the guilty pass.
    """
    check_target(target)
    formats = Precision.of(target, precision, fc_weights)
    if verify_passes and not verify:
        raise UsageError("--verify-passes is a check: leave out --no-verify (verify=False)")
    start = time.perf_counter()
    step = progress or (lambda _: None)
    sequence = _passes(passes)
    step("reading")
    model = _converted(model)
    original, source = read(model, input_shapes)
    limits.check_sizes(original)
    machine = hardware or _host()
    room = growth.budget(original, max_growth)
    lossy = [*_asked_for(replace_fc_head, bottleneck), *(each for each in sequence if each.lossy)]
    sequence = [each for each in sequence if not each.lossy]
    stages = [original] if keep_stages else []
    after_pass = _after_pass(dump, stages if keep_stages else None)
    kept, raw, approximated = original, as_it_came(model), None
    if lossy:
        approximated = approximate(
            original,
            lossy,
            machine,
            target,
            examples=calibration,
            preprocessing=preprocessing,
            measured=machine == _host() and target == "cpu",
            room=room,
            after_pass=after_pass,
            progress=step,
        )
        kept, raw = approximated.graph, None
    elif calibration is not None or preprocessing is not None:
        raise UsageError(
            "calibration data are for lossy passes: give --bottleneck or --replace-fc-head, too"
        )
    graph = kept.copy()
    context = Context(machine, target, formats, budget=room)
    answers: Reference | str = "not asked for"
    guard = None
    if verify_passes:
        step("running the original")
        answers = checks.reference(kept, raw, checks.FURTHER)
        if isinstance(answers, Reference):
            guard = Guard(answers, kept, sequence, step)
    step("optimizing")
    rows = Pipeline(sequence, after_pass=after_pass, runner=guard or run_pass).run(graph, context)
    if verify:
        step("checking against the original")
    batch = reopen(kept, raw, graph, verify=verify)
    file = _file_size(model, original, graph, max_growth, room)
    if verify and not verify_passes:
        answers = checks.reference(kept, raw)
    verification = _verified(answers, kept, graph, sequence, context)
    foreseen = machine if target == "cpu" else None
    report = Report(
        version=_version(),
        source=source,
        target=target,
        hardware=machine,
        before=summarize(original, foreseen, formats),
        after=summarize(graph, foreseen, formats),
        passes=(*(approximated.passes if approximated else ()), *rows),
        approximations=approximated.approximations if approximated else (),
        verification=verification,
        file=file,
        batch=batch,
        taken_back=tuple(guard.taken_back) if guard else (),
        seconds=time.perf_counter() - start,
    )
    reference = answers if isinstance(answers, Reference) else None
    reproducers = guard.reproducers if guard else {}
    return Optimized(graph, report, reference, reproducers, original, formats, tuple(stages))


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
    check_target(target)
    formats = options.formats(target)
    if arch is not None and target != "cuda":
        raise UsageError(f"--arch {arch}: only --target cuda has it")
    from pwopt.targets import compile_graph

    graph, source = read(model, input_shapes)
    limits.check_sizes(graph)
    graph = with_types(graph)
    facts = {"pwopt": _version(), "target": target, "sha256": source.sha256, **(metadata or {})}
    used = formats if target == "cuda" else formats.used(hardware or _host())
    facts |= {"precision": used.compute, "fc_weights": used.fc_weights}
    machine = hardware or _host()
    return compile_graph(
        graph,
        target,
        machine,
        threads,
        metadata=facts,
        winograd=winograd,
        precision=formats,
        database=database,
        max_size_growth=max_size_growth,
        arch=arch,
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
    return compile(
        graph,
        report.target,
        options.threads,
        hardware=report.hardware,
        metadata={
            "sha256": report.source.sha256,
            "passes": ",".join(dict.fromkeys(row.spec for row in report.passes)),
        },
        winograd=options.winograd,
        precision=options.precision,
        fc_weights=options.fc_weights,
        database=options.database,
        max_size_growth=options.max_size_growth,
        arch=options.arch,
    )


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


def _open_inputs(graph: Graph) -> dict[str, tuple[str, str]]:
    """Inputs without a static shape: type, and an example of a shape."""
    types = input_types(graph).items()
    return {name: (str(t), example_shape(t)) for name, t in types if t.static_shape is None}


def example_shape(t: TensorType) -> str:
    """Sizes for an input as ``--input-shape`` takes them; its own where it has some."""
    sizes = t.shape or ("", "", "", "")
    closed = [d if isinstance(d, int) else 224 if i else 1 for i, d in enumerate(sizes)]
    if len(closed) == 4 and not isinstance(sizes[1], int):
        closed[1] = 3
    return "x".join(map(str, closed))


def read(
    model: Model, input_shapes: Shapes | None = None, batch: int | None = 1
) -> tuple[Graph, Source]:
    """The graph of a model, and where it came from.

    Where the first dimension of the inputs is all that is open it is closed, which is logged.

    Args:
        model: whatever :func:`optimize` takes.
        input_shapes: sizes for open dimensions, by input name.
        batch: size of an open first dimension; None leaves it open.

    Raises:
        FrontendError: the model cannot be read.
        UsageError: shapes were given for a graph, which has its own.
    """
    from pwopt import frontend

    source = Source()
    if isinstance(model, Graph):
        if input_shapes:
            raise UsageError("input shapes are given where a model is loaded: pwopt.load")
        graph = model if batch is None else frontend.close_batch(model, batch)
        if graph is model:
            return graph, source
    else:
        model = _converted(model)
        graph = frontend.load(model, input_shapes, batch=batch)
        source = _source(as_it_came(model))
    if closed := frontend.notice(graph):
        logging.getLogger("pwopt").warning(closed)
    return graph, source


def _source(raw: Path | bytes | None) -> Source:
    if isinstance(raw, Path):
        with raw.open("rb") as stream:
            return Source(str(raw), hashlib.file_digest(stream, "sha256").hexdigest())
    return Source("", hashlib.sha256(raw).hexdigest() if raw is not None else "")


def check_target(target: str) -> None:
    """Makes sure that a target is one of :data:`TARGETS`.

    Raises:
        UsageError: it is not.
    """
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}{nearest(target, TARGETS)}; {list(TARGETS)}")


def runs_here(machine: Hardware) -> bool:
    """Whether code for ``machine`` can run on the host."""
    host = _host()
    return machine == host or (
        machine.triple == host.triple
        and machine.lanes <= host.lanes
        and (host.masks or not machine.masks)
        and (host.bf16 or not machine.bf16)
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


def _host() -> Hardware:
    return hardware.host()


def _version() -> str:
    import pwopt

    return str(pwopt.__version__)


def _converted(model: Model) -> Model:
    """A graph, path, bytes or ModelProto, whatever was given."""
    if isinstance(model, Graph | str | os.PathLike | bytes):
        return model
    from pwopt import frontend

    return frontend.converted(model)


def as_it_came(model: Model) -> Path | bytes | None:
    """The model as it came, for references independent of the frontend; None of a graph."""
    if isinstance(model, Graph):
        return None
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, os.PathLike)):
        return Path(model)
    try:
        return bytes(model.SerializeToString())
    except (ValueError, AttributeError):  # beyond protobuf's 2 GiB
        return None


def _passes(passes: str | Sequence[Pass] | None) -> list[Pass]:
    if not isinstance(passes, str) and passes is not None:
        return list(passes)
    from pwopt.passes import default_pipeline, parse

    return list(default_pipeline()) if passes is None else parse(passes)


def _asked_for(replace_fc_head: bool, bottleneck: float | None) -> list[Pass]:
    """Lossy passes that have an option of their own."""
    from pwopt.passes.insert_bottlenecks import InsertBottlenecks
    from pwopt.passes.replace_fc_head import ReplaceFcHead

    heads: list[Pass] = [ReplaceFcHead()] if replace_fc_head else []
    return heads if bottleneck is None else [*heads, InsertBottlenecks(budget=bottleneck)]


def with_types(graph: Graph) -> Graph:
    """The graph, or a copy of it with what else can be known of its types."""
    types = (t for node in graph.nodes() for t in node.types if isinstance(t, TensorType))
    if all(t.dtype is not None and t.static_shape is not None for t in types):
        return graph
    from pwopt.passes.infer_shapes import InferShapes

    graph = graph.copy()
    InferShapes().run(graph, Context())
    return graph


def _verified(
    answers: Reference | str,
    original: Graph,
    graph: Graph,
    passes: Sequence[Pass],
    context: Context,
) -> Verification:
    """The outcome of the check; an error names the guilty pass."""
    if isinstance(answers, str):
        return Verification("skipped", reason=answers)
    try:
        return checks.verify(answers, graph)
    except NumericsError as error:
        guilty = guilty_pass(original, passes, context.fresh(), answers)
        raise NumericsError(f"{error}; {guilty}") from error


def _file_size(
    model: Model, original: Graph, optimized: Graph, max_growth: float, room: Budget
) -> FileSize:
    """Measures both files; the optimized one does without inferable types if it is too large."""
    from pwopt import frontend

    raw = as_it_came(model)
    before = raw.stat().st_size if isinstance(raw, Path) else len(raw or b"")
    if before < original.constant_bytes:  # a graph, or weights in a file of their own
        before = frontend.file_bytes(original)
    after = frontend.file_bytes(optimized)
    if after > before + growth.allowance(before, max_growth):
        optimized.metadata[frontend.LEAN] = True
        after = frontend.file_bytes(optimized)
    refused = room.refused
    return FileSize(before, after, max_growth, len(refused), sum(refused.values()))


def _after_pass(dump: str | Path | None, stages: list[Graph] | None) -> AfterPass | None:
    """What is done after each pass that changed the graph: its text, a copy of it, both or none."""
    write = _dumper(dump)
    if stages is None:
        return write

    def keep(graph: Graph, each: Pass, row: PassReport) -> None:
        stages.append(graph.copy())
        if write is not None:
            write(graph, each, row)

    return keep


def _dumper(folder: str | Path | None) -> AfterPass | None:
    """Writes the graph's text after each pass that changed it, numbered."""
    folder = Path(folder) if folder else env.settings().dump
    if folder is None:
        return None

    numbers = itertools.count(1)

    def write(graph: Graph, each: Pass, _: PassReport) -> None:
        (folder / f"{next(numbers):03}-{each.name}.txt").write_text(str(graph))

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from error
    return write


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
