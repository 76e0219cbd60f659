"""The tuning database: whole batches, several writers, kills, and files that are none."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pwopt.errors import TuningError
from pwopt.targets.database import Measurement, TuningDatabase

MACHINE = "cpu 16x32"

# Writes batches of 50 measurements until it is killed; each batch has a kernel of its own.
_WRITER = """
import sys
from pathlib import Path
from pwopt.targets.database import Measurement, TuningDatabase
database = TuningDatabase(Path(sys.argv[1]))
for batch in range(10**6):
    rows = [Measurement(f"{sys.argv[2]} {batch}", f"s{i}", 0.5 + i / 1000, 1.0) for i in range(50)]
    database.record("cpu 16x32", rows)
    print(batch, flush=True)
"""


@pytest.fixture
def database(tmp_path: Path) -> TuningDatabase:
    return TuningDatabase(tmp_path / "cache" / "tuning.sqlite")


def test_nothing_is_known_and_nothing_is_made(database: TuningDatabase) -> None:
    assert database.best(MACHINE) == {}
    assert database.measured(MACHINE) == {}
    assert not database.path.parent.exists()


def test_best_beats_the_rule(database: TuningDatabase) -> None:
    rows = [("a", "x", 0.95), ("a", "y", 0.9), ("a", "z", 1.2), ("b", "x", 0.995), ("c", "x", 1.1)]
    database.record(MACHINE, [Measurement(k, s, r, 10 * r) for k, s, r in rows])
    assert database.best(MACHINE) == {"a": "y"}
    assert database.measured(MACHINE) == {"a": {"x", "y", "z"}, "b": {"x"}, "c": {"x"}}


def test_equal_schedules_are_chosen_by_text(database: TuningDatabase) -> None:
    for order in ("pq", "qp"):
        database.record(MACHINE, [Measurement("a", s, 0.5, 1.0) for s in order])
        assert database.best(MACHINE) == {"a": "p"}


def test_newer_figures_replace_older_ones(database: TuningDatabase) -> None:
    database.record(MACHINE, [Measurement("a", "x", 0.5, 1.0)])
    database.record(MACHINE, [Measurement("a", "x", 1.5, 3.0)])
    assert database.best(MACHINE) == {}


def test_machines_are_kept_apart(database: TuningDatabase) -> None:
    database.record(MACHINE, [Measurement("a", "x", 0.5, 1.0)])
    assert database.best("another") == {}


def test_two_writers_and_kills(database: TuningDatabase) -> None:
    """Each writer is killed in the middle; what it said was stored is there, in whole batches."""
    command = [sys.executable, "-c", _WRITER, str(database.path)]
    writers = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "pq"
    ]
    said = []
    for writer in writers:
        assert writer.stdout is not None
        said.append([next(writer.stdout) for _ in range(12)][-1])
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    found = database.measured(MACHINE)
    for name, last in zip("pq", said, strict=True):
        assert all(f"{name} {batch}" in found for batch in range(int(last) + 1))
    assert {len(schedules) for schedules in found.values()} == {50}
    database.record(MACHINE, [Measurement("after", "x", 0.5, 1.0)])
    assert database.best(MACHINE)["after"] == "x"


def test_many_make_the_file_at_once(tmp_path: Path) -> None:
    writers = 8
    for attempt in range(10):
        database = TuningDatabase(tmp_path / f"{attempt}.sqlite")
        start = threading.Barrier(writers)

        def write(name: str, database: TuningDatabase = database) -> None:
            start.wait()  # noqa: B023 - the threads end within the turn of the loop
            database.record(MACHINE, [Measurement(name, "x", 0.5, 1.0)])

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, "abcdefgh"))
        assert sorted(database.best(MACHINE)) == list("abcdefgh")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database" * 100)
    with pytest.raises(TuningError, match=r"notes\.txt: no usable tuning database"):
        TuningDatabase(path).best(MACHINE)
    assert path.read_text() == "no database" * 100


def test_a_layout_of_the_future(database: TuningDatabase) -> None:
    database.record(MACHINE, [])
    with sqlite3.connect(database.path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(TuningError, match=r"layout 7, this pwopt reads 1; .*--database"):
        database.best(MACHINE)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuningError, match="no usable tuning database"):
        TuningDatabase(tmp_path / "file" / "d.sqlite").record(MACHINE, [])
