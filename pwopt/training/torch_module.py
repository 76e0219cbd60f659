"""A graph as a PyTorch module, and its weights back into the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pwopt.errors import UsageError
from pwopt.ir.graph import Graph, Node, Value
from pwopt.training.torch_ops import OPERATORS, Call

# Operand slots that hold weights, None for any; whatever else is constant (a Clip's bounds, the
# factors of a Resize) is part of the network's definition.
_WEIGHTS: dict[str, tuple[int, ...] | None] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "BatchNormalization": (1, 2),
    "PRelu": (1,),
    "MatMul": None,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), None),
}


class GraphModule(nn.Module):  # type: ignore[misc]  # torch is not there where types are checked
    """Computes what a graph computes, with its floating-point weights as parameters.

    Operators follow ONNX's definitions in evaluation mode. In training mode, BatchNormalization
    normalizes by the batch and updates its running statistics, and Dropout stays the identity that
    it is in an inference graph. Axis 0 may be longer than the graph says: a Reshape keeps it.

    Args:
        graph: standard ONNX operators only; not changed.
        trainable: which nodes' weights are trained, by default all. The batch normalization of a
            node that is not keeps its statistics in training mode, too.

    Raises:
        UsageError: an operator has no translation; the message names its node.
    """

    def __init__(self, graph: Graph, trainable: Callable[[Node], bool] | None = None) -> None:
        super().__init__()
        self._graph = graph.copy()
        self._order = [n for n in self._graph.topological() if not n.is_constant and not n.is_input]
        self._keys: dict[int, str] = {}  # of the module's tensors, by the constant's node id
        _refuse_unknown(self._order)
        trained = {n.id for n in self._order if trainable is None or trainable(n)}
        for node in self._graph.nodes():
            if node.is_constant and node.attributes["value"].dtype.kind == "f":
                self._register(node, trained)
        self._trained = trained

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs in order, from its inputs in order."""
        graph = self._graph
        if len(inputs) != len(graph.inputs):
            raise UsageError(f"{len(inputs)} inputs for a graph of {len(graph.inputs)}")
        known: dict[Value, Tensor] = {
            node.out: x for node, x in zip(graph.inputs, inputs, strict=True)
        }
        for node in self._order:
            operands = [self._tensor(v, known) for v in graph.operands(node)]
            call = Call(graph, node, self.training and node.id in self._trained)
            results = OPERATORS[node.op](call, *operands)
            if isinstance(results, Tensor):
                results = (results,)
            known.update((node[i], result) for i, result in enumerate(results))
        return tuple(x for _, v in graph.outputs if (x := self._tensor(v, known)) is not None)

    def to_graph(self) -> Graph:
        """A copy of the graph that holds the weights as they are now, under the same names."""
        graph = self._graph.copy()
        for node in self._graph.nodes():
            if (key := self._keys.get(node.id)) is None:
                continue
            old: np.ndarray = node.attributes["value"]
            tensor = getattr(self, key).detach().cpu().contiguous()
            new = tensor.numpy().astype(old.dtype)
            if not np.array_equal(old, new):
                value = graph.constant(new, node.names[0], node.origin)
                graph.replace_uses(node.out, value)
                graph.erase(node)
        return graph

    def _register(self, constant: Node, trained: set[int]) -> None:
        key = self._keys[constant.id] = f"constant_{constant.id}"
        tensor = torch.from_numpy(np.array(constant.attributes["value"], np.float32))
        uses = self._graph.uses(constant.out)
        if any(use.node.id in trained and _is_weight(use.node, use.slot, tensor) for use in uses):
            self.register_parameter(key, nn.Parameter(tensor))
        else:
            self.register_buffer(key, tensor)

    def _tensor(self, value: Value | None, known: dict[Value, Tensor]) -> Tensor | None:
        if value is None:
            return None
        if value.node.is_constant:
            key = self._keys.get(value.node.id)
            if key is None:
                return torch.from_numpy(np.array(value.node.attributes["value"]))
            tensor: Tensor = getattr(self, key)
            return tensor
        return known[value]


def _is_weight(node: Node, slot: int, tensor: Tensor) -> bool:
    if not node.is_op(*_WEIGHTS):
        return False
    slots = _WEIGHTS[node.op]
    # A single number in arithmetic is a definition (of a hard swish, of a GELU), not a weight.
    return slot in slots if slots is not None else tensor.numel() > 1


def _refuse_unknown(nodes: list[Node]) -> None:
    for node in nodes:
        if not node.is_op(*OPERATORS):
            raise UsageError(
                f"{node.label}: cannot be trained through; operators that can are "
                f"{', '.join(sorted(OPERATORS))}"
            )
