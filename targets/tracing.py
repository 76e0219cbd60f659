"""Lowering that remembers what each step is for, so that measured times find their kernels."""

from __future__ import annotations

from typing import Any

from pwopt.errors import CodegenError
from pwopt.ir.graph import Node
from pwopt.targets.lowering import Lowering, Rule


class Tracing(Lowering):
    """Stands before a target's own lowering among the bases of a class.

    Attributes:
        nodes: one per step.
        kernels: one per step: the kernel that a schedule was chosen for, or nothing.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.nodes: list[Node | None] = []
        self.kernels: list[str] = []
        super().__init__(*arguments, **keywords)

    def emit(self, *arguments: Any, **keywords: Any) -> None:
        super().emit(*arguments, **keywords)
        self.nodes.append(self._node)
        self.kernels.append(self._kernel)
        self._kernel = ""

    def run_whole(self, rules: dict[tuple[str, str], Rule]) -> None:
        """Lowers every node by its rule.

        Raises:
            CodegenError: a node has no kernel.
        """
        for node, reason in self.run(rules).items():
            raise CodegenError(f"{node.label} has no kernel: {reason}")
