"""What a CUDA kernel template makes: a thread-level function and how to launch it.

A kernel is a TIRx function over one pointer per operand, named ``p0``, ``p1``, ...; shapes, strides
and tile sizes are constants of the function, so one kernel serves one set of shapes. A
:class:`~pwopt.targets.views.View` says how a kernel walks the memory behind a pointer; pointers are
64-byte aligned. No kernel reads or writes outside of what its views name, but for the channels that
pad a channels-last pixel to 16 bytes, whose contents mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorMap:
    """A window on global memory that the tensor memory accelerator copies boxes from (sm_90).

    The function's parameter is named ``m`` and the position among :attr:`Kernel.maps`. Axes are
    listed innermost first, as ``cuTensorMapEncodeTiled`` wants them.

    Attributes:
        pointer: position of the pointer among the kernel's pointers.
        dtype: NumPy's name of the element type; ``tfloat32``: float32 that is rounded to TF32 on
            its way.
        offset: elements from the pointer to the window.
        dims: extents, elements.
        strides: of all axes but the first, bytes; multiples of 16.
        box: extents of one copy, elements before ``steps`` thin them out.
        steps: only every so many-th element of each axis is copied.
        swizzle: bytes of the rows whose 16-byte chunks are permuted in shared memory; 0 for none.
    """

    pointer: int
    dtype: str
    offset: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: int = 128


@dataclass(frozen=True)
class Kernel:
    """A kernel and its launch.

    Attributes:
        function: thread-level TIRx PrimFunc.
        grid: thread blocks along x, y and z.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        maps: windows that the host describes when the executable is loaded.
        cluster: neighbouring blocks along x that run together and reach each other's shared memory
            (sm_90); the text says so, the launch need not.
    """

    function: Any
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int = 0
    maps: tuple[TensorMap, ...] = ()
    cluster: int = 1
