"""The layers of a graph as the cost model sees them, and measured where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pwopt import cost
from pwopt.cost_model import cost_model
from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph, Node
from pwopt.precision import Precision

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Layer:
    """One node.

    Attributes:
        node: by the user's names.
        macs: multiply-accumulates.
        predicted_us: on one core, microseconds.
        time_share: of the graph's predicted time.
        peak_share: multiply-adds a second over the peak at this precision, of the measured time
            where there is one; 0 for what multiplies nothing.
        bound: "compute", "l2", "l3", "dram" or "launch".
        measured_us: of the CPU target's kernels, None where not measured.
    """

    node: str
    macs: int
    predicted_us: float
    time_share: float
    peak_share: float
    bound: str
    measured_us: float | None = None


def layers(
    graph: Graph,
    hardware: Hardware,
    measured: Mapping[Node, float] | None = None,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> list[Layer]:
    """The nodes that take time, the slowest first."""
    model = cost_model(hardware, precision)
    total = model.graph_us(graph)
    found = []
    for node in graph.topological():
        us, took = model.node_us(graph, node), (measured or {}).get(node)
        if not us and took is None:
            continue
        macs = cost.node_macs(graph, node)
        share = 2e-3 * macs / ((took or us) * model.peak_gflops) if took or us else 0.0
        bound = model.bottleneck(graph, node)
        found.append(Layer(node.label, macs, us, us / (total or 1.0), share, bound, took))
    return sorted(found, key=lambda each: -(each.measured_us or each.predicted_us))


def measure(
    graph: Graph,
    hardware: Hardware,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> dict[Node, float]:
    """Microseconds of each node on the CPU target, all of its kernels together; one thread.

    Raises:
        CodegenError: a node has no kernel.
    """
    from pwopt.targets.cpu.profile import profile

    found: dict[Node, float] = {}
    for each in profile(graph, hardware, precision=precision):
        if each.node is not None:
            found[each.node] = found.get(each.node, 0.0) + each.us
    return found


def render(found: Sequence[Layer], top: int) -> Table:
    """A table of the first ``top`` layers and what the others take together."""
    from rich.markup import escape
    from rich.table import Table

    from pwopt.units import human, microseconds

    measured = any(each.measured_us is not None for each in found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for heading in ("MACs", "predicted", *(["measured"] if measured else []), "share", "of peak"):
        table.add_column(heading, justify="right")
    table.add_column("bound by")

    def row(name: str, some: Sequence[Layer], peak: str, bound: str) -> None:
        macs = sum(each.macs for each in some)
        times = [microseconds(sum(each.predicted_us for each in some))]
        if measured:
            times.append(microseconds(sum(each.measured_us or 0.0 for each in some)))
        share = f"{sum(each.time_share for each in some):.1%}"
        table.add_row(name, human(macs) if macs else "", *times, share, peak, bound)

    for each in found[:top]:
        peak = f"{each.peak_share:.0%}" if each.macs else ""
        row(escape(each.node), [each], peak, each.bound)
    if rest := found[top:]:
        row(f"{len(rest)} others", rest, "", "")
    row("all", found, "", "")
    return table
