"""A convolution as a matrix product: its pixels, its walk over the reduction, its alignments.

Rows are output pixels, columns output channels. The reduction walks *chunks* of 16 bytes that are
contiguous in the channels-last input: taps outermost, the channels of one group inside. Where a
pixel takes less than 16 bytes and pixels are dense (the first layer's image), a whole row of the
window counts as one tap, with pixels in front of the window where that aligns the chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from pwopt.errors import CodegenError
from pwopt.targets.cuda.codegen import WIDEST, Expr
from pwopt.targets.views import View
from pwopt.targets.windows import Window

_MERGED_CHANNELS = 32  # groups are computed together up to so many output channels
_MAX_OFFSET = 2**31


@dataclass(frozen=True)
class Geometry:
    """Sizes and layouts of a convolution.

    Attributes:
        x, y: input and output as (N, H, W, C); channels of x are contiguous. Channels that pad
            a pixel to 16 bytes may hold anything; a pixel of less than 16 bytes has no others than
            the shape says.
        extras: further operands of the epilogue, broadcast to the shape of y.
        window: what an output pixel reads.
        groups: of channels.
    """

    x: View
    y: View
    extras: tuple[View, ...] = ()
    window: Window = Window()  # noqa: RUF009 - frozen
    groups: int = 1

    def __post_init__(self) -> None:
        if self.x.shape[3] != 1 and self.x.strides[3] != 1:
            raise CodegenError("a convolution's input has its channels apart")
        if self.align < 4:
            raise CodegenError(f"a convolution's input is aligned to {self.align} bytes only")
        for view in (self.x, self.y, *self.extras):
            last = view.offset + sum(
                (e - 1) * s for e, s in zip(view.shape, view.strides, strict=True)
            )
            if last >= _MAX_OFFSET:
                raise CodegenError(f"an operand of a convolution spans {last} elements")

    def __str__(self) -> str:
        """Everything that decides how fast a schedule is; the name of a kernel when it is tuned."""
        views = ", ".join(
            f"{v.dtype} {v.shape}/{v.strides}" for v in (self.x, self.y, *self.extras)
        )
        return f"{views}, {self.window}, {self.groups} groups"

    # -- channels -------------------------------------------------------------------------------

    @cached_property
    def merged(self) -> int:
        """Groups that are computed as one, with zeros between them.

        Tensor cores are wasted on few channels anyway, and a group starts at a multiple of 16
        bytes.
        """
        outputs = self.y.shape[3] // self.groups
        inputs = self.x.shape[3] // self.groups * self.x.itemsize
        for count in range(1, self.groups + 1):
            if self.groups % count == 0 and (
                count == self.groups
                or (count * outputs >= _MERGED_CHANNELS and count * inputs % WIDEST == 0)
            ):
                return count
        return 1

    @property
    def parts(self) -> int:
        """Groups after merging."""
        return self.groups // self.merged

    @property
    def in_channels(self) -> int:
        """Input channels of a merged group."""
        return self.x.shape[3] // self.parts

    @property
    def out_channels(self) -> int:
        """Output channels of a merged group."""
        return self.y.shape[3] // self.parts

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return math.prod(self.y.shape[:3])

    @property
    def macs(self) -> int:
        """Multiply-adds that the model asks for."""
        kernel = math.prod(self.window.kernel)
        return self.pixels * self.y.shape[3] * kernel * self.x.shape[3] // self.groups

    # -- the reduction --------------------------------------------------------------------------

    @property
    def chunk(self) -> int:
        """Elements of 16 bytes of the input."""
        return WIDEST // self.x.itemsize

    @cached_property
    def by_rows(self) -> bool:
        """Whether a row of the window is one tap."""
        pixel = self.x.shape[3] * self.x.itemsize
        return (
            pixel in (4, 8)
            and self.x.strides[2] == self.x.shape[3]
            and self.parts == 1
            and self.window.dilations[1] == 1
        )

    @property
    def lead(self) -> int:
        """Pixels that a row starts left of the window, for alignment."""
        if not self.by_rows:
            return 0
        per_chunk = self.chunk // self.x.shape[3]
        return -self.window.pads[1] % per_chunk

    @property
    def taps(self) -> tuple[int, int]:
        """Taps down and right."""
        height, width = self.window.kernel
        return (height, 1) if self.by_rows else (height, width)

    @property
    def tap_elements(self) -> int:
        """Contiguous elements of one tap, zero weights in front included."""
        if self.by_rows:
            return (self.lead + self.window.kernel[1]) * self.x.shape[3]
        return self.in_channels

    @property
    def tap_chunks(self) -> int:
        """Chunks of one tap, the last one perhaps partial."""
        return -(-self.tap_elements // self.chunk)

    @property
    def chunks(self) -> int:
        """Chunks of the whole reduction."""
        return math.prod(self.taps) * self.tap_chunks

    # -- alignment ------------------------------------------------------------------------------

    @cached_property
    def align(self) -> int:
        """Bytes that the start of every chunk is a multiple of; one copy's width."""
        x, size = self.x, self.x.itemsize
        steps = [x.offset, *(s for e, s in zip(x.shape[:2], x.strides[:2], strict=True) if e > 1)]
        if self.by_rows:
            per_chunk = self.chunk // x.shape[3]
            if self.window.strides[1] % per_chunk and self.y.shape[2] > 1:
                steps.append(x.shape[3])
        elif x.shape[2] > 1:
            steps.append(x.strides[2])
        if self.parts > 1:
            steps.append(self.in_channels)
        return alignment(steps, size)

    @cached_property
    def bounded(self) -> tuple[bool, bool]:
        """Whether windows reach outside of the image, vertically and horizontally."""
        reach = []
        for axis in range(2):
            stride, dilation = self.window.strides[axis], self.window.dilations[axis]
            start = (self.y.shape[1 + axis] - 1) * stride - self.window.pads[axis]
            end = start + (self.window.kernel[axis] - 1) * dilation
            reach.append(self.window.pads[axis] > 0 or end >= self.x.shape[1 + axis])
        # Chunks of several pixels can end right of the image although the window does not.
        return reach[0], reach[1] or self.by_rows

    # -- pixels ---------------------------------------------------------------------------------

    @cached_property
    def output_dims(self) -> tuple[int, ...]:
        """Axes of the output pixels that are walked as one: the last axis of each run."""
        return _runs((self.y, *self.extras))

    def output_offset(self, view: View, pixel: Expr) -> Expr:
        """Element offset of channel 0 of a flat output pixel in y or an extra."""
        return _offset(view, pixel, self.y.shape, self.output_dims)


def alignment(elements: list[int], size: int) -> int:
    """Bytes, at most 16, that all of these element offsets are multiples of."""
    return math.gcd(WIDEST, *(e * size for e in elements))


def vector_alignment(view: View, parts: int = 1) -> int:
    """Bytes that the start of every pixel (of every part of its channels) is a multiple of."""
    steps = [s for e, s in zip(view.shape[:3], view.strides[:3], strict=True) if e > 1]
    steps += [view.offset, *([view.shape[3] // parts] if parts > 1 else [])]
    return alignment(steps, view.itemsize)


def padded_pixels(view: View) -> bool:
    """Whether the elements up to the next 16 bytes of a pixel belong to nobody else."""
    chunk = WIDEST // view.itemsize
    return view.strides[2] == -(-view.shape[3] // chunk) * chunk and view.shape[2] > 1


def _runs(views: tuple[View, ...]) -> tuple[int, ...]:
    """Groups of the axes N, H, W that every view walks with one stride, by their last axis."""
    shape = views[0].shape
    ends = [2]
    for axis in (1, 0):
        inner = axis + 1
        if shape[axis] == 1 or all(
            v.strides[axis] == v.strides[inner] * shape[inner] for v in views
        ):
            continue
        ends.append(axis)
    return tuple(sorted(ends))


def _offset(view: View, pixel: Expr, shape: tuple[int, ...], ends: tuple[int, ...]) -> Expr:
    offset: Expr = view.offset
    rest = pixel
    for i, end in reversed(list(enumerate(ends))):
        start = ends[i - 1] + 1 if i else 0
        extent = math.prod(shape[start : end + 1])
        step = view.strides[end]
        place = rest if i == 0 else rest % extent
        rest = rest if i == 0 else rest // extent
        if step:
            offset = place * step + offset
    return offset
