"""From a plan to machine code: each distinct kernel once, and an entry function that calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.targets.cpu import codegen
from pwopt.targets.machine_code import TIMED, TIMESPEC_BYTES
from pwopt.targets.plan import SLACK_BYTES, Buffer, Plan, Pointer

_CLOCK_MONOTONIC = 1  # Linux, on every architecture; the call stays in user space, some 20 ns


def build_module(
    plans: Sequence[Plan],
    constant_bytes: int,
    hardware: Hardware,
    threads: int,
    *,
    timed: bool = False,
) -> tvm.runtime.Module:
    """Machine code of plans whose offsets are assigned and whose constants are packed.

    There is one entry function a plan, :func:`entry_name`. It takes the workspace, the constants,
    then the inputs and the outputs, each as a flat array of bytes aligned to 64 bytes.

    Args:
        plans: one per compiled segment.
        constant_bytes: size of the constants that all of them share.
        hardware: the processor.
        threads: of one run.
        timed: whether there is a second entry a plan, which calls the same kernels and writes down
            the time before the first and after each: a ``timespec`` each into one more array.
    """
    module = tvm.IRModule()
    names: dict[Any, str] = {}
    for index, plan in enumerate(plans):
        for step in plan.steps:
            if step.key not in names:
                name = f"k{len(names)}_{step.kernel_name}"
                names[step.key] = name
                module[name] = step.make()
        calls = [module.get_global_var(names[s.key]) for s in plan.steps]
        module[entry_name(index)] = _entry(plan, constant_bytes, entry_name(index), calls)
        if timed:
            name = entry_name(index) + TIMED
            module[name] = _entry(plan, constant_bytes, name, calls, timed=True)
    return codegen.build(module, codegen.target(hardware, threads))


def entry_name(index: int) -> str:
    """Symbol of the entry function of plan ``index``."""
    return f"pwopt_run_{index}"


def _entry(
    plan: Plan, constant_bytes: int, name: str, calls: Sequence[Any], *, timed: bool = False
) -> tvm.tirx.PrimFunc:
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.is_scheduled": True})

        def flat(name: str, size: int) -> Any:
            return T.arg(name, T.buffer((max(size, 1),), "uint8"))

        workspace = flat("workspace", max(plan.workspace_bytes, SLACK_BYTES))
        constants = flat("constants", constant_bytes)
        inputs = [flat(f"input{i}", b.bytes) for i, (_, b, _) in enumerate(plan.inputs)]
        outputs = [flat(f"output{i}", b.bytes) for i, (_, b, _) in enumerate(plan.outputs)]
        times = flat("times", TIMESPEC_BYTES * (len(plan.steps) + 1)) if timed else None

        def address(pointer: Pointer) -> Any:
            buffer: Buffer = pointer.buffer
            if buffer.kind == "input":
                return T.address_of(inputs[buffer.index][pointer.offset])
            if buffer.kind == "output":
                return T.address_of(outputs[buffer.index][pointer.offset])
            pool = workspace if buffer.kind == "workspace" else constants
            at = buffer.offset + pointer.offset
            return T.address_of(pool[at if at < 1 << 31 else T.int64(at)])

        def note_time(index: int) -> None:
            if times is not None:
                at = T.address_of(times[TIMESPEC_BYTES * index])
                T.evaluate(T.call_extern("int32", "clock_gettime", _CLOCK_MONOTONIC, at))

        note_time(0)
        for i, (step, call) in enumerate(zip(plan.steps, calls, strict=True)):
            T.evaluate(call(*(address(p) for p in step.pointers)))
            note_time(i + 1)
    return builder.get()
