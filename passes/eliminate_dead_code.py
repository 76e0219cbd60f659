"""The pass ``eliminate-dead-code``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pwopt.ir.graph import Graph
from pwopt.pipeline import Context, Pass, Remark


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Removes what no output of the graph depends on.

    Rewrite:
        A node whose results are neither read nor outputs → nothing. Inputs stay.

    Shapes:
        Any.

    Numerics:
        Exact.

    Misses when:
        Never.

    Source:
        Common practice.
    """

    name: ClassVar[str] = "eliminate-dead-code"

    def run(self, graph: Graph, context: Context) -> None:
        before = len(graph)
        erased = graph.erase_dead()
        if erased:
            operations = before - len(graph)
            what = f"removed {operations} operations and {erased - operations} constants"
            context.remarks.append(Remark(self.name, graph.name, True, what))
