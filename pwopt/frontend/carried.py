"""What of a model file the IR does not express; it travels in ``graph.metadata["onnx"]``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pwopt.ir.graph import Graph, Node

KEY = "onnx"
LEAN = "lean"  # in a graph's metadata: export leaves out the types that ONNX can infer
BATCH = "open batch"  # in a graph's metadata: types by input name before the batch was closed
OPEN = "open inputs"  # in a graph's metadata: types by input name that export declares


@dataclass
class Carried:
    """The rest of a model file. Entries of nodes that a pass removed are ignored by export.

    Attributes:
        model: the ModelProto without graph and operator sets, serialized.
        graph: the GraphProto without nodes, values and tensors, serialized.
        inputs: name to (serialized ValueInfoProto as declared).
        outputs: the same for outputs.
        reshaped: whether the inputs' shapes were changed while loading.
        nodes: NodeProto without operator, operands and attributes, serialized: documentation,
            overload, metadata.
        kinds: AttributeProto types of empty lists, by attribute.
        absent: indices of results that the file leaves out.
        overridable: initializers that were inputs too, and were made constants.
    """

    model: bytes = b""
    graph: bytes = b""
    inputs: dict[str, bytes] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)
    reshaped: bool = False
    nodes: dict[Node, bytes] = field(default_factory=dict)
    kinds: dict[Node, dict[str, int]] = field(default_factory=dict)
    absent: dict[Node, frozenset[int]] = field(default_factory=dict)
    overridable: tuple[str, ...] = ()


def carried(graph: Graph) -> Carried:
    """What a graph carries along; nothing for a graph that was built by hand."""
    found = graph.metadata.get(KEY)
    return found if isinstance(found, Carried) else Carried()
