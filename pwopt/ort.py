"""ONNX Runtime as reference and baseline: one model, loaded with stated settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import PwoptError

# Spinning threads would run on into the next contender's turn when runtimes take turns in one
# process; ONNX Runtime's own setting makes them stop as soon as no call is active.
SPINNING = "session.force_spinning_stop"


class OrtError(PwoptError):
    """ONNX Runtime refused a model or failed to run it."""


class OrtModel:
    """A model in ONNX Runtime's CPU provider.

    Attributes:
        input_names, output_names: in the model's order.
        settings: what was asked of the session, in words.
    """

    def __init__(
        self, source: str | Path | bytes, threads: int | None = None, *, optimize: bool = True
    ) -> None:
        """Loads a model.

        Args:
            source: a path, which external data needs, or a serialized model.
            threads: of one operator; None for one per core that this process may use.
            optimize: whether ONNX Runtime may rewrite the graph first.

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
        self.settings = (
            f"{threads} thread{'s' * (threads != 1)}, sequential, "
            f"{'all' if optimize else 'no'} graph optimizations, "
            "spinning stopped between calls"
        )
        try:
            self._session: Any = ort.InferenceSession(
                source if isinstance(source, bytes) else str(source),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:
            raise OrtError(f"ONNX Runtime cannot load the model: {one_line(error)}") from error
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


def version() -> str:
    """ONNX Runtime's version."""
    from importlib.metadata import version as installed

    return installed("onnxruntime")


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
