"""Models in the objects of other libraries, as ONNX. None of these libraries is imported here."""

from __future__ import annotations

import sys
from typing import Any

from onnx import ModelProto, TensorProto

from pwopt.errors import FrontendError
from pwopt.frontend.inference import one_line


def converted(model: Any) -> Any:
    """A model as what pwopt reads: a path, bytes or a ``ModelProto``; whatever is none stays.

    Args:
        model: also an ``onnx_ir.Model``, a ``torch.onnx.ONNXProgram``, a
            ``torch.export.ExportedProgram`` (which PyTorch exports, by way of onnxscript), or
            anything that looks like bytes. It is not changed.

    Raises:
        FrontendError: PyTorch cannot export the program, or it is a module that was not traced.
    """
    if isinstance(model, bytearray | memoryview):
        return bytes(model)
    kinds = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in type(model).__mro__}
    if "torch.Module" in kinds:
        raise FrontendError(
            f"a PyTorch module ({type(model).__name__}) is no graph yet; give "
            "torch.export.export(module.eval(), (example,))"
        )
    if "torch.ExportedProgram" in kinds:
        model = _exported(model)
    if "torch.ExportedProgram" in kinds or "torch.ONNXProgram" in kinds:
        model, kinds = model.model, {"onnx_ir.Model"}
    return _from_onnx_ir(model) if "onnx_ir.Model" in kinds else model


def _exported(program: Any) -> Any:
    try:
        return sys.modules["torch"].onnx.export(program, dynamo=True, verbose=False)
    except ImportError as error:
        raise FrontendError(
            f"PyTorch exports programs by way of onnxscript: pip install onnxscript ({error})"
        ) from error
    except Exception as error:  # of many classes
        raise FrontendError(f"PyTorch cannot export the program: {one_line(error)}") from error


def _from_onnx_ir(model: Any) -> ModelProto:
    proto: ModelProto = sys.modules["onnx_ir"].to_proto(model)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:  # a file that only the object knows
            tensor.raw_data = model.graph.initializers[tensor.name].const_value.tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return proto
