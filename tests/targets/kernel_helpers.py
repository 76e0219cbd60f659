"""Runs single kernels on NumPy arrays, for tests and tuning experiments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from pwopt import hardware
from pwopt.hardware import Hardware
from pwopt.targets.cpu.codegen import SLACK_BYTES, View, build, target


def aligned(array: np.ndarray) -> np.ndarray:
    """A flat copy as the planner would place it: 64-byte aligned, followed by readable slack."""
    flat = np.ascontiguousarray(array).reshape(-1)
    raw = np.zeros(flat.nbytes + SLACK_BYTES + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + flat.nbytes].view(flat.dtype)
    copy[:] = flat
    return copy


def window_of(array: np.ndarray, view: View) -> np.ndarray:
    """The elements that ``view`` names in a flat array, writable, in the view's shape."""
    item = array.itemsize
    return np.lib.stride_tricks.as_strided(
        array[view.offset :], view.shape, tuple(s * item for s in view.strides)
    )


def callables(
    kernels: Mapping[str, tirx.PrimFunc], processor: Hardware, threads: int = 1
) -> dict[str, Callable[..., None]]:
    """Builds kernels in one module; each result takes :func:`aligned` arrays, in pointer order."""
    module = entries(kernels)
    library = build(module, target(processor, threads))

    def bind(name: str) -> Callable[..., None]:
        def call(*arrays: np.ndarray) -> None:
            assert all(a.ctypes.data % 64 == 0 for a in arrays), "not from aligned()"
            # Looked up each time: a function that outlives its library crashes at exit.
            library[f"run_{name}"](*(ctypes.c_void_p(a.ctypes.data) for a in arrays))

        return call

    return {name: bind(name) for name in kernels}


def assembly(kernels: Mapping[str, tirx.PrimFunc], processor: Hardware) -> str:
    """Assembly text of the kernels for a processor, which need not be this one."""
    return str(build(entries(kernels), target(processor)).inspect_source("asm"))


def entries(kernels: Mapping[str, tirx.PrimFunc]) -> tvm.IRModule:
    """A module of the kernels with a public entry ``run_<name>`` for each."""
    module = tvm.IRModule(dict(kernels))
    for name, function in kernels.items():
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(f"run_{name}")
            T.func_attr({"tirx.is_scheduled": True})
            handles = [
                T.arg(f"p{i}", T.handle(str(p.ty.element_type.dtype)))
                for i, p in enumerate(function.params)
            ]
            T.evaluate(module.get_global_var(name)(*handles))
        module[f"run_{name}"] = builder.get()
    return module


def levels() -> list[Hardware]:
    """The x86 instruction sets that this machine can run, as processors to compile for."""
    host = hardware.host()
    return [
        h for h in (hardware.AVX512, hardware.AVX2) if h.lanes <= host.lanes and not host.triple
    ]


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the scale of the expected output."""
    assert np.isfinite(got).all()
    return float(np.abs(got - want).max() / (np.abs(want).max() + 1e-30))
