"""Machines to tune on behind TVM's RPC tracker.

On every machine: ``python -m tvm.exec.rpc_server --tracker HOST:PORT --key NAME``; it needs
``apache-tvm[rpc]`` and nothing of pwopt. Code is generated here, for their processor.
"""

from __future__ import annotations

import functools
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pwopt.errors import TuningError
from pwopt.targets.cpu.profile import MachineLostError, TimedPlan
from pwopt.targets.cpu.tuner import Machine

_NO_LIMIT = 0  # seconds of a session: a tuning run has its own


def machines(tracker: str, key: str) -> list[Machine]:
    """The machines that are free under a key now.

    Args:
        tracker: HOST:PORT.
        key: that the servers registered with.

    Raises:
        TuningError: no tracker answers there, or no machine is free.
    """
    count = free(tracker, key)
    if not count:
        raise TuningError(
            f"--tracker {tracker}: no machine is free under {key!r}; start some with "
            f"`python -m tvm.exec.rpc_server --tracker {tracker} --key {key}`"
        )
    with _tracker(tracker) as connection:
        sessions = [connection.request(key, session_timeout=_NO_LIMIT) for _ in range(count)]
    return [functools.partial(_RemotePlan, session) for session in sessions]


def free(tracker: str, key: str) -> int:
    """How many machines are free under a key.

    Raises:
        TuningError: no tracker answers there.
    """
    with _tracker(tracker) as connection:
        return int(connection.summary()["queue_info"].get(key, {}).get("free", 0))


@contextmanager
def _tracker(address: str) -> Iterator[Any]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TuningError(f"--tracker {address}: write HOST:PORT")
    from tvm import rpc

    try:
        socket.create_connection((host, int(port)), timeout=10).close()  # TVM would try for minutes
        connection = rpc.connect_tracker(host, int(port))
        try:
            yield connection
        finally:
            connection.close()
    except (OSError, RuntimeError) as error:
        raise TuningError(f"--tracker {address}: {_last_line(error)}") from error


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
        with _reporting(), tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
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
        with _reporting():
            return [1e6 * f(*self._arguments).mean for f in self._functions]


@contextmanager
def _reporting() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # TVM's errors are RuntimeErrors
        raise MachineLostError(f"a machine was lost: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
