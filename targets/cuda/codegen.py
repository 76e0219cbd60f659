"""How the CUDA kernels are written: a thin layer over TVM's builder, and CUDA C++ text of them.

A kernel is a thread-level TIRx function. Its parameters are its pointers ``p0``, ``p1``, ... and
then its tensor maps ``m0``, ``m1``, ..., all of them and in that order, also in the emitted text.
Arithmetic is in float32, whatever the memory holds. Loops stay loops in the text, those of
:func:`unrolled` under ``#pragma unroll``: that keeps the text short, and nvcc puts the
:class:`Array` that they walk into registers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.targets.cuda.kernel import Kernel, TensorMap
from pwopt.targets.in_place import same_memory
from pwopt.targets.views import itemsize

Expr = Any  # a TIR expression or a Python number

WIDEST = 16  # bytes of the widest load and store
_ELEMENTS = 2**31 - 1  # behind a pointer: offsets are 32-bit, whose divisions are fast
_SHARED_ALIGNMENT = 1024  # bytes; what 128-byte swizzles of the tensor memory accelerator want

_ROLLED = "pw_rolled"
_COPY = """
__forceinline__ __device__ void pw_copy_{0}(void* to, const void* from) {{
  *({1}*)to = *(const {1}*)from;
}}
"""
_WORDS = {16: "uint4", 8: "uint2", 4: "uint", 2: "ushort", 1: "uchar"}
_PACK = """
__forceinline__ __device__ void pw_pack_{0}(void* to, float low, float high) {{
  *({1}*)to = {2}(low, high);
}}
"""
_PAIRS = {
    "float16": ("half2", "__floats2half2_rn"),
    "bfloat16": ("nv_bfloat162", "__floats2bfloat162_rn"),
}


def call(name: str, *arguments: Expr, source: str) -> None:
    """A statement that calls a ``__device__`` function without result, given by its text."""
    T.evaluate(T.cuda.func_call(name, *arguments, source_code=source, return_type="void"))


def value_of(name: str, *arguments: Expr, source: str, dtype: str = "float32") -> Expr:
    """The result of a ``__device__`` function, given by its text."""
    return T.cuda.func_call(name, *arguments, source_code=source, return_type=dtype)


def ptx(instruction: str, *arguments: Expr) -> None:
    """One PTX instruction as a statement, by TVM's table of them."""
    T.evaluate(T.ptx[instruction](*arguments))


def barrier() -> None:
    """Waits for all threads of the block."""
    T.evaluate(T.cuda.cta_sync())


def cluster_barrier() -> None:
    """Waits for all threads of the cluster."""
    T.evaluate(T.cuda.cluster_sync())


def copy(to: Expr, source: Expr, size: int) -> None:
    """Copies 1, 2, 4, 8 or 16 bytes between two addresses that are multiples of as much."""
    call(f"pw_copy_{size}", to, source, source=_COPY.format(size, _WORDS[size]))


class Array:
    """Registers of one thread; indices must be constants once the loops are unrolled."""

    def __init__(self, size: int, dtype: str = "float32", name: str = "array") -> None:
        self.size, self.dtype = size, dtype
        self.buffer = T.alloc_buffer((size,), dtype, scope="local")
        IRBuilder.name(name, self.buffer)

    def __getitem__(self, index: Expr) -> Expr:
        return self.buffer[index]

    def __setitem__(self, index: Expr, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [index])

    def address(self, index: Expr = 0) -> Expr:
        """Address of an element."""
        return T.address_of(self.buffer[index])


class Memory:
    """Global or shared memory, addressed by element offset."""

    def __init__(self, buffer: Any, dtype: str, base: int = 0) -> None:
        self.buffer, self.dtype, self.base = buffer, dtype, base

    def __getitem__(self, offset: Expr) -> Expr:
        """One element as it is stored."""
        return self.buffer[self.base + offset if self.base else offset]

    def __setitem__(self, offset: Expr, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [self.base + offset if self.base else offset])

    def address(self, offset: Expr = 0) -> Expr:
        """Address of an element."""
        return T.address_of(self[offset])

    def load(self, offset: Expr, lanes: int = 1, align: int = WIDEST) -> list[Expr]:
        """``lanes`` neighbouring elements as float32 expressions.

        Args:
            offset: of the first.
            lanes: how many; the bytes of all together a multiple of the width of one load.
            align: bytes that the first one's address is a multiple of (a power of two).
        """
        size = itemsize(self.dtype)
        if lanes == 1:
            return [_widened(let(self[offset]), self.dtype)]
        registers = Array(lanes, self.dtype, "loaded")
        for start, width in pieces(lanes, size, align):
            copy(registers.address(start), self.address(offset + start), width)
        return [_widened(registers[i], self.dtype) for i in range(lanes)]

    def store(self, offset: Expr, values: Sequence[Expr], align: int = WIDEST) -> None:
        """Stores float32 expressions to neighbouring elements; see :meth:`load`."""
        size = itemsize(self.dtype)
        if len(values) == 1:
            self[offset] = T.cast(values[0], self.dtype)
            return
        registers = Array(len(values), self.dtype, "stored")
        if self.dtype in _PAIRS and len(values) % 2 == 0:
            pair, function = _PAIRS[self.dtype]
            text = _PACK.format(self.dtype, pair, function)
            for i in range(0, len(values), 2):
                call(f"pw_pack_{self.dtype}", registers.address(i), *values[i : i + 2], source=text)
        else:
            for i, value in enumerate(values):
                registers[i] = T.cast(value, self.dtype)
        for start, width in pieces(len(values), size, align):
            copy(self.address(offset + start), registers.address(start), width)


def _widened(value: Expr, dtype: str) -> Expr:
    return value if dtype == "float32" else T.cast(value, "float32")


def pieces(lanes: int, size: int, align: int) -> Iterator[tuple[int, int]]:
    """(first element, bytes) of as few accesses as the alignment allows."""
    start = 0
    while start < lanes:
        width = min(WIDEST, align)
        while width > (lanes - start) * size or start * size % width:
            width //= 2
        yield start, width
        start += width // size


@dataclass(frozen=True)
class Block:
    """What a thread knows of its place, and what its block shares.

    Attributes:
        x, y, z: of the block in the grid; 0 where the grid has one.
        thread: in the block.
        maps: addresses of the tensor maps.
        dynamic: the buffer of dynamic shared memory; see :meth:`shared`.
    """

    x: Expr
    y: Expr
    z: Expr
    thread: Expr
    maps: tuple[Expr, ...]
    dynamic: Any

    @property
    def lane(self) -> Expr:
        """Of the thread in its warp."""
        return self.thread % 32

    @property
    def warp(self) -> Expr:
        """Of the block."""
        return self.thread // 32

    def shared(self, dtype: str, start: int = 0) -> Memory:
        """The dynamic shared memory from byte ``start`` on, as elements of a type."""
        view = T.decl_buffer((1 << 20,), dtype, data=self.dynamic.data, scope="shared.dyn")
        return Memory(view, dtype, start // itemsize(dtype))

    def static(self, size: int, dtype: str, name: str, align: int = 16) -> Memory:
        """Further shared memory of a fixed number of elements."""
        buffer = T.alloc_buffer((size,), dtype, scope="shared", align=align)
        IRBuilder.name(name, buffer)
        return Memory(buffer, dtype)


def kernel(
    pointers: Sequence[str],
    body: Callable[..., None],
    *,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int = 0,
    maps: tuple[TensorMap, ...] = (),
    blocks_per_multiprocessor: int = 0,
    cluster: int = 1,
) -> Kernel:
    """A kernel over one pointer per entry of ``pointers`` (their dtypes).

    Args:
        pointers: element types.
        body: emits the statements; receives the :class:`Block` and a :class:`Memory` per pointer.
            Distinct pointers must not overlap; of a result that replaces an operand, made under
            :func:`~pwopt.targets.in_place.in_place`, it receives the operand's memory.
        grid: thread blocks along x, y and z.
        threads: of a block.
        shared_bytes: of dynamic shared memory.
        maps: windows for the tensor memory accelerator.
        blocks_per_multiprocessor: that nvcc has to leave registers for; 0: as it sees fit.
        cluster: neighbouring blocks along x that run together.
    """
    with IRBuilder() as builder:  # noqa: SIM117
        with T.prim_func(s_tir=True):
            T.func_name("kernel")
            T.func_attr({"tirx.is_global_func": True, "tirx.noalias": True, "calling_conv": 2})
            if blocks_per_multiprocessor:
                bound = "tirx.launch_bounds_min_blocks_per_sm"
                T.func_attr({bound: blocks_per_multiprocessor})
            handles = [T.arg(f"p{i}", T.handle(dtype)) for i, dtype in enumerate(pointers)]
            tensor_maps = [T.arg(f"m{i}", T.handle("tensormap")) for i in range(len(maps))]
            with ExitStack() as stack:
                places = [
                    stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
                    if extent > 1 or axis == "x"
                    else 0
                    for axis, extent in zip("xyz", grid, strict=True)
                ]
                thread = stack.enter_context(T.launch_thread("threadIdx.x", threads))
                memories = [
                    Memory(T.decl_buffer((_ELEMENTS,), dtype, data=handle), dtype)
                    for dtype, handle in zip(pointers, handles, strict=True)
                ]
                if same := same_memory():
                    memories[same[1]] = memories[same[0]]
                dynamic = None
                if shared_bytes:
                    dynamic = T.alloc_buffer(
                        (shared_bytes,), "uint8", scope="shared.dyn", align=_SHARED_ALIGNMENT
                    )
                    IRBuilder.name("dynamic", dynamic)
                addresses = tuple(T.address_of(m) for m in tensor_maps)
                x, y, z = places
                body(Block(x, y, z, thread, addresses, dynamic), *memories)
    function = builder.get().without_attr("global_symbol")
    return Kernel(function, grid, threads, shared_bytes, maps, cluster)


@contextmanager
def serial(extent: Expr) -> Iterator[Expr]:
    """A loop over ``range(extent)``; one iteration is no loop at all."""
    if isinstance(extent, int) and extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as i:
            yield i


@contextmanager
def rolled(extent: Expr) -> Iterator[Expr]:
    """A loop that nvcc must not unroll, though it be short: its body fills the registers."""
    if not (isinstance(extent, int) and extent == 1):
        call(_ROLLED, source=f"\n__forceinline__ __device__ void {_ROLLED}() {{}}\n")
    with serial(extent) as i:
        yield i


@contextmanager
def unrolled(extent: int) -> Iterator[Expr]:
    """A loop that nvcc unrolls; one iteration is no loop at all."""
    if extent == 1:
        yield 0
    else:
        with T.unroll(0, extent) as i:
            yield i


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Statements under a condition; ``True`` is no condition at all."""
    if condition is True:
        yield
    else:
        with T.If(condition), T.Then():
            yield


def branch(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """Emits one of two bodies if the condition is a Python bool, else both under it."""
    if isinstance(condition, bool):
        (then if condition else otherwise)()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def all_of(*conditions: Expr) -> Expr:
    """The conjunction; ``True`` where all are."""
    result: Expr = True
    for condition in conditions:
        if condition is True:
            continue
        if condition is False:
            return False
        result = condition if result is True else T.And(result, condition)
    return result


def let(value: Expr, name: str = "") -> Expr:
    """Names a value so that it is computed once."""
    if isinstance(value, int | float):
        return value
    bound = T.Bind(value)
    if name:
        IRBuilder.name(name, bound)
    return bound


def source(kernels: Mapping[str, Kernel], arch: str) -> str:
    """CUDA C++ text of kernels under their names, ``extern "C"``.

    Needs neither a CUDA compiler nor a driver, and runs none.

    Args:
        kernels: by the names that the text gives them.
        arch: such as ``sm_80``; decides nothing but which instructions TVM takes for available.
    """
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    module = tvm.IRModule(
        {
            name: kernel.function.with_attr("global_symbol", name).with_attr("target", target)
            for name, kernel in kernels.items()
        }
    )
    with tvm.transform.PassContext(config={"tirx.UnrollLoop": {"explicit_unroll": False}}):
        lowered = tvm.ir.transform.Sequential(
            [
                tirx.transform.LowerTIRxOpaque(),
                tirx.transform.FlattenBuffer(),
                tirx.transform.NarrowDataType(32),
                tirx.transform.VectorizeLoop(),
                tirx.transform.UnrollLoop(),
                tirx.transform.StmtSimplify(),
                tirx.transform.LowerIntrin(),
            ]
        )(module)
    with _without_compiler():
        built = tvm.get_global_func("target.build.cuda")(lowered, target)
    text = str(built.inspect_source("cuda"))
    for name, made in kernels.items():
        if made.cluster > 1:  # for which TVM has no words
            bounds = rf"(?=__launch_bounds__\([\d, ]+\) {name}\()"
            text = re.sub(bounds, f"__cluster_dims__({made.cluster}, 1, 1) ", text)
    # TVM has no words for this, either: a statement marks the loop that follows it.
    return re.sub(rf"{_ROLLED}\(\);\n(?=\s*for )", "#pragma unroll 1\n", text)


_compiling = Lock()


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Where it finds a driver, TVM compiles the text at once: keeps it from that."""
    name = "tvm_callback_cuda_compile"
    with _compiling:
        compiler = tvm_ffi.get_global_func(name, allow_missing=True)
        tvm_ffi.register_global_func(name, lambda _text: b"", override=True)
        try:
            yield
        finally:
            if compiler is None:
                tvm_ffi.registry.remove_global_func(name)
            else:
                tvm_ffi.register_global_func(name, compiler, override=True)
