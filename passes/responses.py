"""What layers answer to examples, at randomly chosen pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from pwopt import calibration
from pwopt.calibration import Calibration
from pwopt.ir.graph import Graph, Value
from pwopt.ir.types import TensorType
from pwopt.running import input_types, running

_BYTES = 1 << 28  # of maps that one run of the network hands out
_PIXELS = 8  # looked at in an example, if there are so many, before fewer examples are run


def responses(
    graph: Graph, values: Sequence[Value], examples: Calibration, rows: Sequence[int]
) -> list[np.ndarray]:
    """Rows of channels for each value, float32 (rows, channels).

    Maps of equal size are looked at in the same places, whatever the graph and however many
    examples a run takes: rows of a layer before and after a rewrite belong together. Of many
    examples, the first ones are enough: they are taken to be in random order.

    Args:
        graph: is not changed.
        values: maps (N, channels, *spatial) or matrices (N, channels).
        examples: for the graph's inputs.
        rows: wanted at least of each value; fewer where there are no more pixels.

    Raises:
        PwoptError: the graph cannot be run.
    """
    tapped = graph.copy()
    names = [f"pwopt response {i}" for i in range(len(values))]
    tapped.set_outputs(list(zip(names, values, strict=True)))
    tapped.erase_dead()
    enough = [_examples(v, count, len(examples)) for v, count in zip(values, rows, strict=True)]
    each = [-(-count // share) for count, share in zip(rows, enough, strict=True)]
    examples = examples.take(max(enough))
    size = _batch(input_types(graph), values, len(examples))
    found: list[list[np.ndarray]] = [[] for _ in values]
    with running(tapped) as runner:
        starts = range(0, len(examples), size)
        for start, feeds in zip(starts, examples.batches(size), strict=True):
            answers = runner.run(feeds)
            for name, count, last, mine in zip(names, each, enough, found, strict=True):
                items = _items(answers[name], size)[: max(0, last - start)]
                mine += [x[_places(len(x), count, start + i)] for i, x in enumerate(items)]
    return [np.concatenate(mine) for mine in found]


def _examples(value: Value, rows: int, count: int) -> int:
    """How many of the examples to look at for so many rows."""
    pixels = math.prod(d for d in (value.tensor.shape or ())[2:] if isinstance(d, int))
    return min(count, -(-rows // max(1, min(pixels, _PIXELS))))


def _items(answer: np.ndarray, size: int) -> np.ndarray:
    """The pixels of each example, (examples, pixels, channels); of all where they are mixed."""
    pixels = np.moveaxis(answer, 1, -1)
    return pixels.reshape(1 if len(pixels) % size else size, -1, pixels.shape[-1])


def _batch(types: dict[str, TensorType], values: Sequence[Value], examples: int) -> int:
    """Examples a run: as many as the maps leave room for, where the model leaves that open."""
    size = calibration.batch_size(types, examples)
    if any(isinstance((t.shape or ("",))[0], int) for t in types.values()):
        return size
    each = 4 * sum(math.prod(d for d in v.tensor.shape or () if isinstance(d, int)) for v in values)
    return max(1, min(size, _BYTES // max(each, 1)))


@functools.lru_cache(1 << 15)
def _places(pixels: int, count: int, example: int) -> np.ndarray:
    if count >= pixels:
        return np.arange(pixels)
    rng = np.random.default_rng((example, pixels))
    return np.sort(rng.choice(pixels, count, replace=False))
