"""Views: strided windows on memory, and the algebra of layouts on them.

A layout is nothing but strides. A lowered tensor's view lists its axes in ONNX order (N, C, H, W);
"channels last" means that the channel stride is 1. So transposes, slices, splits and most reshapes
are views, not work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class View:
    """A strided window on memory: how a kernel sees one operand.

    Attributes:
        shape: extents. To kernels image tensors are (N, H, W, C) whatever their order in memory.
        strides: in elements, one per dimension; 0 repeats one element.
        offset: elements from the pointer to element (0, ..., 0); negative indices down to the
            operand's zero border are legal where the planner provided one.
        dtype: element type, NumPy's name.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    dtype: str = "float32"

    @staticmethod
    def dense(
        shape: Sequence[int], dtype: str = "float32", order: Sequence[int] | None = None
    ) -> View:
        """A view of a whole allocation; ``order`` lists the axes from outermost to innermost."""
        strides, step = [0] * len(shape), 1
        for axis in reversed(order if order is not None else range(len(shape))):
            strides[axis] = step
            step *= shape[axis]
        return View(tuple(shape), tuple(strides), 0, dtype)

    def at(self, *index: Any) -> Any:
        """Element offset of ``index`` (numbers or TIR expressions) from the pointer."""
        offset: Any = self.offset
        for i, stride in zip(index, self.strides, strict=True):
            if stride and not (isinstance(i, int) and i == 0):
                offset = offset + i * stride
        return offset

    @property
    def elements(self) -> int:
        """Number of elements that the view names."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return itemsize(self.dtype)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes from the outermost in memory to the innermost; axes of extent 1 come first."""
        axes = range(len(self.shape))
        moving = [a for a in axes if self.shape[a] != 1]
        still = [a for a in axes if self.shape[a] == 1]
        return (*still, *sorted(moving, key=lambda a: -abs(self.strides[a])))

    @property
    def innermost_stride(self) -> int:
        """Stride of the last axis of :attr:`order`; 1 where no axis has two elements."""
        order = self.order
        return self.strides[order[-1]] if order and self.shape[order[-1]] != 1 else 1

    @property
    def is_dense(self) -> bool:
        """Whether the elements fill a contiguous piece of memory, in whatever order."""
        step = 1
        for axis in reversed(self.order):
            if self.shape[axis] != 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True

    @property
    def is_row_major(self) -> bool:
        """Whether the elements lie in memory as in a dense array in axis order."""
        step = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != step:
                return False
            step *= extent
        return True

    def same_layout(self, other: View) -> bool:
        """Whether both walk memory alike, offsets aside."""
        return self.shape == other.shape and all(
            e == 1 or a == b
            for e, a, b in zip(self.shape, self.strides, other.strides, strict=True)
        )

    def permute(self, axes: Sequence[int]) -> View:
        """The axes in another order."""
        return replace(
            self,
            shape=tuple(self.shape[a] for a in axes),
            strides=tuple(self.strides[a] for a in axes),
        )

    def slice(self, axis: int, start: int, extent: int, step: int = 1) -> View:
        """Every ``step``-th of the elements from ``start`` on along one axis."""
        shape, strides = list(self.shape), list(self.strides)
        shape[axis], strides[axis] = extent, self.strides[axis] * step
        return replace(
            self,
            shape=tuple(shape),
            strides=tuple(strides),
            offset=self.offset + start * self.strides[axis],
        )

    def broadcast(self, shape: Sequence[int]) -> View:
        """This view as an operand of NumPy's broadcasting to ``shape``."""
        missing = len(shape) - len(self.shape)
        own, strides = (1,) * missing + self.shape, (0,) * missing + self.strides
        return replace(
            self,
            shape=tuple(shape),
            strides=tuple(
                0 if e == 1 and t != 1 else s for e, s, t in zip(own, strides, shape, strict=True)
            ),
        )

    def reshape(self, shape: Sequence[int]) -> View | None:
        """The view under another shape in axis order, or None where that takes a copy."""
        if math.prod(shape) != self.elements:
            raise ValueError(f"cannot view {self.shape} as {tuple(shape)}")
        if self.elements == 0:
            return replace(View.dense(shape, self.dtype), offset=self.offset)
        old = [(e, s) for e, s in zip(self.shape, self.strides, strict=True) if e != 1]
        strides = [0] * len(shape)
        at = 0  # position in old
        new = [a for a, e in enumerate(shape) if e != 1]
        while new:
            group = [new.pop(0)]
            taken = [old[at]]
            at += 1
            while (have := math.prod(e for e, _ in taken)) != (
                want := math.prod(shape[a] for a in group)
            ):
                if have < want:
                    taken.append(old[at])
                    at += 1
                else:
                    group.append(new.pop(0))
            if any(a[1] != b[0] * b[1] for a, b in itertools.pairwise(taken)):
                return None
            step = taken[-1][1]
            for axis in reversed(group):
                strides[axis] = step
                step *= shape[axis]
        return replace(self, shape=tuple(shape), strides=tuple(strides))


def itemsize(dtype: str) -> int:
    """Bytes of one element of a NumPy dtype name."""
    if dtype == "bool":
        return 1
    digits = "".join(c for c in dtype if c.isdigit())
    return int(digits) // 8


def channels_last(rank: int) -> tuple[int, ...]:
    """Axis order of an (N, C, spatial...) tensor with the channel innermost."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


def image(view: View) -> View:
    """An (N, C[, D], [H,] W) view as kernels take it: (N, H, W, C), a lone channel with stride 1.

    One spatial axis becomes W; three are only accepted where D and H can be walked as one.
    """
    rank = len(view.shape)
    n, c, *spatial = view.shape
    sn, sc, *steps = view.strides
    sc = 1 if c == 1 else sc
    if rank == 4:
        shape, strides = (n, *spatial, c), (sn, *steps, sc)
    elif rank == 3:
        shape, strides = (n, 1, spatial[0], c), (sn, 0, steps[0], sc)
    elif rank == 2:
        shape, strides = (n, 1, 1, c), (sn, 0, 0, sc)
    elif rank == 5 and (spatial[0] == 1 or steps[0] == spatial[1] * steps[1]):
        shape = (n, spatial[0] * spatial[1], spatial[2], c)
        strides = (sn, steps[1], steps[2], sc)
    else:
        raise ValueError(f"no image view of shape {view.shape} with strides {view.strides}")
    return View(shape, strides, view.offset, view.dtype)


def collapse(views: Sequence[View]) -> tuple[list[int], list[list[int]]]:
    """The common loop nest of views of one shape: ``(extents, strides of each view)``.

    Dimensions are ordered by falling stride of the last view (the output), extents of 1 vanish,
    and neighbours that every view walks as one run are merged. A scalar gives one extent of 1.
    """
    shape = views[0].shape
    if any(v.shape != shape for v in views):
        raise ValueError(f"views of different shapes: {[v.shape for v in views]}")
    output = views[-1].strides
    order = sorted((d for d, e in enumerate(shape) if e != 1), key=lambda d: -abs(output[d]))
    extents: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for d in order:
        steps = [v.strides[d] for v in views]
        if extents and all(
            s[-1] == step * shape[d] for s, step in zip(strides, steps, strict=True)
        ):
            extents[-1] *= shape[d]
            for s, step in zip(strides, steps, strict=True):
                s[-1] = step
        else:
            extents.append(shape[d])
            for s, step in zip(strides, steps, strict=True):
                s.append(step)
    if not extents:
        return [1], [[1] for _ in views]
    return extents, strides


def merge(
    extents: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Joins neighbouring loops that every stride list walks as one run."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d, extent in enumerate(extents):
        if sizes and all(s[-1] == v[d] * extent for s, v in zip(steps, strides, strict=True)):
            sizes[-1] *= extent
            for s, v in zip(steps, strides, strict=True):
                s[-1] = v[d]
        else:
            sizes.append(extent)
            for s, v in zip(steps, strides, strict=True):
                s.append(v[d])
    return sizes, steps
