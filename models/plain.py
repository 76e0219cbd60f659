"""Networks without branches: plain CNNs, with a 1x1, Network in Network, LeNet, VGG, MobileNet v1.

Every function returns a checked model: ``input`` (batch, channels, size, size) -> logits (batch,
classes), with seeded weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from pwopt.models.builder import ModelBuilder, Value


def convnet(
    size: int = 28,
    classes: int = 10,
    *,
    channels: int = 1,
    width: int = 16,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Two 3x3 convolutions with an extra 1x1 and ReLU between them, global mean, FC."""
    b = ModelBuilder("convnet", seed)
    x = b.input((batch, channels, size, size))
    x = b.pool(b.conv_norm(x, width, 3, batch_norm=batch_norm), 2, 2)
    x = b.conv_norm(x, width, batch_norm=batch_norm)
    x = b.pool(b.conv_norm(x, 2 * width, 3, batch_norm=batch_norm), 2, 2)
    return b.build(b.classifier(x, classes))


def cnn(
    size: int = 28,
    classes: int = 10,
    *,
    channels: int = 1,
    widths: Sequence[int] = (32, 64, 64),
    kernel: int = 5,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Plain CNN: large kernels of stride 1, a max pool after each but the last, global mean, FC."""
    b = ModelBuilder("cnn", seed)
    x = b.input((batch, channels, size, size))
    for index, width in enumerate(widths):
        x = b.pool(x, 2, 2) if index else x
        x = b.conv_norm(x, width, kernel, batch_norm=batch_norm)
    return b.build(b.classifier(x, classes))


def nin(
    size: int = 32,
    classes: int = 10,
    *,
    channels: int = 3,
    width: int = 192,
    batch_norm: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Network in Network: mlpconvs (a kxk and two 1x1s), a 1x1 to classes, global mean.

    Lin et al. 2014, the CIFAR-10 network at ``width=192``.
    """
    b = ModelBuilder("nin", seed)
    x = b.input((batch, channels, size, size))

    def mlpconv(x: Value, kernel: int, *widths: int) -> Value:
        for index, each in enumerate(widths):
            x = b.conv_norm(x, each, 1 if index else kernel, batch_norm=batch_norm)
        return x

    x = b.pool(mlpconv(x, 5, width, width * 5 // 6, width // 2), 3, 2, 1)
    x = b.pool(mlpconv(x, 5, width, width, width), 3, 2, 1, kind="AveragePool")
    x = mlpconv(x, 3, width, width)
    x = b.global_pool(b.conv(x, classes, gain=1.0))
    return b.build(b.op("Flatten", x, axis=1))


def lenet(
    size: int = 28,
    classes: int = 10,
    *,
    channels: int = 1,
    width: int = 6,
    hidden: Sequence[int] = (120, 84),
    batch_norm: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """LeNet-5 with ReLU and max pools: two 5x5 convolutions, then FC layers on the map."""
    b = ModelBuilder("lenet", seed)
    x = b.input((batch, channels, size, size))
    for out_channels in (width, width * 8 // 3):
        x = b.pool(b.conv_norm(x, out_channels, 5, batch_norm=batch_norm), 2, 2)
    return b.build(_fully_connected(b, x, (size // 4) ** 2, hidden, classes))


def vgg(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    width: int = 64,
    depths: Sequence[int] = (2, 2, 4, 4, 4),
    hidden: Sequence[int] = (4096, 4096),
    batch_norm: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """VGG-19: stages of 3x3 convolutions, each ending in a max pool, then FC layers on the map.

    Args:
        size: of the input; every stage halves it.
        classes: number of logits.
        channels: of the input.
        width: of the first stage; doubles to at most its eightfold.
        depths: convolutions of each stage; ``(1, 1, 2, 2, 2)`` makes VGG-11.
        hidden: FC layers before the last; empty for the mean over the map instead of them.
        batch_norm: after every convolution.
        batch: number of images.
        seed: of the weights.
    """
    b = ModelBuilder("vgg", seed)
    x = b.input((batch, channels, size, size))
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            x = b.conv_norm(x, width << min(stage, 3), 3, batch_norm=batch_norm)
        if hidden or stage + 1 < len(depths):
            x = b.pool(x, 2, 2)
    if not hidden:
        return b.build(b.classifier(x, classes))
    return b.build(_fully_connected(b, x, (size >> len(depths)) ** 2, hidden, classes))


def mobilenet_v1(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    width: float = 1.0,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """MobileNet v1: depthwise 3x3 and 1x1 in turns (Howard et al. 2017, table 1)."""
    b = ModelBuilder("mobilenet_v1", seed)
    x = b.input((batch, channels, size, size))
    x = b.conv_norm(x, _scaled(32, width), 3, stride=2, batch_norm=batch_norm)
    strided = {2, 4, 6, 12}
    for block, each in enumerate((64, 128, 128, 256, 256, *[512] * 6, 1024, 1024), 1):
        groups, stride = b.channels[x], 2 if block in strided else 1
        x = b.conv_norm(x, groups, 3, groups=groups, stride=stride, batch_norm=batch_norm)
        x = b.conv_norm(x, _scaled(each, width), batch_norm=batch_norm)
    return b.build(b.classifier(x, classes))


def _fully_connected(
    b: ModelBuilder, x: Value, pixels: int, hidden: Sequence[int], classes: int
) -> Value:
    """FC layers on a map, a ReLU after each but the last."""
    features = b.channels[x] * pixels
    for out_features in hidden:
        x = b.relu(b.linear(x, out_features, features))
        features = out_features
    return b.linear(x, classes, features, gain=1.0)


def _scaled(channels: int, width: float) -> int:
    """Channels times a width multiplier, a multiple of eight."""
    return max(8, round(channels * width / 8) * 8)
