"""Machines to tune on behind TVM's RPC tracker.

On every machine: ``python -m tvm.exec.rpc_server --tracker HOST:PORT --key NAME``; it needs
``apache-tvm[rpc]`` and nothing of pwopt. Code is generated here, for their processor.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.targets.cpu.profile import TimedPlan
from pwopt.targets.fleet import reporting, sessions
from pwopt.targets.tuner import Machine


def machines(tracker: str, key: str) -> list[Machine]:
    """The machines that are free under a key now.

    Args:
        tracker: HOST:PORT.
        key: that the servers registered with.

    Raises:
        TuningError: no tracker answers there, or no machine is free.
    """
    found = sessions(tracker, key, "tvm.exec.rpc_server")
    return [functools.partial(_RemotePlan, session) for session in found]


class _RemotePlan(TimedPlan):
    """A plan whose functions run on another machine."""

    def __init__(self, session: Any, *arguments: Any) -> None:
        self._session = session
        super().__init__(*arguments)

    def _place(
        self, module: Any, names: Sequence[str], arguments: Sequence[np.ndarray], threads: int
    ) -> None:
        import tvm

        del threads
        with reporting(), tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
            path = Path(folder) / f"plan{id(self)}.so"
            module.export_library(str(path))
            self._session.upload(str(path))
            remote = self._session.load_module(path.name)
            self._session.remove(path.name)
            device = self._session.cpu(0)
            self._arguments = [tvm.runtime.tensor(a, device) for a in arguments]
            # Each is called once before it is timed.
            self._functions = [remote.time_evaluator(n, device, number=1) for n in names]

    def _times(self) -> list[float]:
        with reporting():
            return [1e6 * f(*self._arguments).mean for f in self._functions]
