"""A scratch graph that tells what a rewrite would cost before it is made.

The nodes at stake are drawn twice over the same operands, as they are and as they would be. Sizes
that are open count as one along the batch and as :data:`NOMINAL` along any other axis, because only
the ratio of the two costs matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Node, Value
from pwopt.ir.types import TensorType
from pwopt.pipeline import Context

NOMINAL = 32  # pixels along an open axis
MARGIN = 0.05  # of the cost before; a rewrite that is predicted to save less is not made


class Sketch:
    """Nodes drawn beside the graph.

    Args:
        graph: whose values the sketch reads.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._scratch = Graph("sketch", graph.opsets)
        self._values: dict[Value, Value] = {}
        self._drawn: list[Node] = []

    def value(self, value: Value) -> Value:
        """A value of the graph as the sketch sees it."""
        if value not in self._values:
            array = self._graph.constant_value(value)
            if array is not None:
                self._values[value] = self._scratch.constant(array)
            else:
                name = f"x{len(self._values)}"
                self._values[value] = self._scratch.add_input(name, _closed(value.tensor))
        return self._values[value]

    def add(
        self, op: str, operands: Sequence[Value | np.ndarray | None], attributes: Mapping[str, Any]
    ) -> Value:
        """Draws an operator over values of the graph or of the sketch, or new constants.

        Raises:
            IRError: the operator does not fit its operands.
        """
        node = self._scratch.add(op, [self._own(v) for v in operands], attributes)
        self._drawn.append(node)
        return node.out

    def _own(self, value: Value | np.ndarray | None) -> Value | None:
        if isinstance(value, np.ndarray):
            return self._scratch.constant(value)
        return value if value is None or value.node in self._scratch else self.value(value)

    def copy(self, nodes: Sequence[Node]) -> Sketch:
        """Draws nodes of the graph as they are, in this order."""
        for node in nodes:
            self._values[node.out] = self.add(node.op, self._graph.operands(node), node.attributes)
        return self

    def us(self, context: Context) -> float:
        """Predicted time of all that was drawn, in microseconds.

        Raises:
            IRError: the size of a result is not known.
        """
        for node in self._drawn:
            if node.out.tensor.elements is None:
                raise IRError(f"the size of the result of {node.op} is not known")
        return context.cost_model.nodes_us(self._scratch, self._drawn)


def saving(before: float, after: float) -> str | None:
    """Why a rewrite does not pay.

    Args:
        before: microseconds.
        after: microseconds.

    Returns:
        the reason, or None where it pays.
    """
    if after <= before * (1 - MARGIN):
        return None
    return f"it would take {after:.1f} us instead of {before:.1f} us"


def _closed(tensor: TensorType) -> TensorType:
    """The type with numbers for open dimensions.

    Raises:
        IRError: the rank is not known.
    """
    if tensor.shape is None:
        raise IRError("the rank of an operand is not known")
    sizes = [d if isinstance(d, int) else NOMINAL if i else 1 for i, d in enumerate(tensor.shape)]
    return TensorType(tensor.dtype or "float32", tuple(sizes))
