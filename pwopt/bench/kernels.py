"""Share of the machine's measured multiply-add peak that kernels reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pwopt import hardware

# ResNet-50's four stages: (in_channels, out_channels, side of the map).
SHAPES = ((64, 256, 56), (128, 512, 28), (1024, 256, 14), (512, 2048, 7))
MIN_SHARE = 0.9
# 3x3 convolutions: ResNet-50's, VGG-19's largest, SqueezeNet's, DenseNet's.
WINOGRAD_SHAPES = (
    *((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)),
    *((64, 64, 112), (256, 256, 56), (512, 512, 28), (512, 512, 14)),
    *((16, 64, 55), (64, 256, 13), (128, 32, 28), (128, 32, 14)),
)
ALGORITHMS = {"direct": 0, "F(2x2)": 2, "F(4x4)": 4}  # with the side of their output tiles


@dataclass(frozen=True)
class KernelRow:
    """One shape; see :class:`pwopt.targets.cpu.measure.KernelSpeed`."""

    shape: str
    gflops: float
    peak_gflops: float
    share: float

    @property
    def passed(self) -> bool:
        return self.share >= MIN_SHARE


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
    """Measures :data:`SHAPES` on this machine, one thread."""
    from pwopt.targets.cpu.measure import Layer, measure_layers

    for speed in measure_layers([Layer(*shape) for shape in SHAPES], hardware.host()):
        yield KernelRow(speed.label, speed.gflops, speed.peak_gflops, speed.share)


def measure_winograd() -> Iterator[WinogradRow]:
    """Measures :data:`WINOGRAD_SHAPES` on this machine, one thread."""
    from pwopt.targets.cpu.measure import Layer, measure_layers

    for shape in WINOGRAD_SHAPES:
        layers = [Layer(*shape, size=3, m=m) for m in ALGORITHMS.values()]
        speeds = dict(zip(ALGORITHMS, measure_layers(layers, hardware.host(), 15), strict=True))
        yield WinogradRow(
            layers[0].label,
            {name: speed.gflops for name, speed in speeds.items()},
            {name: speed.share for name, speed in speeds.items()},
        )
