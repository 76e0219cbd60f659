"""Softmax and log-softmax over any axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import Expr, Memory, Register, View, broadcast, kernel, let
from pwopt.targets.cpu.kernels import functions
from pwopt.targets.cpu.kernels.loops import threads_for
from pwopt.targets.cpu.kernels.rows import Offsets, Rows


def softmax(
    x: View,
    axes: Sequence[int],
    y: View,
    hardware: Hardware,
    threads: int = 1,
    *,
    log: bool = False,
) -> tirx.PrimFunc:
    """``exp(x - max) / sum(exp(x - max))`` over ``axes``, or its logarithm; float32.

    Args:
        x: input; may be y itself.
        axes: nonnegative; several count as one flattened axis.
        y: output, of x's shape.
        hardware: the processor.
        threads: of the executable.
        log: log-softmax.

    Returns:
        A function over the pointers x, y.
    """
    rows = Rows([x, y], axes, hardware.lanes)
    lanes = rows.lanes

    def body(source: Memory, destination: Memory) -> None:
        def load(at: Offsets) -> Expr:
            return rows.load(source, 0, at)

        def one(bases: Offsets, valid: int) -> None:
            peak = Register(lanes, broadcast(-math.inf, lanes))

            def raise_peak(at: Offsets, width: int) -> None:
                peak.set(T.max(peak.get(), rows.masked(load(at), width, -math.inf)))

            rows.walk(bases, raise_peak, valid)
            top = rows.total(T.max, peak.get())
            sums = Register(lanes, broadcast(0.0, lanes))

            def add(at: Offsets, width: int) -> None:
                value = let(functions.exp_nonpositive(let(load(at) - top), lanes))
                sums.set(sums.get() + rows.masked(value, width, 0.0))
                if not log:
                    destination.store(at[1], value, lanes, width)

            rows.walk(bases, add, valid)
            total = rows.total(lambda a, b: a + b, sums.get())
            if log:
                shift = let(top + functions.log(total, lanes))
            else:
                scale = let(broadcast(1.0, lanes) / total)

            def finish(at: Offsets, width: int) -> None:
                value = load(at) - shift if log else rows.load(destination, 1, at) * scale
                destination.store(at[1], value, lanes, width)

            rows.walk(bases, finish, valid)

        if 0 not in x.shape:
            rows.each(one, threads_for(math.prod(x.shape), threads))

    return kernel(["float32", "float32"], body)
