"""What building costs: wall time and peak memory of ``pwopt optimize`` in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pwopt.models import blocks
from pwopt.models.suite import load_suite

LIMIT_S = {"resnet50": 30.0, "squeezenet": 5.0, "10,000 nodes": 10.0}
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
        failure: what went wrong, or empty.
    """

    name: str
    seconds: float
    cpu_s: float
    memory_bytes: int
    model_bytes: int
    failure: str = ""

    @property
    def passed(self) -> bool:
        limit = LIMIT_S.get(self.name, float("inf"))
        return not self.failure and self.seconds <= limit and self.memory_bytes <= LIMIT_BYTES


def measure_builds(names: Sequence[str] = ("resnet50", "squeezenet")) -> Iterator[BuildCost]:
    """Times ``pwopt optimize``: start, read, rewrite, compile, link, write.

    The numerical check is off: it runs the original in ONNX Runtime and is no part of building.
    """
    for model in load_suite(names):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.build().SerializeToString())
            yield _measure(model.name, path, Path(folder) / "out", [])


def measure_scale(nodes: int = 10_000) -> BuildCost:
    """Times load, optimize and export of a chain of residual 1x1 blocks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(blocks.chain(nodes).SerializeToString())
        return _measure(f"{nodes:,} nodes", path, Path(folder) / "out", ["--no-compile"])


def _measure(name: str, model: Path, folder: Path, options: Sequence[str]) -> BuildCost:
    command = ["optimize", str(model), "-o", str(folder), "--no-verify", "--quiet", "--json"]
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
