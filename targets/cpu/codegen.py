"""How the CPU kernels are written: a thin layer over TVM's TIR builder, and the build.

A kernel is a private TIR function over raw pointers; shapes, strides and tile sizes are constants
of the function, so one kernel serves one set of shapes. Pointers are 64-byte aligned; a View says
how a kernel walks the memory behind one of them. Accumulators are one-vector local buffers, which
LLVM keeps in registers.

Loads may read up to one vector past the elements that a view names: the planner pads every
allocation by :data:`SLACK_BYTES`. Stores never write past them (:meth:`Memory.store`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.targets.cpu import bfloat16
from pwopt.targets.in_place import in_place as in_place
from pwopt.targets.in_place import same_memory
from pwopt.targets.plan import SLACK_BYTES as SLACK_BYTES
from pwopt.targets.views import View as View

Expr = Any  # a TIR expression or a Python number


class Memory:
    """A pointer argument inside a kernel, addressed by element offset.

    Elements of dtype bfloat16 are float32 to the kernel: widened by loads, rounded by stores.
    """

    def __init__(self, buffer: Any, dtype: str) -> None:
        self.buffer, self.dtype = buffer, dtype

    def load(self, offset: Expr, lanes: int = 1, stride: Expr = 1) -> Expr:
        """``lanes`` elements ``stride`` apart as one vector (a scalar for one lane)."""
        if self.dtype == bfloat16.NEIGHBOURS:
            return bfloat16.neighbours(self.buffer[T.ramp(offset, 1, 2)])
        value = self.buffer[offset if lanes == 1 else T.ramp(offset, stride, lanes)]
        return bfloat16.widen(value, lanes) if self.dtype == bfloat16.DTYPE else value

    def store(self, offset: Expr, value: Expr, lanes: int = 1, valid: int | None = None) -> None:
        """Stores a vector; with ``valid`` < ``lanes`` only its first ``valid`` elements."""
        if self.dtype == bfloat16.DTYPE:
            value = bfloat16.narrow(value, lanes)
        if lanes == 1:
            T.buffer_store(self.buffer, value, [offset])
        elif valid is None or valid >= lanes:
            T.buffer_store(self.buffer, value, [T.ramp(offset, 1, lanes)])
        else:
            mask = T.broadcast(T.int32(valid), lanes) > T.ramp(T.int32(0), 1, lanes)
            T.evaluate(T.masked_store(self.buffer, value, T.ramp(offset, 1, lanes), mask))

    def prefetch(self, offset: Expr, locality: int = 3, *, write: bool = False) -> None:
        """Asks for the cache line of an element (locality 3: into L1, 2: into L2)."""
        address = T.address_of(self.buffer[offset])
        flags = (T.int32(write), T.int32(locality), T.int32(1))
        call = T.call_llvm_intrin("void", "llvm.prefetch", address, *flags)
        T.evaluate(call)


class Register:
    """A mutable local vector that LLVM keeps in a register."""

    def __init__(self, lanes: int, value: Expr | None = None, dtype: str = "float32") -> None:
        # Without the annotation TVM takes the memory from its heap workspace.
        self.buffer = T.alloc_buffer(
            (lanes,), dtype, scope="local", annotations={"disable_lower_builtin": True}
        )
        self.index = T.ramp(0, 1, lanes) if lanes > 1 else 0
        if value is not None:
            self.set(value)

    def get(self) -> Expr:
        return self.buffer[self.index]

    def set(self, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [self.index])


def kernel(pointers: Sequence[str], body: Callable[..., None]) -> tirx.PrimFunc:
    """A private function over one pointer per entry of ``pointers`` (their dtypes).

    ``body`` receives one :class:`Memory` per pointer and emits the statements. Distinct pointers
    must not overlap, because LLVM takes each for memory of its own; a result that replaces an
    operand is made under :func:`in_place`.
    """
    operand, result = same_memory() or (0, 0)
    with IRBuilder() as builder:  # noqa: SIM117
        with T.prim_func(s_tir=True):
            T.func_name("kernel")
            stored = [bfloat16.STORED.get(dtype, dtype) for dtype in pointers]
            handles = [T.arg(f"p{i}", T.handle(dtype)) for i, dtype in enumerate(stored)]
            T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
            T.func_ret(tvm.ir.PrimType("int32"))  # a parallel loop returns an error code
            memories = [
                Memory(T.decl_buffer((1 << 40,), bits, data=handle), dtype)
                for dtype, bits, handle in zip(pointers, stored, handles, strict=True)
            ]
            memories[result] = memories[operand]
            with ExitStack() as stack:
                stack.enter_context(T.attr("default", "device_id", 0))
                stack.enter_context(T.attr("default", "device_type", 1))
                if stored != list(pointers):
                    stack.enter_context(bfloat16.available())
                body(*memories)
            T.Return(T.int32(0))
    return builder.get().without_attr("global_symbol")


@contextmanager
def loop(extent: int, *, parallel: bool = False) -> Iterator[Expr]:
    """A loop over ``range(extent)``; one iteration is no loop at all."""
    if extent == 1:
        yield 0
    else:
        with (T.parallel if parallel else T.serial)(0, extent) as i:
            yield i


def let(value: Expr) -> Expr:
    """Names a value so that it is computed once."""
    if isinstance(value, int | float):
        return value
    kind, _, lanes = str(value.ty).partition("x")
    if (lanes or kind == "float32") and not isinstance(value, tvm.ir.TensorLoad):
        # TVM inlines bindings of pure values again, which explodes on long formulas and lets it
        # simplify (a + c) - c; it keeps loads. LLVM turns the memory into a register.
        value = Register(int(lanes or 1), value, kind).get()
    return T.Bind(value)


def broadcast(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane; Python floats become float32."""
    if isinstance(value, int | float):
        value = T.float32(value)
    return value if lanes == 1 else T.broadcast(value, lanes)


def target(hardware: Hardware, threads: int = 1, effort: int = 3) -> tvm.target.Target:
    """TVM's target for a processor; ``effort`` is LLVM's optimization level."""
    # TVM tells LLVM that buffers of different names never overlap. Within a kernel that holds and
    # is said by `noalias`; across kernels, inlined into one function, it does not.
    # Kernels are vectorized before LLVM sees them; its own vectorizer (LLVM 22) loses the remainder
    # in the index of a loop like y[i, j] = x[i % 4, j % 5].
    options = ["-enable-tbaa:bool=false", "-vectorize-loops:bool=false"]
    fields: dict[str, Any] = {
        "kind": "llvm",
        "mcpu": hardware.mcpu,
        "num-cores": threads,
        "cl-opt": options,
        "opt-level": effort,
    }
    if hardware.bf16:
        fields["mattr"] = ["+avx512bf16"]
    if hardware.triple:
        fields["mtriple"] = hardware.triple
    return tvm.target.Target(fields)


def build(module: tvm.IRModule, for_target: tvm.target.Target) -> tvm.runtime.Module:
    """Machine code of a module of kernels and entry functions, through the few passes they need."""
    for_target = for_target.with_host(for_target)
    passes = [
        tirx.transform.BindTarget(for_target),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
    lowered = tvm.ir.transform.Sequential(passes)(module)
    return tvm.get_global_func("target.build.llvm")(lowered, for_target)
