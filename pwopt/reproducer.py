"""Finds a small model that shows what is wrong with a pass.

The model is cut out of the graph before the wrong rewrite, around the rewritten node, grown until
it shows the disagreement, and shrunk as long as it still does (delta debugging: Zeller and
Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002). Each candidate is written as
ONNX, read again and run, so what shows it here shows it everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pwopt import checks, cost, growth, hardware, passlist, taps
from pwopt.checks import Reference
from pwopt.errors import PassError, PwoptError
from pwopt.ir.extraction import extract
from pwopt.ir.graph import Graph, Node, Value
from pwopt.pipeline import Context, Pass, Pipeline, run_pass
from pwopt.running import MAX_SERIALIZED_BYTES

RINGS = (0, 1, 2, 4, 8)  # distances from the rewrite within which a model is cut out
# What all candidates together may cost, in nodes and in multiply-accumulates, so many of which make
# up a node: either takes about a millisecond for three runs of six samples.
BUDGET, UNIT_MACS = 20_000, 3_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What a model is to show.

    Attributes:
        guilty: the pass.
        passes: all of them in order, the guilty one among them.
        context: hardware and target.
        reference: the original's answers; its inputs are those of ``before``.
        sample: index of those that show the wrong rewrite best.
        before: the graph without the wrong rewrite.
        after: the graph with it; None where the pass failed.
        node: that was rewritten; None where it is not known.
    """

    guilty: Pass
    passes: Sequence[Pass]
    context: Context
    reference: Reference
    sample: int
    before: Graph
    after: Graph | None
    node: Node | None


@dataclass(frozen=True)
class Reproducer:
    """A model that shows a wrong rewrite.

    Attributes:
        graph: the model; constants are those of the original.
        passes: to run on it.
        grows: whether the passes make the model grow by more than its size allows.
    """

    graph: Graph
    passes: tuple[Pass, ...]
    grows: bool = False

    def replay(self, name: str, context: Context) -> str:
        """The command that shows it.

        Args:
            name: file name of the model.
            context: hardware and target.
        """
        spec = ",".join(each.spec for each in self.passes)
        words = ["pwopt", "optimize", name, "--passes", spec, "--verify-passes", "--no-compile"]
        for file in dict.fromkeys(passlist.loaded_from(type(each)) for each in self.passes):
            words += ["--load", str(file)] if file else []
        if self.grows:
            words += ["--max-growth", "inf"]
        if context.target != "cpu":
            words += ["--target", context.target]
        if context.hardware != hardware.host():
            words += ["--mcpu", context.hardware.mcpu]
        return shlex.join([*words, "-o", "replay"])


def find(case: Case) -> Reproducer | None:
    """The smallest model found that shows a wrong rewrite, None if none does.

    The guilty pass is tried alone first, then with the others, because internal operators do not
    stand in files. Inputs are random where these show it, else the model holds the original's
    values as defaults.
    """
    search = _Search(case)
    for passes in ([case.guilty], list(case.passes)):
        for nodes in _regions(case):
            whole = len(nodes) == len(case.before)  # its inputs are the original's
            for defaults in (False,) if whole else (False, True):
                if search.shows(nodes, passes, defaults):
                    return search.shrunk(nodes, passes, defaults)
    return None


def reduced(items: Sequence[T], holds: Callable[[list[T]], bool]) -> list[T]:
    """The items in order without any that can go while ``holds`` is true of the rest."""
    kept, size = list(items), len(items) // 2
    while size:
        start, before = 0, len(kept)
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            if rest and holds(rest):
                kept = rest
            else:
                start += size
        if size > 1 or len(kept) == before:
            size //= 2
    return kept


class _Search:
    """Cuts models out of the graph before a rewrite, and tries them."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._left = BUDGET
        self._known: dict[Value, np.ndarray] = {}

    def shrunk(self, nodes: Sequence[Node], passes: Sequence[Pass], defaults: bool) -> Reproducer:
        """What is left of a model that shows the rewrite, and of the passes that it takes."""
        case = self._case
        needed = _anchors(case, nodes)
        few = reduced(passes, lambda p: case.guilty in p and self.shows(nodes, p, defaults))
        least = reduced(nodes, lambda n: needed <= set(n) and self.shows(n, few, defaults))
        model = extract(case.before, least, self._known, defaults=defaults)
        grows = not self.shows(least, few, defaults, growth.MAX_GROWTH)
        return Reproducer(model, tuple(few), grows)

    def shows(
        self,
        nodes: Sequence[Node],
        passes: Sequence[Pass],
        defaults: bool,
        max_growth: float = math.inf,
    ) -> bool:
        """Whether the model of some operations, written and read again, shows the rewrite.

        Args:
            nodes: the operations.
            passes: to run on the model.
            defaults: whether its inputs have the original's values as defaults.
            max_growth: share by which it may grow.
        """
        from pwopt import frontend

        try:
            self._look_up(nodes)
            part = extract(self._case.before, nodes, self._known, defaults=defaults)
            self._left -= len(nodes) + cost.graph_macs(part) // UNIT_MACS
            if self._left < 0:
                return False
            if part.constant_bytes >= MAX_SERIALIZED_BYTES:
                return False
            model = frontend.export(part).SerializeToString()
            graph = frontend.load(model)
            answers = checks.reference(graph, model, checks.FURTHER)
        except PwoptError:
            return False
        if isinstance(answers, str):
            return False
        watch = _Watch(self._case, answers, graph.version)
        context = dataclasses.replace(
            self._case.context.fresh(), budget=growth.budget(graph, max_growth)
        )
        try:
            Pipeline(passes, runner=watch).run(graph, context)
        except PwoptError:
            return watch.shown
        return False

    def _look_up(self, nodes: Collection[Node]) -> None:
        """Learns the values that operations read."""
        before, reference = self._case.before, self._case.reference
        read = [v for node in nodes for v in before.operands(node) if v is not None]
        wanted = [
            value
            for value in dict.fromkeys(read)
            if value not in self._known and not value.node.is_constant and value.tensor.dtype
        ]
        if wanted:
            feeds = reference.samples[self._case.sample][0]
            arrays = taps.values(before, wanted, feeds, reference.interpreted)
            self._known.update(zip(wanted, arrays, strict=True))


class _Watch:
    """Runs passes until the guilty one is wrong.

    Attributes:
        shown: whether it was.
    """

    def __init__(self, case: Case, answers: Reference, version: int) -> None:
        self.shown = False
        self._case = case
        self._answers = answers
        self._right = version  # of the graph, when it was last known to be right

    def __call__(self, each: Pass, graph: Graph, context: Context) -> float:
        if each != self._case.guilty:
            return run_pass(each, graph, context)
        if graph.version != self._right and checks.disagreement(self._answers, graph):
            raise PassError(f"wrong before {each.name}")
        try:
            seconds = run_pass(each, graph, context)
        except PassError:
            self.shown = self._case.after is None
            raise
        if self._case.after is not None and checks.disagreement(self._answers, graph):
            self.shown = True
            raise PassError(f"wrong after {each.name}")
        self._right = graph.version
        return seconds


def _regions(case: Case) -> Iterator[list[Node]]:
    """Operations to cut out, from those that were rewritten to all of them."""
    before = case.before
    order = [n for n in before.topological() if not n.is_constant and not n.is_input]
    region = _rewritten(case, order)
    distance, size = 0, 0
    for ring in RINGS:
        while distance < ring:
            region |= {n for node in region for n in _neighbours(before, node)}
            distance += 1
        if size < len(region) < len(order):
            size = len(region)
            yield [node for node in order if node in region]
    yield order


def _anchors(case: Case, nodes: Sequence[Node]) -> set[Node]:
    """The rewritten node, which may be another object in another run, where it is among these."""
    return {node for node in nodes if case.node is not None and node.id == case.node.id}


def _rewritten(case: Case, order: Sequence[Node]) -> set[Node]:
    found = _anchors(case, order)
    if case.after is None:
        return found
    old, new = taps.wiring(case.before), taps.wiring(case.after)
    found |= {node for node in order if node.id not in new}
    if case.node is None:
        found |= {node for node in order if new.get(node.id) != old[node.id]}
    return found


def _neighbours(graph: Graph, node: Node) -> Iterator[Node]:
    for value in graph.operands(node):
        if value is not None and not value.node.is_constant and not value.node.is_input:
            yield value.node
    for index in range(len(node.types)):
        yield from (use.node for use in graph.uses(node[index]))
