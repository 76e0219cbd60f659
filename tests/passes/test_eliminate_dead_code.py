"""What no output depends on goes."""

from __future__ import annotations

from collections.abc import Callable

from pwopt.ir.graph import Graph
from pwopt.ir.printer import to_text
from pwopt.passes.eliminate_dead_code import EliminateDeadCode
from tests.passes.building import Build, check, transform


def network() -> Graph:
    b = Build()
    x = b.input(1, 2, 5, 5)
    b.input(1, name="unused")
    b.op("Relu", b.conv(x, 3))
    return b.output(b.op("Neg", x))


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("eliminate_dead_code", to_text(transform(network(), EliminateDeadCode()).graph))


def test_remark() -> None:
    outcome = check(network(), EliminateDeadCode())
    assert outcome.remarks == [("test", "removed 2 operations and 2 constants")]
    assert [node.out.name for node in outcome.graph.inputs] == ["x", "unused"]


def test_nothing_to_do() -> None:
    b = Build()
    outcome = check(b.output(b.op("Neg", b.input(2))), EliminateDeadCode())
    assert outcome.remarks == []
