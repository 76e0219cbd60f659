"""Launch lists on a GPU: what is loaded once, and a pool of what runs need."""

from __future__ import annotations

import contextlib
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pwopt.errors import UsageError
from pwopt.targets.cuda.driver import ALIGNMENT, SLACK, call, quietly, release, rounded
from pwopt.targets.cuda.session import Session
from pwopt.targets.cuda.tensors import new_tensor, tensor
from pwopt.targets.launches import Launch, LaunchList, dependencies
from pwopt.targets.manifest import Port

if TYPE_CHECKING:
    from pwopt.targets.cuda.device import CudaDevice


class LoadedLaunches:
    """A launch list on a GPU: its code and constants, and a pool of what runs need."""

    def __init__(
        self,
        device: CudaDevice,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
    ) -> None:
        self.device, self.launches = device, launches
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.after = dependencies(launches.launches)
        self._resident = _Resident(launches.launches)
        with device.active() as driver, contextlib.ExitStack() as undo:
            self._functions = _functions(driver, launches.launches, kernels, undo)
            self._constants = device.memory(self._resident.bytes)
            undo.callback(quietly, driver.cuMemFree, self._constants)
            for start, size, at in self._resident.pieces:
                piece = np.ascontiguousarray(constants[start : start + size])
                target = self._constants + at
                call(driver.cuMemcpyHtoD, target, piece.ctypes.data, piece.nbytes)
            call(driver.cuCtxSynchronize)  # copies may end later, and streams of runs do not wait
            weakref.finalize(self, release, device, undo.pop_all())
        self._pool: list[Session] = []

    def run(
        self,
        inputs: Sequence[np.ndarray | Kept],
        outputs: Sequence[np.ndarray | None],
        keep: Sequence[int] = (),
    ) -> list[Kept]:
        """See :class:`pwopt.targets.cuda.segment.Loaded`."""
        with self.device.active():
            session = self._taken()
            arrays = [a for a in inputs if isinstance(a, np.ndarray)]
            wanted = [a for a in outputs if a is not None]
            if len(arrays) == len(inputs) and len(wanted) == len(outputs):
                session.run(arrays, wanted)
            else:
                places = [a.address if isinstance(a, Kept) else a for a in inputs]
                session.run_between(places, outputs)
            if not keep:
                self._pool.append(session)
                return []
            lease = _Lease(session, self._pool)
            return [Kept(session.output(i), lease) for i in keep]

    def run_on_device(
        self, inputs: Sequence[tuple[Port, Any]], outputs: Sequence[tuple[Port, Any]]
    ) -> list[Any]:
        """Runs on tensors that lie on the device, and waits for the end.

        Args:
            inputs: objects with ``__dlpack__`` or ``__cuda_array_interface__``.
            outputs: likewise, to be written; None for new ones.

        Returns:
            The outputs given, else new ones with ``__dlpack__``.
        """
        with self._session() as session:
            stream = int(session.stream)
            sources = [tensor(port, value, stream, self.device) for port, value in inputs]
            results = [
                value if value is not None else new_tensor(self.device, port)
                for port, value in outputs
            ]
            targets = [
                tensor(port, value, stream, self.device)
                for (port, _), value in zip(outputs, results, strict=True)
            ]
            for (port, _), target in zip(outputs, targets, strict=True):
                if target.ptr % ALIGNMENT:
                    raise UsageError(f"output {port}: its memory is not aligned to 64 bytes")
            session.run_on_device([s.ptr for s in sources], [t.ptr for t in targets])
        return results

    def seconds(self, inputs: Sequence[np.ndarray], calls: int) -> float:
        """Mean time of a run without copies, by events around ``calls`` runs in a row."""
        with self._session() as session:
            return session.seconds(inputs, calls)

    def kernel_us(self, inputs: Sequence[np.ndarray]) -> list[float]:
        """Microseconds of each launch, one after the other, less what measuring costs."""
        with self._session() as session:
            return session.kernel_us(inputs)

    def function(self, launch: Launch) -> Any:
        """The driver's handle of a launch's kernel."""
        return self._functions[launch.kernel]

    def constant(self, offset: int) -> int:
        """Where a constant lies on the device, by its place in the executable."""
        return self._constants + self._resident.place(offset)

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        with self.device.active():
            session = self._taken()
            yield session  # one that failed is not used again
            self._pool.append(session)

    def _taken(self) -> Session:
        try:
            return self._pool.pop()
        except IndexError:
            return Session(self)


class _Lease:
    """Keeps a session from other runs as long as somebody reads its outputs."""

    def __init__(self, session: Session, pool: list[Session]) -> None:
        weakref.finalize(self, pool.append, session)


@dataclass(frozen=True)
class Kept:
    """An output that stays on the device.

    Attributes:
        address: of it.
        lease: on its memory.
    """

    address: int
    lease: _Lease


class _Resident:
    """The pieces of an executable's constants that the launches read, moved together.

    Attributes:
        pieces: (start in the executable, size, start on the device), in bytes.
        bytes: of all together.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        ranges = sorted(
            {
                (a.start.offset, a.start.offset + a.extent)
                for launch in launches
                for a in launch.reads
                if a.start.kind == "constant"
            }
        )
        merged: list[tuple[int, int]] = []
        for start, end in ranges:
            if merged and start <= merged[-1][1] + SLACK:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        self.pieces: list[tuple[int, int, int]] = []
        self.bytes = 0
        for start, end in merged:
            at = self.bytes + (start - self.bytes) % ALIGNMENT
            self.pieces.append((start, end - start, at))
            self.bytes = rounded(at + end - start + SLACK)
        self._starts = [start for start, _, _ in self.pieces]

    def place(self, offset: int) -> int:
        """Where a byte of the constants lies on the device."""
        start, _, at = self.pieces[bisect_right(self._starts, offset) - 1]
        return at + offset - start


def _functions(
    driver: Any,
    launches: Sequence[Launch],
    kernels: Mapping[str, bytes],
    undo: contextlib.ExitStack,
) -> dict[str, Any]:
    """Handles of the kernels, by symbol."""
    found: dict[str, Any] = {}
    limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for launch in launches:
        if launch.kernel not in found:
            module = call(driver.cuModuleLoadData, kernels[launch.kernel])
            undo.callback(quietly, driver.cuModuleUnload, module)
            function = call(driver.cuModuleGetFunction, module, launch.kernel.encode())
            if launch.shared_bytes:  # 48 KiB are free, but static memory counts towards them
                call(driver.cuFuncSetAttribute, function, limit, launch.shared_bytes)
            found[launch.kernel] = function
    return found
