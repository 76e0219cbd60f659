"""Multiply-accumulates and constants, counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pwopt.cost import graph_macs, node_macs, parameters
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Value
from pwopt.ir.internal import expand
from pwopt.ir.types import Dim, TensorType


def single(
    op: str, x: tuple[Dim, ...], *weights: tuple[int, ...], domain: str = "", **attributes: Any
) -> Graph:
    graph = Graph("single")
    operands: list[Value | None] = [graph.add_input("x", TensorType("float32", x))]
    operands += [graph.constant(np.ones(w, np.float32)) for w in weights]
    graph.add_output("y", graph.add(op, operands, attributes, domain=domain).out)
    return graph


@pytest.mark.parametrize(
    ("graph", "macs"),
    [
        (single("Conv", (1, 3, 8, 8), (4, 3, 3, 3)), 4 * 36 * 27),
        (single("Conv", (2, 4, 8, 8), (4, 1, 3, 3), (4,), group=4), 2 * 4 * 36 * 9),
        (single("Conv", ("N", 3, 8, 8), (4, 3, 1, 1)), 4 * 64 * 3),
        (single("Conv", (1, 3, "h", 8), (4, 3, 1, 1)), 0),
        (single("ConvTranspose", (1, 3, 8, 8), (3, 4, 2, 2)), 3 * 64 * 16),
        (single("Gemm", (2, 5), (5, 7), (7,)), 70),
        (single("Gemm", ("N", 5), (7, 5), transB=1), 35),
        (single("MatMul", (2, 3, 5), (5, 7)), 210),
        (single("MatMul", (5,), (5, 7)), 35),
        (single("MatMul", (2, 5), (5,)), 10),
        (single("Relu", (2, 5)), 0),
        (single("Pointwise", (1, 4, 8, 8), (6, 2), domain=KERNEL_DOMAIN, group=2), 6 * 64 * 2),
        (single("Linear", (2, 3, 5), (7, 5), domain=KERNEL_DOMAIN), 210),
        (single("Conv", (1, 3, 8, 8), (4, 3, 3, 3), domain=KERNEL_DOMAIN), 4 * 36 * 27),
    ],
)
def test_macs(graph: Graph, macs: int) -> None:
    assert graph_macs(graph) == macs
    assert graph_macs(expand(graph)) == macs
    assert sum(node_macs(graph, node) for node in graph.nodes()) == macs


def test_constants() -> None:
    graph = Graph()
    graph.constant(np.ones((3, 4), np.float32))
    graph.constant(np.ones(5, np.float16))
    graph.constant(np.ones(2, np.int64))
    assert parameters(graph) == 17
    assert graph.constant_bytes == 48 + 10 + 16
