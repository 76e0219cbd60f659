"""What is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pwopt.ir.graph import Opaque
from pwopt.ir.printer import to_text
from pwopt.ir.types import TensorType
from pwopt.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tests.passes.building import Build, check, transform

CSE = EliminateCommonSubexpressions()


def test_golden(golden: Callable[[str, str], None]) -> None:
    b = Build()
    x, c = b.input(2, 3), b.input(2, 3, name="c")
    y = [b.op("Add", x, c), b.op("Add", c, x), b.op("Mul", x, 2.0), b.op("Mul", x, 2.0)]
    graph = b.output(b.op("Sum", *y))
    golden("eliminate_common_subexpressions", to_text(transform(graph, CSE).graph))


def test_outputs_keep_their_names() -> None:
    b = Build()
    x = b.input(2, 3)
    outcome = check(b.output(b.op("Relu", x), b.op("Relu", x)), CSE)
    assert outcome.ops == ["Relu"]
    assert [name for name, _ in outcome.graph.outputs] == ["relu1_out", "relu2_out"]


def test_convolutions_by_content_of_their_weights() -> None:
    b = Build()
    x, w = b.input(1, 2, 5, 5), np.ones((3, 2, 3, 3), np.float32)
    same = [b.op("Conv", x, b.graph.constant(w.copy()), pads=(1, 1, 1, 1)) for _ in range(2)]
    other = b.op("Conv", x, b.graph.constant(-w), pads=(1, 1, 1, 1))
    strided = b.op("Conv", x, b.graph.constant(w.copy()), pads=(1, 0, 1, 2))
    outcome = check(b.output(b.op("Add", *same), other, strided), CSE)
    assert outcome.ops.count("Conv") == 3


def test_what_stays_apart() -> None:
    b = Build()
    x = b.input(2, 3)
    zeros = [b.op("Add", x, v) for v in (0.0, -0.0)]
    order = [b.op("Sub", x, zeros[0]), b.op("Sub", zeros[0], x)]
    dtypes = [b.op("Cast", x, to=10), b.op("Cast", x, to=11)]
    assert len(check(b.output(*zeros, *order, *dtypes), CSE).ops) == 6


def test_random_opaque_and_custom_operators_stay() -> None:
    b = Build()
    x, t = b.input(2, 3), TensorType("float32", (2, 3))
    values = []
    for _ in range(2):
        values.append(b.graph.add("RandomNormalLike", [x], types=[t]).out)
        values.append(b.graph.add("If", [x], {"then_branch": Opaque(b"")}, types=[t]).out)
        values.append(b.graph.add("Noise", [x], domain="custom", types=[t]).out)
    assert len(transform(b.output(*values), CSE).ops) == 6
