"""A process that drives the GPU for the tuner.

A kernel that reads where it must not, or never ends, makes the driver refuse everything that
follows in the same process. Here it costs this process alone; the next one starts afresh.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from pwopt.errors import CodegenError
from pwopt.targets.cuda.package import Package, in_this_process

_SECONDS = 120.0  # that loading a network, or one inference, takes at most


class Worker:
    """Puts packages on the GPU of a process of its own, which is started when it is needed."""

    def __init__(self) -> None:
        self._connection: Connection[Any, Any] | None = None
        self._lives = 0  # processes that have ended
        self._gone: list[int] = []  # handles of packages that nobody runs any more

    def load(self, package: Package) -> Callable[[], list[float]]:
        """Puts a package on the GPU.

        Returns:
            What runs it once and gives the microseconds of each launch. If the process has ended
            in the meantime, the package is loaded again.

        Raises:
            CodegenError: there is no GPU, it refuses something, or breaks; also when it is run.
        """
        place = _Place(-1, -1)

        def run() -> list[float]:
            self._put(package, place)
            return [float(t) for t in self._call("run", place.handle)]

        self._put(package, place)
        weakref.finalize(run, self._forget, place)
        return run

    def _put(self, package: Package, place: _Place) -> None:
        if place.life != self._lives:
            place.handle = self._call("load", package)
            place.life = self._lives

    def _forget(self, place: _Place) -> None:
        if place.life == self._lives:
            self._gone.append(place.handle)  # told with the next call: this one may be within one

    def _call(self, what: str, argument: Any) -> Any:
        connection = self._connection or self._start()
        gone, self._gone = self._gone, []
        try:
            connection.send((what, argument, gone))
            if not connection.poll(_SECONDS):
                self._give_up(f"the GPU did not answer within {_SECONDS:.0f} s")
            result, problem = connection.recv()
        except (OSError, EOFError):
            self._give_up("the process that drives the GPU has ended")
        if problem:
            self._give_up(problem)  # what the driver reports may be the end of its context
        return result

    def _start(self) -> Connection[Any, Any]:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        around = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=around)
        theirs.close()
        self._end = weakref.finalize(self, _stop, process, ours)
        self._connection = ours
        return ours

    def _give_up(self, problem: str) -> None:
        self._end()
        self._connection = None
        self._lives += 1
        self._gone = []
        raise CodegenError(problem)


class _Place:
    """Where a package is loaded: its handle there, and in which life of the process."""

    def __init__(self, handle: int, life: int) -> None:
        self.handle, self.life = handle, life


def _stop(process: subprocess.Popen[bytes], connection: Connection[Any, Any]) -> None:
    connection.close()
    process.kill()  # it may hang
    process.wait()


def main() -> None:
    """Does what comes through a connection until it is closed."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    loaded: dict[int, Callable[[], list[float]]] = {}
    handles = itertools.count()
    while True:
        try:
            what, argument, gone = connection.recv()
        except EOFError:
            return
        for handle in gone:
            del loaded[handle]
        try:
            if what == "load":
                handle = next(handles)
                loaded[handle] = in_this_process(argument)
                connection.send((handle, ""))
            else:
                connection.send((loaded[argument](), ""))
        except CodegenError as error:
            connection.send((None, str(error)))


if __name__ == "__main__":
    main()
