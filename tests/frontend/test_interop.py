"""Models in the objects of other libraries: onnx-ir and PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pwopt
from pwopt import FrontendError
from pwopt.models import blocks

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
needs_onnx_ir = pytest.mark.skipif(
    importlib.util.find_spec("onnx_ir") is None, reason="onnx-ir is not installed"
)
needs_onnxscript = pytest.mark.skipif(
    torch is None or importlib.util.find_spec("onnxscript") is None,
    reason="PyTorch with onnxscript is not installed",
)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_looks_like_bytes(kind: Any) -> None:
    model = blocks.pointwise()
    graph = pwopt.optimize(kind(model.SerializeToString()), verify=False).graph
    assert str(graph) == str(pwopt.optimize(model, verify=False).graph)


@needs_onnx_ir
def test_onnx_ir_models(tmp_path: Path) -> None:
    import onnx_ir

    model = blocks.bottleneck()
    wanted = str(pwopt.load(model))
    assert str(pwopt.load(onnx_ir.from_proto(model))) == wanted
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    opened = onnx_ir.load(tmp_path / "m.onnx")
    assert str(pwopt.load(opened)) == wanted
    assert pwopt.optimize(opened).report.verification.status == "passed"


def network() -> Any:
    assert torch is not None
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 10),
    ).eval()


@needs_torch
def test_a_module_is_told_how_to_become_a_program() -> None:
    with pytest.raises(FrontendError, match=r"\(Sequential\).*torch\.export\.export\("):
        pwopt.load(network())


@needs_onnxscript
@pytest.mark.filterwarnings("ignore")  # PyTorch's own
def test_pytorch_programs() -> None:
    assert torch is not None
    module, x = network(), torch.randn(1, 3, 16, 16)
    program = torch.export.export(module, (x,))
    result = pwopt.optimize(program)
    assert result.report.verification.status == "passed"
    executable = pwopt.compile(program)
    (y,) = executable.run({executable.inputs[0].name: x.numpy()}).values()
    wanted = module(x).detach().numpy()
    assert np.abs(y - wanted).max() < 1e-5 * np.abs(wanted).max()
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert str(pwopt.load(exported)) == str(pwopt.load(program))
    assert pwopt.compare(program, executable, runs=1)["compiled"].error < 1e-4


@needs_torch
@pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is not None, reason="onnxscript is installed"
)
def test_a_program_without_onnxscript() -> None:
    assert torch is not None
    program = torch.export.export(network(), (torch.randn(1, 3, 16, 16),))
    with pytest.raises(FrontendError, match="pip install onnxscript"):
        pwopt.load(program)
