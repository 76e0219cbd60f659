"""Register tiles and loop orders of the matrix kernels: a choice by rule, and the alternatives."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pwopt.hardware import Hardware
from pwopt.targets.cpu.bfloat16 import PAIRS
from pwopt.targets.cpu.kernels.geometry import Geometry
from pwopt.targets.cpu.kernels.microkernel import blocks_of

# Measured on Cascade Lake: weights streamed from L2 reach the multipliers in time if they are
# asked for this many steps ahead; without, a tile loses 5-15 % where the panel outgrows L1.
_PREFETCH_STEPS = 16
_LINE = 64
_PAGE = 4096  # bytes after which L1 sets repeat
_LATENCY = 4  # cycles of a multiply-add; two start in each
TILE_CYCLES = 30  # address computation, loop entry and its mispredicted exit


@dataclass(frozen=True)
class Tile:
    """How a convolution or matrix product is blocked.

    Attributes:
        mr: output pixels (rows) of a register tile, at most.
        nrv: vectors of output channels of a register tile, at most.
        order: which loop is outermost, "channels" (a weight panel stays in cache) or "pixels"
            (input pixels do).
        prefetch: reduction steps between a weight's prefetch into L1 and its use; 0 for none.
        stream: prefetch the input into L1, a cache line ahead or in "pixels" order a tile ahead,
            and in "channels" order the next weight panel into L2.
    """

    mr: int
    nrv: int
    order: str = "channels"
    prefetch: int = 0
    stream: bool = False

    def __str__(self) -> str:
        extras = [f"prefetch {self.prefetch}"] * (self.prefetch > 0) + ["stream"] * self.stream
        return " ".join([f"{self.mr}x{self.nrv}", self.order, *extras])


def candidates(geometry: Geometry, hardware: Hardware) -> Iterator[Tile]:
    """The tiles that fit the registers, the most promising first, in all orders and prefetches.

    The rule's shape comes with every order and prefetch, then the next shapes with the rule's.
    """
    rule = choose_tile(geometry, hardware)
    shapes = sorted(_shapes(geometry, hardware), key=lambda t: conv_cycles(geometry, hardware, *t))
    ways = [
        dataclasses.replace(rule, order=order, prefetch=prefetch, stream=stream)
        for order in ("channels", "pixels")
        for prefetch in (0, _PREFETCH_STEPS)
        for stream in (False, True)
    ]
    yield from ways
    for way in (rule, *ways):
        for mr, nrv in shapes:
            yield dataclasses.replace(way, mr=mr, nrv=nrv)


def choose_tile(geometry: Geometry, hardware: Hardware) -> Tile:
    """The tile with the shortest predicted time; the first of equals."""
    if math.prod(dim.extent for dim in geometry.pixel_dims) == 1:
        # Memory-bound; on Zen 4 at full bandwidth, and with prefetches 10 % slower.
        return Tile(1, min(geometry.vectors, 8))
    mr, nrv = min(_shapes(geometry, hardware), key=lambda t: conv_cycles(geometry, hardware, *t))
    order = _order(geometry, hardware)
    weight_bytes = geometry.groups * geometry.vectors * geometry.steps * geometry.lanes * 4
    panel_bytes = nrv * geometry.steps * geometry.lanes * 4
    in_l1 = (weight_bytes if order == "pixels" else panel_bytes) <= hardware.l1_bytes // 2
    if order == "channels":
        stream = not in_l1
    else:
        # The next tile's input beside this one's: +2 % at 64->256, -5 % where they crowd L1.
        stream = 2 * mr * geometry.steps * 4 <= hardware.l1_bytes // 2
    return Tile(mr, nrv, order, 0 if in_l1 else _PREFETCH_STEPS, stream)


def _shapes(geometry: Geometry, hardware: Hardware) -> Iterator[tuple[int, int]]:
    """Pixels and vectors of the register tiles: accumulators, one panel step and a factor fit."""
    pixels = math.prod(dim.extent for dim in geometry.pixel_dims)
    for nrv in range(1, min(geometry.vectors, 8) + 1):
        limit = (hardware.registers - 1 - nrv) // nrv
        for mr in range(min(limit, pixels), 0, -1):
            yield mr, nrv


def conv_cycles(geometry: Geometry, hardware: Hardware, mr: int, nrv: int) -> float:
    """Predicted time of all tiles of one group on one core."""
    pixels = geometry.pixel_tiling(mr)
    split, row = pixels.split, pixels.row
    each = 2 / hardware.bf16_gain if geometry.x.dtype in PAIRS else 1.0
    total = 0.0
    for span in pixels.spans:
        size = span.size * row.extent
        offsets = [
            i * split.strides[0] + j * row.strides[0]
            for i in range(span.size)
            for j in range(row.extent)
        ]
        slow = _conflict_factor(offsets, geometry.x.itemsize, hardware)
        for panel in geometry.panels(nrv):
            step = step_cycles(size, panel.size, each) * slow
            step += _traffic_cycles(size, panel.size, geometry, hardware)
            ends = TILE_CYCLES + size * panel.size * (1.5 + len(geometry.extras))
            total += span.count * panel.count * (geometry.steps * step + ends)
    return total * math.prod(dim.extent for dim in pixels.outer)


def step_cycles(pixels: int, vectors: int, each: float = 1.0) -> float:
    """Cycles of one reduction step: the scarcest of multipliers, load ports, decoders, latency.

    Args:
        pixels: of the tile.
        vectors: of output channels.
        each: time of a product, in that of a float32 multiply-add.
    """
    products = pixels * vectors
    loads = pixels + 2 * vectors  # with a prefetch per vector
    return max(each * products / 2, loads / 2, (products + loads + 3) / 4, _LATENCY)


def _order(geometry: Geometry, hardware: Hardware) -> str:
    """Weights that stay in L2 come from there for free; the input is then read only once."""
    vectors = geometry.groups * geometry.vectors
    weight_bytes = vectors * geometry.steps * geometry.lanes * 4
    return "pixels" if weight_bytes <= 0.6 * hardware.l2_bytes else "channels"


def _traffic_cycles(pixels: int, vectors: int, geometry: Geometry, hardware: Hardware) -> float:
    """Cycles of a step that operands from L2 or L3 cost in spite of prefetching (measured)."""
    cycles = 0.0
    panel_bytes = vectors * geometry.steps * geometry.lanes * 4
    if panel_bytes > hardware.l1_bytes // 2:
        cycles += vectors * (0.25 if panel_bytes <= 0.4 * hardware.l2_bytes else 0.75)
    if _order(geometry, hardware) == "channels":
        cycles += 0.75 * pixels / (_LINE // 4)  # the input comes again for every panel
    return cycles


def _conflict_factor(offsets: list[int], item: int, hardware: Hardware) -> float:
    """Slowdown by pixels that share L1 sets; weights and the next line need two ways (measured)."""
    lines = {offset * item // _LINE for offset in offsets}
    sets = Counter(line % (_PAGE // _LINE) for line in lines)
    free = hardware.l1_bytes // _PAGE - max(sets.values())
    return 1.0 if free >= 2 else 1.02 if free == 1 else 1.3


def tiles_of(geometry: Geometry, tile: Tile) -> int:
    """Number of register tiles: what threads can share."""
    pixels = geometry.pixel_tiling(tile.mr)
    rows = math.prod(dim.extent for dim in pixels.outer) * blocks_of(pixels.spans)
    return rows * geometry.groups * blocks_of(geometry.panels(tile.nrv))
