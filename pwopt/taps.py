"""Looks at what a graph computes on the way to its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pwopt import numerics
from pwopt.ir.graph import Graph, Node, Value
from pwopt.numerics import Difference
from pwopt.running import running

CHUNK = 32  # values that are looked at together; bounds the memory that they take

Feeds = Mapping[str, np.ndarray]


def values(
    graph: Graph, wanted: Sequence[Value], feeds: Feeds, interpreted: bool = False
) -> list[Any]:
    """What the wanted values are, in their order.

    Args:
        graph: is not changed.
        wanted: values of known element type.
        feeds: inputs by name.
        interpreted: whether to run the graph in the reference interpreter.

    Raises:
        PwoptError: the graph cannot be run.
    """
    tapped = graph.copy()
    names = [f"pwopt tap {i}" for i in range(len(wanted))]
    tapped.set_outputs(list(zip(names, wanted, strict=True)))
    with running(tapped, interpreted) as runner:
        answers = runner.run(feeds)
    return [answers[name] for name in names]


def first_divergence(
    before: Graph, after: Graph, feeds: Feeds, interpreted: bool = False
) -> Difference | None:
    """The first tensor that is another one in ``after``, or None where none is known.

    Tensors are compared that both graphs have: results of nodes that stand in both, and of nodes
    that stand for one another by their results' names and types.

    Raises:
        PwoptError: one of the graphs cannot be run.
    """
    pairs = iter(_pairs(before, after))
    while chunk := list(itertools.islice(pairs, CHUNK)):
        want = values(before, [old for old, _ in chunk], feeds, interpreted)
        have = values(after, [new for _, new in chunk], feeds, interpreted)
        for (old, new), w, h in zip(chunk, want, have, strict=True):
            if isinstance(w, np.ndarray) and isinstance(h, np.ndarray):
                found = numerics.difference(new.name or old.label, w, h)
                if not found.ok:
                    return found
    return None


def wiring(graph: Graph) -> dict[int, list[tuple[int, int] | None]]:
    """What each node of a graph reads, by ids and result indices.

    In graphs that stem from one by runs of a pass that differ only in where they stop, nodes of one
    id are alike, though not the same objects where the runs made them.
    """
    return {
        node.id: [None if v is None else (v.node.id, v.index) for v in graph.operands(node)]
        for node in graph.nodes()
    }


def _pairs(before: Graph, after: Graph) -> Iterator[tuple[Value, Value]]:
    """Values of both graphs that should be equal, as far as a change may have reached them."""
    old_wiring, new_wiring = wiring(before), wiring(after)
    by_id: dict[int, Node] = {}
    named: dict[str, list[Value]] = {}
    for node in before.nodes():
        if node.id in new_wiring:
            by_id[node.id] = node
        elif not node.is_constant:
            for value in _results(node):
                named.setdefault(value.name, []).append(value)
    reached: set[int] = set()
    for node in after.topological():
        reads = new_wiring[node.id]
        moved = any(read is not None and read[0] in reached for read in reads)
        if not moved and reads == old_wiring.get(node.id):
            continue
        reached.add(node.id)
        if node.is_constant:
            continue
        for value in _results(node):
            twin = by_id.get(node.id)
            old = [twin[value.index]] if twin else named.get(value.name, []) if value.name else []
            if len(old) == 1 and old[0].tensor.dtype and old[0].type == value.type:
                yield old[0], value


def _results(node: Node) -> list[Value]:
    return [node[i] for i in range(len(node.types))]
