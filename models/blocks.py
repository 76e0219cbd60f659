"""Small graphs of the kinds that convolutional networks are made of, at any size.

Each function returns a checked model with one input ``input`` (NCHW) and seeded weights. Tests use
them in place of whole networks; :data:`BLOCKS` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from pwopt.models import branching, residual
from pwopt.models.builder import ModelBuilder, Value


def pointwise(
    channels: int = 16,
    out_channels: int = 24,
    size: int = 7,
    *,
    batch: int = 1,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
    seed: int = 0,
) -> onnx.ModelProto:
    """One 1x1 convolution and nothing else."""
    b = ModelBuilder("pointwise", seed)
    x = b.input((batch, channels, size, size))
    return b.build(b.conv(x, out_channels, stride=stride, groups=groups, bias=bias))


def bottleneck(
    channels: int = 16,
    width: int = 8,
    size: int = 8,
    *,
    stride: int = 1,
    stride_on: str = "3x3",
    project: bool = False,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """ResNet: 1x1, 3x3, 1x1 with BN, and a shortcut (a strided 1x1 where sizes change)."""
    b = ModelBuilder("bottleneck", seed)
    x = b.input((batch, channels, size, size))
    project = project or stride > 1
    out_channels = 2 * channels if project else channels
    y = residual.bottleneck_block(
        *(b, x, width, out_channels),
        stride=stride,
        stride_on=stride_on,
        project=project,
        batch_norm=batch_norm,
    )
    return b.build(y)


def inverted_residual(
    channels: int = 8,
    expand: int = 6,
    size: int = 8,
    *,
    stride: int = 1,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """MobileNetV2: 1x1 expansion, depthwise 3x3, linear 1x1, ReLU6, residual at stride 1."""
    b = ModelBuilder("inverted_residual", seed)
    x = b.input((batch, channels, size, size))
    y = residual.inverted_residual_block(
        *(b, x, expand, channels), stride=stride, batch_norm=batch_norm
    )
    return b.build(y)


def depthwise_separable(
    channels: int = 16,
    out_channels: int = 24,
    size: int = 8,
    *,
    stride: int = 1,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """MobileNet v1: depthwise 3x3 and 1x1, BN and ReLU after each."""
    b = ModelBuilder("depthwise_separable", seed)
    x = b.input((batch, channels, size, size))
    x = b.conv_norm(x, channels, 3, groups=channels, stride=stride, batch_norm=batch_norm)
    return b.build(b.conv_norm(x, out_channels, batch_norm=batch_norm))


def inception(
    channels: int = 24,
    width: int = 8,
    size: int = 9,
    *,
    batch_norm: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """GoogLeNet: four branches, three of which begin with a 1x1 on the same tensor."""
    b = ModelBuilder("inception", seed)
    x = b.input((batch, channels, size, size))
    widths = (2 * width, width, 2 * width, width // 2, width, width)
    return b.build(branching.inception_module(b, x, widths, batch_norm))


def fire(
    channels: int = 16,
    squeeze: int = 4,
    size: int = 9,
    *,
    batch_norm: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """SqueezeNet: a squeezing 1x1, then 1x1 and 3x3 side by side."""
    b = ModelBuilder("fire", seed)
    x = b.input((batch, channels, size, size))
    return b.build(branching.fire_module(b, x, squeeze, batch_norm))


def squeeze_excite(
    channels: int = 16,
    reduced: int = 4,
    size: int = 7,
    *,
    hard: bool = False,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """A 1x1 whose result is scaled per channel by a gate computed from its own mean."""
    b = ModelBuilder("squeeze_excite", seed)
    x = b.relu(b.conv(b.input((batch, channels, size, size)), channels))
    return b.build(residual.channel_attention(b, x, reduced, hard))


def dense_block(
    channels: int = 16,
    growth: int = 8,
    layers: int = 3,
    size: int = 8,
    *,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """DenseNet: BN-ReLU-1x1-BN-ReLU-3x3 layers on a growing concat, then the transition."""
    b = ModelBuilder("dense_block", seed)
    x = b.input((batch, channels, size, size))
    x = branching.dense_layers(b, x, growth, layers, batch_norm)
    return b.build(branching.transition(b, x, batch_norm))


def dense_transition(
    channels: int = 24,
    size: int = 8,
    *,
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """DenseNet: BN-ReLU, a 1x1 to half the channels, a mean pool."""
    b = ModelBuilder("dense_transition", seed)
    x = b.input((batch, channels, size, size))
    return b.build(branching.transition(b, x, batch_norm))


def fpn_head(
    channels: int = 8,
    width: int = 12,
    size: int = 16,
    *,
    scales: int = 3,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Feature pyramid: lateral 1x1s on each scale, added to the upsampled coarser one."""
    b = ModelBuilder("fpn_head", seed)
    maps = [b.input((batch, channels, size, size))]
    for scale in range(1, scales):
        maps.append(b.relu(b.conv(maps[-1], channels << scale, 3, stride=2)))
    return b.build(*_pyramid(b, maps, width))


def resnet_fpn(
    width: int = 8,
    depths: Sequence[int] = (1, 1, 1, 1),
    size: int = 64,
    *,
    pyramid: int = 12,
    stride_on: str = "3x3",
    batch_norm: bool = True,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """ResNet of bottlenecks with a feature pyramid on its four scales.

    ``width=64, depths=(3, 4, 6, 3), size=224, pyramid=256`` is the one on ResNet-50 that detectors
    use.
    """
    b = ModelBuilder("resnet_fpn", seed)
    x = branching.stem_of(b, b.input((batch, 3, size, size)), width, 4, batch_norm)
    stages = residual.resnet_stages(
        *(b, x, width, depths), stride_on=stride_on, batch_norm=batch_norm
    )
    return b.build(*_pyramid(b, stages, pyramid))


def _pyramid(b: ModelBuilder, scales: Sequence[Value], width: int) -> list[Value]:
    """Laterals on each scale, the finest first, the coarser one's upsampled and added."""
    top: Value | None = None
    outputs = []
    for scale in reversed(scales):
        lateral = b.conv(scale, width, gain=1.0)
        if top is not None:
            factors = b.constant([1.0, 1.0, 2.0, 2.0])
            up = b.op(
                *("Resize", top, "", factors),
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            lateral = b.op("Add", lateral, up)
        top = lateral
        outputs.append(b.conv(top, width, 3, gain=1.0))
    return outputs


def mlpconv(
    channels: int = 3,
    width: int = 16,
    size: int = 11,
    *,
    classes: int = 10,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """Network in network: a 5x5 and two 1x1s, then a 1x1 to classes and global pooling."""
    b = ModelBuilder("mlpconv", seed)
    x = b.input((batch, channels, size, size))
    x = b.relu(b.conv(x, width, 5))
    x = b.relu(b.conv(x, width))
    x = b.relu(b.conv(x, width))
    x = b.global_pool(b.conv(x, classes, gain=1.0))
    return b.build(b.op("Flatten", x, axis=1))


def fc_head(
    channels: int = 3,
    width: int = 8,
    size: int = 12,
    *,
    classes: int = 10,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """A small classifier with fully connected layers on a 3x3 map (at ``size=12``)."""
    b = ModelBuilder("fc_head", seed)
    x = b.input((batch, channels, size, size))
    x = b.pool(b.relu(b.conv(x, width, 3)), 2, 2)
    x = b.pool(b.relu(b.conv(x, 2 * width, 3)), 2, 2)
    x = b.relu(b.linear(x, 32, 2 * width * (size // 4) ** 2))
    return b.build(b.op("Softmax", b.linear(x, classes, gain=1.0), axis=-1))


def naive(
    channels: int = 3,
    width: int = 16,
    size: int = 16,
    *,
    classes: int = 10,
    batch: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """1x1 convolutions where maps are large: before mean pools, after upsampling, before the head.

    Four times the work of the same network with each of them on the other side.
    """
    b = ModelBuilder("naive", seed)
    x = b.relu(b.conv(b.input((batch, channels, size, size)), width, 3))
    for factor in (2, 4):
        x = b.relu(b.pool(b.conv(x, factor * width), 2, 2, kind="AveragePool"))
    for factor, mode in ((2, "nearest"), (1, "linear")):
        x = b.op("Resize", x, "", b.constant([1.0, 1.0, 2.0, 2.0]), mode=mode)
        x = b.relu(b.conv(x, factor * width))
    x = b.global_pool(b.conv(x, classes, gain=1.0))
    return b.build(b.op("Flatten", x, axis=1))


def chain(
    length: int = 1000, channels: int = 8, size: int = 4, *, batch: int = 1, seed: int = 0
) -> onnx.ModelProto:
    """``length`` nodes (a multiple of four): repeated 1x1, BN, residual Add, ReLU6."""
    b = ModelBuilder("chain", seed)
    x = b.input((batch, channels, size, size))
    for _ in range(length // 4):
        y = b.batch_norm(b.conv(x, channels, bias=False), scale=0.05)
        x = b.clip(b.op("Add", x, y))
    return b.build(x)


def wide(
    length: int = 100, channels: int = 4, size: int = 2, *, batch: int = 1, seed: int = 0
) -> onnx.ModelProto:
    """About ``length`` nodes (a multiple of ten), one in ten of which begins a branch.

    All branches read one value, each one more result of one Split, and all end in one Concat.
    """
    b = ModelBuilder("wide", seed)
    x = b.input((batch, channels, size, size))
    shared, branches = b.relu(b.conv(x, channels, 3)), []
    for part in b.split(b.conv(x, length // 10), [1] * (length // 10)):
        y = b.relu(b.batch_norm(b.conv(part, channels, 3, bias=False)))
        z = b.clip(b.batch_norm(b.conv(shared, channels, 3, bias=False)))
        branches.append(b.op("Sigmoid", b.conv(b.relu(b.op("Add", y, z)), channels)))
    return b.build(b.conv(b.concat(*branches), channels))


BLOCKS: dict[str, Callable[..., onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        *(pointwise, bottleneck, inverted_residual, depthwise_separable, inception, fire),
        *(squeeze_excite, dense_block, dense_transition, fpn_head, resnet_fpn),
        *(mlpconv, fc_head, naive, chain, wide),
    )
}
