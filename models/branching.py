"""Networks whose layers meet in concatenations: GoogLeNet, SqueezeNet, DenseNet.

Every function returns a checked model: ``input`` (batch, channels, size, size) -> logits (batch,
classes), with seeded weights. ``stem`` says by how much the first layers shrink the map: 4 as in
the papers, for photos; 1 or 2 for small pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from pwopt.errors import UsageError
from pwopt.models.builder import ModelBuilder, Value

STEMS = (1, 2, 4)

# Szegedy et al. 2015, table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection.
_INCEPTION = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def stem_of(b: ModelBuilder, x: Value, width: int, stem: int, batch_norm: bool) -> Value:
    """First layers: 7x7 and max pool for 4, a 3x3 of stride 2 or 1 for these.

    Raises:
        UsageError: ``stem`` is none of them.
    """
    _check_stem(stem)
    if stem == 4:
        return b.pool(b.conv_norm(x, width, 7, stride=2, batch_norm=batch_norm), 3, 2, 1)
    return b.conv_norm(x, width, 3, stride=stem, batch_norm=batch_norm)


def _check_stem(stem: int) -> None:
    if stem not in STEMS:
        raise UsageError(f"stem={stem}: one of {', '.join(map(str, STEMS))}")


def inception_module(
    b: ModelBuilder, x: Value, widths: Sequence[int], batch_norm: bool = False
) -> Value:
    """Four branches side by side: 1x1; 1x1 and 3x3; 1x1 and 5x5; max pool and 1x1.

    Args:
        b: of the network.
        x: input.
        widths: of 1x1; 3x3's reduction, 3x3; 5x5's reduction, 5x5; pool's projection.
        batch_norm: after every convolution.
    """
    one, reduce3, three, reduce5, five, projection = widths
    first = b.conv_norm(x, one, batch_norm=batch_norm)
    y = b.conv_norm(x, reduce3, batch_norm=batch_norm)
    second = b.conv_norm(y, three, 3, batch_norm=batch_norm)
    y = b.conv_norm(x, reduce5, batch_norm=batch_norm)
    third = b.conv_norm(y, five, 5, batch_norm=batch_norm)
    last = b.conv_norm(b.pool(x, 3, 1, 1), projection, batch_norm=batch_norm)
    return b.concat(first, second, third, last)


def googlenet(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    width: float = 1.0,
    modules: Sequence[int] = (2, 5, 2),
    stem: int = 4,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """GoogLeNet: Inception modules in three stages (without LRN and auxiliary classifiers).

    Args:
        size: of the input.
        classes: number of logits.
        channels: of the input.
        width: factor of all channels, the paper's at 1.
        modules: how many of each stage's modules, at most (2, 5, 2).
        stem: stride of the first layers.
        batch_norm: after every convolution.
        batch: number of images.
        seed: of the weights.
    """
    b = ModelBuilder("googlenet", seed)

    def scaled(each: int) -> int:
        return max(4, round(each * width / 4) * 4)

    x = stem_of(b, b.input((batch, channels, size, size)), scaled(64), stem, batch_norm)
    x = b.conv_norm(x, scaled(64), batch_norm=batch_norm)
    x = b.conv_norm(x, scaled(192), 3, batch_norm=batch_norm)
    for table, count in zip(_INCEPTION, modules, strict=True):
        if count:
            x = b.pool(x, 3, 2, 1)
        for widths in table[:count]:
            x = inception_module(b, x, [scaled(each) for each in widths], batch_norm)
    return b.build(b.classifier(x, classes))


def fire_module(b: ModelBuilder, x: Value, squeeze: int, batch_norm: bool = False) -> Value:
    """A squeezing 1x1, then 1x1 and 3x3 side by side, each of four times its width."""
    y = b.conv_norm(x, squeeze, batch_norm=batch_norm)
    one = b.conv_norm(y, 4 * squeeze, batch_norm=batch_norm)
    return b.concat(one, b.conv_norm(y, 4 * squeeze, 3, batch_norm=batch_norm))


def squeezenet_v1_1(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    width: float = 1.0,
    stem: int = 4,
    batch_norm: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """SqueezeNet 1.1: eight fire modules, a 1x1 to classes, global mean (Iandola et al. 2016)."""
    _check_stem(stem)
    b = ModelBuilder("squeezenet_v1_1", seed)
    x = b.input((batch, channels, size, size))
    x = b.conv_norm(x, round(64 * width), 3, stride=min(stem, 2), batch_norm=batch_norm)
    if stem == 4:
        x = b.pool(x, 3, 2, 1)
    for index, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if index in (2, 4):
            x = b.pool(x, 3, 2, 1)
        x = fire_module(b, x, max(4, round(squeeze * width / 4) * 4), batch_norm)
    x = b.global_pool(b.relu(b.conv(x, classes)))
    return b.build(b.op("Flatten", x, axis=1))


def dense_layers(b: ModelBuilder, x: Value, growth: int, count: int, batch_norm: bool) -> Value:
    """Layers of BN-ReLU-1x1-BN-ReLU-3x3, each concatenated to what it has read."""
    for _ in range(count):
        y = b.relu(b.batch_norm(x)) if batch_norm else x
        y = b.conv_norm(y, 4 * growth, batch_norm=batch_norm)
        y = b.conv(y, growth, 3, bias=not batch_norm)
        x = b.concat(x, y if batch_norm else b.relu(y))
    return x


def transition(b: ModelBuilder, x: Value, batch_norm: bool) -> Value:
    """DenseNet's: BN-ReLU, a 1x1 to half the channels, a mean pool."""
    y = b.relu(b.batch_norm(x)) if batch_norm else x
    y = b.conv(y, b.channels[x] // 2, bias=not batch_norm)
    return b.pool(y, 2, 2, kind="AveragePool")


def densenet(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    growth: int = 32,
    depths: Sequence[int] = (6, 12, 24, 16),
    stem: int = 4,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """DenseNet-BC, 121 layers deep with the default ``depths`` (Huang et al. 2017)."""
    b = ModelBuilder("densenet", seed)
    x = b.input((batch, channels, size, size))
    x = stem_of(b, x, 2 * growth, stem, batch_norm)
    for stage, depth in enumerate(depths):
        if stage:
            x = transition(b, x, batch_norm)
        x = dense_layers(b, x, growth, depth, batch_norm)
    x = b.relu(b.batch_norm(x)) if batch_norm else x
    return b.build(b.classifier(x, classes))
