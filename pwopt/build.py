"""What ``pwopt optimize`` does: optimize, compile, and write a folder that appears as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pwopt import compilation, driver, hardware, sources
from pwopt.compilation import CodeOptions
from pwopt.driver import Optimized
from pwopt.errors import CodegenError, FrontendError, UsageError
from pwopt.growth import MAX_GROWTH
from pwopt.hardware import Hardware
from pwopt.output import PAGE, REPORT, staged
from pwopt.pass_timing import measure_passes
from pwopt.pipeline import missing_file
from pwopt.report import Report
from pwopt.tuning import tune

if TYPE_CHECKING:
    from pwopt.targets.executable import Executable

COMPILERS = ("g++", "c++", "clang++")


@dataclass(frozen=True)
class Request:
    """What to build; see :func:`pwopt.driver.optimize` and :func:`pwopt.compilation.compile`.

    Attributes:
        model: path of the original.
        folder: to write.
        target: "cpu" or "cuda".
        passes: a spec, or None for the default.
        input_shapes: sizes for open dimensions, by input name.
        mcpu: LLVM's name of the processor, or None for this machine's.
        verify: whether to check the results against the original.
        max_growth: share by which the model's file may become larger.
        verify_passes: whether to check after every pass and to take wrong rewrites back.
        compile: whether to make an executable.
        code: how the executable is made.
        replace_fc_head: whether 1x1 convolutions take the place of a fully connected head.
        bottleneck: budget of inserted bottlenecks, or None for none.
        calibration: a file or folder of examples for these two.
        preprocessing: of images and bytes among the examples.
        tune_seconds: to measure schedules before it is made, or None.
        profile: whether to measure the original and the executable for the report.
        measure_passes: whether to compile after each pass, too, and to measure what it brought.
        command: the command line, for the report.
    """

    model: Path
    folder: Path
    target: str = "cpu"
    passes: str | None = None
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    mcpu: str | None = None
    verify: bool = True
    max_growth: float = MAX_GROWTH
    verify_passes: bool = False
    compile: bool = True
    code: CodeOptions = field(default_factory=CodeOptions)
    replace_fc_head: bool = False
    bottleneck: float | None = None
    calibration: Path | None = None
    preprocessing: str | None = None
    tune_seconds: float | None = None
    profile: bool = True
    measure_passes: bool = False
    command: str = ""


def build(
    request: Request,
    progress: sources.Progress,
    log: sources.Progress,
    before_commit: Callable[[], None] = lambda: None,
) -> Report:
    """Writes ``model.onnx``, ``model.so``, ``report.json`` and ``report.html``, or nothing.

    Each rewrite that was taken back adds ``repro-N.onnx``, which shows it, and ``repro-N.txt``, the
    command to run on it.

    Args:
        request: what to build.
        progress: called with a few words at the start of each step.
        log: called with a line for every pass that changed something.
        before_commit: called last; raises to leave the folder as it was.

    Raises:
        PwoptError: of a kind that says what failed.
    """
    from pwopt import frontend

    machine = hardware.named(request.mcpu) if request.mcpu else hardware.host()
    _check(request, machine)
    with staged(request.folder) as stage:
        made = driver.optimize(
            request.model,
            request.target,
            request.passes,
            verify=request.verify,
            max_growth=request.max_growth,
            verify_passes=request.verify_passes,
            hardware=machine,
            precision=request.code.precision,
            fc_weights=request.code.fc_weights,
            input_shapes=request.input_shapes,
            replace_fc_head=request.replace_fc_head,
            bottleneck=request.bottleneck,
            calibration=request.calibration,
            preprocessing=request.preprocessing,
            keep_stages=request.measure_passes,
            progress=progress,
        )
        for row in made.report.passes:
            if row.changed:
                nodes = f"{row.nodes_before} -> {row.nodes_after} nodes"
                log(f"{row.spec}: {nodes}, {row.seconds * 1e3:.0f} ms")
        progress("writing the optimized model")
        frontend.save(made.graph, stage / "model.onnx")
        for found in made.report.taken_back:
            if found.reproducer:
                frontend.save(made.reproducers[found.reproducer], stage / found.reproducer)
                (stage / found.reproducer).with_suffix(".txt").write_text(found.replay + "\n")
        if request.compile:
            if request.tune_seconds is not None:
                tune(
                    made.graph,
                    request.tune_seconds,
                    request.code.threads,
                    database=request.code.database,
                    progress=progress,
                    precision=request.code.formats(request.target).compute,
                    fc_weights=request.code.fc_weights,
                    target=request.target,
                    arch=request.code.arch,
                )
            progress("compiling")
            executable, made = compilation.compile_optimized(made, request.code)
            executable.save(stage / "model.so")
            formats = request.code.formats(request.target)
            if request.profile and not compilation.why_not_here(executable, formats.on(machine)):
                progress("profiling")
                made = compilation.profiled(made, executable, request.model)
            if request.measure_passes:
                made = _passes_measured(made, executable, request, progress)
        made = replace(made, report=replace(made.report, command=request.command))
        (stage / REPORT).write_text(made.report.dumps())
        (stage / PAGE).write_text(made.html())
        before_commit()
    return made.report


def _passes_measured(
    made: Optimized, executable: Executable, request: Request, progress: sources.Progress
) -> Optimized:
    """What each pass brought, in code made like the executable's."""
    chosen = made.report.compilation
    code = replace(request.code, winograd=chosen.winograd) if chosen else request.code
    return measure_passes(made, code, executable, model=request.model, progress=progress)


def _check(request: Request, machine: Hardware) -> None:
    """Everything that can be known to fail before the work starts."""
    hardware.check_target(request.target)
    if request.tune_seconds is not None and (request.mcpu or not request.compile):
        raise UsageError("--tune measures what is compiled, on this machine: without --mcpu")
    if request.measure_passes and (request.mcpu or not request.compile):
        raise UsageError(
            "--measure-passes measures executables on this machine: leave out --mcpu and "
            "--no-compile"
        )
    request.code.formats(request.target)
    if request.target == "cuda" and request.compile:
        _check_cuda(request)
    elif request.code.arch is not None:
        raise UsageError(f"--arch {request.code.arch}: only --target cuda has it")
    if not request.model.exists():
        raise FrontendError(missing_file(request.model))
    if request.compile and not has_compiler():
        raise CodegenError(
            f"no C++ compiler ({', '.join(COMPILERS)}), which the executable is linked with: "
            "install one, or take the optimized ONNX model alone with --no-compile"
        )
    foreign = machine.triple and not machine.triple.startswith(os.uname().machine)
    if request.compile and foreign and not os.environ.get("CXX"):
        raise CodegenError(
            f"an executable for {machine.mcpu} needs a cross compiler to link it: set CXX, e.g. "
            f"CXX={machine.triple}-g++, or take the optimized ONNX model alone with --no-compile"
        )


def _check_cuda(request: Request) -> None:
    from pwopt.targets.cuda.arch import archs
    from pwopt.targets.cuda.toolchain import find_compiler

    wanted = archs(request.code.arch) if request.code.arch is not None else ()
    if request.tune_seconds is not None:
        from pwopt.targets.cuda import device

        if len(wanted) > 1:
            raise UsageError("--tune measures on the GPU here: one --arch")
        device.current()
    find_compiler()


def has_compiler() -> bool:
    """Whether a C++ compiler is there to link an executable with."""
    named = os.environ.get("CXX")
    return any(shutil.which(c) for c in ((named,) if named else COMPILERS))
