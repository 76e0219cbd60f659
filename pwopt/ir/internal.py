"""The internal ops of domain ``pwopt``: what they mean, and their expansion into standard ONNX.

Each becomes one kernel. ``y`` is the result, ``extras`` further operands of the epilogue, which
broadcast to the accumulator as in NumPy and never widen it:

* ``Conv(X, W, B?, *extras)``: ``y = epilogue(Conv(X, W, B), *extras)`` with attributes ``strides``,
  ``dilations``, ``pads`` (explicit), ``group``, ``epilogue``; any number of spatial axes.
* ``Pointwise(X, W, B?, *extras)``: the same with a 1x1 kernel; W is a constant of shape
  (out_channels, in_channels / group); attributes ``strides``, ``group``, ``epilogue``; no pads.
* ``Linear(X, W, B?, *extras)``: ``y = epilogue(X @ W.T + B, *extras)`` over X's last axis; W is a
  constant of shape (N, K); attribute ``epilogue``.
* ``Map(*arguments)``: the elementwise ``program`` of its arguments, with broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pwopt.errors import IRError
from pwopt.ir.expand_programs import emit_program
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Use, Value
from pwopt.ir.program import Program

FIRST_EXTRA = 3  # slot of an epilogue's first extra operand, after X, W and B


def is_internal(node: Node, *ops: str) -> bool:
    """Whether a node is one of these internal ops, or any if none is named."""
    return node.domain == KERNEL_DOMAIN and (not ops or node.op in ops)


def epilogue(node: Node) -> Program:
    """The epilogue of a ``Conv``, ``Pointwise`` or ``Linear``."""
    program = node.attributes.get("epilogue")
    if isinstance(program, Program):
        return program
    return Program(1 + max(0, node.arity - FIRST_EXTRA))


def program_of(node: Node) -> Program:
    """The program of a ``Map``."""
    program: Program = node.attributes["program"]
    return program


def extras(graph: Graph, node: Node) -> tuple[Value, ...]:
    """The extra operands of an epilogue."""
    return tuple(v for v in graph.operands(node)[FIRST_EXTRA:] if v is not None)


def spatial_attributes(node: Node, rank: int) -> dict[str, Any]:
    """Strides, dilations, pads and group of a convolution, with ONNX's defaults filled in.

    Args:
        node: a standard or internal convolution with explicit pads.
        rank: number of spatial axes.
    """
    return {
        "strides": tuple(node.get("strides") or (1,) * rank),
        "dilations": tuple(node.get("dilations") or (1,) * rank),
        "pads": tuple(node.get("pads") or (0,) * (2 * rank)),
        "group": int(node.get("group", 1)),
    }


def with_epilogue(
    graph: Graph, node: Node, program: Program, new_extras: Sequence[Value] = (), **changes: Any
) -> Node:
    """Adds a copy of ``node`` with another epilogue; the caller redirects the uses.

    Args:
        graph: where the node is.
        node: a ``Conv``, ``Pointwise`` or ``Linear``.
        program: the whole new epilogue.
        new_extras: appended to the extra operands.
        changes: further arguments of :meth:`Graph.add`, such as ``names`` and ``origin``.
    """
    operands = [*graph.operands(node), *(None,) * (FIRST_EXTRA - node.arity), *new_extras]
    attributes = {**node.attributes, "epilogue": program}
    settings = {"types": node.types, "names": node.names, "origin": node.origin, "name": node.name}
    return graph.add(node.op, operands, attributes, domain=KERNEL_DOMAIN, **{**settings, **changes})


# --- well-formedness: invariant 9 ------------------------------------------------------------


def check(node: Node, operands: Sequence[Value | None]) -> None:
    """Checks that an internal op is one that expansion and lowering understand.

    Raises:
        IRError: it is not; says why.
    """
    rule = _CHECKS.get(node.op)
    if rule is None:
        raise IRError(f"there is no internal op {node.op!r}")
    if len(node.types) != 1:
        raise IRError(f"has {len(node.types)} results, not 1")
    rule(node, operands)
    dtypes = {v.tensor.dtype for v in operands if v is not None and v.tensor.dtype}
    if len(dtypes) > 1:
        raise IRError(f"operands of several element types {sorted(dtypes)}")


def _check_map(node: Node, operands: Sequence[Value | None]) -> None:
    program = node.attributes.get("program")
    if not isinstance(program, Program):
        raise IRError("has no attribute program")
    if program.arity != len(operands) or not operands or None in operands:
        present = sum(v is not None for v in operands)
        raise IRError(f"program takes {program.arity} arguments, {present} given")


def _check_weighted(node: Node, operands: Sequence[Value | None], weight_rank: int | None) -> None:
    if len(operands) < 2 or operands[0] is None or operands[1] is None:
        raise IRError("X or W is absent")
    program = node.attributes.get("epilogue")
    given = max(0, len(operands) - FIRST_EXTRA)
    if program is not None and not isinstance(program, Program):
        raise IRError(f"epilogue is {program!r}, not a Program")
    if epilogue(node).arity != 1 + given or None in operands[FIRST_EXTRA:]:
        wanted = epilogue(node).arity - 1
        raise IRError(f"epilogue takes {wanted} extra operands, {given} slots given")
    weight, bias = operands[1], operands[2] if len(operands) > 2 else None
    shape = weight.tensor.shape
    if weight_rank is not None:
        if not weight.node.is_constant:
            raise IRError(f"W {weight.label} is no constant")
        if shape is None or len(shape) != weight_rank:
            raise IRError(f"W is {weight.type}, not of rank {weight_rank}")
    if bias is not None and bias.tensor.shape is not None and shape is not None:
        channels = shape[0]
        size = bias.tensor.shape[0] if bias.tensor.rank == 1 else bias.type
        if bias.tensor.rank != 1 or (
            isinstance(size, int) and isinstance(channels, int) and size != channels
        ):
            raise IRError(f"B is {bias.type} where W is {weight.type}")


def _check_conv(node: Node, operands: Sequence[Value | None]) -> None:
    _check_weighted(node, operands, None)
    _check_attributes(node, {"strides", "dilations", "pads", "group", "epilogue"})
    weight = operands[1]
    rank = weight.tensor.rank if weight is not None else None
    if rank is None:
        raise IRError("the rank of W is not known")
    _check_lengths(node, {"strides": rank - 2, "dilations": rank - 2, "pads": 2 * (rank - 2)})


def _check_pointwise(node: Node, operands: Sequence[Value | None]) -> None:
    _check_weighted(node, operands, 2)
    _check_attributes(node, {"strides", "group", "epilogue"})
    x = operands[0]
    rank = x.tensor.rank if x is not None else None
    if rank is None or rank < 3:
        raise IRError(f"the rank of X is {rank}, not known to be 3 or more")
    _check_lengths(node, {"strides": rank - 2})


def _check_linear(node: Node, operands: Sequence[Value | None]) -> None:
    _check_weighted(node, operands, 2)
    _check_attributes(node, {"epilogue"})


def _check_attributes(node: Node, allowed: set[str]) -> None:
    surplus = set(node.attributes) - allowed
    if surplus:
        raise IRError(f"attributes {sorted(surplus)} are not among {sorted(allowed)}")


def _check_lengths(node: Node, lengths: dict[str, int]) -> None:
    for name, length in lengths.items():
        value = node.attributes.get(name)
        if value is not None and len(value) != length:
            raise IRError(f"{name}={tuple(value)} does not have {length} numbers")


_CHECKS: dict[str, Callable[[Node, Sequence[Value | None]], None]] = {
    "Conv": _check_conv,
    "Linear": _check_linear,
    "Map": _check_map,
    "Pointwise": _check_pointwise,
}

# --- expansion -------------------------------------------------------------------------------


def expand(graph: Graph) -> Graph:
    """A copy of the graph in which every internal op is expanded into standard ones.

    The result computes the same values, is valid at the graph's operator set, and keeps result
    names and origins. Equal constants that the expansion adds are one.

    Raises:
        IRError: an op has no equivalent in the graph's operator set.
    """
    copy = graph.copy()
    expander = _Expander(copy)
    for node in copy.topological():
        if is_internal(node):
            expander.replace(node)
    return copy


@dataclass
class _Expander:
    """Expands nodes of one graph in place; remembers the constants that it made."""

    graph: Graph
    constants: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    def replace(self, node: Node) -> None:
        """Puts standard ops in the place of an internal one."""
        operands = self.graph.operands(node)
        check(node, operands)
        build = {
            "Conv": self._conv,
            "Linear": self._linear,
            "Map": self._map,
            "Pointwise": self._pointwise,
        }[node.op]
        self.graph.replace_uses(node.out, build(node, operands))
        self.graph.erase(node)
        sources = [v.node for v in operands if v is not None and v.node.is_constant]
        self.graph.erase_dead(sources)

    def _final(self, node: Node) -> dict[str, Any]:
        """What the op that gives the node's own result inherits."""
        return {"types": node.types, "names": node.names, "origin": node.origin}

    def _finish(self, node: Node, core: Callable[..., Node], operands: Sequence[Any]) -> Value:
        """The anchor, then the epilogue; the last of them gets the node's names."""
        program = epilogue(node)
        if program.is_identity:
            return core(**self._final(node), name=node.name).out
        accumulator = core(origin=node.origin, name=node.name).out
        arguments = [accumulator, *operands[FIRST_EXTRA:]]
        return emit_program(self.graph, program, arguments, self._final(node), self.constants)

    def _conv(self, node: Node, operands: Sequence[Any]) -> Value:
        rank = operands[1].tensor.rank - 2
        attributes = spatial_attributes(node, rank)
        if operands[1].shape is not None:
            attributes = {"kernel_shape": operands[1].shape[2:], **attributes}

        def core(**settings: Any) -> Node:
            return self.graph.add("Conv", operands[:FIRST_EXTRA], attributes, **settings)

        return self._finish(node, core, operands)

    def _pointwise(self, node: Node, operands: Sequence[Any]) -> Value:
        rank = operands[0].tensor.rank - 2
        ones = (1,) * rank
        weight = self._reshaped(node, operands[1], lambda w: w.reshape(*w.shape, *ones), rank)
        attributes = {"kernel_shape": ones, **spatial_attributes(node, rank)}

        def core(**settings: Any) -> Node:
            given = [operands[0], weight, *operands[2:FIRST_EXTRA]]
            return self.graph.add("Conv", given, attributes, **settings)

        return self._finish(node, core, operands)

    def _linear(self, node: Node, operands: Sequence[Any]) -> Value:
        x, w, bias = operands[0], operands[1], operands[2] if len(operands) > 2 else None
        # Gemm needs a C before operator set 11.
        if x.tensor.rank == 2 and (bias is not None or self.graph.opset >= 11):

            def gemm(**settings: Any) -> Node:
                return self.graph.add("Gemm", [x, w, bias], {"transB": 1}, **settings)

            return self._finish(node, gemm, operands)
        weight = self._reshaped(node, w, lambda a: np.ascontiguousarray(a.T), "transposed")

        def matmul(name: str = "", origin: Sequence[str] = (), **settings: Any) -> Node:
            if bias is None:
                return self.graph.add("MatMul", [x, weight], name=name, origin=origin, **settings)
            product = self.graph.add("MatMul", [x, weight], name=name, origin=origin)
            return self.graph.add("Add", [product.out, bias], origin=origin, **settings)

        return self._finish(node, matmul, operands)

    def _map(self, node: Node, operands: Sequence[Any]) -> Value:
        return emit_program(
            self.graph, program_of(node), operands, self._final(node), self.constants
        )

    def _reshaped(
        self, node: Node, weight: Value, change: Callable[[np.ndarray], np.ndarray], how: object
    ) -> Value:
        """A weight in another form, made once however many nodes share it."""
        key = ("weight", weight.node.id, how)
        if key not in self.constants:
            array = self.graph.constant_value(weight)
            if array is None:
                raise IRError(f"{node.label}: W {weight.label} is no constant")
            lone = self.graph.only_use(weight) == Use(node, 1)
            self.constants[key] = self.graph.constant(
                change(array), name=weight.name if lone else "", origin=weight.node.origin
            )
        return self.constants[key]
