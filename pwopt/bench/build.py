"""What building costs: wall time and peak memory of ``pwopt optimize`` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pwopt.models import blocks
from pwopt.models.suite import load_suite

LIMIT_S = {"resnet50": 30.0, "squeezenet": 5.0}
SCALES = (1_000, 10_000, 100_000)
SCALE_LIMIT_S = {10_000: 10.0, 100_000: 60.0}  # by number of nodes
_GRAPH = ("--no-compile",)
SHAPES = {"chain": blocks.chain, "wide": blocks.wide}
LIMIT_BYTES = 2 * 1024**3

# A child's peak memory begins at its parent's, so this small parent stands between.
_LAUNCHER = """\
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu_s": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * 1024,
    "exit_code": os.waitstatus_to_exitcode(status),
}))
"""


@dataclass(frozen=True)
class BuildCost:
    """Cost of one build.

    Attributes:
        name: of the model.
        seconds: wall time, from the start of the process to its end.
        cpu_s: processor time of the process, which a busy machine does not stretch.
        memory_bytes: peak resident memory above the model's own size.
        model_bytes: the model's size.
        limit_s: what the wall time may be.
        nodes: of the model, where its size is what is measured.
        failure: what went wrong, or empty.
    """

    name: str
    seconds: float
    cpu_s: float
    memory_bytes: int
    model_bytes: int
    limit_s: float = float("inf")
    nodes: int = 0
    failure: str = ""

    @property
    def passed(self) -> bool:
        in_time = self.seconds <= self.limit_s
        return not self.failure and in_time and self.memory_bytes <= LIMIT_BYTES


def measure_builds(names: Sequence[str] = ("resnet50", "squeezenet")) -> Iterator[BuildCost]:
    """Times ``pwopt optimize``: start, read, rewrite, compile, link, write.

    The numerical check is off: it runs the original in ONNX Runtime and is no part of building.
    """
    for model in load_suite(names):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.build().SerializeToString())
            cost = _measure(model.name, path, Path(folder) / "out", ["--no-verify"])
            yield replace(cost, limit_s=LIMIT_S.get(model.name, float("inf")))


def measure_scale(sizes: Sequence[int] = SCALES) -> Iterator[BuildCost]:
    """Times load, optimize and export of graphs of growing size, deep ones and wide ones.

    The one of 10,000 nodes is also timed with the check, most of which ONNX Runtime takes.
    """
    for shape, make in SHAPES.items():
        for nodes in sizes:
            with tempfile.TemporaryDirectory() as folder:
                path, out = Path(folder) / "model.onnx", Path(folder) / "out"
                path.write_bytes(make(nodes).SerializeToString())
                limit = SCALE_LIMIT_S.get(nodes, float("inf"))
                cost = _measure(f"{shape}, {nodes:,} nodes", path, out, [*_GRAPH, "--no-verify"])
                yield replace(cost, limit_s=limit, nodes=nodes)
                if nodes == 10_000:
                    cost = _measure(f"{shape}, {nodes:,} nodes, checked", path, out, _GRAPH)
                    yield replace(cost, nodes=nodes)


def _measure(name: str, model: Path, folder: Path, options: Sequence[str]) -> BuildCost:
    command = ["optimize", str(model), "-o", str(folder), "--quiet", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, sys.executable, "-m", "pwopt", *command, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    usage, failure = json.loads(done.stdout), ""
    if usage["exit_code"]:
        lines = done.stderr.strip().splitlines()
        failure = lines[-1] if lines else f"exit code {usage['exit_code']}"
    elif not (folder / "model.onnx").is_file():
        failure = "no model was written"
    size = model.stat().st_size
    return BuildCost(
        name,
        usage["seconds"],
        usage["cpu_s"],
        memory_bytes=max(usage["peak_bytes"] - size, 0),
        model_bytes=size,
        failure=failure,
    )
