"""Sessions with machines behind TVM's RPC tracker."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pwopt.errors import TuningError
from pwopt.targets.tuner import MachineLostError

_NO_LIMIT = 0  # seconds of a session: a tuning run has its own


def sessions(tracker: str, key: str, server: str) -> list[Any]:
    """Sessions with the machines that are free under a key now.

    Args:
        tracker: HOST:PORT.
        key: that the servers registered with.
        server: the module that starts one, for messages.

    Raises:
        TuningError: no tracker answers there, or no machine is free.
    """
    count = free(tracker, key)
    if not count:
        raise TuningError(
            f"--tracker {tracker}: no machine is free under {key!r}; start some with "
            f"`python -m {server} --tracker {tracker} --key {key}`"
        )
    with _tracker(tracker) as connection:
        return [connection.request(key, session_timeout=_NO_LIMIT) for _ in range(count)]


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


@contextmanager
def reporting() -> Iterator[None]:
    """Turns errors of a session into MachineLostError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # TVM's errors are RuntimeErrors
        raise MachineLostError(f"a machine was lost: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
