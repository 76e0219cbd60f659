"""Tuning on machines behind TVM's RPC tracker: processes on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pwopt
from pwopt import hardware
from pwopt.errors import TuningError
from pwopt.ir.graph import Graph
from pwopt.models import blocks
from pwopt.targets import tuner
from pwopt.targets.cpu import fleet
from pwopt.targets.cpu.profile import traced
from pwopt.targets.cpu.tuner import job
from pwopt.targets.database import TuningDatabase
from tests.targets.fleet_helpers import KEY, Fleet, free_port

# TVM's client leaves sockets open where a server is lost.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HOST = hardware.host()


@pytest.fixture
def two_servers() -> Iterator[Fleet]:
    with Fleet() as made:
        made.add_server()
        made.add_server()
        made.wait_for(2)
        yield made


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

    found = tuner.tune(job(graph, HOST), database, 1e6, machines, kill_one)
    assert found.finished
    search = tuner.Search(database.measured(job(graph, HOST).key))
    traced(graph, HOST, 1, search)
    assert search.left == 0  # what the lost server was given was measured by the other one


def test_all_servers_are_lost(two_servers: Fleet, graph: Graph, tmp_path: Path) -> None:
    database = TuningDatabase(tmp_path / "tuning.sqlite")
    machines = fleet.machines(two_servers.tracker, KEY)
    for server in two_servers.servers:
        two_servers.kill(server)
    with pytest.raises(TuningError, match="a machine was lost"):
        tuner.tune(job(graph, HOST), database, 1e6, machines)


def test_nobody_answers() -> None:
    with pytest.raises(TuningError, match=r"--tracker 127\.0\.0\.1:\d+: "):
        fleet.machines(f"127.0.0.1:{free_port()}", KEY)
    with pytest.raises(TuningError, match="write HOST:PORT"):
        fleet.machines("localhost", KEY)


def test_no_machine_under_that_key(two_servers: Fleet) -> None:
    with pytest.raises(TuningError, match="no machine is free under 'phones'"):
        fleet.machines(two_servers.tracker, "phones")
