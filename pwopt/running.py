"""A graph as something that runs: in ONNX Runtime, or in the reference interpreter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.ort import OrtModel

# Protobuf cannot serialize more than 2 GiB; larger graphs go through files.
MAX_SERIALIZED_BYTES = 1 << 30
# ONNX Runtime's own rewriting takes the square of a graph's size: 0.6 s at 2,500 nodes, 8 s at
# 10,000. Beyond this many nodes the check does without, as it is about results only.
MAX_REWRITTEN_NODES = 2000


class Runner(Protocol):
    """Anything that runs a model."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name."""


@contextmanager
def running(graph: Graph, interpreted: bool = False) -> Iterator[Runner]:
    """The graph in ONNX Runtime, or in the reference interpreter.

    Raises:
        PwoptError: the graph cannot be exported or run.
    """
    if interpreted:
        from pwopt.frontend.reference import ReferenceModel

        yield ReferenceModel(graph)
        return
    with exported(graph) as file:
        yield in_ort(file, graph)


def in_ort(source: Path | bytes, graph: Graph) -> OrtModel:
    """A graph's file in ONNX Runtime; the graph says how large it is."""
    return OrtModel(source, optimize=len(graph) <= MAX_REWRITTEN_NODES)


@contextmanager
def exported(graph: Graph) -> Iterator[Path | bytes]:
    """The graph as something that ONNX Runtime loads: bytes, or a temporary file where too big."""
    from pwopt import frontend

    if graph.constant_bytes < MAX_SERIALIZED_BYTES:
        yield frontend.export(graph).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="pwopt-") as folder:
        path = Path(folder) / "model.onnx"
        frontend.save(graph, path)
        yield path


def input_types(graph: Graph) -> dict[str, TensorType]:
    """The types of the inputs that must be fed, by name."""
    return {node.names[0]: node.out.tensor for node in graph.inputs if node.get("default") is None}
