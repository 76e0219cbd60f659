"""Result types follow from what has become known."""

from __future__ import annotations

from collections.abc import Callable

from pwopt.ir.graph import Graph
from pwopt.ir.printer import to_text
from pwopt.ir.types import UNKNOWN, TensorType
from pwopt.passes.infer_shapes import InferShapes
from tests.passes.building import Build, transform


def network() -> Graph:
    b = Build()
    x = b.input("batch", 4, 6)
    y = b.graph.add("Relu", [x], types=[UNKNOWN], names=("y",)).out
    z = b.graph.add("Transpose", [y], {"perm": (0, 2, 1)}, types=[UNKNOWN], names=("z",)).out
    custom = b.graph.add("Op", [z], domain="custom", types=[TensorType("int8")], names=("c",)).out
    return b.output(custom, z)


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("infer_shapes", to_text(transform(network(), InferShapes()).graph))


def test_remark() -> None:
    outcome = transform(network(), InferShapes())
    assert outcome.remarks == [("test", "found out more of the result types of 2 operations")]
    assert [str(value.type) for _, value in outcome.graph.outputs] == [
        "int8[?]",
        "float32[batchx6x4]",
    ]
