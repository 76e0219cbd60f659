"""Other runtimes on a GPU, with the settings that make a comparison a fair one."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import PwoptError, UsageError
from pwopt.ort import one_line

# Cases differ in what the runtime may choose from, so both are stated. cuDNN is searched for the
# fastest algorithm of each convolution, with as much workspace as it asks for.
_CUDA = {
    "device_id": 0,
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "do_copy_in_default_stream": "1",
    "use_tf32": "1",
}
_TENSORRT = {"device_id": 0, "trt_fp16_enable": True, "trt_builder_optimization_level": 5}
PROVIDERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "onnxruntime-cuda": [("CUDAExecutionProvider", _CUDA)],
    "tensorrt": [("TensorrtExecutionProvider", _TENSORRT), ("CUDAExecutionProvider", _CUDA)],
}
GPU_BASELINES = (*PROVIDERS, "torch-compile")


def check_gpu_baseline(name: str) -> None:
    """Makes sure that a baseline of :data:`GPU_BASELINES` can run here.

    Raises:
        UsageError: something is not installed, or there is no GPU.
    """
    if name in PROVIDERS:
        import onnxruntime

        wanted = PROVIDERS[name][0][0]
        if wanted not in onnxruntime.get_available_providers():
            raise UsageError(
                f"--baseline {name}: this ONNX Runtime has no {wanted}; pip install onnxruntime-gpu"
            )
        return
    if importlib.util.find_spec("torch") is None:
        raise UsageError(f"--baseline {name}: PyTorch is not installed; pip install 'pwopt[train]'")
    from pwopt.training.torch_gpu import why_not

    if reason := why_not():
        raise UsageError(f"--baseline {name}: {reason}")


class OrtGpuModel:
    """A model in one of ONNX Runtime's providers for GPUs, through IO binding.

    Attributes:
        settings: what was asked of the session, in words.
    """

    def __init__(self, source: Path | bytes, name: str) -> None:
        """Loads a model.

        Args:
            source: the model.
            name: of a baseline among :data:`PROVIDERS`.

        Raises:
            PwoptError: ONNX Runtime cannot load it.
        """
        import onnxruntime as ort

        providers = PROVIDERS[name]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        told = [f"{p}({', '.join(f'{k}={v}' for k, v in o.items())})" for p, o in providers]
        self.settings = f"{' then '.join(told)}, IO binding"
        try:
            self._session: Any = ort.InferenceSession(
                source if isinstance(source, bytes) else str(source),
                options,
                providers=[*providers, "CPUExecutionProvider"],
            )
        except Exception as error:
            raise PwoptError(f"ONNX Runtime cannot load the model: {one_line(error)}") from error
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; copies to and from the GPU are a part of it."""
        bound = self._session.io_binding()
        for name, array in feeds.items():
            bound.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._names:
            bound.bind_output(name, "cpu")
        self._session.run_with_iobinding(bound)
        return dict(zip(self._names, bound.copy_outputs_to_cpu(), strict=True))

    def seconds_on_device(self, feeds: Mapping[str, np.ndarray], calls: int = 1) -> float:
        """Mean time of one inference with inputs and outputs on the GPU."""
        import onnxruntime as ort

        bound = self._session.io_binding()
        for name, array in feeds.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)
            bound.bind_ortvalue_input(name, value)
        for name in self._names:
            bound.bind_output(name, "cuda")
        self._session.run_with_iobinding(bound)
        bound.synchronize_outputs()
        start = time.perf_counter()
        for _ in range(calls):
            self._session.run_with_iobinding(bound)
        bound.synchronize_outputs()
        return (time.perf_counter() - start) / calls
