"""A graph in PyTorch on a GPU: ``torch.compile(mode="max-autotune")``, channels last, float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pwopt.ir.graph import Graph
from pwopt.training.torch_module import GraphModule

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def why_not() -> str:
    """Why PyTorch cannot use a GPU here, or nothing."""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU"
    return ""


class TorchGpuModel:
    """A graph, compiled by PyTorch for the GPU.

    Attributes:
        version: PyTorch's.
        settings: what was asked of it, in words.
    """

    def __init__(
        self,
        graph: Graph,
        precision: str = "fp16",
        device: str = "cuda",
        mode: str | None = "max-autotune",
    ) -> None:
        """Prepares a graph; it is compiled when it first runs.

        Args:
            graph: of operators that :class:`GraphModule` knows, of static shapes.
            precision: ``fp16``, ``bf16`` or ``fp32``.
            device: of PyTorch.
            mode: of ``torch.compile``; None to leave it out.

        Raises:
            UsageError: an operator has no translation.
        """
        self.version = f"PyTorch {torch.__version__}"
        self.settings = f"torch.compile(mode={mode}), channels last, {precision}"
        self._device, self._dtype = device, DTYPES[precision]
        module = GraphModule(graph).eval().to(device, self._dtype)
        module.to(memory_format=torch.channels_last)
        self._inputs = [node.names[0] for node in graph.inputs]
        zeros = {n.names[0]: _zeros(n.out.shape, n.out.tensor.dtype) for n in graph.inputs}
        # Exported, as a plain list of PyTorch's operators: its compiler need not read ours.
        exported = torch.export.export(module, tuple(self._placed(zeros)), strict=False).module()
        self._module = exported if mode is None else torch.compile(exported, mode=mode)
        self._outputs = [(name, value.tensor.dtype) for name, value in graph.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; copies to and from the GPU are a part of it."""
        results = self._call(self._placed(feeds))
        return {
            name: result.float().cpu().numpy().astype(dtype or "float32")
            for (name, dtype), result in zip(self._outputs, results, strict=True)
        }

    def seconds_on_device(self, feeds: Mapping[str, np.ndarray], calls: int = 1) -> float:
        """Mean time of one inference with inputs and outputs on the GPU, by events."""
        placed = self._placed(feeds)
        self._call(placed)
        return _seconds(lambda: self._call(placed), calls)

    def _call(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            results: tuple[Tensor, ...] = self._module(*inputs)
        return results

    def _placed(self, feeds: Mapping[str, np.ndarray]) -> list[Tensor]:
        tensors = []
        for name in self._inputs:
            tensor = torch.from_numpy(np.ascontiguousarray(feeds[name])).to(self._device)
            if tensor.is_floating_point():
                tensor = tensor.to(self._dtype)
            if tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            tensors.append(tensor)
        return tensors


def _zeros(shape: tuple[int, ...] | None, dtype: str | None) -> np.ndarray:
    return np.zeros(shape or (), dtype or "float32")


class MatrixProduct:
    """``torch.matmul`` of two float16 matrices on the GPU, which is cuBLAS.

    Args:
        rows: of the first one.
        inner: columns of the first one.
        columns: of the second one.
    """

    def __init__(self, rows: int, inner: int, columns: int) -> None:
        self._left = torch.randn(rows, inner, dtype=torch.float16, device="cuda")
        self._right = torch.randn(inner, columns, dtype=torch.float16, device="cuda")
        self._result = torch.empty(rows, columns, dtype=torch.float16, device="cuda")

    def seconds_on_device(self, _: Mapping[str, np.ndarray], calls: int = 1) -> float:
        """Mean time of one product, by events."""
        return _seconds(lambda: torch.matmul(self._left, self._right, out=self._result), calls)


def _seconds(work: Callable[[], object], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / calls
