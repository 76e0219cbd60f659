"""Lowering for CUDA: half-precision maps, channels last, pixels padded to 16 bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from pwopt.ir.graph import Graph, Node, Value
from pwopt.targets import lowering as common
from pwopt.targets.cuda.arch import Arch, Gpu, usual_gpu
from pwopt.targets.cuda.kernels.copy import copy, fill, pad_channels
from pwopt.targets.cuda.kernels.map import map_kernel
from pwopt.targets.cuda.kernels.norm import local_response, mean_variance
from pwopt.targets.cuda.kernels.resize import resize, upsample
from pwopt.targets.cuda.kernels.softmax import softmax
from pwopt.targets.placement import Slice
from pwopt.targets.plan import Pointer, Step, Tensor, place
from pwopt.targets.schedules import Schedules
from pwopt.targets.values import element_type, static_shape
from pwopt.targets.views import View, itemsize

STORED = {"fp16": "float16", "bf16": "bfloat16", "tf32": "float32", "fp32": "float32"}
LAUNCH_US = 2.0  # of a kernel in a captured graph, start to start of the next
CHUNK = 16  # bytes that the widest loads and stores want aligned

_KERNELS: tuple[Callable[..., Any], ...] = (
    *(copy, fill, local_response, map_kernel, mean_variance, resize, softmax, upsample),
)


class CudaLowering(common.Lowering):
    """Lowers one graph of static shapes.

    Attributes:
        arch: to generate code for.
        precision: of products: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
        dtype: that float32 values are stored as between kernels.
        gpu: that is filled, and whose peaks predicted times assume.
    """

    shared_kernels: ClassVar[Mapping[str, Callable[..., Any]]] = {k.__name__: k for k in _KERNELS}

    def __init__(
        self,
        graph: Graph,
        arch: Arch,
        precision: str,
        schedules: Schedules | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        """Prepares the lowering.

        Args:
            graph: is not changed.
            arch: to generate code for.
            precision: of products: ``fp16``, ``bf16``, ``tf32`` or ``fp32``.
            schedules: tuned ones.
            gpu: to fill; the usual one of the architecture if left out.
        """
        super().__init__(graph, schedules)
        self.arch, self.precision, self.dtype = arch, precision, STORED[precision]
        self.gpu = gpu or usual_gpu(arch)

    # --- memory ---------------------------------------------------------------------------------

    def stored_dtype(self, value: Value) -> str:
        return self._narrowed(element_type(value))

    def writes_into(self, slot: Slice) -> bool:
        return slot.start * itemsize(self.dtype) % CHUNK == 0

    def allocate(self, value: Value, dtype: str, order: Sequence[int]) -> Tensor:
        return self._laid_down(static_shape(value), dtype, order, value.label)

    def copied(self, tensor: Tensor, view: View) -> Tensor:
        """A copy of a tensor in the order of a view; floats as they are stored here."""
        label, dtype = f"{tensor.buffer.label} copied", self._narrowed(view.dtype)
        target = self._laid_down(view.shape, dtype, view.order, label)
        self.copy_into(tensor, target)
        return target

    def dense(self, value: Value) -> Tensor:
        tensor = self.tensor(value)
        if tensor.view.is_row_major:
            return tensor
        view = View.dense(tensor.view.shape, self._narrowed(tensor.view.dtype))

        def make() -> Tensor:
            target = Tensor(self.workspace(view, f"{value.label} copied"), view)
            self.copy_into(tensor, target)
            return target

        return self.shared_copy((value, "dense"), make)

    def aligned(self, x: Tensor) -> Tensor:
        """An image (N, H, W, C) for 16-byte loads of channels, copied if need be.

        It is of the stored dtype, and each pixel begins at a multiple of 16 bytes.
        """
        if self.is_aligned(x.view):
            return x

        def make() -> Tensor:
            target = self._laid_down(x.view.shape, self.dtype, range(4), x.buffer.label, axis=3)
            self.copy_into(x, target)
            return target

        return self.shared_copy((x, "aligned"), make)

    def stem_channels(self, channels: int) -> int:
        """Channels of the pixels of :meth:`stem`; 0 where they are not so small."""
        fitting = [
            c for c in (8 // itemsize(self.dtype), 4 // itemsize(self.dtype)) if c >= channels
        ]
        return min(fitting, default=0)

    def stem(self, x: Tensor) -> Tensor:
        """An image (N, H, W, C) of few channels as dense pixels of 4 or 8 bytes.

        What is missing to a pixel are channels of zeros; rows begin at multiples of 16 bytes.
        """
        n, height, width, channels = x.view.shape
        few = self.stem_channels(channels)

        def make() -> Tensor:
            wide = -(-width * few * itemsize(self.dtype) // CHUNK) * CHUNK
            view = View.dense((n, height, wide // (few * itemsize(self.dtype)), few), self.dtype)
            buffer = self.workspace(view, f"{x.buffer.label} padded")
            target = Tensor(buffer, view.slice(2, 0, width))
            (sp, sv), (tp, tv) = place(x), place(target)
            self.emit(pad_channels, (sv, tv), (sp, tp))
            return target

        return self.shared_copy((x, "stem"), make)

    def is_aligned(self, view: View) -> bool:
        """Whether an image is as :meth:`aligned` makes them."""
        size = itemsize(self.dtype)
        jumps = [s for s, e in zip(view.strides[:3], view.shape[:3], strict=True) if e > 1]
        unit = view.strides[3] == 1 or view.shape[3] == 1
        whole = all(j * size % CHUNK == 0 for j in (view.offset, *jumps))
        return view.dtype == self.dtype and unit and whole

    def _narrowed(self, dtype: str) -> str:
        return self.dtype if dtype == "float32" else dtype

    def _laid_down(
        self, shape: Sequence[int], dtype: str, order: Sequence[int], label: str, axis: int = 1
    ) -> Tensor:
        """New memory; the axis of channels, where it is the innermost one, padded to 16 bytes."""
        moving = [a for a in order if shape[a] != 1]
        outer, lanes = list(shape), CHUNK // itemsize(dtype)
        if len(shape) > 1 and (not moving or moving[-1] == axis):
            outer[axis] = -(-shape[axis] // lanes) * lanes
        whole = View.dense(outer, dtype, order)
        buffer = self.workspace(whole, label)
        return Tensor(buffer, replace(whole, shape=tuple(shape)))

    # --- weights --------------------------------------------------------------------------------

    def weights(
        self, key: tuple[Any, ...], make: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[Pointer, Pointer]:
        """Packed weights, as maps are stored, and a float32 bias, made in one go as float32."""
        made: list[tuple[np.ndarray, np.ndarray]] = []

        def part(index: int) -> np.ndarray:
            if not made:
                weight, bias = make()
                made.append((narrowed(weight, self.dtype), bias))  # packed in it, or float32
            return made[0][index]

        return (
            Pointer(self.packed((*key, "weights"), lambda: part(0))),
            Pointer(self.packed((*key, "bias"), lambda: part(1))),
        )

    # --- predicted times ------------------------------------------------------------------------

    def finish(self) -> None:
        self.end((), [s for s in self.plan.steps if not s.predicted_us])  # copies to outputs

    def end(self, nodes: Sequence[Node], steps: Sequence[Step]) -> None:
        work = [s for s in steps if s.factory not in (copy, fill, pad_channels)]
        weight_bytes = sum(self._weight_bytes(n) for n in nodes)
        for step in steps:
            share = step in work and 1 / len(work)
            moved = sum(_bytes(v) for v in views_of(step.arguments)) + share * weight_bytes
            roofline = self.gpu.roofline_us(2 * step.macs * share, moved, self.precision)
            step.predicted_us = max(LAUNCH_US, roofline)

    def _weight_bytes(self, node: Node) -> int:
        weight = self.graph.operand(node, 1) if node.arity > 1 else None
        array = self.array(weight)
        is_weight = array is not None and array.ndim > 1
        return array.size * itemsize(self.dtype) if array is not None and is_weight else 0


def narrowed(array: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 array in a dtype of maps."""
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def views_of(arguments: object) -> Iterator[View]:
    """The views among a kernel's arguments."""
    if isinstance(arguments, View):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from views_of(argument)
    elif is_dataclass(arguments):
        yield from views_of([getattr(arguments, field.name) for field in fields(arguments)])


def _bytes(view: View) -> int:
    """Bytes of the different elements of a view."""
    moving = (e for e, s in zip(view.shape, view.strides, strict=True) if s)
    return math.prod(moving) * itemsize(view.dtype)
