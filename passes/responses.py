"""What layers answer to examples, at randomly chosen pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pwopt import calibration
from pwopt.calibration import Calibration
from pwopt.ir.graph import Graph, Value
from pwopt.ir.types import TensorType
from pwopt.running import input_types, running

_BYTES = 1 << 28  # of maps that one run of the network hands out


def responses(
    graph: Graph, values: Sequence[Value], examples: Calibration, rows: int
) -> list[np.ndarray]:
    """Rows of channels for each value, float32 (rows, channels).

    Maps of equal size are looked at in the same places, whatever the graph: rows of a layer before
    and after a rewrite belong together.

    Args:
        graph: is not changed.
        values: maps (N, channels, *spatial) or matrices (N, channels).
        examples: for the graph's inputs.
        rows: wanted at least; fewer where there are no more pixels.

    Raises:
        PwoptError: the graph cannot be run.
    """
    tapped = graph.copy()
    names = [f"pwopt response {i}" for i in range(len(values))]
    tapped.set_outputs(list(zip(names, values, strict=True)))
    tapped.erase_dead()
    types = input_types(graph)
    size = _batch(types, values, len(examples))
    batches = -(-len(examples) // size)
    found: list[list[np.ndarray]] = [[] for _ in values]
    with running(tapped) as runner:
        for number, feeds in enumerate(examples.batches(size)):
            answers = runner.run(feeds)
            for name, mine in zip(names, found, strict=True):
                pixels = np.moveaxis(answers[name], 1, -1)
                pixels = pixels.reshape(-1, pixels.shape[-1])
                mine.append(pixels[_places(len(pixels), -(-rows // batches), number)])
    return [np.concatenate(mine) for mine in found]


def _batch(types: dict[str, TensorType], values: Sequence[Value], examples: int) -> int:
    """Examples a run: as many as the maps leave room for, where the model leaves that open."""
    size = calibration.batch_size(types, examples)
    if any(isinstance((t.shape or ("",))[0], int) for t in types.values()):
        return size
    each = 4 * sum(math.prod(d for d in v.tensor.shape or () if isinstance(d, int)) for v in values)
    return max(1, min(size, _BYTES // max(each, 1)))


def _places(pixels: int, count: int, number: int) -> np.ndarray:
    if count >= pixels:
        return np.arange(pixels)
    rng = np.random.default_rng((number, pixels))
    return np.sort(rng.choice(pixels, count, replace=False))
