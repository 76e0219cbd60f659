"""Where results go, decided on the whole graph before lowering: slices, borders, outputs."""

from __future__ import annotations

from dataclasses import dataclass

from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node, Value

# Nodes whose kernels write through any strides; results of others are views or row-major.
_STRIDED_OPS = {
    *((KERNEL_DOMAIN, op) for op in ("Conv", "Pointwise", "Map")),
    *(("", op) for op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "Concat", "LRN")),
    *(("", op) for op in ("Resize", "Upsample")),
}

_BORDERED_OPS = _STRIDED_OPS | {("", "Reshape")}  # where it copies; a view cannot have a border


@dataclass(frozen=True)
class Slice:
    """A channel slice of a concatenation.

    Attributes:
        value: the concatenation's result.
        start: first channel.
    """

    value: Value
    start: int


class Placement:
    """Decisions about results.

    Attributes:
        bordered: values that were given their border.
        without_border: values that cannot have one.
    """

    def __init__(self, graph: Graph) -> None:
        self.bordered: set[Value] = set()
        self.without_border: set[Value] = set()
        self._slices: dict[Value, Slice] = {}
        self._borders: dict[Value, tuple[int, ...]] = {}
        self._outputs: dict[Value, int] = {}
        for index, (_, value) in enumerate(graph.outputs):
            self._outputs.setdefault(value, index)
        for node in graph.nodes():
            if node.is_op("Concat"):
                self._plan_concat(graph, node)
            elif (node.domain, node.op) in ((KERNEL_DOMAIN, "Conv"), ("", "Conv")):
                self._want_border(graph, node)
        for value in self._slices:  # a slice has the border of the whole only by accident
            self.without_border.add(value)

    def slice_of(self, value: Value) -> Slice | None:
        """The slice of a concatenation that a value is written to, if any."""
        return self._slices.get(value)

    def takes_strides(self, value: Value) -> bool:
        """Whether a value is an image whose kernel writes through any strides."""
        shape = value.shape
        image = shape is not None and len(shape) > 2 and value.tensor.dtype == "float32"
        return image and (value.node.domain, value.node.op) in _STRIDED_OPS

    def border(self, value: Value) -> tuple[int, ...]:
        """The zero border that a value's readers want: per spatial axis before, after."""
        return () if value in self.without_border else self._borders.get(value, ())

    def output_of(self, value: Value) -> int | None:
        """Index of the first graph output that a value is."""
        return self._outputs.get(value)

    def _plan_concat(self, graph: Graph, node: Node) -> None:
        shape = node.out.shape
        if shape is None or len(shape) != 4 or node.out.tensor.dtype != "float32":
            return
        if node.get("axis") not in (1, -3):
            return
        start = 0
        for value in graph.operands(node):
            if value is None or value.shape is None:
                return
            fits = (
                (value.node.domain, value.node.op) in _STRIDED_OPS
                and value not in self._slices
                and not graph.is_output(value)
            )
            if fits:
                self._slices[value] = Slice(node.out, start)
            start += value.shape[1]

    def _want_border(self, graph: Graph, node: Node) -> None:
        value = graph.operand(node, 0)
        pads = node.get("pads", ())
        if value is None or value.shape is None or not any(pads):
            return
        if value.tensor.dtype != "float32" or len(value.shape) not in (3, 4):
            return
        producer = (value.node.domain, value.node.op)
        if producer not in _BORDERED_OPS or graph.is_output(value):
            return
        spatial = len(value.shape) - 2
        wanted = tuple(p for i in range(spatial) for p in (pads[i], pads[spatial + i]))
        have = self._borders.get(value, (0,) * len(wanted))
        self._borders[value] = tuple(max(a, b) for a, b in zip(have, wanted, strict=True))
