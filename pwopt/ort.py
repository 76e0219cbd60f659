"""ONNX Runtime as reference and baseline: one model, loaded with stated settings."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import PwoptError

# Spinning threads would run on into the next contender's turn when runtimes take turns in one
# process; ONNX Runtime's own setting makes them stop as soon as no call is active.
SPINNING = "session.force_spinning_stop"


QUANTILE = 0.1  # of the time of an operator or kernel: interference only ever adds
_KERNEL_TIME = "_kernel_time"  # ends the names of the profiler's events
_MIN_RUNS, _MAX_RUNS = 5, 50  # of a profile; the profiler keeps a million events at most


class OrtError(PwoptError):
    """ONNX Runtime refused a model or failed to run it."""


@dataclass(frozen=True)
class OperatorTiming:
    """One operator as ONNX Runtime ran it, after its own rewriting.

    Attributes:
        name: of the node, or of a result with a suffix where ONNX Runtime made the node.
        op: its operator.
        us: microseconds, a low quantile over runs; the profiler counts whole ones.
    """

    name: str
    op: str
    us: float


class OrtModel:
    """A model in ONNX Runtime's CPU provider.

    Attributes:
        input_names, output_names: in the model's order.
        settings: what was asked of the session, in words.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        threads: int | None = None,
        *,
        optimize: bool = True,
        profile: Path | None = None,
    ) -> None:
        """Loads a model.

        Args:
            source: a path, which external data needs, or a serialized model.
            threads: of one operator; None for one per core that this process may use.
            optimize: whether ONNX Runtime may rewrite the graph first.
            profile: a folder, where :meth:`end_profile` finds what its profiler wrote.

        Raises:
            OrtError: ONNX Runtime cannot load the model.
        """
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what matters is raised; the log would double it
        threads = threads or len(os.sched_getaffinity(0))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        levels = ort.GraphOptimizationLevel
        level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        options.graph_optimization_level = level
        options.add_session_config_entry(SPINNING, "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "ort")
        self.settings = (
            f"{threads} thread{'s' * (threads != 1)}, sequential, "
            f"{'all' if optimize else 'no'} graph optimizations, "
            "spinning stopped between calls"
        )
        self._session = _session(source, options)
        self.input_names = [i.name for i in self._session.get_inputs()]
        self.output_names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name.

        Raises:
            OrtError: the model fails on these inputs.
        """
        try:
            outputs = self._session.run(None, dict(feeds))
        except Exception as error:
            raise OrtError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
        return dict(zip(self.output_names, outputs, strict=True))

    def end_profile(self, skip: int = 0) -> list[OperatorTiming]:
        """What each operator took, in order of execution; ends the session's profiling.

        Args:
            skip: runs at the start that do not count.
        """
        with open(self._session.end_profiling()) as stream:
            events = json.load(stream)
        samples: dict[tuple[str, str], list[float]] = {}
        for event in events:
            name = event.get("name", "")
            if event.get("cat") == "Node" and name.endswith(_KERNEL_TIME):
                key = name.removesuffix(_KERNEL_TIME), str(event["args"].get("op_name", ""))
                samples.setdefault(key, []).append(float(event["dur"]))
        kept = {key: us[skip:] for key, us in samples.items() if us[skip:]}
        return [OperatorTiming(*key, float(np.quantile(us, QUANTILE))) for key, us in kept.items()]


def _session(source: str | Path | bytes, options: Any) -> Any:
    """A session, with the batch open where the model says 0, which ONNX Runtime takes literally."""
    import onnxruntime as ort

    def opened(model: str | bytes) -> Any:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    failure = None
    try:
        session = opened(source if isinstance(source, bytes) else str(source))
    except Exception as error:
        failure = OrtError(f"ONNX Runtime cannot load the model: {one_line(error)}")
        failure.__cause__ = error
    if failure is None and not any(0 in i.shape[:1] for i in session.get_inputs()):
        return session
    from pwopt import frontend

    try:
        model = frontend.with_open_batch(source)
    except PwoptError:
        model = None
    if model is not None:
        return opened(model)
    if failure is not None:
        raise failure
    return session


def profile(
    source: str | Path | bytes,
    feeds: Mapping[str, np.ndarray],
    threads: int | None = None,
    *,
    seconds: float = 1.0,
) -> list[OperatorTiming]:
    """Measures each operator of a model by ONNX Runtime's profiler.

    Args:
        source: a path, or a serialized model.
        feeds: an array per input.
        threads: of one operator.
        seconds: time to spend, about; there are five runs at least.

    Raises:
        OrtError: ONNX Runtime cannot load or run the model.
    """
    with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
        model = OrtModel(source, threads, profile=Path(folder))
        model.run(feeds)  # warms up
        start, runs = time.perf_counter(), 0
        while runs < _MIN_RUNS or (time.perf_counter() - start < seconds and runs < _MAX_RUNS):
            model.run(feeds)
            runs += 1
        return model.end_profile(skip=1)


def version() -> str:
    """ONNX Runtime's version."""
    from importlib.metadata import version as installed

    return installed("onnxruntime")


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
