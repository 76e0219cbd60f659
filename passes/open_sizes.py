"""Whether a network takes maps of any size, and the types of its inputs if so."""

from __future__ import annotations

from collections.abc import Mapping

from pwopt.errors import IRError
from pwopt.ir.graph import Graph, Node
from pwopt.ir.retype import retype
from pwopt.ir.shapes import has_rule
from pwopt.ir.types import TensorType, Type

_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")  # and Reduce...


def open_inputs(graph: Graph) -> dict[str, Type] | str:
    """The only input that is a map, its spatial sizes open, or why these must stay.

    What each node makes of a map of twice the size is inferred: it must be a larger one, up to the
    global pools.
    """
    maps = [node for node in graph.inputs if (node.out.tensor.rank or 0) > 2]
    if len(maps) != 1:
        return f"{len(maps)} inputs are maps; sizes can be opened where it is one"
    node = maps[0]
    shape = node.out.shape
    spatial = _spatial(graph, node)
    if shape is None or len(spatial) not in _AXES:
        return f"the size of input {node.out.label!r} is not known"
    symbols = dict(zip(spatial, _AXES[len(spatial)], strict=True))
    doubled = tuple(2 * d if axis in symbols else d for axis, d in enumerate(shape))
    dtype, name = node.out.tensor.dtype, node.names[0]
    if (why := _fixed(graph, {name: TensorType(dtype, doubled)})) is not None:
        return why
    return {name: TensorType(dtype, tuple(symbols.get(a, d) for a, d in enumerate(shape)))}


def _spatial(graph: Graph, node: Node) -> range:
    """The axes of a map besides batch and channels, which come last if a Transpose says so."""
    rank = node.out.tensor.rank or 0
    readers = graph.readers(node.out)
    last = bool(readers) and all(
        reader.is_op("Transpose") and tuple(reader.get("perm", ()))[:2] == (0, rank - 1)
        for reader in readers
    )
    return range(1, rank - 1) if last else range(2, rank)


def _fixed(graph: Graph, inputs: Mapping[str, Type]) -> str | None:
    """The node that needs the size as it is."""
    try:
        _, nodes = retype(graph, inputs)
    except IRError as error:
        return f"at twice the size, {error}"
    for old, new in nodes.items():
        operands = [v for v in graph.operands(old) if v is not None]
        if all(nodes[v.node].types[v.index] == v.type for v in operands):
            continue
        if not has_rule(old.op, old.domain):
            return f"nothing is known of what {old.label} makes of another size"
        pools = old.is_op(*_POOLS) or (not old.domain and old.op.startswith("Reduce"))
        if new.types[0] == old.types[0] and not pools:
            return f"{old.label} makes {old.out.tensor} whatever the size"
        if old.is_op("PRelu") and _has_sizes(operands[1].shape):
            return f"the slopes of {old.label} differ by pixel"
    return None


def _has_sizes(shape: tuple[int, ...] | None) -> bool:
    return shape is None or any(size > 1 for size in shape[1:])
