"""Latency of contenders that take turns: medians with quartiles.

All of them live in one process. In every round each gives one sample, and the round starts with
another one each time. A sample is the mean of as many calls as fill :data:`SAMPLE_SECONDS`, after
one call that is not counted. Ratios and differences are taken within a round, so that a clock that
drifts between rounds cancels out.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pwopt.ir.collection import no_garbage_collection
from pwopt.running import Runner

SAMPLE_SECONDS = 0.005  # long against the clock's resolution and a timer interrupt
BUDGET_SECONDS = 10.0  # of all rounds together where the number of rounds is left open
MIN_ROUNDS, MAX_ROUNDS = 10, 200
MAX_CALLS = 1000


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    q1: float
    q3: float

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        q1, median, q3 = np.percentile(samples, (25, 50, 75))
        return Spread(float(median), float(q1), float(q3))


class Sample(NamedTuple):
    """Seconds of one call: of the clock on the wall, and of the processor."""

    wall: float
    cpu: float


def interleaved(
    runners: Sequence[Runner],
    feeds: Mapping[str, np.ndarray],
    runs: int | None = None,
    *,
    seconds: float = BUDGET_SECONDS,
    at_least: int = MIN_ROUNDS,
) -> tuple[list[list[Sample]], list[int]]:
    """Measures contenders that take turns.

    Args:
        runners: the contenders.
        feeds: an array per graph input.
        runs: rounds; None for as many as fit.
        seconds: that they are to fit.
        at_least: rounds even where they do not.

    Returns:
        samples by contender and round, and the calls in a sample of each.
    """
    single = [min(_sample(r, feeds, 1).wall for _ in range(3)) for r in runners]  # and warms up
    calls = [max(1, min(MAX_CALLS, math.ceil(SAMPLE_SECONDS / s))) for s in single]
    if runs is None:
        a_round = sum((n + 1) * s for n, s in zip(calls, single, strict=True))
        runs = max(at_least, min(MAX_ROUNDS, int(seconds / a_round)))
    samples: list[list[Sample]] = [[] for _ in runners]
    gc.collect()
    with no_garbage_collection():
        for i in range(runs):
            for k in range(len(runners)):
                j = (i + k) % len(runners)
                runners[j].run(feeds)
                samples[j].append(_sample(runners[j], feeds, calls[j]))
    return samples, calls


def device_samples(
    runners: Sequence[Runner], feeds: Mapping[str, np.ndarray], calls: Sequence[int], rounds: int
) -> list[list[float]]:
    """Seconds of one inference on the GPU without copies, measured in turns.

    Returns:
        samples by contender and round; none of those that run on the CPU.
    """
    samples: list[list[float]] = [[] for _ in runners]
    timers = [
        getattr(runner, "seconds_on_device", None) if runs_on_gpu(runner) else None
        for runner in runners
    ]
    if any(timers):
        for i in range(rounds):
            for k in range(len(runners)):
                j = (i + k) % len(runners)
                if timer := timers[j]:
                    samples[j].append(float(timer(feeds, calls[j])))
    return samples


def runs_on_gpu(runner: Runner) -> bool:
    """Whether a contender runs on a GPU as a whole."""
    if not hasattr(runner, "seconds_on_device"):
        return False
    manifest = getattr(runner, "manifest", None)
    return manifest is None or (len(manifest.segments) == 1 and bool(manifest.segments[0].launches))


def _sample(runner: Runner, feeds: Mapping[str, np.ndarray], calls: int) -> Sample:
    run: Callable[[Mapping[str, np.ndarray]], object] = runner.run
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run(feeds)
    seconds = time.perf_counter() - wall
    # A call shorter than the clock's resolution must not divide by zero.
    return Sample(seconds / calls, max(time.process_time() - cpu, 1e-9) / calls)
