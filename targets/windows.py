"""Sliding windows of convolutions and pooling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A sliding window: what a convolution reads for one output pixel.

    Attributes:
        kernel, strides, dilations: (height, width).
        pads: rows above and columns left of the image; the rest follows from the output's size.
    """

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PoolAxis:
    """One spatial axis of a pooling window.

    Attributes:
        size: taps.
        stride, dilation, begin, end: in elements; begin and end are the paddings.
    """

    size: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    end: int = 0

    def taps(self, position: int, extent: int) -> tuple[int, int]:
        """The taps of output ``position`` that lie inside ``extent`` elements: (first, end)."""
        start = position * self.stride - self.begin
        first = max(0, -(start // self.dilation))
        end = min(self.size, -(-(extent - start) // self.dilation))
        return first, max(first, end)

    def counted(self, position: int, extent: int) -> int:
        """Taps inside the tensor and its padding, which count_include_pad divides by."""
        start = position * self.stride - self.begin
        end = min(start + self.size * self.dilation, extent + self.end)
        return 1 + (end - start - 1) // self.dilation
