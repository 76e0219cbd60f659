"""The ONNX frontend: the only package that knows ONNX's protobuf.

:func:`load` reads a model into a :class:`~pwopt.ir.graph.Graph`, :func:`export` and :func:`save`
write one as standard ONNX. What the graph cannot express travels in ``graph.metadata``.
"""

from pwopt.frontend.carried import BATCH, LEAN, OPEN
from pwopt.frontend.exporter import export
from pwopt.frontend.importer import load
from pwopt.frontend.interop import converted
from pwopt.frontend.open_batch import close_batch, notice, retyped, with_open_batch, without_batch
from pwopt.frontend.writer import file_bytes, save

__all__ = [
    "BATCH",
    "LEAN",
    "OPEN",
    "close_batch",
    "converted",
    "export",
    "file_bytes",
    "load",
    "notice",
    "retyped",
    "save",
    "with_open_batch",
    "without_batch",
]
