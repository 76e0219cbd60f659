"""The walk over output pixels that the matrix kernels share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pwopt.targets.cpu.codegen import View
from pwopt.targets.cpu.kernels.microkernel import Reduction, Span, balanced, merged
from pwopt.targets.windows import Window


@dataclass(frozen=True)
class PixelDim:
    """One dimension of the output pixels and the steps it takes in x, y and the extras."""

    extent: int
    strides: tuple[int, ...]

    def continues(self, inner: PixelDim) -> bool:
        """Whether this dimension goes on where ``inner`` ends, in every operand."""
        return self.strides == tuple(inner.extent * s for s in inner.strides)


@dataclass(frozen=True)
class PixelTiling:
    """Output pixels cut into tiles: ``outer`` loops, blocks of ``split``, whole ``row``s inside."""

    outer: tuple[PixelDim, ...]
    split: PixelDim
    row: PixelDim
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Geometry:
    """A convolution's sizes and strides, without its tiling.

    Attributes:
        x, y, extras: the operands as (N, H, W, C).
        window, groups: of the convolution.
        lanes: elements of a vector.
    """

    x: View
    y: View
    extras: tuple[View, ...]
    window: Window
    groups: int
    lanes: int

    def __str__(self) -> str:
        """Everything that decides how fast a schedule is; the name of a kernel when it is tuned."""
        views = ", ".join(
            f"{v.dtype} {v.shape}/{v.strides}" for v in (self.x, self.y, *self.extras)
        )
        return f"{views}, {self.window}, {self.groups} groups, {self.lanes} lanes"

    @property
    def in_channels(self) -> int:
        """Input channels of a group."""
        return self.x.shape[3] // self.groups

    @property
    def out_channels(self) -> int:
        """Output channels of a group."""
        return self.y.shape[3] // self.groups

    @property
    def vectors(self) -> int:
        """Vectors of output channels of a group, the last one perhaps partial."""
        return -(-self.out_channels // self.lanes)

    @property
    def steps(self) -> int:
        """Length of the reduction."""
        return self.window.kernel[0] * self.window.kernel[1] * self.in_channels

    @cached_property
    def pixel_dims(self) -> tuple[PixelDim, ...]:
        """The output's N, H, W in as few dimensions as the strides allow, at least one."""
        operands = (self.y, *self.extras)
        dims: list[PixelDim] = []
        for d, step in enumerate((1, *self.window.strides)):
            strides = (self.x.strides[d] * step, *(view.strides[d] for view in operands))
            dim = PixelDim(self.y.shape[d], strides)
            if dim.extent == 1:
                continue
            if dims and dims[-1].continues(dim):
                dims[-1] = PixelDim(dims[-1].extent * dim.extent, strides)
            else:
                dims.append(dim)
        return tuple(dims) or (PixelDim(1, (0,) * (1 + len(operands))),)

    @cached_property
    def reduction(self) -> tuple[Reduction, ...]:
        """The walk over KH, KW, IC through the input."""
        _, row, column, channel = self.x.strides
        (height, width), (down, right) = self.window.kernel, self.window.dilations
        return merged(
            Reduction(height, row * down),
            Reduction(width, column * right),
            Reduction(self.in_channels, channel),
        )

    def pixel_tiling(self, limit: int) -> PixelTiling:
        """Tiles of at most ``limit`` pixels; short rows are taken several at a time."""
        dims = self.pixel_dims
        rows = limit // dims[-1].extent
        if len(dims) > 1 and rows > 1:
            return PixelTiling(dims[:-2], dims[-2], dims[-1], balanced(dims[-2].extent, rows))
        one = PixelDim(1, (0,) * len(dims[-1].strides))
        return PixelTiling(dims[:-1], dims[-1], one, balanced(dims[-1].extent, limit))

    def panels(self, limit: int) -> tuple[Span, ...]:
        """Panels of at most ``limit`` vectors; one with a partial last vector stands alone."""
        spans = balanced(self.vectors, limit)
        last = spans[-1]
        if self.out_channels % self.lanes and last.count > 1:
            tail = Span(last.end - last.size, 1, last.size)
            return (*spans[:-1], Span(last.start, last.count - 1, last.size), tail)
        return spans
