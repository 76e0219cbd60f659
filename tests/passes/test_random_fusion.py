"""Random graphs through all fusing passes, in any order."""

from __future__ import annotations

import random

import pytest

from pwopt.ir.graph import Graph, Value
from pwopt.passes.convert_fc_head import ConvertFcHead
from pwopt.passes.convert_pointwise import ConvertPointwise
from pwopt.passes.fuse_elementwise import FuseElementwise
from pwopt.passes.fuse_epilogue import FuseEpilogue
from tests.passes.building import Build, check

CHANNELS = 4


def random_graph(choice: random.Random, opset: int) -> Graph:
    """A graph whose operators read any earlier value, several of which are outputs."""
    b = Build(opset, choice.randrange(1000))
    shared = b.weight(CHANNELS, CHANNELS, 1, 1)
    maps = [b.input(2, CHANNELS, 5, 3)]
    vectors = [b.op("GlobalAveragePool", maps[0])]
    for _ in range(choice.randint(5, 25)):
        pool, wide = (maps, True) if choice.random() < 0.85 else (vectors, False)
        maps_or_vectors = maps if wide else vectors
        x = choice.choice(pool[-4:])
        value = _operator(b, choice, x, choice.choice(maps_or_vectors), vectors, shared, wide)
        pool.append(value)
        if choice.random() < 0.1:
            vectors.append(b.op("GlobalAveragePool", maps[-1]))
    outputs = {maps[-1], *choice.sample(maps[1:], min(2, len(maps) - 1))}
    head = b.op("Flatten", maps[-1])
    head = b.op("Relu", b.op("Gemm", head, b.weight(15 * CHANNELS, 6), b.weight(6)))
    return b.output(*sorted(outputs, key=lambda v: v.node.id), head)


def _operator(
    b: Build,
    choice: random.Random,
    x: Value,
    y: Value,
    vectors: list[Value],
    shared: Value,
    wide: bool,
) -> Value:
    kind = choice.randrange(9)
    if kind == 0 and wide:
        return b.conv(x, CHANNELS, 3, pads=(1, 1, 1, 1), group=choice.choice([1, 2, CHANNELS]))
    if kind == 1:
        return b.conv(x, CHANNELS, 1, group=choice.choice([1, 2, CHANNELS]))
    if kind == 2:
        return b.op("Conv", x, shared)
    if kind == 3:
        return b.op(choice.choice(["Relu", "Sigmoid", "Tanh", "Softplus", "Elu", "Abs"]), x)
    if kind == 4:
        return b.op(choice.choice(["Add", "Mul", "Sub", "Max"]), x, y)
    if kind == 5:
        return b.op(choice.choice(["Add", "Mul"]), choice.choice(vectors), x)
    if kind == 6:
        return b.op(choice.choice(["Add", "Mul", "PRelu"]), x, b.weight(CHANNELS, 1, 1))
    if kind == 7:
        return b.batch_norm(x, CHANNELS)
    return b.op("Mul", x, b.op("Sigmoid", x))


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    choice = random.Random(seed)
    graph = random_graph(choice, choice.choice([9, 11, 13, 17, 21]))
    first = [ConvertPointwise(), ConvertFcHead(), FuseEpilogue()]
    choice.shuffle(first)
    outcome = check(graph, *first, FuseElementwise(), *first)
    assert "Conv" not in outcome.ops
