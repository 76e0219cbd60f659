"""A GPU for launch lists: kernels run on the CPU, launches in any order that they allow."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pwopt.targets.cuda.kernel import TensorMap
from pwopt.targets.launches import Address, LaunchList, Window, dependencies
from tests.targets.cuda.emulator import LATE, build, described

_SLACK = 64


class EmulatedDevice:
    """See :class:`pwopt.targets.cuda.segment.Device`; a kernel's "cubin" is its CUDA text.

    Args:
        capability: compute capability.
        seed: of the order of the launches; None for the order of the list.
        timing: of asynchronous copies, as the emulator has it.
    """

    name = "Emulated GPU"

    def __init__(
        self, capability: tuple[int, int] = (8, 0), seed: int | None = None, timing: int = LATE
    ) -> None:
        self.capability = capability
        self._seed, self._timing = seed, timing

    def load(
        self,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
    ) -> EmulatedLaunches:
        return EmulatedLaunches(launches, kernels, constants, outputs, self._seed, self._timing)


class EmulatedLaunches:
    """A launch list on host memory."""

    def __init__(
        self,
        launches: LaunchList,
        kernels: Mapping[str, bytes],
        constants: np.ndarray,
        outputs: Sequence[np.ndarray],
        seed: int | None,
        timing: int,
    ) -> None:
        self._launches, self._outputs, self._timing = launches, tuple(outputs), timing
        self._order = random.Random(seed) if seed is not None else None
        self._libraries = {name: build(text.decode()) for name, text in kernels.items()}
        self._constants = _aligned(constants)

    def run(
        self,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray | None],
        keep: Sequence[int] = (),
    ) -> list[np.ndarray]:
        memory: dict[tuple[str, int], np.ndarray] = {("constant", 0): self._constants}
        workspace = _aligned(np.full(max(self._launches.workspace_bytes, 1), 0xFF, np.uint8))
        workspace[: self._launches.cleared_bytes] = 0
        memory["workspace", 0] = workspace  # NaN, whatever reads it
        for i, array in enumerate(inputs):
            memory["input", i] = _aligned(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        for i, like in enumerate(self._outputs):
            memory["output", i] = _aligned(np.full(like.nbytes, 0xFF, np.uint8))

        def at(address: Address) -> int:
            return int(memory[address.memory].ctypes.data) + address.offset

        def argument(each: Address | Window) -> Any:
            if isinstance(each, Address):
                return at(each)
            window = TensorMap(
                0, each.dtype, 0, each.dims, each.strides, each.box, each.steps, each.swizzle
            )
            return described(window, at(each.base))

        for index in self._indices():
            launch = self._launches.launches[index]
            arguments = [argument(each) for each in launch.arguments]
            library = self._libraries[launch.kernel]
            shape = (launch.grid, launch.threads, launch.shared_bytes)
            library.launch(launch.kernel, *shape, arguments, self._timing)
        made = [
            memory["output", i][: like.nbytes].view(like.dtype).reshape(like.shape)
            for i, like in enumerate(self._outputs)
        ]
        for wanted, result in zip(outputs, made, strict=True):
            if wanted is not None:
                np.copyto(wanted, result)
        return [made[i] for i in keep]

    def _indices(self) -> list[int]:
        """The launches in an order that their dependencies allow."""
        after = dependencies(self._launches.launches)
        if self._order is None:
            return list(range(len(after)))
        done: list[int] = []
        waiting = set(range(len(after)))
        while waiting:
            ready = sorted(i for i in waiting if not waiting & set(after[i]))
            done.append(self._order.choice(ready))
            waiting.remove(done[-1])
        return done


def _aligned(contents: np.ndarray) -> np.ndarray:
    raw = np.zeros(contents.size + 1024 + _SLACK, np.uint8)
    start = -raw.ctypes.data % 1024
    raw[start : start + contents.size] = contents
    return raw[start : start + contents.size + _SLACK]
