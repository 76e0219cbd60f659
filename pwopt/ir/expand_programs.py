"""Expansion of elementwise programs into the operators that a given operator set has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.program import PARAMETERS, Instruction, Program
from pwopt.ir.shapes import broadcast
from pwopt.ir.types import NUMPY_DTYPES

Constants = dict[tuple[Any, ...], Value]


def emit_program(
    graph: Graph,
    program: Program,
    arguments: Sequence[Value],
    settings: dict[str, Any],
    constants: Constants | None = None,
) -> Value:
    """Adds the operators of a program.

    Args:
        graph: where to.
        program: the program.
        arguments: one value per argument.
        settings: keyword arguments of :meth:`Graph.add` for the operator that gives the result;
            its ``origin`` goes to all of them.
        constants: what earlier expansions made, by dtype and number; grows.

    Returns:
        the result.

    Raises:
        IRError: an operator has no equivalent in the graph's operator set.
    """
    emitter = _Emitter(graph, settings.get("origin", ()), {} if constants is None else constants)
    if program.is_identity:
        return graph.add("Identity", [arguments[0]], **settings).out
    registers = list(arguments)
    for step in program.instructions[:-1]:
        registers.append(emitter.emit(step, [registers[a] for a in step.args], {}))
    last = program.instructions[-1]
    return emitter.emit(last, [registers[a] for a in last.args], settings)


class _Emitter:
    """Adds single instructions, each in the spelling of the graph's operator set."""

    def __init__(self, graph: Graph, origin: Sequence[str], constants: Constants) -> None:
        self.graph = graph
        self.origin = origin
        self.constants = constants

    def emit(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        """Adds the operators of an instruction; ``settings`` are for the last of them."""
        special = _SPECIAL.get(step.op)
        if special is not None:
            return special(self, step, args, settings)
        names = [name for name, _ in PARAMETERS.get(step.op, ())]
        attributes = dict(zip(names, step.parameters, strict=True))
        return self._operator(step.op, args, attributes, settings)

    def _operator(
        self,
        op: str,
        args: Sequence[Value | None],
        attributes: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Value:
        merged: dict[str, Any] = {"origin": self.origin, **(settings or {})}
        node: Node = self.graph.add(op, args, attributes, **merged)
        return node.out

    def _number(self, like: Value, number: float) -> Value:
        """A scalar constant of another value's element type."""
        dtype = like.tensor.dtype or "float32"
        key = ("number", dtype, float(number), math.copysign(1.0, number))
        if key not in self.constants:
            self.constants[key] = self.graph.constant(np.array(number, NUMPY_DTYPES[dtype]))
        return self.constants[key]

    def _clip(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        low, high = step.parameters
        if self.graph.opset < 11:
            bounds = {"min": low, "max": high}
            finite = {k: v for k, v in bounds.items() if math.isfinite(v)}
            return self._operator("Clip", args, finite, settings)
        x = args[0]
        limits = [
            self._number(x, low) if low > -math.inf else None,
            self._number(x, high) if high < math.inf else None,
        ]
        return self._operator("Clip", [x, *limits], None, settings)

    def _erf(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        if self.graph.opset < 9:
            raise IRError(f"Erf needs operator set 9, the graph has {self.graph.opset}")
        return self._operator("Erf", args, None, settings)

    def _gelu(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        x, tanh = args[0], bool(step.parameters[0])
        if self.graph.opset >= 20:
            approximate = {"approximate": "tanh"} if tanh else {}
            return self._operator("Gelu", [x], approximate, settings)
        if tanh:
            cube = self._operator("Mul", [self._operator("Mul", [x, x]), x])
            scaled = self._operator("Mul", [cube, self._number(x, 0.044715)])
            inner = self._operator("Add", [x, scaled])
            inner = self._operator("Mul", [inner, self._number(x, math.sqrt(2 / math.pi))])
            bent = self._operator("Tanh", [inner])
        else:
            inner = self._operator("Mul", [x, self._number(x, math.sqrt(0.5))])
            bent = self._erf(step, [inner], {})
        gate = self._operator("Add", [bent, self._number(x, 1.0)])
        half = self._operator("Mul", [x, self._number(x, 0.5)])
        return self._operator("Mul", [half, gate], None, settings)

    def _hardswish(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        if self.graph.opset >= 14:
            return self._operator("HardSwish", args, None, settings)
        gate = self._operator("HardSigmoid", args, {"alpha": 1 / 6, "beta": 0.5})
        return self._operator("Mul", [args[0], gate], None, settings)

    def _thresholdedrelu(
        self, step: Instruction, args: list[Value], settings: dict[str, Any]
    ) -> Value:
        (alpha,) = step.parameters
        if self.graph.opset >= 10:
            return self._operator("ThresholdedRelu", args, {"alpha": alpha}, settings)
        x = args[0]
        above = self._operator("Greater", [x, self._number(x, alpha)])
        if self.graph.opset >= 9:
            return self._operator("Where", [above, x, self._number(x, 0.0)], None, settings)
        to = _ONNX_NUMBER[x.tensor.dtype or "float32"]
        gate = self._operator("Cast", [above], {"to": to})
        return self._operator("Mul", [x, gate], None, settings)

    def _prelu(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        x, slope = args
        if _widens(slope, x):  # ONNX's PRelu broadcasts the slope only
            negative = self._operator("Relu", [self._operator("Neg", [x])])
            bent = self._operator("Mul", [negative, slope])
            return self._operator("Sub", [self._operator("Relu", [x]), bent], None, settings)
        return self._operator("PRelu", args, None, settings)

    def _extremum(self, step: Instruction, args: list[Value], settings: dict[str, Any]) -> Value:
        if self.graph.opset < 8:  # no broadcasting yet
            args = self._same_shape(step.op, args)
        return self._operator(step.op, args, None, settings)

    def _same_shape(self, op: str, args: list[Value]) -> list[Value]:
        """The arguments broadcast by hand."""
        common = broadcast(*(a.shape for a in args))
        if common is None or None in (a.shape for a in args):
            if len({a.tensor.shape for a in args}) == 1:
                return args
            raise IRError(f"{op} with broadcasting needs operator set 8 or static shapes")
        return [self._broadcast_to(a, common) for a in args]

    def _broadcast_to(self, value: Value, shape: Sequence[Any]) -> Value:
        own = value.shape
        if own is None or own == tuple(shape):
            return value
        array = self.graph.constant_value(value)
        if array is not None:
            return self.graph.constant(np.broadcast_to(array, shape).copy())
        lead = (1,) * (len(shape) - len(own))
        target = self.graph.constant(np.array([*lead, *own], np.int64))
        wide = self._operator("Reshape", [value, target])
        repeats = [to // at if at else 1 for to, at in zip(shape, (*lead, *own), strict=True)]
        return self._operator("Tile", [wide, self.graph.constant(np.array(repeats, np.int64))])


def _widens(value: Value, other: Value) -> bool:
    """Whether broadcasting with ``value`` is known to change ``other``'s shape."""
    a, b = value.shape, other.shape
    if a is None or b is None:
        return False
    return broadcast(a, b) != b


_Special = Callable[[_Emitter, Instruction, list[Value], dict[str, Any]], Value]

# Operators whose spelling, or existence, depends on the operator set.
_SPECIAL: dict[str, _Special] = {
    "Clip": _Emitter._clip,
    "Erf": _Emitter._erf,
    "Gelu": _Emitter._gelu,
    "HardSwish": _Emitter._hardswish,
    "Max": _Emitter._extremum,
    "Min": _Emitter._extremum,
    "PRelu": _Emitter._prelu,
    "ThresholdedRelu": _Emitter._thresholdedrelu,
}

_ONNX_NUMBER = {"float32": 1, "float16": 10, "float64": 11}
