"""The tuner: tries schedules of a graph's kernels where they run, and records what is faster.

A variant is the whole graph with another schedule in every kernel. The untuned graph and a few
variants take turns, an inference each, timed kernel by kernel: all schedules meet caches as the
network leaves them, and a clock that drifts cancels out of the ratios.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pwopt.hardware import Hardware
from pwopt.ir.graph import Graph
from pwopt.targets.cpu.profile import TimedPlan, fastest, traced
from pwopt.targets.cpu.schedules import AnySchedule, Schedules, machine_key
from pwopt.targets.database import Measurement, TuningDatabase

MAX_CANDIDATES = 24  # of a kernel
_VARIANTS = 3  # beside the untuned graph, in one batch
_BYTES = 2 << 30  # of packed weights that the plans of a batch may hold together
_ROUNDS = 12
_CONFIRM_ROUNDS = 30


@dataclass(frozen=True)
class Tuned:
    """What a tuning run found.

    Attributes:
        kernels: distinct ones with a choice.
        faster: of these, with a schedule that beats the rule's.
        measured: schedules tried in this run.
        untuned_us, tuned_us: sum of all kernels' times, measured in turns.
        finished: whether every candidate has been tried.
        seconds: wall time.
    """

    kernels: int
    faster: int
    measured: int
    untuned_us: float
    tuned_us: float
    finished: bool
    seconds: float


def tune(
    graph: Graph,
    hardware: Hardware,
    threads: int,
    database: TuningDatabase,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Measures schedules until the time is up; what was measured before is not tried again.

    Args:
        graph: optimized, of static shapes; not changed.
        hardware: this machine.
        threads: of one inference.
        database: takes each batch as soon as it is measured.
        seconds: after which no new batch begins.
        progress: called with a few words before each batch.

    Raises:
        CodegenError: a node has no kernel of ours.
        TuningError: the database cannot be used.
    """
    start = time.perf_counter()
    machine = machine_key(hardware)
    search = Search(database.measured(machine))
    rule = _Variant(graph, hardware, threads, search)
    width = max(1, min(_VARIANTS, _BYTES // max(rule.plan.constant_bytes, 1)))
    total, measured = search.left, 0
    while search.left and (time_left := start + seconds - time.perf_counter()) > 0:
        progress(f"tuning: {total - search.left} of {total} rounds, {time_left:.0f} s left")
        chosen = [search.next() for _ in range(min(width, search.left))]
        variants = [_Variant(graph, hardware, threads, schedules) for schedules in chosen]
        found = list(_compare(rule, variants, _ROUNDS))
        database.record(machine, found)
        measured += len(found)
    progress("tuning: the best against the untuned")
    best = _Variant(graph, hardware, threads, Schedules(database.best(machine)))
    database.record(machine, _compare(rule, [best], _CONFIRM_ROUNDS))
    return Tuned(
        kernels=len(search.candidates),
        faster=len(database.best(machine).keys() & search.candidates.keys()),
        measured=measured,
        untuned_us=sum(rule.us),
        tuned_us=sum(best.us),
        finished=not search.left,
        seconds=time.perf_counter() - start,
    )


class Search(Schedules):
    """Gives every kernel its untuned schedule, and notes what else could be tried.

    Attributes:
        candidates: by kernel, what is still to be measured, the most promising first.
    """

    def __init__(self, measured: Mapping[str, set[str]]) -> None:
        super().__init__()
        self.candidates: dict[str, list[str]] = {}
        self._measured = measured

    @property
    def left(self) -> int:
        """Variants of the graph that it takes to try every candidate."""
        return max(map(len, self.candidates.values()), default=0)

    def choose(
        self,
        kernel: str,
        rule: Callable[[], AnySchedule],
        candidates: Callable[[], Iterable[AnySchedule]],
    ) -> AnySchedule:
        untuned = rule()
        if kernel not in self.candidates:
            known = {str(untuned), *self._measured.get(kernel, ())}
            texts = itertools.islice(dict.fromkeys(map(str, candidates())), MAX_CANDIDATES)
            self.candidates[kernel] = [text for text in texts if text not in known]
        return untuned

    def next(self) -> Schedules:
        """The next candidate of each kernel that has one left."""
        rows = {kernel: texts for kernel, texts in self.candidates.items() if texts}
        return Schedules({kernel: texts.pop(0) for kernel, texts in rows.items()})


class _Variant:
    """The graph, built with some schedules.

    Attributes:
        plan: its steps as functions.
        us: of each step, once measured.
    """

    def __init__(
        self, graph: Graph, hardware: Hardware, threads: int, schedules: Schedules
    ) -> None:
        self._lowering = traced(graph, hardware, threads, schedules)
        self._tuned = schedules.tuned
        self.plan = TimedPlan(self._lowering.plan, hardware, threads)
        self.us: list[float] = []

    def by_kernel(self) -> dict[str, float]:
        """Time of all steps of each kernel."""
        total: dict[str, float] = {}
        for kernel, us in zip(self._lowering.kernels, self.us, strict=True):
            total[kernel] = total.get(kernel, 0.0) + us
        return total

    def tried(self) -> Mapping[str, str]:
        """The schedules that differ from the rule's."""
        return self._tuned


def _compare(rule: _Variant, variants: Sequence[_Variant], rounds: int) -> Iterator[Measurement]:
    """Runs variants in turn with the untuned one; what each of their schedules took."""
    contenders = [rule, *variants]
    samples: list[list[list[float]]] = [[] for _ in contenders]
    for turn in range(rounds + 1):
        for k in range(len(contenders)):
            j = (turn + k) % len(contenders)
            samples[j].append(contenders[j].plan.run())
    for each, mine in zip(contenders, samples, strict=True):
        each.us = fastest(mine[1:])  # the first one warms up
    base = rule.by_kernel()
    for variant in variants:
        for kernel, us in variant.by_kernel().items():
            if kernel in base and (schedule := variant.tried().get(kernel)):
                yield Measurement(kernel, schedule, us / max(base[kernel], 1e-3), us)
