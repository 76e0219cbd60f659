"""Tuning on machines behind TVM's RPC tracker: processes on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pwopt
from pwopt import hardware
from pwopt.errors import TuningError
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.targets.cpu import fleet, tuner
from pwopt.targets.cpu.profile import traced
from pwopt.targets.cpu.schedules import machine_key
from pwopt.targets.database import TuningDatabase

# TVM's client leaves sockets open where a server is lost.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HOST = hardware.host()
KEY = "bench"


class Fleet:
    """A tracker and servers, each a process group of its own."""

    def __init__(self) -> None:
        self.port = _free_port()
        self.tracker = f"127.0.0.1:{self.port}"
        self.processes = [self._start("rpc_tracker", f"--port={self.port}", "--port-end=65535")]
        self.servers: list[subprocess.Popen[bytes]] = []

    def add_server(self) -> None:
        port = _free_port()
        server = self._start(
            "rpc_server",
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
            [sys.executable, "-m", f"tvm.exec.{module}", "--host=127.0.0.1", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


@pytest.fixture
def two_servers() -> Iterator[Fleet]:
    made = Fleet()
    try:
        made.add_server()
        made.add_server()
        made.wait_for(2)
        yield made
    finally:
        for process in made.processes:
            made.kill(process)


@pytest.fixture
def graph() -> Graph:
    return pwopt.optimize(blocks.bottleneck(size=12), verify=False).graph


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize("moment", ["in the middle", "the best against the untuned"])
def test_one_of_two_servers_is_killed(
    two_servers: Fleet,
    graph: Graph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    server: int,
) -> None:
    monkeypatch.setattr(tuner, "MAX_CANDIDATES", 7)
    database = TuningDatabase(tmp_path / "tuning.sqlite")
    machines = fleet.machines(two_servers.tracker, KEY)
    assert len(machines) == 2
    said: list[str] = []

    def kill_one(text: str) -> None:
        said.append(text)
        if moment in text or (moment == "in the middle" and len(said) == 2):
            two_servers.kill(two_servers.servers[server])

    found = tuner.tune(graph, HOST, 1, database, 1e6, progress=kill_one, machines=machines)
    assert found.finished
    search = tuner.Search(database.measured(machine_key(HOST)))
    traced(graph, HOST, 1, search)
    assert search.left == 0  # what the lost server was given was measured by the other one


def test_all_servers_are_lost(two_servers: Fleet, graph: Graph, tmp_path: Path) -> None:
    database = TuningDatabase(tmp_path / "tuning.sqlite")
    machines = fleet.machines(two_servers.tracker, KEY)
    for server in two_servers.servers:
        two_servers.kill(server)
    with pytest.raises(TuningError, match="a machine was lost"):
        tuner.tune(graph, HOST, 1, database, 1e6, machines=machines)


def test_nobody_answers() -> None:
    with pytest.raises(TuningError, match=r"--tracker 127\.0\.0\.1:\d+: "):
        fleet.machines(f"127.0.0.1:{_free_port()}", KEY)
    with pytest.raises(TuningError, match="write HOST:PORT"):
        fleet.machines("localhost", KEY)


def test_no_machine_under_that_key(two_servers: Fleet) -> None:
    with pytest.raises(TuningError, match="no machine is free under 'phones'"):
        fleet.machines(two_servers.tracker, "phones")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
