"""What is checked of measuring passes with the emulated driver: a kernel takes 1 us a block."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

import pwopt
from pwopt import timing
from pwopt.compilation import CodeOptions
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.targets.cuda import toolchain
from tests.targets.cuda.driver.compiler import EmptyKernels


def thread_blocks(graph: Graph) -> int:
    (segment,) = pwopt.compile(graph, "cuda").manifest.segments
    (launches,) = segment.launches.values()
    return sum(math.prod(each.grid) for each in launches.launches)


def check_times_are_those_of_the_device(_: Path) -> None:
    toolchain.find_compiler = EmptyKernels
    timing.MAX_ROUNDS = 10
    made = pwopt.optimize(blocks.bottleneck(size=12), "cuda", verify=False, keep_stages=True)
    made = pwopt.measure_passes(made, CodeOptions())
    how = made.report.pass_timing
    assert how is not None
    assert how.latency_ms is not None
    found = [row.measured for row in made.report.passes if row.measured]
    latencies = [how.latency_ms, *(each.latency_ms for each in found)]
    wanted = [1e-3 * thread_blocks(graph) for graph in made.stages]
    assert [each.median for each in latencies] == pytest.approx(wanted)
    for each, before, after in zip(found, wanted[:-1], wanted[1:], strict=True):
        assert each.saved_ms.median == pytest.approx(before - after, abs=1e-6)
    assert wanted[-1] < wanted[0]


if __name__ == "__main__":
    globals()[f"check_{sys.argv[1]}"](Path(sys.argv[2]))
