"""Chains of convolutions in bands of rows: maps between them stay in L2.

A map larger than L2 goes through L3 or memory twice, written and read. Where one convolution alone
reads it, both take turns, some rows each: the map shrinks to a band that the next rows replace. The
rows that two windows share move to the top of the band; no product is computed twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pwopt.hardware import Hardware
from pwopt.targets.cpu.kernels.conv import conv
from pwopt.targets.cpu.kernels.copy import copy, fill, fill_border
from pwopt.targets.cpu.kernels.depthwise import depthwise
from pwopt.targets.plan import ALIGNMENT, Buffer, Pointer, Step
from pwopt.targets.views import View
from pwopt.targets.windows import Window

_ITEM = 4  # bytes of float32
_LINE = ALIGNMENT // _ITEM
_EXTRAS = {conv: 5, depthwise: 4}  # position among the arguments
# Shares of L2: the smallest map that is worth it, and what a band of all maps may take together. On
# Zen 4 the time of 16->96 channels at 112x112 falls from 454 to 347 us, that of the depthwise
# convolution of stride 2 after it from 132 to 72; MobileNetV2 is 4 % faster, within 1 % alike for
# maps from 0.75 on and bands from 0.4 to 0.6.
_MAP, _BAND = 1.0, 0.5
_ROWS = 2  # of the last output in a band of several maps, at least
_VARIANTS = 2  # of a kernel, whose rows lie differently within cache lines

Numbered = tuple[int, Step]  # with the position of the step that it is a part of
_Place = tuple[Pointer, View]


def in_bands(steps: Sequence[Step], hardware: Hardware) -> list[Numbered]:
    """The steps of a plan, chains among them cut into bands of rows.

    Args:
        steps: of a whole plan, before buffers have their places.
        hardware: the processor.
    """
    links = {link.above.number: link for link in _links(steps, hardware)}
    parts: dict[int, list[Numbered]] = {}
    for first in links.keys() - {link.below.number for link in links.values()}:
        chain = [links[first]]
        while chain[-1].below.number in links:
            chain.append(links[chain[-1].below.number])
        for cut in _cut(chain, hardware):
            for link in cut.chain:
                parts.update((i, []) for i in (link.above.number, *link.borders))
            parts[cut.chain[-1].below.number] = cut.calls(hardware)
    return [part for i, step in enumerate(steps) for part in parts.get(i, [(i, step)])]


@dataclass(frozen=True)
class _Stage:
    """A convolution of one image on one thread, and the position of its step."""

    number: int
    step: Step

    @property
    def x(self) -> View:
        view: View = self.step.arguments[0]
        return view

    @property
    def y(self) -> View:
        view: View = self.step.arguments[1]
        return view

    @property
    def window(self) -> Window:
        window: Window = self.step.arguments[2]
        return window

    @property
    def extras(self) -> tuple[View, ...]:
        views: tuple[View, ...] = self.step.arguments[_EXTRAS[self.step.factory]]
        return views

    def reads(self, rows: range) -> range:
        """The input rows, border included, of some output rows."""
        window = self.window
        start, stop = (r * window.strides[0] - window.pads[0] for r in (rows.start, rows.stop))
        size = (window.kernel[0] - 1) * window.dilations[0] + 1
        return range(start, max(start, stop - window.strides[0] + size))

    def part(self, rows: range, x: _Place, y: _Place) -> Numbered:
        """The call for some output rows, given where its operands lie for these."""
        step, count = self.step, len(rows)
        extras = [
            _moved(pointer, _rows(view, count), rows.start)
            for pointer, view in zip(step.pointers[3:-1], self.extras, strict=True)
        ]
        at = _EXTRAS[step.factory]
        views = tuple(view for _, view in extras)
        arguments = (x[1], y[1], *step.arguments[2:at], views, *step.arguments[at + 1 :])
        return self.number, replace(
            step,
            arguments=arguments,
            pointers=(x[0], *step.pointers[1:3], *(p for p, _ in extras), y[0]),
            in_place=None,
            predicted_us=step.predicted_us * count / self.y.shape[1],
        )


@dataclass(frozen=True)
class _Link:
    """Two convolutions, and the map between them that nothing else reads.

    Attributes:
        above, below: who writes and who reads it.
        borders: positions of the steps that zero its border.
        columns: of the border, left and right.
    """

    above: _Stage
    below: _Stage
    borders: tuple[int, ...]
    columns: tuple[int, int]

    @property
    def row(self) -> int:
        """Elements of a row of the band, in whole cache lines."""
        view = self.above.y
        size = (sum(self.columns) + view.shape[2]) * view.strides[2]
        return -(-size // _LINE) * _LINE


def _links(steps: Sequence[Step], hardware: Hardware) -> Iterator[_Link]:
    users: dict[Buffer, list[int]] = {}
    for i, step in enumerate(steps):
        for buffer in {p.buffer for p in step.pointers}:
            users.setdefault(buffer, []).append(i)
    for i, step in enumerate(steps):
        if not _can_be_cut(step):
            continue
        view, pointer = step.arguments[1], step.pointers[-1]
        large = view.elements * _ITEM >= _MAP * hardware.l2_bytes
        if not large or pointer.buffer.kind != "workspace":
            continue
        others = [j for j in users[pointer.buffer] if j != i]
        same = [j for j in others if steps[j].pointers[0] == pointer]
        same = [j for j in same if steps[j].arguments[0] == view]
        borders = [j for j in same if steps[j].factory is fill_border]
        readers = [j for j in same if _can_be_cut(steps[j])]
        if len(readers) != 1 or len(borders) + 1 != len(others) or others[-1] != readers[0]:
            continue
        if any(p.buffer is pointer.buffer for p in steps[readers[0]].pointers[1:]):
            continue
        sizes = [steps[j].arguments[1] for j in borders] or [(0, 0, 0, 0)]
        columns = (max(s[1] for s in sizes), max(s[3] for s in sizes))
        yield _Link(_Stage(i, step), _Stage(readers[0], steps[readers[0]]), tuple(borders), columns)


def _can_be_cut(step: Step) -> bool:
    """Whether a step is a convolution of one float32 image on one thread."""
    if step.factory not in _EXTRAS or step.arguments[-1] != 1:
        return False
    stage = _Stage(0, step)
    views = (stage.x, stage.y, *stage.extras)
    return stage.y.shape[0] == 1 and all(v.dtype == "float32" for v in views)


@dataclass(frozen=True)
class _Cut:
    """A chain in bands.

    Attributes:
        chain: neighbours share a convolution.
        rows: of each band, the output rows of each stage.
        held: of each band, the rows that each link's memory holds, border included.
    """

    chain: Sequence[_Link]
    rows: list[list[range]]
    held: list[list[range]]

    @staticmethod
    def of(chain: Sequence[_Link], size: int) -> _Cut:
        """Bands of ``size`` rows of the last output."""
        height = chain[-1].below.y.shape[1]
        cut, done = _Cut(chain, [], []), [0] * len(chain)  # rows of each map so far
        for start in range(0, height, size):
            rows, held = [range(start, min(height, start + size))], list[range]()
            for k, link in reversed(list(enumerate(chain))):
                held.insert(0, link.below.reads(rows[0]))
                stop = max(done[k], min(held[0].stop, link.above.y.shape[1]))
                rows.insert(0, range(min(stop, max(done[k], held[0].start)), stop))
                done[k] = stop
            cut.rows.append(rows)
            cut.held.append(held)
        return cut

    @property
    def stages(self) -> list[_Stage]:
        return [*(link.above for link in self.chain), self.chain[-1].below]

    @property
    def heights(self) -> list[int]:
        """Rows of each link's memory."""
        return [max(map(len, ranges)) for ranges in zip(*self.held, strict=True)]

    @property
    def bytes(self) -> int:
        """What a band touches: all maps between, and its share of input and output."""
        maps = [h * link.row for h, link in zip(self.heights, self.chain, strict=True)]
        first, last = self.stages[0], self.stages[-1]
        inputs = max(len(first.reads(rows[0])) for rows in self.rows)
        maps.append(inputs * first.x.shape[2] * first.x.shape[3])
        maps.append(len(self.rows[0][-1]) * last.y.shape[2] * last.y.shape[3])
        return _ITEM * sum(maps)

    def is_possible(self) -> bool:
        """Whether kept rows do not overlap those they come from, and most calls share kernels."""
        for (old, new), rows in zip(itertools.pairwise(self.held), self.rows[1:], strict=True):
            for before, now, made in zip(old, new, rows, strict=False):
                if made.start - now.start > now.start - before.start:
                    return False
        first, last = self.stages[0], self.stages[-1]
        walks = [(first.x, [first.window.strides[0] * rows[0].start for rows in self.rows])]
        walks += [(last.y, [rows[-1].start for rows in self.rows])]
        for k, stage in enumerate(self.stages):
            walks += [(view, [rows[k].start for rows in self.rows]) for view in stage.extras]
        offsets = ({row * view.strides[1] % _LINE for row in rows} for view, rows in walks)
        return all(len(different) <= _VARIANTS for different in offsets)

    def calls(self, hardware: Hardware) -> list[Numbered]:
        """The steps of all bands in order."""
        memories = [
            _Band(link, height, hardware)
            for link, height in zip(self.chain, self.heights, strict=True)
        ]
        calls = [call for memory in memories for call in memory.clear()]
        before = [range(0)] * len(self.chain)
        for rows, held in zip(self.rows, self.held, strict=True):
            for k, (stage, made) in enumerate(zip(self.stages, rows, strict=True)):
                if k < len(self.chain):
                    calls += memories[k].turn(before[k], held[k], made)
                    y = memories[k].at(made.start - held[k].start, len(made))
                else:
                    y = _moved(stage.step.pointers[-1], _rows(stage.y, len(made)), made.start)
                if k:
                    x = memories[k - 1].at(stage.window.pads[0])
                else:
                    start = made.start * stage.window.strides[0]
                    x = _moved(stage.step.pointers[0], stage.x, start)
                if made:
                    calls.append(stage.part(made, x, y))
            before = held
        return calls


def _cut(chain: Sequence[_Link], hardware: Hardware) -> Iterator[_Cut]:
    """Cuts a chain into the largest bands that fit, between its smaller maps if need be."""
    if not chain:
        return
    height = chain[-1].below.y.shape[1]
    least = min(_ROWS, height - 1) if len(chain) > 1 else 1
    for size in range(height - 1, least - 1, -1):
        cut = _Cut.of(chain, -(-height // -(-height // size)))  # of equal heights
        if cut.bytes <= _BAND * hardware.l2_bytes and cut.is_possible():
            yield cut
            return
    smallest = min(range(len(chain)), key=lambda k: chain[k].above.y.elements)
    if len(chain) > 1:
        yield from _cut(chain[:smallest], hardware)
        yield from _cut(chain[smallest + 1 :], hardware)


class _Band:
    """The memory of the rows of a map that are in use."""

    def __init__(self, link: _Link, height: int, hardware: Hardware) -> None:
        self.link, self.height, self.hardware = link, height, hardware
        label = f"{link.above.step.pointers[-1].buffer.label} band"
        self.buffer = Buffer("workspace", height * link.row * _ITEM, label)
        shape, strides = link.above.y.shape, link.above.y.strides
        left = link.columns[0] * strides[2]
        self.view = View((1, height, *shape[2:]), (0, link.row, *strides[2:]), left)

    def at(self, row: int, count: int | None = None) -> _Place:
        """The rows from ``row`` on; all, if not ``count``."""
        view = self.view if count is None else _rows(self.view, count)
        return _moved(Pointer(self.buffer), view, row)

    def clear(self) -> Iterator[Numbered]:
        """Zeros beside the rows."""
        left, right = self.link.columns
        if left or right:
            pointer, view = self.at(0)
            border = (0, left, 0, right)
            yield self._call(fill_border, (view, border, 0.0, self.hardware), pointer)

    def turn(self, before: range, held: range, new: range) -> Iterator[Numbered]:
        """Keeps what the next rows share with those before; zeros above and below the map."""
        kept = new.start - held.start
        if before and kept > 0:
            pointers = (self._row(held.start - before.start), self._row(0))
            yield self._call(copy, (self._flat(kept), self._flat(kept), self.hardware), *pointers)
        elif kept > 0:
            yield self._zeros(0, kept)
        if new.stop < held.stop:
            yield self._zeros(new.stop - held.start, held.stop - new.stop)

    def _zeros(self, row: int, count: int) -> Numbered:
        return self._call(fill, (self._flat(count), 0.0, self.hardware), self._row(row))

    def _flat(self, rows: int) -> View:
        return View((rows * self.link.row,), (1,))

    def _row(self, row: int) -> Pointer:
        return Pointer(self.buffer, row * self.link.row * _ITEM)

    def _call(
        self, factory: Callable[..., Any], arguments: tuple[Any, ...], *pointers: Pointer
    ) -> Numbered:
        step = self.link.above.step
        names: dict[str, Any] = {"label": step.label, "origin": step.origin, "macs": step.macs}
        made = Step(factory, arguments, pointers, (len(pointers) - 1,), **names)
        return self.link.above.number, made


def _rows(view: View, count: int) -> View:
    return replace(view, shape=(view.shape[0], count, *view.shape[2:]))


def _moved(pointer: Pointer, view: View, rows: int) -> _Place:
    """A view some rows further on, the pointer aligned."""
    offset = view.offset + rows * view.strides[1]
    base = offset // _LINE * _LINE
    moved = Pointer(pointer.buffer, pointer.offset + base * _ITEM)
    return moved, replace(view, offset=offset - base)
