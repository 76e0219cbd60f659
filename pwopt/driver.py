"""The main job: read a model, run the passes, check the result."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pwopt import __version__, checks, env, growth, limits
from pwopt.bisection import Guard, guilty_pass
from pwopt.checks import Reference, Verification
from pwopt.errors import NumericsError, UsageError
from pwopt.growth import MAX_GROWTH, Budget
from pwopt.hardware import Hardware, check_target, host
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import Graph
from pwopt.lossy import Examples, approximate
from pwopt.pipeline import AfterPass, Context, Pass, PassReport, Pipeline, run_pass
from pwopt.precision import Precision
from pwopt.reopening import reopen
from pwopt.report import FileSize, Report, summarize
from pwopt.sources import Model, Progress, Shapes, as_it_came, converted, read


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
    model = converted(model)
    original, source = read(model, input_shapes)
    limits.check_sizes(original)
    machine = hardware or host()
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
            measured=machine == host() and target == "cpu",
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
        version=__version__,
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
