"""Networks and 1x1 convolutions on a GPU, in one call of less than ten minutes.

Executables can be built beforehand, on any machine: a rented GPU then does nothing but run.
"""

from __future__ import annotations

import datetime
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pwopt import compilation, cost, driver, frontend, numerics, ort, timing
from pwopt.compilation import CodeOptions
from pwopt.errors import PwoptError, UsageError
from pwopt.gpu_baselines import GPU_BASELINES, OrtGpuModel, check_gpu_baseline
from pwopt.models.registry import entry
from pwopt.running import Runner

NETWORKS = {
    "ResNet-50": "resnet",
    "MobileNetV2": "mobilenet_v2_seeded",
    "SqueezeNet": "squeezenet_v1_1",
    "Inception v1": "googlenet",
    "DenseNet-121": "densenet",
}
BATCHES = (1, 32)
POINTWISE = ((256, 64, 56), (64, 256, 56), (512, 128, 28), (1024, 256, 14), (512, 2048, 7))
PEERS = ("torch-compile", "onnxruntime-cuda")
PRECISION = "fp16"
SECONDS = 540.0  # for everything; what does not fit is left out, and the result says so
_CASE_SECONDS = 240.0  # of one network; torch.compile takes most of them
_ROUNDS, _CALLS = 20, 20
_MATMUL = "torch.matmul"


@dataclass(frozen=True)
class Case:
    """Something that is built once and measured.

    Attributes:
        name: e.g. ``ResNet-50, batch 32``.
        file: of the model and the executable, without an ending.
        model: in the registry.
        options: of the model.
    """

    name: str
    file: str
    model: str
    options: dict[str, Any]


@dataclass(frozen=True)
class CudaRow:
    """Times on the GPU, without copies to and from it.

    Attributes:
        name: of the case.
        ms: medians by contender: ``pwopt`` and its peers.
        ratio: of pwopt to each peer, the median over the rounds.
        wall_ms: of pwopt with both copies.
        roofline_ms: what the GPU needs for the multiply-adds, or to read the weights once.
        error: of pwopt against ONNX Runtime in float32 on the CPU, relative to the output's scale.
        left_out: peers that could not run, with reasons.
        failure: what went wrong; nothing else is filled in then.
    """

    name: str
    ms: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    wall_ms: float = math.nan
    roofline_ms: float = math.nan
    error: float = math.nan
    left_out: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def share(self) -> float:
        """Of the roofline that pwopt reaches; NaN where it is not known."""
        return self.roofline_ms / self.ms["pwopt"] if "pwopt" in self.ms else math.nan


def cases() -> list[Case]:
    """Everything that is measured, the networks first."""
    found = []
    for name, model in NETWORKS.items():
        for batch in BATCHES:
            file = f"{model}-{batch}"
            found.append(Case(f"{name}, batch {batch}", file, model, {"batch": batch}))
    for channels, out, size in POINTWISE:
        options = {"channels": channels, "out_channels": out, "size": size, "batch": 32}
        file = f"pointwise-{channels}-{out}-{size}"
        found.append(Case(f"{channels}->{out} @{size}x{size}", file, "pointwise", options))
    return found


def build(
    folder: Path, arch: str, chosen: list[Case], progress: Callable[[str], None] = lambda _: None
) -> None:
    """Builds what is not in the folder yet: models and executables.

    Args:
        folder: made if it is not there.
        arch: see :func:`pwopt.compile`.
        chosen: what to build.
        progress: called with each case's name.

    Raises:
        CodegenError: there is no compiler for CUDA.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in chosen:
        executable = folder / f"{case.file}.so"
        if executable.exists():
            continue
        progress(f"building {case.name}")
        model = entry(case.model).build(**case.options)
        optimized = driver.optimize(model, "cuda", verify=False, precision=PRECISION)
        options = CodeOptions(precision=PRECISION, arch=arch)
        made, _ = compilation.compile_optimized(optimized, options)
        (folder / f"{case.file}.onnx").write_bytes(model.SerializeToString())
        made.save(executable)


def measure(
    folder: Path,
    chosen: list[Case],
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[CudaRow]:
    """Measures what :func:`build` built, each beside its peers in turns.

    That is done in another process, and in a new one after a failure: a kernel that goes wrong
    takes away the GPU from its process.

    Raises:
        CodegenError: there is no GPU here.
    """
    from pwopt.targets.cuda.device import current

    gpu = current().name
    end = time.perf_counter() + seconds
    pool = _process()
    try:
        for case in chosen:
            left = end - time.perf_counter()
            if left < 0:
                yield CudaRow(case.name, failure=f"left out: {seconds:.0f} s are over")
                continue
            progress(f"measuring {case.name}")
            try:
                yield pool.submit(_measured, folder, case, gpu).result(min(left, _CASE_SECONDS))
            except Exception as error:  # the others must still be measured
                text = " ".join(f"{type(error).__name__}: {error}".split())
                yield CudaRow(case.name, failure=text)
                _end(pool)
                pool = _process()
    finally:
        _end(pool)


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the process, also one that hangs."""
    processes = list((pool._processes or {}).values())
    for process in processes:
        process.kill()
    pool.shutdown(cancel_futures=True)


def facts() -> dict[str, Any]:
    """The day, the GPU and its driver.

    Raises:
        CodegenError: there is no GPU here.
    """
    from pwopt.targets.cuda.device import current

    gpu = current()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": gpu.name,
        "compute_capability": ".".join(map(str, gpu.capability)),
        "driver_cuda": f"{gpu.driver_version // 1000}.{gpu.driver_version % 1000 // 10}",
        "precision": PRECISION,
    }


def _measured(folder: Path, case: Case, gpu: str) -> CudaRow:
    from pwopt.targets.cuda.arch import gpu as known_gpu
    from pwopt.targets.executable import load_executable

    model, file = folder / f"{case.file}.onnx", folder / f"{case.file}.so"
    if not file.is_file() or not model.is_file():
        raise UsageError(f"{file}: no such file; make it with `pwopt bench cuda --build {folder}`")
    executable = load_executable(file)
    graph = frontend.load(model)
    types = {n.names[0]: n.out.tensor for n in graph.inputs}
    feeds = numerics.random_inputs(types, 1)
    found = numerics.differences(ort.OrtModel(model).run(feeds), executable.run(feeds))
    contenders: dict[str, Any] = {"pwopt": executable}
    left_out = {}
    peers = (*PEERS, *((_MATMUL,) if case.model == "pointwise" else ()))
    for name in peers:
        try:
            contenders[name] = _peer(name, model, case)
        except PwoptError as error:
            left_out[name] = str(error)
    runners: list[Runner] = list(contenders.values())
    for runner in runners:
        runner.seconds_on_device(feeds, 1)  # type: ignore[attr-defined]  # warms up, and compiles
    samples = timing.device_samples(runners, feeds, [_CALLS] * len(runners), _ROUNDS)
    by_name = dict(zip(contenders, samples, strict=True))
    own = np.array(by_name["pwopt"])
    walls = [_wall(executable, feeds) for _ in range(_ROUNDS)]
    peak = known_gpu(gpu)
    flop, weights = 2.0 * cost.graph_macs(graph), graph.constant_bytes / 2
    return CudaRow(
        name=case.name,
        ms={name: 1e3 * float(np.median(s)) for name, s in by_name.items()},
        ratio={
            name: float(np.median(own / np.array(s)))
            for name, s in by_name.items()
            if name != "pwopt"
        },
        wall_ms=1e3 * float(np.median(walls)),
        roofline_ms=1e-3 * peak.roofline_us(flop, weights, PRECISION) if peak else math.nan,
        error=max(d.error for d in found),
        left_out=left_out,
    )


def _peer(name: str, model: Path, case: Case) -> Any:
    if name in GPU_BASELINES:
        check_gpu_baseline(name)
    else:
        check_gpu_baseline("torch-compile")
    if name == "onnxruntime-cuda":
        return OrtGpuModel(model, name)
    from pwopt.training.torch_gpu import MatrixProduct, TorchGpuModel

    if name == _MATMUL:
        o = case.options
        return MatrixProduct(o["batch"] * o["size"] ** 2, o["channels"], o["out_channels"])
    return TorchGpuModel(frontend.load(model), PRECISION)


def _wall(executable: Any, feeds: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    executable.run(feeds)
    return time.perf_counter() - start


def table(rows: list[CudaRow]) -> Any:
    """The rows for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("", overflow="fold")
    peers = (*PEERS, _MATMUL)
    for heading in ("pwopt ms", *peers, "with copies", "of roofline", "error"):
        made.add_column(heading, justify="right")
    for row in rows:
        if row.failure:
            made.add_row(row.name, escape(row.failure))
            continue
        cells = [f"{row.ms[p]:.3f} ({row.ratio[p]:.2f})" if p in row.ms else "" for p in peers]
        share = f"{row.share:.0%}" if math.isfinite(row.share) else ""
        rest = (f"{row.wall_ms:.3f}", share, f"{row.error:.1e}")
        made.add_row(row.name, f"{row.ms['pwopt']:.3f}", *cells, *rest)
    return made
