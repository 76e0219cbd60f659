"""GPUs to tune on behind TVM's RPC tracker.

On every machine: ``python -m pwopt.targets.cuda.server --tracker HOST:PORT --key NAME``; it needs
``pwopt[cuda,fleet]`` and a driver. Code is generated and compiled here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import weakref
from collections.abc import Callable
from typing import Any

from pwopt.errors import CodegenError, TuningError
from pwopt.targets.cuda.measure import TimedLaunches
from pwopt.targets.cuda.package import Package
from pwopt.targets.cuda.server import PREFIX
from pwopt.targets.cuda.toolchain import Compiler
from pwopt.targets.fleet import reporting, sessions
from pwopt.targets.tuner import Machine


def gpus(
    tracker: str, key: str, compiler: Compiler | None = None
) -> tuple[str, tuple[int, int], list[Machine]]:
    """The GPUs that are free under a key now: the name and capability of each, and all of them.

    Args:
        tracker: HOST:PORT.
        key: that the servers registered with.
        compiler: of kernels; the one that is found if left out.

    Raises:
        TuningError: no tracker answers there, no machine is free, one has no GPU, or GPUs differ.
    """
    found = sessions(tracker, key, "pwopt.targets.cuda.server")
    with reporting():
        facts = [json.loads(session.get_function(PREFIX + "gpu")()) for session in found]
    names = sorted({fact["name"] for fact in facts})
    if len(names) > 1:
        raise TuningError(
            f"the machines under {key!r} have different GPUs: {', '.join(names)}; "
            "register each kind under a key of its own"
        )
    major, minor = facts[0]["capability"]
    machines: list[Machine] = [functools.partial(_timed, session, compiler) for session in found]
    return str(names[0]), (int(major), int(minor)), machines


def _timed(session: Any, compiler: Compiler | None, lowering: Any) -> TimedLaunches:
    return TimedLaunches(functools.partial(_load, session), lowering, compiler)


def _load(session: Any, package: Package) -> Callable[[], list[float]]:
    """Puts a package on the GPU of a session."""
    with reporting():
        load, times, unload = (
            session.get_function(PREFIX + name) for name in ("load", "times", "unload")
        )
        header, data = package.pack()
        answer = load(header, data)
    handle = _result(answer)

    def run() -> list[float]:
        with reporting():
            answer = times(handle)
        return [float(t) for t in _result(answer)]

    weakref.finalize(run, _unload, unload, handle)
    return run


def _result(answer: str) -> Any:
    """What a function of the server returns.

    Raises:
        CodegenError: the GPU refused something, or broke.
    """
    told = json.loads(answer)
    if "problem" in told:
        raise CodegenError(told["problem"])
    return told["result"]


def _unload(unload: Callable[[int], None], handle: int) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # the machine may be lost
        unload(handle)
