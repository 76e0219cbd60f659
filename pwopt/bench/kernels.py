"""Share of the machine's measured multiply-add peak that the pointwise kernels reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pwopt import hardware

# ResNet-50's four stages: (in_channels, out_channels, side of the map).
SHAPES = ((64, 256, 56), (128, 512, 28), (1024, 256, 14), (512, 2048, 7))
MIN_SHARE = 0.9


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


def measure_kernels() -> Iterator[KernelRow]:
    """Measures :data:`SHAPES` on this machine, one thread."""
    from pwopt.targets.cpu.measure import measure_pointwise

    for speed in measure_pointwise(SHAPES, hardware.host()):
        yield KernelRow(speed.label, speed.gflops, speed.peak_gflops, speed.share)
