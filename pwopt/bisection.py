"""Which rewrite makes a model compute something else? Finds it, and takes it back.

A pass that was wrong is run again from the graph before it, with fewer and fewer rewrites, until
one rewrite stands between a right graph and a wrong one. Node ids are the same in every such run,
because copies of a graph number new nodes alike; so the rewrite is barred by the id of its node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pwopt import checks, reproducer, taps
from pwopt.checks import Reference
from pwopt.errors import NumericsError, PassError, PwoptError
from pwopt.ir.graph import Graph, Node
from pwopt.numerics import Difference
from pwopt.pipeline import (
    Context,
    Pass,
    PassReport,
    Pipeline,
    Remark,
    UnsettledError,
    run_pass,
)
from pwopt.running import running

# Wrong rewrites that are searched for in one run of a pass, which is left out beyond. The search
# for each takes as many checks as the number of rewrites has binary digits, and two: 9 s of
# processor time in DenseNet-121 with 120 rewrites, 0.4 s in a text-direction classifier with 35.
MAX_FOUND = 16


@dataclass(frozen=True)
class TakenBack:
    """A rewrite that made the model compute something else, and was taken back.

    Attributes:
        spec: the pass with its options.
        node: the node that was rewritten; empty where the pass as a whole was left out.
        rewrite: what was done to it; empty where the pass failed instead.
        problem: how the model was wrong then, or how the pass failed.
        tensor: the first tensor that was another one; empty where none is known.
        error: of that tensor, relative to its scale; None where there is no such number.
        scale: largest finite magnitude of that tensor.
        tolerance: what its error may be.
        reproducer: name of the model that shows it; empty where no smaller one than the original
            does.
        replay: the command that shows it.
    """

    spec: str
    node: str
    rewrite: str
    problem: str
    tensor: str = ""
    error: float | None = None
    scale: float | None = None
    tolerance: float | None = None
    reproducer: str = ""
    replay: str = ""


@dataclass(frozen=True)
class Trial:
    """One run of a pass on a copy of the graph before it.

    Attributes:
        graph: what it left.
        context: what it noted.
        seconds: that it took.
        problem: what is wrong with the graph, or how the pass failed; empty where all is well.
        error: where it failed or left an invalid graph.
    """

    graph: Graph
    context: Context
    seconds: float = 0.0
    problem: str = ""
    error: PassError | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no graph that could be run."""
        return self.error is not None

    @property
    def count(self) -> int:
        """How many rewrites it made."""
        return len(self.context.anchors)


@dataclass(frozen=True)
class Suspect:
    """A rewrite, or a whole run of a pass, that is wrong.

    Attributes:
        node: that is rewritten; None for a whole run.
        rewrite: what was done.
        before: the graph without the rewrite.
        after: the run with it.
    """

    node: Node | None
    rewrite: str
    before: Graph
    after: Trial


class Guard:
    """Runs passes for a :class:`Pipeline`, and takes back the rewrites that are wrong.

    Attributes:
        taken_back: what was taken back so far.
        reproducers: graphs by file name, each of which shows one of them.
    """

    def __init__(
        self,
        reference: Reference,
        original: Graph,
        passes: Sequence[Pass],
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Checks the graph before any pass.

        Args:
            reference: the original's answers.
            original: the graph before any pass.
            passes: all of them, in order.
            progress: called with a few words at the start of each search.

        Raises:
            NumericsError: the graph is wrong before any pass.
        """
        self.taken_back: list[TakenBack] = []
        self.reproducers: dict[str, Graph] = {}
        self._reference = reference
        self._passes = passes
        self._progress = progress
        self._before = original.copy()
        self._left_out: set[str] = set()
        if problem := checks.disagreement(reference, original):
            raise NumericsError(
                "the model differs from the original before any pass, so the frontend is at "
                f"fault: {problem}"
            )

    def __call__(self, each: Pass, graph: Graph, context: Context) -> float:
        """Runs a pass; returns the seconds that the run took whose result stands."""
        if each.spec in self._left_out:
            return 0.0
        if self._before.version != graph.version:
            self._before = graph.copy()
        found: list[Remark] = []
        trial = self._run(each, graph, context)
        while trial.problem:
            self._progress(f"searching {each.name} for a wrong rewrite")
            suspect = self._search(each, context, trial)
            key = (each.spec, suspect.node.id) if suspect.node else None
            if key is None or key in context.barred or len(found) == MAX_FOUND:
                suspect = Suspect(None, "", self._before, trial)
                self._left_out.add(each.spec)
            else:
                context.barred.add(key)
            found.append(self._take_back(each, context, suspect, len(found)))
            if suspect.node is None:
                trial = Trial(self._before.copy(), context.fresh())
            else:
                trial = self._run(each, self._before.copy(), context)
        if trial.graph is not graph:
            graph.restore(trial.graph)
        context.remarks += [*trial.context.remarks, *found]
        context.anchors += trial.context.anchors
        context.budget.refused.update(trial.context.budget.refused)
        return trial.seconds

    def _run(self, each: Pass, graph: Graph, context: Context, limit: int | None = None) -> Trial:
        """Runs a pass on ``graph``, and checks what it leaves if it changed it."""
        noted = context.fresh(max_rewrites=limit, barred=context.barred)
        version = graph.version
        try:
            seconds = run_pass(each, graph, noted)
        except PassError as error:
            return Trial(graph, noted, problem=str(error), error=error)
        problem = checks.disagreement(self._reference, graph) if graph.version != version else ""
        return Trial(graph, noted, seconds, problem)

    def _search(self, each: Pass, context: Context, wrong: Trial) -> Suspect:
        """The rewrite after which the graph is wrong; the whole run where there is none."""

        def run(limit: int) -> Trial:
            return self._run(each, self._before.copy(), context, limit)

        whole = Suspect(None, "", self._before, wrong)
        if isinstance(wrong.error, UnsettledError):
            return whole
        low, high = run(0), run(wrong.count)
        if low.problem or low.count:
            return whole
        if not high.problem:
            # No rewrite is wrong: the pass failed at a node, or is wrong beside its rewrites.
            at = wrong.context.looked_at if wrong.failed else None
            return Suspect(at, "", high.graph, wrong) if at else whole
        while high.count > low.count + 1:
            middle = run((low.count + high.count) // 2)
            if not low.count < middle.count < high.count:
                return whole
            low, high = (low, middle) if middle.problem else (middle, high)
        if not high.count:
            return whole
        made = [remark.text for remark in high.context.remarks if remark.applied]
        return Suspect(high.context.anchors[-1], made[-1], low.graph, high)

    def _take_back(
        self, each: Pass, context: Context, suspect: Suspect, found_before: int
    ) -> Remark:
        """Notes a wrong rewrite, and looks for a small model that shows it."""
        sample, divergence = self._divergence(suspect)
        found = reproducer.find(
            reproducer.Case(
                guilty=each,
                passes=self._passes,
                context=context,
                reference=self._reference,
                sample=sample,
                before=suspect.before,
                after=None if suspect.after.failed else suspect.after.graph,
                node=suspect.node,
            )
        )
        name = f"repro-{len(self.taken_back) + 1}.onnx" if found else ""
        if found:
            self.reproducers[name] = found.graph
        problem, label = suspect.after.problem, suspect.node.label if suspect.node else ""
        if not suspect.node and found_before:
            problem += f" (after {found_before} wrong rewrites that were taken back)"
        self.taken_back.append(
            TakenBack(
                spec=each.spec,
                node=label,
                rewrite=suspect.rewrite,
                problem=problem,
                tensor=divergence.output if divergence else "",
                error=divergence.error if divergence else None,
                scale=divergence.scale if divergence else None,
                tolerance=divergence.tolerance if divergence else None,
                reproducer=name,
                replay=found.replay(name, context) if found else "",
            )
        )
        return Remark(each.name, label or suspect.before.name, False, f"taken back: {problem}")

    def _divergence(self, suspect: Suspect) -> tuple[int, Difference | None]:
        """The sample at which a rewrite shows best, and the first tensor that it changes there."""
        reference, before, after = self._reference, suspect.before, suspect.after
        if after.failed:
            return 0, None
        try:
            with running(after.graph, reference.interpreted) as runner:
                sample = reference.worst_sample(runner)
            feeds = reference.samples[sample][0]
            found = taps.first_divergence(before, after.graph, feeds, reference.interpreted)
            return sample, found
        except PwoptError:
            return 0, None  # one of the graphs cannot be run, as the problem says


def guilty_pass(
    original: Graph, passes: Sequence[Pass], context: Context, reference: Reference
) -> str:
    """Which pass an error came with, in words: runs them again, bisects over the graphs between.

    Args:
        original: the graph before any pass.
        passes: in order.
        context: hardware and target.
        reference: the original's answers.
    """
    snapshots: list[tuple[str, Graph]] = []

    def keep(graph: Graph, each: Pass, _: PassReport) -> None:
        snapshots.append((each.name, graph.copy()))

    if checks.disagreement(reference, original):
        return "it does so before any pass, so the frontend is at fault"
    Pipeline(passes, after_pass=keep).run(original.copy(), context)
    low, high = -1, len(snapshots) - 1  # the last good graph, the first bad one
    while high - low > 1:
        middle = (low + high) // 2
        wrong = checks.disagreement(reference, snapshots[middle][1])
        low, high = (low, middle) if wrong else (middle, high)
    if not snapshots:
        return "no pass changed it"
    return (
        f"pass {snapshots[high][0]} (change {high + 1} of {len(snapshots)}) is at fault; "
        "--verify-passes finds the rewrite and goes on without it"
    )
