"""Elementwise and broadcast groups: one pass over memory per group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.ir.program import Program
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let
from pwopt.targets.cpu.kernels.emit import emit
from pwopt.targets.cpu.kernels.loops import nest, offset_of, threads_for, vectors
from pwopt.targets.views import collapse

_UNROLL = 4
_PERIODIC_REGISTERS = 12


def map_kernel(
    program: Program,
    arguments: Sequence[View],
    y: View,
    hardware: Hardware,
    threads: int = 1,
) -> tirx.PrimFunc:
    """``y = program(arguments)`` element by element in float32.

    Args:
        program: what to compute; its arity is the number of arguments.
        arguments: views of y's shape; stride 0 broadcasts. One may be y itself (in place).
        y: the result.
        hardware: the processor.
        threads: of the executable.

    Returns:
        A function over the arguments' pointers in order, then y's.
    """
    plan = _Plan.of([*arguments, y], hardware.lanes)

    def body(*memories: Memory) -> None:
        if 0 not in plan.extents:
            _walk(program, plan, memories, hardware, threads_for(math.prod(y.shape), threads))

    return kernel([view.dtype for view in (*arguments, y)], body)


@dataclass(frozen=True)
class _Plan:
    """A collapsed loop nest.

    Attributes:
        extents: of the loops, the last one along vectors.
        strides: of each view, y last.
        offsets: of each view.
        period: nonzero if the last loop repeats arguments with this period, which then have
            stride -1 there (a marker); see ``_periodic``.
    """

    extents: list[int]
    strides: list[list[int]]
    offsets: list[int]
    period: int = 0

    @staticmethod
    def of(views: Sequence[View], lanes: int) -> _Plan:
        extents, strides = collapse(views)
        plan = _Plan(extents, strides, [v.offset for v in views])
        return plan._periodic(lanes) or plan

    def _periodic(self, lanes: int) -> _Plan | None:
        """Merges (pixels, channels) although some arguments have channels only.

        Worth it where the channels do not fill vectors: an odd number of them repeats after
        ``period`` elements, so these arguments live in registers outside the loop.
        """
        if len(self.extents) < 2 or self.extents[-1] % lanes == 0:
            return None
        outer, inner = self.extents[-2:]
        repeats = math.lcm(inner, lanes)
        merged, periodic = [], 0
        for steps in self.strides:
            if steps[-2] == steps[-1] * inner:
                merged.append(steps[-1])
            elif steps[-2:] == [0, 1]:
                merged.append(-1)
                periodic += 1
            else:
                return None
        if self.strides[-1][-2:] != [inner, 1] or outer * inner < 2 * repeats:
            return None
        if any(s not in (-1, 0, 1) for s in merged):
            return None
        if periodic * repeats // lanes > _PERIODIC_REGISTERS:
            return None
        strides = [[*s[:-2], m] for s, m in zip(self.strides, merged, strict=True)]
        return _Plan([*self.extents[:-2], outer * inner], strides, self.offsets, inner)


def _walk(
    program: Program, plan: _Plan, memories: Sequence[Memory], hardware: Hardware, threads: int
) -> None:
    inner, steps = plan.extents[-1], [s[-1] for s in plan.strides]
    lanes = hardware.lanes if steps[-1] == 1 and inner > 1 else 1
    gathers = any(s not in (-1, 0, 1) for s in steps)
    outer = plan.extents[:-1]
    many = math.prod(outer) >= 2 * threads
    with nest(outer, threads if many else 1) as index:
        bases = [
            offset_of(o, index, s[:-1]) for o, s in zip(plan.offsets, plan.strides, strict=True)
        ]
        constants = _constants(plan, memories, bases, lanes)
        unroll = math.lcm(plan.period, lanes) // lanes if plan.period else _UNROLL

        def vector(at: Expr, width: int, valid: int, phase: int) -> None:
            values = []
            for i, (memory, base) in enumerate(zip(memories[:-1], bases, strict=False)):
                if i in constants:
                    values.append(constants[i][phase % len(constants[i])])
                elif steps[i] in (0, 1) or width == 1:
                    values.append(memory.load(base + at * steps[i], width))
                else:
                    values.append(memory.load(base + at * steps[i], width, steps[i]))
            memories[-1].store(
                bases[-1] + at * steps[-1], emit(program, values, width, hardware), width, valid
            )

        blocks, rest = divmod(inner, lanes * unroll)
        if blocks:
            with vectors(blocks, 1 if many else threads) as block:
                for u in range(unroll):
                    vector(block * (lanes * unroll) + u * lanes, lanes, lanes, u)
        start = blocks * lanes * unroll
        for u in range(-(-rest // lanes)):
            at, valid = start + u * lanes, min(lanes, rest - u * lanes)
            if valid < lanes and gathers:
                for i in range(valid):
                    vector(at + i, 1, 1, 0)
            else:
                vector(at, lanes, valid, u)


def _constants(
    plan: _Plan, memories: Sequence[Memory], bases: Sequence[Expr], lanes: int
) -> dict[int, list[Expr]]:
    """Vectors of the arguments that do not change along the last loop, or only by phase."""
    found: dict[int, list[Expr]] = {}
    for i, (memory, base, steps) in enumerate(
        zip(memories[:-1], bases, plan.strides, strict=False)
    ):
        if steps[-1] == 0:
            value = memory.load(base)
            found[i] = [let(value if lanes == 1 else T.broadcast(value, lanes))]
        elif steps[-1] == -1:
            phases = math.lcm(plan.period, lanes) // lanes
            found[i] = [_cyclic(memory, base, p * lanes, plan.period, lanes) for p in range(phases)]
    return found


def _cyclic(memory: Memory, base: Expr, start: int, period: int, lanes: int) -> Expr:
    """Lanes ``memory[base + (start + i) % period]``."""
    scratch = Register(lanes, broadcast(0.0, lanes))
    for i in range(lanes):
        T.buffer_store(scratch.buffer, memory.load(base + (start + i) % period), [i])
    return let(scratch.get())
