"""Passes and the pipeline that runs them: the pass only transforms, the pipeline does the rest.

A pass gets a valid graph and leaves a valid one. The pipeline measures, verifies and reports: time,
what changed, operations and multiply-accumulates before and after, and a remark for every rewrite
that was made or declined.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pwopt import hardware
from pwopt.approximation import Approximation
from pwopt.calibration import Calibration
from pwopt.cost_model import CostModel, cost_model
from pwopt.errors import PassError, PwoptError, UsageError, nearest
from pwopt.growth import Budget, Growth
from pwopt.hardware import Hardware
from pwopt.ir.collection import no_garbage_collection
from pwopt.ir.graph import Graph, Node
from pwopt.ir.verify import verify
from pwopt.precision import Precision

if TYPE_CHECKING:
    from pwopt.timing import Spread

MAX_SWEEPS = 100  # of one rewrite over the graph; every rewrite must make progress
# Operations of a graph whose time is predicted after every pass: 40 us an operation add up.
MAX_PREDICTED_NODES = 5000


class UnsettledError(PassError):
    """A rewrite that would go on for ever."""


@dataclass(frozen=True)
class Applied:
    """A rewrite that was made; ``what`` says it in a few words."""

    what: str


@dataclass(frozen=True)
class Missed:
    """A rewrite whose pattern was there but that was not made; ``why`` gives the reason."""

    why: str


@dataclass(frozen=True)
class Remark:
    """One rewrite made or declined.

    Attributes:
        pass_name: the pass.
        node: the node it is about, by the user's names.
        applied: whether the rewrite was made.
        text: what was done, or why not.
    """

    pass_name: str
    node: str
    applied: bool
    text: str


@dataclass(frozen=True)
class KernelTime:
    """Microseconds of a kernel, and the user's nodes that it computes."""

    origin: frozenset[str]
    us: float


def us_of(names: Collection[str], times: Sequence[KernelTime]) -> float | None:
    """Time of the kernels that compute some of the user's nodes; None where there are none."""
    found = [each.us for each in times if not each.origin.isdisjoint(names)]
    return sum(found) if found else None


@dataclass
class Context:
    """What a pass may ask for besides the graph.

    Attributes:
        hardware: the machine that the graph is optimized for.
        target: "cpu" or "cuda".
        precision: number formats that the target will compute in.
        remarks: filled by the passes.
        budget: what the constants of the graph may take; unlimited if left out.
        max_rewrites: rewrites that are still made, None for all; how a wrong one is searched for.
        barred: nodes, by pass spec and id, that a pass leaves alone.
        anchors: the nodes whose rewrites were made, in order.
        looked_at: the node that a pass looks at; where it is if it fails.
        calibration: examples for lossy passes, None for none.
        measure: the time of each kernel of a graph on the target; None where nothing can be
            measured.
        approximations: filled by lossy passes.
    """

    hardware: Hardware = field(default_factory=hardware.host)
    target: str = "cpu"
    precision: Precision = field(default_factory=Precision)
    remarks: list[Remark] = field(default_factory=list)
    budget: Budget = field(default_factory=Budget)
    max_rewrites: int | None = None
    barred: set[tuple[str, int]] = field(default_factory=set)
    anchors: list[Node] = field(default_factory=list)
    looked_at: Node | None = None
    calibration: Calibration | None = None
    measure: Callable[[Graph], Sequence[KernelTime]] | None = None
    approximations: list[Approximation] = field(default_factory=list)

    @property
    def cost_model(self) -> CostModel:
        """Predicts how long nodes take on the hardware; passes ask it before they rewrite."""
        return cost_model(self.hardware, self.precision)

    def growth(self, max_bytes: int | None = None) -> Growth:
        """What a pass may add to the constants, by its own bound and the run's."""
        return Growth(self.budget, max_bytes)

    def fresh(self, **changes: Any) -> Context:
        """A context for another run on the same graph, with nothing noted yet."""
        return Context(
            self.hardware,
            self.target,
            self.precision,
            budget=Budget(self.budget.limit_bytes),
            **changes,
        )

    def may_rewrite(self, each: Pass, node: Node) -> bool:
        """Whether a pass may rewrite at a node; asked before it looks at it."""
        self.looked_at = node
        if self.max_rewrites is None and not self.barred:
            return True
        return self.max_rewrites != 0 and (each.spec, node.id) not in self.barred

    def rewritten(self, each: Pass, node: Node, label: str, what: str) -> None:
        """Remembers a rewrite that was made at a node."""
        self.remarks.append(Remark(each.name, label, True, what))
        self.anchors.append(node)
        self.looked_at = None
        if self.max_rewrites is not None:
            self.max_rewrites -= 1


class Pass(ABC):
    """A transformation of a graph. Subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        name: the pass's name on the command line, in kebab case.
        lowers: whether it turns standard operators into internal ones, which other passes do not
            look into.
        lossy: whether it changes what the model computes; it then runs before the exact passes,
            and not twice.
    """

    name: ClassVar[str]
    lowers: ClassVar[bool] = False
    lossy: ClassVar[bool] = False

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> None:
        """Transforms ``graph`` in place, leaving it valid."""

    @property
    def spec(self) -> str:
        """The pass and its options as the command line spells them."""
        options = ",".join(
            f"{f.name.replace('_', '-')}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if getattr(self, f.name) != f.default
        )
        return f"{self.name}{{{options}}}" if options else self.name


class Rewrite(Pass):
    """A pass that looks at one node at a time.

    Attributes:
        ops: operators that can anchor the pattern, as (domain, op); empty means any node.
    """

    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset()

    @abstractmethod
    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        """Rewrites the pattern anchored at ``node``: checks everything first, mutates last.

        Returns:
            what was done, why it was not done, or None where the pattern does not occur.
        """

    def run(self, graph: Graph, context: Context) -> None:
        missed: dict[tuple[str, str], Remark] = {}
        for _ in range(MAX_SWEEPS):
            before = graph.version
            for node in graph.topological():
                if node not in graph or (self.ops and (node.domain, node.op) not in self.ops):
                    continue
                if not context.may_rewrite(self, node):
                    continue
                label = node.label
                outcome = self.rewrite(graph, node, context)
                context.looked_at = None
                if isinstance(outcome, Applied):
                    context.rewritten(self, node, label, outcome.what)
                elif isinstance(outcome, Missed):
                    missed[label, outcome.why] = Remark(self.name, label, False, outcome.why)
            if graph.version == before:
                break
        else:
            raise UnsettledError(f"{self.name}: still rewriting after {MAX_SWEEPS} sweeps")
        context.remarks.extend(missed.values())


@dataclass(frozen=True)
class PassMeasurement:
    """What one run of a pass brought, by executables of the graph before and after it.

    Attributes:
        latency_ms: of the one after.
        saved_ms: what it takes less than the one before, within one round.
        saved_share: the same as a share of the latency before.
        error: of its outputs from those of the original model, relative to their scale: what this
            and all earlier passes cost; None where the original cannot be run.
        same_code: whether both are the same kernels on the same constants.
    """

    latency_ms: Spread
    saved_ms: Spread
    saved_share: Spread
    error: float | None
    same_code: bool


@dataclass(frozen=True)
class PassReport:
    """What one run of a pass did.

    Attributes:
        spec: the pass with its options.
        changed: whether the graph's wiring changed.
        seconds: wall time.
        nodes_before, nodes_after: operations in the graph.
        macs_before, macs_after: multiply-accumulates of one inference, of what is known.
        us_before, us_after: predicted time of one inference, microseconds; None where the graph is
            too large to predict it after every pass, or for GPUs.
        remarks: rewrites made and declined.
        measured: what it brought; None where it changed nothing, or nothing was measured.
    """

    spec: str
    changed: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    macs_before: int
    macs_after: int
    us_before: float | None
    us_after: float | None
    remarks: tuple[Remark, ...]
    measured: PassMeasurement | None = None


AfterPass = Callable[[Graph, Pass, PassReport], None]


def run_pass(each: Pass, graph: Graph, context: Context) -> float:
    """Runs one pass and verifies what it leaves.

    Returns:
        the wall time, in seconds.

    Raises:
        PassError: the pass failed or left an invalid graph; the message names it.
        UsageError: its options or the calibration data do not fit the model.
    """
    version, start = graph.version, time.perf_counter()
    try:
        each.run(graph, context)
        if graph.version != version:
            verify(graph, since=version)
    except (PassError, UsageError):
        raise
    except PwoptError as error:
        raise PassError(f"pass {each.name}: {error}") from error
    except Exception as error:
        raise PassError(f"pass {each.name}: {type(error).__name__}: {error}") from error
    return time.perf_counter() - start


@dataclass
class Pipeline:
    """A sequence of passes, repeated until none of them changes anything.

    Passes beside each other that lower, or do not, repeat together before the next ones run: what
    lowering would hide is done by then.

    Attributes:
        passes: in order.
        rounds: how often the whole sequence, and each part of it, is run at most.
        after_pass: called with the graph, the pass and its report after every pass that changed it.
        runner: runs one pass and returns the seconds that it took; see :func:`run_pass`.
    """

    passes: Sequence[Pass]
    rounds: int = 4
    after_pass: AfterPass | None = None
    runner: Callable[[Pass, Graph, Context], float] = run_pass

    def run(self, graph: Graph, context: Context) -> list[PassReport]:
        """Transforms ``graph`` in place.

        Raises:
            PassError: a pass failed or left an invalid graph; the message names it.
        """
        with no_garbage_collection():
            return self._run(graph, context)

    def _run(self, graph: Graph, context: Context) -> list[PassReport]:
        from pwopt.cost import graph_macs

        reports: list[PassReport] = []
        verify(graph)
        macs, us = graph_macs(graph), _predicted_us(graph, context)
        settled: dict[str, int] = {}  # specs of passes that change nothing, by the graph's version

        def step(each: Pass) -> None:
            nonlocal macs, us
            version, nodes, first = graph.version, len(graph), len(context.remarks)
            seconds = self.runner(each, graph, context)
            changed = graph.version != version
            if not changed:
                settled[each.spec] = version
            macs_after = graph_macs(graph) if changed else macs
            us_after = _predicted_us(graph, context) if changed else us
            report = PassReport(
                spec=each.spec,
                changed=changed,
                seconds=seconds,
                nodes_before=nodes,
                nodes_after=len(graph),
                macs_before=macs,
                macs_after=macs_after,
                us_before=us,
                us_after=us_after,
                remarks=tuple(context.remarks[first:]),
            )
            macs, us = macs_after, us_after
            reports.append(report)
            if changed and self.after_pass is not None:
                self.after_pass(graph, each, report)

        for _ in self._rounds(graph):
            for _, phase in itertools.groupby(self.passes, lambda each: each.lowers):
                passes = list(phase)
                for _ in self._rounds(graph):
                    for each in passes:
                        if settled.get(each.spec) != graph.version:
                            step(each)
        return reports

    def _rounds(self, graph: Graph) -> Iterator[None]:
        """One item a round, until one has changed nothing."""
        for _ in range(self.rounds):
            version = graph.version
            yield
            if graph.version == version:
                return


def _predicted_us(graph: Graph, context: Context) -> float | None:
    known = context.target == "cpu" and len(graph) <= MAX_PREDICTED_NODES
    return context.cost_model.graph_us(graph) if known else None


def missing_file(path: Path) -> str:
    """What to say where there is no such file, with the nearest ONNX model beside it."""
    close = nearest(path.name, sorted(p.name for p in path.parent.glob("*.onnx")))
    return f"{path}: no such file{close}"
