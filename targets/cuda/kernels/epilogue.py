"""From accumulators in shared memory to the output: bias, program, wide stores."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.ir.program import Program
from pwopt.targets.cuda.codegen import (
    WIDEST,
    Expr,
    Memory,
    all_of,
    branch,
    let,
    serial,
    unrolled,
    when,
)
from pwopt.targets.cuda.kernels.functions import evaluate
from pwopt.targets.cuda.kernels.geometry import Geometry, padded_pixels, vector_alignment
from pwopt.targets.views import View

_UNROLLED = 4  # instructions of a program whose vectors are all in flight together


class Epilogue:
    """Writes tiles of a convolution's output.

    Args:
        geometry: the convolution.
        program: argument 0 is the accumulator plus bias, the others are the extras.
        threads: of the block.
    """

    def __init__(self, geometry: Geometry, program: Program, threads: int) -> None:
        self.geometry, self.program, self.threads = geometry, program, threads
        y = geometry.y
        self.wide = y.shape[3] == 1 or y.strides[3] == 1
        self.lanes = WIDEST // y.itemsize if self.wide else 1

    def emit(
        self,
        staged: Memory,
        row_floats: int,
        size: tuple[int, int],
        first: tuple[Expr, Expr],
        part: Expr,
        thread: Expr,
        memories: Sequence[Memory],
    ) -> None:
        """Reads a tile of float32 sums and writes it; the caller waits for all threads before.

        Args:
            staged: the sums, row by row.
            row_floats: from one row to the next, a multiple of 4.
            size: pixels and channels of the tile.
            first: output pixel and channel of its corner; a multiple of ``size[1]``.
            part: of the channels.
            thread: in the block.
            memories: bias ([part][channels in whole tiles]), extras and output.
        """
        rows, columns = size
        vectors = rows * columns // self.lanes
        many = len(self.program.instructions) > _UNROLLED
        rounds = -(-vectors // self.threads)
        with (serial if many else unrolled)(rounds) as i:
            index = i * self.threads + thread
            per_row = columns // self.lanes
            # Where channels lie apart, neighbouring threads take neighbouring pixels.
            row = let(index // per_row if self.wide else index % rows, "row")
            column = let(index % per_row * self.lanes if self.wide else index // rows, "column")
            pixel, channel = let(first[0] + row, "pixel"), let(first[1] + column, "channel")
            with when(
                all_of(
                    vectors % self.threads == 0 or index < vectors,
                    self.geometry.pixels % rows == 0 or pixel < self.geometry.pixels,
                    self.geometry.out_channels % columns == 0
                    or channel < self.geometry.out_channels,
                )
            ):
                sums = staged.load(row * row_floats + column, self.lanes)
                self.vector(sums, columns, pixel, channel, part, memories)

    def vector(
        self,
        sums: list[Expr],
        columns: int,
        pixel: Expr,
        channel: Expr,
        part: Expr,
        memories: Sequence[Memory],
    ) -> None:
        """Finishes and writes the sums of neighbouring channels of one pixel.

        Args:
            sums: as many as :attr:`lanes`.
            columns: channels of a tile, which the bias is filled up to.
            pixel: of the output, flat.
            channel: the first, within the part.
            part: of the channels.
            memories: bias, extras and output.
        """
        bias, *extras, y = memories
        geometry, lanes = self.geometry, self.lanes
        padded = -(-geometry.out_channels // columns) * columns
        biases = bias.load(part * padded + channel, lanes)
        inside = let(part * geometry.out_channels + channel)
        operands = [
            self._operand(memory, view, pixel, inside, lanes)
            for memory, view in zip(extras, geometry.extras, strict=True)
        ]
        values = [
            evaluate(self.program, [s + b, *(o[e] for o in operands)])
            for e, (s, b) in enumerate(zip(sums, biases, strict=True))
        ]
        step = 1 if self.wide else geometry.y.strides[3]
        place = let(geometry.output_offset(geometry.y, pixel) + inside * step)
        align = vector_alignment(geometry.y, geometry.parts)
        tail = geometry.out_channels % lanes
        branch(
            not tail or channel + lanes <= geometry.out_channels,
            lambda: y.store(place, values, align),
            lambda: y.store(place, values[:tail], align),
        )

    def _operand(
        self, memory: Memory, view: View, pixel: Expr, channel: Expr, lanes: int
    ) -> list[Expr]:
        """The values of an extra for one vector; lanes past the last channel mean nothing."""
        channels, step = self.geometry.y.shape[3], view.strides[3]
        place = let(self.geometry.output_offset(view, pixel))
        if step == 0 or channels == 1:
            return memory.load(place) * lanes
        align = vector_alignment(view, self.geometry.parts)
        whole = self.geometry.out_channels % lanes == 0
        if step == 1 and (whole or (align == WIDEST and padded_pixels(view))):
            return memory.load(place + channel, lanes, align)
        last = channels - 1
        return [memory.load(place + T.min(channel + e, last) * step)[0] for e in range(lanes)]
