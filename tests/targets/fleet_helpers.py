"""A tracker of TVM's and servers, as processes on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

from pwopt.errors import TuningError
from pwopt.targets import fleet

KEY = "bench"


class Fleet:
    """A tracker and servers, each a process group of its own.

    Args:
        server: the module that is one.
        environment: of the servers, added to this process's.
    """

    def __init__(
        self, server: str = "tvm.exec.rpc_server", environment: Mapping[str, str] | None = None
    ) -> None:
        self._server, self._environment = server, dict(environment or {})
        self.port = free_port()
        self.tracker = f"127.0.0.1:{self.port}"
        ports = (f"--port={self.port}", "--port-end=65535")
        self.processes = [self._start("tvm.exec.rpc_tracker", *ports)]
        self.servers: list[subprocess.Popen[bytes]] = []

    def add_server(self) -> None:
        port = free_port()
        server = self._start(
            self._server,
            f"--tracker={self.tracker}",
            f"--key={KEY}",
            f"--port={port}",
            "--port-end=65535",
        )
        self.servers.append(server)
        self.processes.append(server)

    def wait_for(self, servers: int) -> None:
        for _ in range(600):
            with contextlib.suppress(TuningError):
                if fleet.free(self.tracker, KEY) >= servers:
                    return
            time.sleep(0.1)
        raise AssertionError("the servers did not come up")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and the worker that serves the session
        process.wait()

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", module, "--host=127.0.0.1", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | self._environment,
            start_new_session=True,
        )

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            self.kill(process)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
