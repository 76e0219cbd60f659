"""Coordinates of drawn graphs: order, distance, straight chains."""

from __future__ import annotations

import itertools
import random

from pwopt.page import layout as module
from pwopt.page.layout import layout

Edges = list[tuple[int, int]]


def random_edges(count: int, span: int) -> Edges:
    rng = random.Random(0)
    skips = [(i, min(count - 1, i + rng.randint(2, span))) for i in range(0, count - 2, 3)]
    return list(dict.fromkeys([(i, i + 1) for i in range(count - 1)] + skips))


def test_a_chain_is_straight() -> None:
    placed = layout(5, [(i, i + 1) for i in range(4)])
    assert placed.layer == [0, 1, 2, 3, 4]
    assert placed.x == [0.5] * 5
    assert placed.width == 1.0
    assert placed.layers == 5


def test_edges_lead_down_and_bend_in_every_layer_between() -> None:
    edges = random_edges(60, 9)
    placed = layout(60, edges)
    for (a, b), bends in zip(edges, placed.bends, strict=True):
        assert placed.layer[a] < placed.layer[b]
        assert len(bends) == placed.layer[b] - placed.layer[a] - 1


def test_nodes_of_a_layer_do_not_overlap() -> None:
    edges = [(0, i) for i in range(1, 9)] + [(i, 9) for i in range(1, 9)]
    placed = layout(10, edges)
    row = sorted(placed.x[i] for i in range(1, 9))
    assert all(b - a > 1 - 1e-9 for a, b in itertools.pairwise(row))
    assert placed.layer == [0, *[1] * 8, 2]
    assert abs(placed.x[0] - placed.width / 2) < 1e-6


def test_what_begins_beside_a_chain_does_not_bend_it() -> None:
    chain = [(i, i + 1) for i in range(0, 18, 2)]
    edges = [(a, a + 2) for a, _ in chain] + [(a + 1, a + 2) for a, _ in chain]
    placed = layout(19, sorted(edges, key=lambda edge: edge[1]))
    assert max(placed.x[0::2]) - min(placed.x[0::2]) < 0.8  # 4.4 without weights
    assert all(placed.layer[i] == placed.layer[i + 1] - 1 for i in range(1, 18, 2))


def test_the_longest_edges_go_straight_where_there_are_too_many_bends() -> None:
    edges = random_edges(4000, 2500)
    placed = layout(4000, edges)
    assert sum(map(len, placed.bends)) <= module.MAX_BENDS
    assert any(placed.bends)
    assert layout(4000, edges) == placed


def test_a_graph_of_nothing() -> None:
    assert layout(0, []).layers == 0
