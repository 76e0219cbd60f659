"""Networks whose blocks add to what they read: ResNet, SE-ResNet, MobileNet v2.

Every function returns a checked model: ``input`` (batch, channels, size, size) -> logits (batch,
classes), with seeded weights. ``stem`` says by how much the first layers shrink the map.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx

from pwopt.errors import UsageError
from pwopt.models.branching import stem_of
from pwopt.models.builder import ModelBuilder, Value

STRIDE_PLACES = ("3x3", "1x1")


def bottleneck_block(
    b: ModelBuilder,
    x: Value,
    width: int,
    out_channels: int,
    *,
    stride: int = 1,
    stride_on: str = "3x3",
    project: bool | None = None,
    reduction: int = 0,
    batch_norm: bool = True,
) -> Value:
    """ResNet's 1x1, 3x3, 1x1 beside a shortcut.

    Args:
        b: of the network.
        x: input.
        width: of the 3x3.
        out_channels: of the block.
        stride: of the block.
        stride_on: ``1x1``, the first one (He et al. 2015), or ``3x3`` (as torchvision has it).
        project: whether a 1x1 is the shortcut; None where sizes change.
        reduction: above 0, a squeeze-excite of this reduction scales the result (Hu et al. 2018).
        batch_norm: after every convolution.

    Raises:
        UsageError: ``stride_on`` is neither.
    """
    if stride_on not in STRIDE_PLACES:
        raise UsageError(f"stride_on {stride_on!r}: one of {', '.join(STRIDE_PLACES)}")
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    y = b.conv_norm(x, width, stride=first, batch_norm=batch_norm)
    y = b.conv_norm(y, width, 3, stride=second, batch_norm=batch_norm)
    y = b.conv_norm(y, out_channels, activation=None, scale=0.5, batch_norm=batch_norm)
    if reduction:
        y = channel_attention(b, y, out_channels // reduction)
    changes = stride > 1 or b.channels[x] != out_channels
    if changes if project is None else project:
        linear = functools.partial(b.conv_norm, activation=None, scale=0.7, batch_norm=batch_norm)
        x = linear(x, out_channels, stride=stride)
    return b.relu(b.op("Add", y, x))


def channel_attention(b: ModelBuilder, x: Value, reduced: int, hard: bool = False) -> Value:
    """Squeeze-excite: scales channels by a gate, two 1x1s and a sigmoid on the map's mean."""
    gate = b.relu(b.conv(b.global_pool(x), reduced))
    gate = b.conv(gate, b.channels[x], gain=1.0)
    gate = b.op("HardSigmoid", gate, alpha=0.2, beta=0.5) if hard else b.op("Sigmoid", gate)
    return b.op("Mul", x, gate)


def resnet_stages(
    b: ModelBuilder,
    x: Value,
    width: int,
    depths: Sequence[int],
    *,
    stride_on: str = "3x3",
    reduction: int = 0,
    batch_norm: bool = True,
) -> list[Value]:
    """The last value of each stage of bottlenecks; every stage but the first halves the map."""
    stages = []
    for stage, depth in enumerate(depths):
        hidden = width << stage
        for block in range(depth):
            x = bottleneck_block(
                *(b, x, hidden, 4 * hidden),
                stride=2 if stage and not block else 1,
                stride_on=stride_on,
                project=not block,
                reduction=reduction,
                batch_norm=batch_norm,
            )
        stages.append(x)
    return stages


def resnet(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    stem: int = 4,
    stride_on: str = "3x3",
    reduction: int = 0,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """ResNet of bottlenecks, 50 layers deep with the default ``depths``.

    Args:
        size: of the input.
        classes: number of logits.
        channels: of the input.
        width: of the first stage's 3x3s; doubles with every stage.
        depths: blocks of each stage.
        stem: stride of the first layers: 4, 2 or 1.
        stride_on: ``3x3`` or ``1x1``, see :func:`bottleneck_block`.
        reduction: of the blocks' squeeze-excites, 0 for none.
        batch_norm: after every convolution.
        batch: number of images.
        seed: of the weights.
    """
    b = ModelBuilder("se_resnet" if reduction else "resnet", seed)
    x = stem_of(b, b.input((batch, channels, size, size)), width, stem, batch_norm)
    stages = resnet_stages(
        *(b, x, width, depths), stride_on=stride_on, reduction=reduction, batch_norm=batch_norm
    )
    return b.build(b.classifier(stages[-1], classes))


def inverted_residual_block(
    b: ModelBuilder,
    x: Value,
    expand: int,
    out_channels: int,
    *,
    stride: int = 1,
    batch_norm: bool = True,
) -> Value:
    """MobileNet v2: 1x1 expansion, depthwise 3x3, linear 1x1; adds where sizes stay."""
    hidden, y = b.channels[x] * expand, x
    clipped = functools.partial(b.conv_norm, activation="Clip", batch_norm=batch_norm)
    if expand > 1:
        y = clipped(y, hidden)
    y = clipped(y, hidden, 3, stride=stride, groups=hidden)
    y = b.conv_norm(y, out_channels, activation=None, batch_norm=batch_norm)
    return b.op("Add", x, y) if stride == 1 and b.channels[x] == out_channels else y


# Sandler et al. 2018, table 2: channels and stride by stage; the first does not expand.
_STAGES = ((16, 1), (24, 2), (32, 2), (64, 2), (96, 1), (160, 2), (320, 1))


def mobilenet_v2(
    size: int = 224,
    classes: int = 1000,
    *,
    channels: int = 3,
    width: float = 1.0,
    depths: Sequence[int] = (1, 2, 3, 4, 3, 3, 1),
    stem: int = 2,
    head: int = 1280,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """MobileNet v2: inverted residuals, ReLU6 (Sandler et al. 2018), with seeded weights.

    :mod:`pwopt.models.mobilenet` has it with those of ImageNet.

    Args:
        size: of the input.
        classes: number of logits.
        channels: of the input.
        width: factor of all channels but the last's.
        depths: blocks of each stage, at most seven stages.
        stem: stride of the first convolution.
        head: channels of the last 1x1.
        batch_norm: after every convolution.
        batch: number of images.
        seed: of the weights.
    """
    b = ModelBuilder("mobilenet_v2", seed)
    x = b.input((batch, channels, size, size))

    def scaled(each: int) -> int:
        return max(8, round(each * width / 8) * 8)

    clipped = functools.partial(b.conv_norm, activation="Clip", batch_norm=batch_norm)
    x = clipped(x, scaled(32), 3, stride=stem)
    for stage, (depth, (each, stride)) in enumerate(zip(depths, _STAGES, strict=False)):
        for block in range(depth):
            x = inverted_residual_block(
                *(b, x, 6 if stage else 1, scaled(each)),
                stride=1 if block else stride,
                batch_norm=batch_norm,
            )
    return b.build(b.classifier(clipped(x, head), classes))
