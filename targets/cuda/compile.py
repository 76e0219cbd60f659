"""The CUDA target: a graph to an executable with machine code for one or several architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pwopt.ir.graph import Graph
from pwopt.targets.cuda.arch import Arch, Gpu, usual_gpu
from pwopt.targets.cuda.lowering import CudaLowering
from pwopt.targets.cuda.module import Code, generate
from pwopt.targets.cuda.rules import RULES
from pwopt.targets.cuda.toolchain import Cubin, compile_sources, find_compiler, trim_cache
from pwopt.targets.executable import Executable
from pwopt.targets.lowering import Lowering
from pwopt.targets.manifest import Manifest
from pwopt.targets.plan import Plan, assign_offsets, pack_constants
from pwopt.targets.schedules import Schedules
from pwopt.targets.segments import inputs_of, lower, outputs_of, report, with_identities

# From CUDA text, by kernel, to machine code; the second argument is the architecture.
Assemble = Callable[[Mapping[str, str], str], dict[str, Cubin]]


def compile_graph(
    graph: Graph,
    archs: Sequence[Arch],
    precision: str,
    metadata: Mapping[str, Any] | None = None,
    assemble: Assemble | None = None,
    schedules: Mapping[str, Schedules] | None = None,
    gpu: Gpu | None = None,
) -> Executable:
    """Compiles a graph; nodes without a kernel run in ONNX Runtime inside the executable.

    Args:
        graph: not changed.
        archs: to generate code for.
        precision: of products: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
        metadata: stored in the executable.
        assemble: makes machine code; NVIDIA's compiler if left out.
        schedules: tuned ones, by architecture.
        gpu: that code for its architecture is to fill; a usual one if left out.

    Raises:
        CodegenError: there is no compiler, or it refuses a kernel.
    """
    if assemble is None:
        find_compiler()  # before the work, if there is none
        assemble = with_compiler
    graph = with_identities(graph)
    tuned = schedules or {}
    gpus = [gpu if gpu and gpu.arch == arch.name else usual_gpu(arch) for arch in archs]
    variants = [
        _variant(arch, precision, tuned.get(arch.name), each)
        for arch, each in zip(archs, gpus, strict=True)
    ]
    lowered = lower(graph, variants, RULES)
    every = [plan for plans in lowered.plans for plan in plans]
    for plan in every:
        assign_offsets(plan)
    constants = pack_constants(every)
    codes = [generate(plans, arch.name) for arch, plans in zip(archs, lowered.plans, strict=True)]
    cubins = {code.arch: assemble(code.sources, code.arch) for code in codes}
    places, images = _packed(cubins)
    specs, models = lowered.specs(
        lambda i: {"launches": {code.arch: code.launches[i] for code in codes}}
    )
    names = [arch.name for arch in archs]
    manifest = Manifest(
        inputs=inputs_of(graph),
        outputs=outputs_of(graph),
        segments=tuple(specs),
        lanes=0,  # nothing depends on the host's processor
        cubins=places,
        metadata={"target": "cuda", "arch": ",".join(names), **(metadata or {})},
        report={
            **_report(report(lowered, lowered.plans[0]), codes[0], cubins),
            "predicted": _predicted(names, gpus, lowered.plans),
        },
    )
    return Executable(manifest, None, constants, models, cubins=images)


def with_compiler(sources: Mapping[str, str], arch: str) -> dict[str, Cubin]:
    """Machine code of the one compiler that is found, through the user's cache."""
    made = compile_sources(list(sources.values()), arch)
    trim_cache()
    return dict(zip(sources, made, strict=True))


def _variant(
    arch: Arch, precision: str, schedules: Schedules | None, gpu: Gpu
) -> Callable[[Graph], Lowering]:
    return lambda part: CudaLowering(part, arch, precision, schedules, gpu)


def _packed(
    cubins: Mapping[str, Mapping[str, Cubin]],
) -> tuple[dict[str, dict[str, tuple[int, int]]], np.ndarray]:
    """Where each kernel's cubin lies, and all of them, one after the other."""
    places: dict[str, dict[str, tuple[int, int]]] = {}
    images, at = [], 0
    for arch, kernels in cubins.items():
        places[arch] = {}
        for name, cubin in kernels.items():
            places[arch][name] = (at, at + len(cubin.image))
            images.append(cubin.image)
            at += len(cubin.image)
    return places, np.frombuffer(b"".join(images), np.uint8)


def _predicted(
    archs: Sequence[str], gpus: Sequence[Gpu], plans: Sequence[Sequence[Plan]]
) -> dict[str, dict[str, Any]]:
    """By architecture the GPU that is assumed, and the sum of its kernels' rooflines."""
    return {
        arch: {"gpu": gpu.name, "us": sum(s.predicted_us for plan in each for s in plan.steps)}
        for arch, gpu, each in zip(archs, gpus, plans, strict=True)
    }


def _report(
    made: dict[str, Any],
    code: Code,
    cubins: Mapping[str, Mapping[str, Cubin]],
) -> dict[str, Any]:
    """Of the first architecture: with what each launch uses."""
    launches = [launch for each in code.launches for launch in each.launches]
    for row, launch in zip(made["kernels"], launches, strict=True):
        usage = cubins[code.arch][launch.kernel].kernels[launch.kernel]
        row |= {
            "symbol": launch.kernel,
            "blocks": int(np.prod(launch.grid)),
            "threads": launch.threads,
            "registers": usage.registers,
            "spill_bytes": usage.spill_bytes,
            "shared_bytes": launch.shared_bytes + usage.shared_bytes,
        }
    return made
