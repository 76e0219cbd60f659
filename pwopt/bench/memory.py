"""Peak memory of running: the executable beside ONNX Runtime on the original, a process each."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pwopt import compilation, driver
from pwopt.bench.resident import Resident
from pwopt.compilation import CodeOptions
from pwopt.errors import PwoptError
from pwopt.models.suite import SuiteModel


@dataclass(frozen=True)
class MemoryRow:
    """One network.

    Attributes:
        name: in the suite.
        model_bytes, executable_bytes: sizes of the two files.
        resident: by "onnxruntime" and "compiled".
        failure: what went wrong; nothing else is filled in then.
    """

    name: str
    model_bytes: int = 0
    executable_bytes: int = 0
    resident: Mapping[str, Resident] = field(default_factory=dict)
    failure: str = ""

    @property
    def ratio(self) -> float:
        """Peak of the executable over that of ONNX Runtime."""
        return self.resident["compiled"].peak / self.resident["onnxruntime"].peak

    @property
    def passed(self) -> bool:
        """Whether running the executable takes no more."""
        return not self.failure and self.ratio <= 1


def measure_memory(
    models: Sequence[SuiteModel], threads: int = 1, progress: Callable[[str], None] = lambda _: None
) -> Iterator[MemoryRow]:
    """Loads and runs each network in a fresh process a runtime; a failure becomes a row.

    Args:
        models: what to measure.
        threads: of one inference.
        progress: called with a network's name before it is measured.
    """
    for model in models:
        progress(model.name)
        try:
            with tempfile.TemporaryDirectory() as folder:
                yield _measure(model, Path(folder), threads)
        except PwoptError as error:
            yield MemoryRow(model.name, failure=f"{type(error).__name__}: {error}")


def _measure(model: SuiteModel, folder: Path, threads: int) -> MemoryRow:
    files = {"onnxruntime": folder / "model.onnx", "compiled": folder / "model.so"}
    original = model.build()
    files["onnxruntime"].write_bytes(original.SerializeToString())
    optimized = driver.optimize(original, verify=False)
    compilation.compile_optimized(optimized, CodeOptions(threads))[0].save(files["compiled"])
    inputs = folder / "inputs.npz"
    np.savez(inputs, allow_pickle=False, **model.inputs())
    return MemoryRow(
        model.name,
        model_bytes=files["onnxruntime"].stat().st_size,
        executable_bytes=files["compiled"].stat().st_size,
        resident={name: _run(name, file, inputs, threads) for name, file in files.items()},
    )


def _run(runtime: str, file: Path, inputs: Path, threads: int) -> Resident:
    arguments = [runtime, str(file), str(inputs), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "pwopt.bench.resident", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PwoptError(f"{runtime} on {file.name}: exit code {done.returncode}: {last}")
    return Resident(**json.loads(done.stdout))
