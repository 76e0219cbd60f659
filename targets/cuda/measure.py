"""Lowered graphs as a GPU measures them, here or behind TVM's RPC: kernel after kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable

from pwopt.targets.cuda.module import generate
from pwopt.targets.cuda.package import Loader, Package
from pwopt.targets.cuda.toolchain import Compiler, compile_sources
from pwopt.targets.cuda.tuner import TracedCuda
from pwopt.targets.cuda.worker import Worker
from pwopt.targets.plan import assign_offsets, pack_constants


@functools.cache
def _worker() -> Worker:
    return Worker()


def here(package: Package) -> Callable[[], list[float]]:
    """A package on this machine's GPU, in a process of its own: see :meth:`Worker.load`."""
    return _worker().load(package)


class TimedLaunches:
    """A lowered graph on a GPU: see :class:`pwopt.targets.tuner.Timed`."""

    def __init__(
        self, loader: Loader, lowering: TracedCuda, compiler: Compiler | None = None
    ) -> None:
        """Generates code, compiles its kernels side by side, and loads them.

        Args:
            loader: where to.
            lowering: whose plan has no offsets yet.
            compiler: the one that is found if left out.
        """
        plan, arch = lowering.plan, lowering.arch.name
        assign_offsets(plan)
        constants = pack_constants([plan])
        code = generate([plan], arch)
        made = compile_sources(list(code.sources.values()), arch, compiler=compiler)
        ports = tuple(
            tuple((view.shape, view.dtype) for _, _, view in each)
            for each in (plan.inputs, plan.outputs)
        )
        images = {name: cubin.image for name, cubin in zip(code.sources, made, strict=True)}
        self.constant_bytes = constants.nbytes
        self._times = loader(Package(code.launches[0], images, constants, ports))

    def run(self) -> list[float]:
        """One inference: microseconds of each kernel."""
        return self._times()


def local(lowering: TracedCuda) -> TimedLaunches:
    """A lowered graph on the GPU of this machine."""
    return TimedLaunches(here, lowering)
