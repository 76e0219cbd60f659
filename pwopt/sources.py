"""What users give as a model, read into a graph."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.report import Source

Model = Any  # a Graph, or what the frontend reads: a path, bytes, an onnx.ModelProto and others
Shapes = Mapping[str, Sequence[int]]
Progress = Callable[[str], None]


def read(
    model: Model, input_shapes: Shapes | None = None, batch: int | None = 1
) -> tuple[Graph, Source]:
    """The graph of a model, and where it came from.

    Where the first dimension of the inputs is all that is open it is closed, which is logged.

    Args:
        model: whatever :func:`optimize` takes.
        input_shapes: sizes for open dimensions, by input name.
        batch: size of an open first dimension; None leaves it open.

    Raises:
        FrontendError: the model cannot be read.
        UsageError: shapes were given for a graph, which has its own.
    """
    from pwopt import frontend

    source = Source()
    if isinstance(model, Graph):
        if input_shapes:
            raise UsageError("input shapes are given where a model is loaded: pwopt.load")
        graph = model if batch is None else frontend.close_batch(model, batch)
        if graph is model:
            return graph, source
    else:
        model = converted(model)
        graph = frontend.load(model, input_shapes, batch=batch)
        source = _source(as_it_came(model))
    if closed := frontend.notice(graph):
        logging.getLogger("pwopt").warning(closed)
    return graph, source


def _source(raw: Path | bytes | None) -> Source:
    if isinstance(raw, Path):
        with raw.open("rb") as stream:
            return Source(str(raw), hashlib.file_digest(stream, "sha256").hexdigest())
    return Source("", hashlib.sha256(raw).hexdigest() if raw is not None else "")


def converted(model: Model) -> Model:
    """A graph, path, bytes or ModelProto, whatever was given."""
    if isinstance(model, Graph | str | os.PathLike | bytes):
        return model
    from pwopt import frontend

    return frontend.converted(model)


def as_it_came(model: Model) -> Path | bytes | None:
    """The model as it came, for references independent of the frontend; None of a graph."""
    if isinstance(model, Graph):
        return None
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, os.PathLike)):
        return Path(model)
    try:
        return bytes(model.SerializeToString())
    except (ValueError, AttributeError):  # beyond protobuf's 2 GiB
        return None


def example_shape(t: TensorType) -> str:
    """Sizes for an input as ``--input-shape`` takes them; its own where it has some."""
    sizes = t.shape or ("", "", "", "")
    closed = [d if isinstance(d, int) else 224 if i else 1 for i, d in enumerate(sizes)]
    if len(closed) == 4 and not isinstance(sizes[1], int):
        closed[1] = 3
    return "x".join(map(str, closed))
