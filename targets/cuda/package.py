"""What a GPU needs to run a graph kernel after kernel, wherever it is."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pwopt.targets.launches import LaunchList


@dataclass(frozen=True)
class Package:
    """Everything that a GPU needs to run a graph.

    Attributes:
        launches: the kernels in order.
        cubins: machine code by symbol.
        constants: bytes that the launches point into.
        ports: shape and dtype of each input, and of each output.
    """

    launches: LaunchList
    cubins: Mapping[str, bytes]
    constants: np.ndarray
    ports: tuple[tuple[tuple[tuple[int, ...], str], ...], ...]

    def pack(self) -> tuple[str, bytes]:
        """As JSON and bytes."""
        header = {
            "launches": self.launches.to_json(),
            "cubins": {name: len(image) for name, image in self.cubins.items()},
            "ports": self.ports,
        }
        return json.dumps(header), b"".join((*self.cubins.values(), self.constants.tobytes()))

    @staticmethod
    def unpack(header: str, data: bytes) -> Package:
        """What :meth:`pack` packed."""
        fields, cubins, at = json.loads(header), {}, 0
        for name, size in fields["cubins"].items():
            cubins[name] = data[at : at + size]
            at += size
        ports = tuple(tuple((tuple(s), d) for s, d in each) for each in fields["ports"])
        constants = np.frombuffer(data, np.uint8, offset=at)
        return Package(LaunchList.from_json(fields["launches"]), cubins, constants, ports)


# Puts a package on a GPU; what it returns runs it once and gives the microseconds of each launch.
Loader = Callable[[Package], Callable[[], list[float]]]


def in_this_process(package: Package) -> Callable[[], list[float]]:
    """A package on this machine's GPU, with random inputs.

    Raises:
        CodegenError: there is no GPU, or it refuses something.
    """
    from pwopt.targets.cuda.device import current

    gc.collect()  # what graphs on the device belong to lies in cycles
    rng = np.random.default_rng(0)
    inputs, outputs = ([np.zeros(*port) for port in ports] for ports in package.ports)
    for array in inputs:
        if array.dtype == np.float32:
            array[...] = rng.standard_normal(array.shape, np.float32)
    device = current()
    loaded = device.load(package.launches, package.cubins, package.constants, inputs, outputs)
    return lambda: loaded.kernel_us(inputs)
