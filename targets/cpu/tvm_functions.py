"""TVM's own functions as kernels: scheduled for a CPU, lowered, and over raw pointers.

TVM's operator library gives functions of plain loops over blocks. Here they get the schedule that
every block allows: elementwise producers inlined, the contiguous axis innermost so that LLVM
vectorizes it, reductions around it, and the outer axes spread over the threads.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from pwopt.hardware import Hardware
from pwopt.targets.cpu import codegen
from pwopt.targets.cpu.kernels import loops
from pwopt.targets.views import itemsize

FEW = 4  # elements along an axis that is not worth a vector loop

_LARGEST = {"float16": 65504.0, "float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}
_SPATIAL, _REDUCTION = 0, 2  # kinds of block axes


class Function:
    """A TVM function; equal to others of the same structure, so that they become one kernel."""

    def __init__(self, function: tirx.PrimFunc, hardware: Hardware, threads: int) -> None:
        blocks = scheduled(exact(function), hardware.lanes * 4, threads)
        self._raw = flattened(over_pointers(lowered(blocks)))
        _try_build(self._raw, hardware)
        self._hash = tvm_ffi.structural_hash(self._raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and (
            self is other or bool(tvm_ffi.structural_equal(self._raw, other._raw))
        )

    def __hash__(self) -> int:
        return int(self._hash)

    @property
    def primitive(self) -> tirx.PrimFunc:
        """What a kernel is: a private function over one pointer a parameter."""
        return self._raw


def _try_build(function: tirx.PrimFunc, hardware: Hardware) -> None:
    """Fails where TVM has no code for something, rather than in the whole model's build."""
    other = tirx.PrimFunc([], tirx.Evaluate(0)).with_attr("global_symbol", "other")
    module = tvm.IRModule({"trial": function, "other": other})
    codegen.build(module, codegen.target(hardware, effort=0))


def from_tvm(function: Function) -> tirx.PrimFunc:
    """The kernel of a function."""
    return function.primitive


def calls_packed(function: tirx.PrimFunc) -> bool:
    """Whether a function calls into libraries that executables do not carry."""
    found = []

    def look(call: Any, visitor: Any) -> None:
        if getattr(call.op, "name", "").endswith(("call_packed", "call_cpacked", "call_extern")):
            found.append(call)
        visitor.default_visit(call)

    tvm_ffi.structural_visit(function.body, (tvm.ir.Call, look))
    return bool(found)


def exact(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Serial loops, and reductions that start where ONNX has them start.

    TVM starts a maximum at the largest negative finite number, and the position of one at -1: of
    infinities alone the result would be neither among them nor a position.
    """

    def serial(loop: tirx.For) -> tirx.For:
        if loop.kind == tirx.ForKind.SERIAL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    def infinite(value: tirx.FloatImm) -> Any:
        dtype = str(value.ty.dtype)
        if abs(value.value) == _LARGEST.get(dtype):
            return tirx.FloatImm(dtype, math.copysign(math.inf, value.value))
        return value

    def start(block: s_tir.SBlock) -> s_tir.SBlock:
        if block.init is None:
            return block
        init = tvm_ffi.structural_map(block.init, (tirx.FloatImm, infinite))
        if len(block.writes) == 2:  # the position of an extremum, and the extremum
            init = tvm_ffi.structural_map(init, (tirx.IntImm, _zero_for_minus_one))
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            block.body,
            init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    body = tvm_ffi.structural_map(function.body, [(tirx.For, serial), (s_tir.SBlock, start)])
    return function.with_body(body)


def _zero_for_minus_one(value: tirx.IntImm) -> Any:
    return tirx.IntImm(str(value.ty.dtype), 0) if value.value == -1 else value


def scheduled(function: tirx.PrimFunc, vector_bytes: int, threads: int) -> tirx.PrimFunc:
    """A function with the schedule that its blocks allow; others stay as they are."""
    schedule = s_tir.Schedule(function)
    try:
        root = schedule.get_sblock("root")
    except s_tir.ScheduleError:  # loops without blocks
        return function
    for block in schedule.get_child_blocks(root):
        if _may_inline(schedule, block):
            _try(schedule.compute_inline, block)
    for block in schedule.get_child_blocks(root):
        _try(_schedule_block, schedule, block, vector_bytes, threads)
    return schedule.mod["main"]


def _try(transform: Any, *arguments: Any) -> None:
    with contextlib.suppress(s_tir.ScheduleError):  # then the schedule is as it was before
        transform(*arguments)


def _kinds(block: s_tir.SBlock) -> list[int]:
    return [int(v.iter_type) for v in block.iter_vars]


def _elements(block: s_tir.SBlock) -> int:
    return math.prod(int(v.dom.extent) for v in block.iter_vars)


def _may_inline(schedule: s_tir.Schedule, block: Any) -> bool:
    """Whether an elementwise block's readers can compute it without computing it more often."""
    producer = schedule.get(block)
    readers = [schedule.get(b) for b in schedule.get_consumers(block)]
    return (
        bool(producer.iter_vars)
        and all(k == _SPATIAL for k in _kinds(producer))
        and all(
            r.iter_vars
            and all(k == _SPATIAL for k in _kinds(r))
            and _elements(r) <= _elements(producer)
            for r in readers
        )
        and bool(readers)
    )


def _schedule_block(schedule: s_tir.Schedule, block: Any, vector_bytes: int, threads: int) -> None:
    body = schedule.get(block)
    nest = schedule.get_loops(block)
    kinds = _kinds(body)
    if not nest or len(nest) != len(kinds) or not set(kinds) <= {_SPATIAL, _REDUCTION}:
        return
    extents = [int(schedule.get(loop).extent) for loop in nest]
    if extents != [int(v.dom.extent) for v in body.iter_vars]:
        return
    widest = max(itemsize(str(w.source.dtype)) for w in body.writes)
    lanes = max(1, vector_bytes // widest)
    many = loops.threads_for(math.prod(extents), threads) > 1
    if _is_pointwise(body):
        loop = schedule.fuse(*nest)
        vectors = _vectorize(schedule, loop, math.prod(extents), lanes)
        if many:
            schedule.parallel(vectors)
        return
    spatial = [i for i, k in enumerate(kinds) if k == _SPATIAL]
    reduction = [i for i, k in enumerate(kinds) if k == _REDUCTION]
    inner = spatial[-1:] if not reduction or _reads_along(body, spatial, extents) else []
    outer = [i for i in spatial if i not in inner]
    if reduction:
        schedule.reorder(*(nest[i] for i in (*outer, *reduction, *inner)))
    if many and outer:
        schedule.parallel(schedule.fuse(*(nest[i] for i in outer)))
    if inner:
        at = inner[0]
        divisor = _divisor(extents[at], lanes)
        if divisor > 1:
            _, vector = schedule.split(nest[at], [None, divisor])
            schedule.vectorize(vector)
    if reduction:
        schedule.decompose_reduction(block, nest[reduction[0]])


def _divisor(extent: int, lanes: int) -> int:
    """The lanes of a vector loop without a tail; 1 where there is none worth it."""
    if extent <= lanes:
        return extent
    best = max(d for d in range(1, lanes + 1) if extent % d == 0)
    return best if 2 * best >= lanes else 1


def _vectorize(schedule: s_tir.Schedule, loop: Any, extent: int, lanes: int) -> Any:
    """Splits a loop into vectors, and a scalar rest; returns the loop over the vectors."""
    if extent <= lanes:
        return loop
    if rest := extent % lanes:
        loop, _ = schedule.loop_partition(loop, [extent - rest, None])
    outer, vector = schedule.split(loop, [None, lanes])
    schedule.vectorize(vector)
    return outer


def _is_pointwise(block: s_tir.SBlock) -> bool:
    """Whether each element depends on those at the same position alone: the axes are one."""
    axes = [v.var for v in block.iter_vars]
    shape = [int(v.dom.extent) for v in block.iter_vars]
    return all(
        [int(e) for e in r.source.shape] == shape
        and all(i.min.same_as(a) for i, a in zip(r.region, axes, strict=True))
        for r in (*block.reads, *block.writes)
    )


def _reads_along(block: s_tir.SBlock, spatial: list[int], extents: list[int]) -> bool:
    """Whether the last axis of the result is contiguous in an operand, and long enough."""
    if not spatial or extents[spatial[-1]] < FEW:
        return False
    axis = block.iter_vars[spatial[-1]].var
    return any(r.region and _uses(r.region[-1].min, axis) for r in block.reads)


def _uses(expression: Any, variable: tirx.Var) -> bool:
    found = []

    def look(var: tirx.Var, visitor: Any) -> None:
        if var.same_as(variable):
            found.append(var)

    tvm_ffi.structural_visit(expression, (tirx.Var, look))
    return bool(found)


def lowered(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Blocks become loops and allocations, as the build of kernels expects them."""
    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
    module = tvm.IRModule({"main": function})
    return tvm.ir.transform.Sequential(passes)(module)["main"]


def flattened(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Flat memory and vectors; a choice in scalar code reads only what it chose."""
    passes = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(),  # narrower indices would no longer show what is contiguous
        s_tir.transform.RewriteUnsafeSelect(),
    ]
    module = tvm.IRModule({"main": function})
    return tvm.ir.transform.Sequential(passes)(module)["main"]


def over_pointers(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A private function over one aligned pointer for each tensor."""
    plain: dict[Any, Any] = {}  # tensors at an offset of their own become ones at the pointer
    handles, statements = [], []
    for i, tensor in enumerate(function.params):
        dtype = str(tensor.dtype)
        plain[tensor] = tirx.decl_buffer([int(e) for e in tensor.shape], dtype, f"b{i}")
        handles.append(tirx.Var(f"p{i}", tvm.ir.PointerType(tvm.ir.PrimType(dtype))))
        statements.append(tirx.DeclBuffer(plain[tensor], data=handles[-1]))
    inner = tvm_ffi.structural_map(_within_bounds(function.body), _NO_PRAGMAS)
    inner = tvm_ffi.structural_map(inner, (tirx.Var, lambda v: plain.get(v, v)))
    # Without these, temporaries cannot be allocated.
    body = tirx.AttrStmt("default", "device_type", 1, inner)
    statements.append(tirx.AttrStmt("default", "device_id", 0, body))
    statements.append(tirx.Return(tirx.const(0, "int32")))
    made = tirx.PrimFunc(handles, tirx.SeqStmt(statements), tvm.ir.PrimType("int32"))
    return made.with_attr({"tirx.is_scheduled": True, "tirx.noalias": True, "s_tir": True})


def _drop_pragma(statement: tirx.AttrStmt) -> tirx.Stmt:
    return statement.body if statement.attr_key.startswith("pragma_") else statement


_NO_PRAGMAS = (tirx.AttrStmt, _drop_pragma)


def _within_bounds(body: tirx.Stmt) -> tirx.Stmt:
    """Indices that are data, kept inside the tensor that they index: data is not to be trusted."""
    counters: set[Any] = set()

    def note(loop: tirx.For, visitor: Any) -> None:
        counters.add(loop.loop_var)
        visitor.default_visit(loop)

    def is_data(index: Any) -> bool:
        found = []
        known = [
            (tvm.ir.TensorLoad, lambda load, _: found.append(load)),
            (tirx.Var, lambda v, _: None if v in counters else found.append(v)),
        ]
        tvm_ffi.structural_visit(index, known)
        return bool(found)

    def kept(indices: Any, shape: Any) -> list[Any]:
        return [
            tirx.max(tirx.min(i, e - 1), 0) if is_data(i) else i
            for i, e in zip(indices, shape, strict=True)
        ]

    def load(value: tvm.ir.TensorLoad) -> Any:
        indices = kept(value.indices, value.source.shape)
        return tirx.BufferLoad(value.source, indices)

    def store(statement: tirx.BufferStore) -> tirx.BufferStore:
        indices = kept(statement.indices, statement.buffer.shape)
        return tirx.BufferStore(statement.buffer, statement.value, indices)

    tvm_ffi.structural_visit(body, (tirx.For, note))
    return tvm_ffi.structural_map(body, [(tvm.ir.TensorLoad, load), (tirx.BufferStore, store)])
