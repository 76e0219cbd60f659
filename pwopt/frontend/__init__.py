"""The ONNX frontend: the only package that knows ONNX's protobuf.

:func:`load` reads a model into a :class:`~pwopt.ir.graph.Graph`, :func:`export` and :func:`save`
write one as standard ONNX. What the graph cannot express travels in ``graph.metadata``.
"""

from pwopt.frontend.carried import LEAN, OPEN
from pwopt.frontend.exporter import export
from pwopt.frontend.importer import load
from pwopt.frontend.interop import converted
from pwopt.frontend.writer import file_bytes, save

__all__ = ["LEAN", "OPEN", "converted", "export", "file_bytes", "load", "save"]
