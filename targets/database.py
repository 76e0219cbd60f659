"""The tuning database: measured schedules in one SQLite file that outlives a kill at any moment.

Several processes may tune into one file: every batch is one transaction, and a reader sees whole
batches only. What is stored is the ratio to the untuned schedule of the same kernel, measured in
turns with it, because absolute times of different days do not compare.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pwopt import env
from pwopt.errors import TuningError

_LAYOUT = 1  # of the file; SQLite keeps it as user_version
_WORTH_IT = 0.99  # of the untuned time; less is noise
_WAIT_SECONDS = 60.0  # for another process's transaction
_CREATE = """
CREATE TABLE IF NOT EXISTS measurement (
    machine TEXT NOT NULL,
    kernel TEXT NOT NULL,
    schedule TEXT NOT NULL,
    ratio REAL NOT NULL,
    us REAL NOT NULL,
    PRIMARY KEY (machine, kernel, schedule)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Measurement:
    """One schedule of one kernel.

    Attributes:
        kernel: what it computes, on which shapes and strides.
        schedule: how.
        ratio: its time over that of the untuned schedule, measured in turns; infinite where it
            does not run.
        us: its time in microseconds, likewise.
    """

    kernel: str
    schedule: str
    ratio: float
    us: float


def default_path() -> Path:
    """``PWOPT_DATABASE``, or a file in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return env.settings().database or Path(cache) / "pwopt" / "tuning.sqlite"


class TuningDatabase:
    """Measurements by machine, as :attr:`pwopt.targets.tuner.Job.key` names it."""

    def __init__(self, path: Path) -> None:
        """A database file; it is made at the first :meth:`record`."""
        self.path = path

    def best(self, machine: str, below: float = _WORTH_IT) -> dict[str, str]:
        """The fastest schedule of each kernel that beats the rule's; of equals the first by text.

        Args:
            machine: that they were measured on.
            below: what its time over that of the rule's must be.

        Raises:
            TuningError: the file is no database of this layout.
        """
        query = "SELECT kernel, schedule FROM measurement WHERE machine = ? AND ratio < ? "
        query += "ORDER BY kernel, ratio DESC, schedule DESC"  # the last one stays in the dict
        return dict(self._read(query, machine, below))

    def measured(self, machine: str) -> dict[str, set[str]]:
        """The schedules of each kernel that were measured already.

        Raises:
            TuningError: the file is no database of this layout.
        """
        found: dict[str, set[str]] = {}
        query = "SELECT kernel, schedule FROM measurement WHERE machine = ?"
        for kernel, schedule in self._read(query, machine):
            found.setdefault(kernel, set()).add(schedule)
        return found

    def machines(self) -> list[str]:
        """Those that something was measured on, sorted.

        Raises:
            TuningError: the file is no database of this layout.
        """
        query = "SELECT DISTINCT machine, '' FROM measurement ORDER BY machine"
        return [machine for machine, _ in self._read(query)]

    def record(self, machine: str, measurements: Iterable[Measurement]) -> None:
        """Stores a batch as a whole; a schedule that was measured before keeps the newer figure.

        Raises:
            TuningError: the file cannot be written.
        """
        rows = [(machine, m.kernel, m.schedule, m.ratio, m.us) for m in measurements]
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?, ?)", rows
                )

    def _read(self, query: str, *values: object) -> list[tuple[str, str]]:
        if not self.path.exists():
            return []
        with self._errors(), closing(self._open()) as connection:
            return connection.execute(query, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        if layout not in (0, _LAYOUT):
            connection.close()
            raise TuningError(
                f"{self.path}: a tuning database of layout {layout}, this pwopt reads {_LAYOUT}; "
                "name another file with --database"
            )
        if layout == 0:
            # One transaction, and no switch to WAL, which does not wait for another process.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_CREATE)
            connection.execute(f"PRAGMA user_version = {_LAYOUT}")
            connection.execute("COMMIT")
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise TuningError(f"{self.path}: no usable tuning database: {error}") from error
