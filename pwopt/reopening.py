"""Whether the written model may leave the batch open, as its original does.

The passes see one size, and some of what they make holds for that one only: a target shape that
was computed from the input's, a constant that was widened to the batch. So the model is opened
again and run on a larger batch beside the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pwopt import checks
from pwopt.errors import PwoptError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType


@dataclass(frozen=True)
class Batch:
    """What became of a batch that the original leaves open.

    Attributes:
        size: that the passes saw, and that executables have.
        inputs: the original's types of the inputs that have it, by name.
        reason: why the written model has that size only; empty where it takes any.
    """

    size: int
    inputs: Mapping[str, str]
    reason: str = ""

    @property
    def text(self) -> str:
        """A sentence for the report."""
        kept = f"has {self.size} only: {self.reason}" if self.reason else "takes any"
        return (
            f"open in {', '.join(self.inputs)}: {self.size} here, and in the executable; "
            f"model.onnx {kept}"
        )


def reopen(
    original: Graph, raw: Path | bytes | None, graph: Graph, *, verify: bool = True
) -> Batch | None:
    """Lets the written model take any batch where it then computes what the original does.

    Args:
        original: the graph before the passes, its batch closed.
        raw: the model as it came, where there is one.
        graph: the optimized graph; export declares its batch open afterwards.
        verify: whether models may be run; nothing is opened otherwise.

    Returns:
        what was done; None for a model without an open batch.
    """
    from pwopt.frontend import BATCH

    closed: Mapping[str, TensorType] = original.metadata.get(BATCH, {})
    if not closed:
        return None
    types = {node.names[0]: node.out.tensor for node in original.inputs}
    size = next((types[name].shape or ())[0] for name in closed)
    assert isinstance(size, int)
    reason = "that it computes the same for others was not checked"
    if verify:
        reason = _trouble(original, raw, graph, closed, 2 * size)
    return Batch(size, {name: str(t) for name, t in closed.items()}, reason)


def _trouble(
    original: Graph,
    raw: Path | bytes | None,
    graph: Graph,
    closed: Mapping[str, TensorType],
    size: int,
) -> str:
    """Opens the batch, or says what goes wrong with one of ``size``."""
    from pwopt import frontend

    before = graph.metadata.get(frontend.OPEN, {})
    now = {node.names[0]: node.out.tensor for node in graph.inputs}
    opened = {
        n: _with_batch(before.get(n, now[n]), t.shape[0]) for n, t in closed.items() if t.shape
    }
    larger = {n: _with_batch(now[n], size) for n in closed}
    graph.metadata[frontend.OPEN] = {**before, **opened}
    try:
        answers = checks.reference(frontend.retyped(original, larger), raw, seeds=checks.SEEDS[:1])
        if isinstance(answers, str):
            raise PwoptError(answers)
        checks.verify(answers, graph)
    except PwoptError as error:
        del graph.metadata[frontend.OPEN]
        if before:
            graph.metadata[frontend.OPEN] = before
        return f"with {size}, {error}"
    return ""


def _with_batch(t: TensorType, batch: int | str | None) -> TensorType:
    return TensorType(t.dtype, (batch, *(t.shape or ())[1:]))
