"""Other runtimes that a comparison can take in, with the settings that make it a fair one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import PwoptError, UsageError, nearest
from pwopt.gpu_baselines import GPU_BASELINES, check_gpu_baseline
from pwopt.ir.types import TensorType
from pwopt.ort import one_line

BASELINES = ("onnxruntime", "openvino", "openvino-bf16", *GPU_BASELINES)


def check_baselines(names: Sequence[str]) -> None:
    """Makes sure that every baseline is known and installed.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        if name not in BASELINES:
            raise UsageError(
                f"unknown baseline {name!r}{nearest(name, BASELINES)}; {list(BASELINES)}"
            )
    for name in names:
        if name in GPU_BASELINES:
            check_gpu_baseline(name)
    wanted = any(name.startswith("openvino") for name in names)
    if wanted and importlib.util.find_spec("openvino") is None:
        raise UsageError("openvino is not installed; pip install 'pwopt[openvino]'")


class OpenVinoModel:
    """A model in OpenVINO's CPU plug-in, for latency.

    Attributes:
        version: OpenVINO's.
        settings: what was asked of it, in words.
    """

    def __init__(
        self,
        source: Path | bytes,
        types: Mapping[str, TensorType],
        threads: int,
        outputs: Sequence[str],
        precision: str = "f32",
    ) -> None:
        """Compiles a model for static input types.

        Args:
            source: the model.
            types: of the inputs, by name.
            threads: of one inference.
            outputs: their names in the model's order.
            precision: OpenVINO's name of what it may compute in: "f32" or "bf16".

        Raises:
            PwoptError: OpenVINO cannot load it.
        """
        self.version = f"OpenVINO {version('openvino')}"
        self.settings = f"{threads} thread{'s' * (threads != 1)}, one stream, {precision}"
        self._outputs = tuple(outputs)
        wanted = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            import openvino

            core = openvino.Core()
            model = core.read_model(source if isinstance(source, bytes) else str(source))
            model.reshape({n: list(t.static_shape or ()) for n, t in types.items()})
            self._request: Any = core.compile_model(model, "CPU", wanted).create_infer_request()
        except Exception as error:
            raise PwoptError(f"OpenVINO cannot load the model: {one_line(error)}") from error

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""
        results = self._request.infer(dict(feeds), share_inputs=True)
        return dict(zip(self._outputs, (np.array(v) for v in results.values()), strict=True))
