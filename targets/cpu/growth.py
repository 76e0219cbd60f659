"""Which convolutions may use Winograd's larger weights where the executable may not grow freely."""

from __future__ import annotations

from collections.abc import Sequence

from pwopt.cost_model import CostModel
from pwopt.ir.graph import Graph, Node

FREE_BYTES = 16 << 20  # growth of packed weights that is always allowed


def affordable_sides(
    graph: Graph, model: CostModel, sides: Sequence[int], max_growth: float
) -> dict[Node, tuple[int, ...]]:
    """Sides of Winograd tiles by node, such that all weights together stay within a budget.

    Nodes are served in the order of what they save for a byte, each with its best tile that fits.

    Args:
        graph: the graph.
        model: predicts what a tile saves.
        sides: that may be used at all, in rising order.
        max_growth: packed weights over the graph's constants; :data:`FREE_BYTES` are allowed too.
    """
    budget = max(FREE_BYTES, (graph.constant_bytes or 1) * (max_growth - 1))
    options: dict[Node, list[tuple[int, float, int]]] = {}
    for node in graph.topological():
        if node.op == "Conv":
            tiles = [t for t in model.winograd_tiles(graph, node) if t[0] in sides and t[1] > 0]
            if tiles:
                options[node] = sorted(tiles, key=lambda tile: -tile[1])

    def worth(node: Node) -> float:
        _, us, size = options[node][0]
        return us / max(size, 1)

    chosen: dict[Node, tuple[int, ...]] = {}
    for node in sorted(options, key=lambda n: (-worth(n), n.id)):
        for m, _, size in options[node]:
            if size <= budget:
                budget -= size
                chosen[node] = tuple(side for side in sides if side <= m)
                break
    return chosen
