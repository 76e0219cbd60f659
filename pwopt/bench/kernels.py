"""Share of the machine's measured multiply-add peak that kernels reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pwopt import hardware

# (in_channels, out_channels, height, width); of each network those with the most work.
SHAPES = (
    # ResNet-50
    *((256, 1024, 14, 14), (1024, 256, 14, 14), (64, 256, 56, 56), (128, 512, 28, 28)),
    (512, 2048, 7, 7),
    # DenseNet-121
    *((256, 128, 56, 56), (1024, 512, 14, 14)),
    # Inception v1 and v2, SqueezeNet
    *((256, 128, 27, 27), (576, 128, 14, 14), (512, 1000, 13, 13)),
    # MobileNetV2
    *((96, 576, 14, 14), (160, 960, 7, 7)),
)
MIN_SHARE = 0.93
# Neither channels nor pixels are multiples of a register or a tile.
AWKWARD_SHAPES = (
    *((37, 53, 13, 13), (67, 101, 19, 11), (131, 29, 7, 7), (97, 190, 23, 23)),
    *((24, 144, 56, 56), (211, 83, 15, 17)),
)
MIN_AWKWARD_SHARE = 0.8
# 3x3 convolutions: ResNet-50's, VGG-19's largest, SqueezeNet's, DenseNet's.
WINOGRAD_SHAPES = (
    *((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)),
    *((64, 64, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14)),
    *((16, 64, 55), (64, 256, 13), (128, 32, 28), (128, 32, 14)),
)
ALGORITHMS = {"direct": 0, "F(2x2)": 2, "F(4x4)": 4}  # with the side of their output tiles


@dataclass(frozen=True)
class KernelRow:
    """One shape; see :class:`pwopt.targets.cpu.measure.KernelSpeed`.

    Attributes:
        goal: what share of the peak it should reach.
    """

    shape: str
    gflops: float
    peak_gflops: float
    share: float
    goal: float = MIN_SHARE

    @property
    def passed(self) -> bool:
        return self.share >= self.goal


@dataclass(frozen=True)
class WinogradRow:
    """A 3x3 convolution of stride 1, computed in several ways.

    Attributes:
        shape: e.g. "64->64 @56x56".
        gflops: by algorithm, counting the multiply-adds of the direct one.
        share: of the multiply-add peak, by algorithm; Winograd's exceed 1.
    """

    shape: str
    gflops: dict[str, float]
    share: dict[str, float]


def measure_kernels() -> Iterator[KernelRow]:
    """Measures :data:`SHAPES` and :data:`AWKWARD_SHAPES` on this machine, one thread."""
    from pwopt.targets.cpu.measure import Layer, measure_layers

    goals = [MIN_SHARE] * len(SHAPES) + [MIN_AWKWARD_SHARE] * len(AWKWARD_SHAPES)
    layers = [Layer(*shape) for shape in SHAPES + AWKWARD_SHAPES]
    for speed, goal in zip(measure_layers(layers, hardware.host()), goals, strict=True):
        yield KernelRow(speed.label, speed.gflops, speed.peak_gflops, speed.share, goal)


def measure_winograd() -> Iterator[WinogradRow]:
    """Measures :data:`WINOGRAD_SHAPES` on this machine, one thread."""
    from pwopt.targets.cpu.measure import Layer, measure_layers

    for inside, outside, side in WINOGRAD_SHAPES:
        layers = [Layer(inside, outside, side, side, size=3, m=m) for m in ALGORITHMS.values()]
        speeds = dict(zip(ALGORITHMS, measure_layers(layers, hardware.host(), 15), strict=True))
        yield WinogradRow(
            layers[0].label,
            {name: speed.gflops for name, speed in speeds.items()},
            {name: speed.share for name, speed in speeds.items()},
        )
