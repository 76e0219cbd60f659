"""Coordinates for a drawn graph: layers from top to bottom, edges as chains of bends.

After Sugiyama, Tagawa and Toda (Methods for Visual Understanding of Hierarchical System Structures,
1981): longest-path layers, barycenter sweeps against crossings, then coordinates by least squares
to the neighbours under a least distance, which is isotonic regression and exact in linear time.
Networks are long and narrow, so few sweeps do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

_ORDER_SWEEPS = 6
_PLACE_SWEEPS = 12
_SIDE = 0.02  # weight of what only begins or ends beside a chain, which is to stay straight
_BEND_WIDTH = 0.3  # of an edge that passes a layer; a node is 1 wide
MAX_BENDS = 12_000  # edges beyond, the longest ones, go straight


@dataclass
class Layout:
    """Where nodes are drawn, in units of a node's width and a layer's height.

    Attributes:
        x: of each node's middle; the leftmost is 0.5 at least.
        layer: of each node, from 0.
        bends: by edge, the x of the edge in each layer between those of its ends.
        width: of everything.
    """

    x: list[float]
    layer: list[int]
    bends: list[list[float]] = field(default_factory=list)
    width: float = 1.0

    @property
    def layers(self) -> int:
        """Number of layers."""
        return max(self.layer, default=-1) + 1


def layout(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Places the nodes of an acyclic graph.

    Args:
        count: number of nodes, which are in topological order.
        edges: pairs of nodes, the first being the smaller one.
    """
    layer = _layers(count, edges)
    chains, of_layer = _chains(count, edges, layer)
    total = len(of_layer)
    up: list[list[int]] = [[] for _ in range(total)]
    down: list[list[int]] = [[] for _ in range(total)]
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            down[a].append(b)
            up[b].append(a)
    rows: list[list[int]] = [[] for _ in range(max(of_layer, default=-1) + 1)]
    for vertex, at in enumerate(of_layer):
        rows[at].append(vertex)
    _order(rows, up, down)
    half = [0.5 if v < count else _BEND_WIDTH / 2 for v in range(total)]
    x = _coordinates(rows, up, down, half)
    left = min((x[v] - half[v] for v in range(total)), default=0.0)
    x = [each - left for each in x]
    bends = [[x[v] for v in chain[1:-1]] for chain in chains]
    width = max((x[v] + half[v] for v in range(total)), default=1.0)
    return Layout(x[:count], layer, bends, width)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from the sources; a source stands right above its first reader."""
    layer, sources = [0] * count, [True] * count
    first = [count] * count
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        layer[b] = max(layer[b], layer[a] + 1)
        sources[b] = False
    for a, b in edges:
        first[a] = min(first[a], layer[b] - 1)
    return [max(0, first[v]) if sources[v] and first[v] < count else layer[v] for v in range(count)]


def _chains(
    count: int, edges: Sequence[tuple[int, int]], layer: Sequence[int]
) -> tuple[list[list[int]], list[int]]:
    """Each edge as its ends with the bends between them, and the layer of nodes and bends."""
    of_layer = list(layer)
    spans = sorted((layer[b] - layer[a], i) for i, (a, b) in enumerate(edges))
    bent, room = set[int](), MAX_BENDS
    for span, i in spans:
        room -= span - 1
        if room < 0:
            break
        bent.add(i)
    chains = []
    for i, (a, b) in enumerate(edges):
        between = range(layer[a] + 1, layer[b]) if i in bent else ()
        chains.append([a, *range(len(of_layer), len(of_layer) + len(between)), b])
        of_layer.extend(between)
    return chains, of_layer


def _order(rows: list[list[int]], up: list[list[int]], down: list[list[int]]) -> None:
    """Sorts each row by where its neighbours in the row before are, down and up in turns."""
    position = [0.0] * len(up)
    for row in rows:
        for i, v in enumerate(row):
            position[v] = float(i)
    for sweep in range(_ORDER_SWEEPS):
        neighbours = up if sweep % 2 == 0 else down
        for row in rows if sweep % 2 == 0 else reversed(rows):
            if len(row) > 1:
                key = {v: _mean(neighbours[v], position, position[v]) for v in row}
                row.sort(key=key.__getitem__)
            for i, v in enumerate(row):
                position[v] = float(i)


def _coordinates(
    rows: list[list[int]], up: list[list[int]], down: list[list[int]], half: list[float]
) -> list[float]:
    """Draws each vertex to its neighbours, as far as those beside it leave room."""
    x = [0.0] * len(up)
    for row in rows:
        at = 0.0
        for v in row:
            x[v] = at + half[v]
            at += 2 * half[v]
        for v in row:
            x[v] -= at / 2
    weight = [1.0 if up[v] and down[v] else _SIDE for v in range(len(up))]
    for sweep in range(_PLACE_SWEEPS):
        last = sweep >= _PLACE_SWEEPS - 2
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = []
            for v in row:
                near = up[v] + down[v] if last else (up if sweep % 2 == 0 else down)[v]
                wanted.append(_mean(near, x, x[v], weight))
            apart = _apart(wanted, [half[v] for v in row], [weight[v] for v in row])
            for v, found in zip(row, apart, strict=True):
                x[v] = found
    return x


def _apart(wanted: Sequence[float], half: Sequence[float], weight: Sequence[float]) -> list[float]:
    """The numbers closest to those wanted, in order, and at least their half widths apart."""
    offset, at = [], 0.0
    for i, h in enumerate(half):
        at += h + (half[i - 1] if i else 0.0)
        offset.append(at)
    blocks: list[tuple[float, float, int]] = []  # runs of equal values: sum, weight and size
    for value, o, w in zip(wanted, offset, weight, strict=True):
        total, heft, size = w * (value - o), w, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / heft:
            before = blocks.pop()
            total, heft, size = total + before[0], heft + before[1], size + before[2]
        blocks.append((total, heft, size))
    level = [total / heft for total, heft, size in blocks for _ in range(size)]
    return [a + o for a, o in zip(level, offset, strict=True)]


def _mean(
    vertices: Sequence[int],
    values: Sequence[float],
    otherwise: float,
    weight: Sequence[float] | None = None,
) -> float:
    if not vertices:
        return otherwise
    if weight is None:
        return sum(values[v] for v in vertices) / len(vertices)
    total = sum(weight[v] for v in vertices)
    return sum(values[v] * weight[v] for v in vertices) / total
