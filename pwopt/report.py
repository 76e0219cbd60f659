"""What an optimization did, as data: report.json, and what the terminal and the page show."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pwopt import cost
from pwopt.approximation import Approximation
from pwopt.bisection import TakenBack
from pwopt.checks import Verification
from pwopt.cost_model import cost_model
from pwopt.environment import environment
from pwopt.hardware import Hardware
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import KERNEL_DOMAIN, Graph, Node
from pwopt.output import GENERATOR
from pwopt.pipeline import PassReport
from pwopt.precision import Precision
from pwopt.reopening import Batch

if TYPE_CHECKING:
    from pwopt.pass_timing import PassTiming
    from pwopt.profiling import Profile

SCHEMA = 1  # of report.json; grows when a field changes its meaning or goes


@dataclass(frozen=True)
class GraphSummary:
    """The size of a graph.

    Attributes:
        nodes: operations.
        macs: multiply-accumulates of one inference, of what is known.
        pointwise_macs: those of 1x1 convolutions.
        parameters: floating-point numbers among the constants.
        parameter_bytes: bytes of all constants.
        ops: number of operations by operator.
        predicted_us: time of one inference on one core as the cost model sees it, microseconds;
            None of a graph for GPUs, of which only kernels are predicted.
    """

    nodes: int
    macs: int
    pointwise_macs: int
    parameters: int
    parameter_bytes: int
    ops: dict[str, int]
    predicted_us: float | None = None


@dataclass(frozen=True)
class Source:
    """Where a model came from."""

    path: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class FileSize:
    """What the model takes as a file.

    Attributes:
        before: bytes of the original, its data file included.
        after: the same of the optimized model.
        max_growth: share of ``before`` by which it may grow.
        refused: rewrites that were not made because it would grow by more.
        refused_bytes: what they would have added.
    """

    before: int
    after: int
    max_growth: float
    refused: int = 0
    refused_bytes: int = 0


@dataclass(frozen=True)
class Compilation:
    """What the target made of the graph.

    Attributes:
        target: "cpu" or "cuda".
        threads: that the executable uses.
        seconds: wall time.
        kernels: one entry per call: node, kernel, origin, macs, predicted_us.
        fallbacks: operators that run in ONNX Runtime: node and reason.
        precision: number formats that were asked for.
        remark: what of them the processor cannot do, if anything.
        verification: of the executable against the original.
        winograd: the tiles that its convolutions might use; fewer than asked for where the result
            would have differed too much.
        open_inputs: those without a static shape: type, and an example of one.
        arch: of GPUs that it holds code for.
        predicted: by architecture the ``gpu`` that is assumed, and the ``us`` of all kernels, one
            after the other, by its roofline; empty of the target "cpu".
    """

    target: str
    threads: int
    seconds: float
    kernels: list[Any]
    fallbacks: list[Any]
    precision: str = "fp32"
    remark: str = ""
    verification: Verification | None = None
    winograd: str = "auto"
    open_inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    arch: str = ""
    predicted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The record of one optimization; ``report.json`` holds exactly this.

    Attributes:
        version: of pwopt.
        source: the model.
        target: "cpu" or "cuda".
        hardware: what was optimized for.
        before, after: the graphs.
        passes: what each run of a pass did.
        verification: of the optimized graph against the original, or what lossy passes made.
        compilation: what the target made of it; None where it was not compiled.
        approximations: what lossy passes did, with the loss on held-out examples.
        taken_back: wrong rewrites that --verify-passes found; they are not in the result.
        seconds: wall time.
        profile: where the time goes in the original and in the executable; None where neither was
            measured.
        pass_timing: how ``measured`` in ``passes`` was measured; None where it was not asked for.
        environment: versions, and the machine.
        command: the command line; empty where it was called from Python.
        batch: what became of a batch that the original leaves open; None where it leaves none.
        schema: of ``report.json``.
        generator: "pwopt".
    """

    version: str
    source: Source
    target: str
    hardware: Hardware
    before: GraphSummary
    after: GraphSummary
    passes: tuple[PassReport, ...]
    verification: Verification
    file: FileSize
    compilation: Compilation | None = None
    approximations: tuple[Approximation, ...] = ()
    taken_back: tuple[TakenBack, ...] = ()
    seconds: float = 0.0
    profile: Profile | None = None
    pass_timing: PassTiming | None = None
    environment: Mapping[str, Any] = field(default_factory=environment)
    command: str = ""
    batch: Batch | None = None
    schema: int = SCHEMA
    generator: str = field(default=GENERATOR)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON's types; numbers that JSON lacks become null."""
        plain = plain_json(self)
        assert isinstance(plain, dict)
        return plain

    @no_garbage_collection()
    def dumps(self) -> str:
        """The text of ``report.json``."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def summarize(
    graph: Graph,
    hardware: Hardware | None,
    precision: Precision = Precision(),  # noqa: B008 - it is immutable
) -> GraphSummary:
    """The size of a graph, and its predicted time on a machine, if one is given."""
    operations = [n for n in graph.nodes() if not n.is_input and not n.is_constant]
    macs = {n: cost.node_macs(graph, n) for n in operations}
    return GraphSummary(
        nodes=len(operations),
        macs=sum(macs.values()),
        pointwise_macs=sum(macs[n] for n in operations if is_pointwise(graph, n)),
        parameters=cost.parameters(graph),
        parameter_bytes=graph.constant_bytes,
        ops=dict(Counter(n.op for n in operations).most_common()),
        predicted_us=cost_model(hardware, precision).graph_us(graph) if hardware else None,
    )


def is_pointwise(graph: Graph, node: Node) -> bool:
    """Whether a node is a convolution with a 1x1 (1, 1x1x1) kernel."""
    if node.domain == KERNEL_DOMAIN and node.op == "Pointwise":
        return True
    weights = graph.operand(node, 1) if node.op.endswith("Conv") else None
    shape = weights.shape if weights is not None else None
    return shape is not None and len(shape) > 2 and math.prod(shape[2:]) == 1


def runs_by_pass(
    runs: Sequence[tuple[str, bool]], apart: bool = False
) -> list[tuple[str, list[int]]]:
    """The runs of each pass together, as positions, in the order of their first ones.

    Args:
        runs: by run the pass with its options, and whether it changed the graph.
        apart: whether runs that changed the graph stand apart, in the order in which they did.
    """
    found: list[tuple[str, list[int]]] = []
    latest: dict[str, list[int]] = {}
    for i, (spec, changed) in enumerate(runs):
        group = latest.get(spec)
        if group is None or (apart and changed and any(runs[j][1] for j in group)):
            group = latest[spec] = []
            found.append((spec, group))
        group.append(i)
    if apart:
        found.sort(key=lambda each: next((i for i in each[1] if runs[i][1]), each[1][0]))
    return found


def plain_json(value: Any) -> Any:
    """A value in JSON's types: dataclasses and named tuples as objects, no NaN or infinity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):  # a named tuple
        value = value._asdict()
    if hasattr(value, "items"):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
