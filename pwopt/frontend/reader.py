"""From a path, bytes or ModelProto to a model whose outline is known to be sound."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto

from pwopt.errors import FrontendError, nearest
from pwopt.frontend.attributes import captured, has_subgraph
from pwopt.pipeline import missing_file

OLDEST_OPSET = 7
PROTOBUF_LIMIT = 2**31 - 1  # bytes of one message

Source = str | os.PathLike[str] | bytes | ModelProto


def read(source: Source) -> tuple[ModelProto, Path | None, str]:
    """Parses a model.

    Returns:
        the model, the folder of its external data if known, and a name for messages.

    Raises:
        FrontendError: no such file, or not an ONNX model.
    """
    if isinstance(source, ModelProto):
        model, folder, name = source, None, "model"
    elif isinstance(source, bytes | bytearray | memoryview):
        model, folder, name = _parse(bytes(source), "model"), None, "model"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        model, folder, name = _parse(_contents(path), str(path)), path.parent, str(path)
    else:
        raise FrontendError(f"cannot load a model from a {type(source).__name__}; give a path")
    if not model.HasField("graph"):
        raise FrontendError(f"{name}: not an ONNX model: it has no graph")
    return model, folder, name


def _contents(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FrontendError(f"{path}: is a directory; give the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise FrontendError(f"{path}: is not a regular file")
        if status.st_size > PROTOBUF_LIMIT:
            raise FrontendError(
                f"{path}: {status.st_size} bytes, an ONNX file ends at 2 GiB; save its weights as "
                "external data"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FrontendError(missing_file(path)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FrontendError(f"{path}: cannot be read: {reason}") from error


def _parse(data: bytes, name: str) -> ModelProto:
    if not data:
        raise FrontendError(f"{name}: is empty, not an ONNX model")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise FrontendError(
            f"{name}: not an ONNX model, or truncated ({len(data)} bytes){_guess(data)}"
        ) from error
    return model


def _guess(data: bytes) -> str:
    """What a file is that often lies where a model should be."""
    if data.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS; get the model with `git lfs pull`"
    if data.lstrip()[:1] == b"<":
        return ": it is a web page"
    if data[:2] == b"PK":
        return _guess_archive(data)
    if data.startswith(b"\x89HDF"):
        return ": it is a Keras or HDF5 file; export it with model.export(..., format='onnx')"
    return ": it is compressed; unpack it" if data.startswith((b"\x1f\x8b", b"BZh")) else ""


def _guess_archive(data: bytes) -> str:
    """What a ZIP archive is; files of several frameworks are some."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return ": it is a ZIP archive, and damaged"
    if any(name.endswith("data.pkl") for name in names):
        return ": it is a PyTorch file; export it with torch.onnx.export"
    if "config.json" in names:
        return ": it is a Keras file; export it with model.export(..., format='onnx')"
    return ": it is a ZIP archive; unpack it"


def opsets(model: ModelProto, name: str) -> dict[str, int]:
    """Operator set versions by domain, ONNX's own under ``""``.

    Raises:
        FrontendError: ONNX's own operator set is older than pwopt reads.
    """
    versions = {_domain(entry.domain): entry.version for entry in model.opset_import}
    version = versions.get("", OLDEST_OPSET if versions else 1)
    if version < OLDEST_OPSET:
        raise FrontendError(
            f"{name}: operator set {version}, pwopt reads {OLDEST_OPSET} and newer; convert it "
            "with onnx.version_converter.convert_version(model, 17)"
        )
    return versions


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def inline_functions(model: ModelProto, name: str) -> ModelProto:
    """The model with its local functions inlined; those that need other operator sets stay.

    Raises:
        FrontendError: a function that could not be inlined stands in for an ONNX operator.
    """
    if not model.functions:
        return model
    from onnx import inliner

    try:
        inlined = inliner.inline_local_functions(model)
    except Exception:  # carried along as it is then; the checker has the last word
        inlined = model
    for function in inlined.functions:
        if not _domain(function.domain):
            raise FrontendError(
                f"{name}: function {function.name!r} replaces an operator of ONNX itself and "
                "cannot be inlined; rename it or give it a domain of its own"
            )
    return inlined


def ordered(nodes: Sequence[NodeProto], available: Iterable[str], name: str) -> list[NodeProto]:
    """The nodes, operands before readers; untouched if that holds already.

    Args:
        nodes: of one graph.
        available: names of inputs and initializers.
        name: of the file, for messages.

    Raises:
        FrontendError: a value that nothing or that several nodes produce, or a cycle.
    """
    outside = set(available)
    for node in nodes:
        # protobuf hands out text that is not UTF-8 as bytes.
        if bytes in map(type, (node.op_type, node.domain, node.name, *node.input, *node.output)):
            raise FrontendError(f"{name}: {describe(node)}: a name in it is not UTF-8")
    reads = [_reads(node) for node in nodes]
    producer: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for output in filter(None, node.output):
            if output in producer or output in outside:
                first = describe(nodes[producer[output]]) if output in producer else "an input"
                raise FrontendError(
                    f"{name}: value {output!r} is defined twice, by {first} and {describe(node)}"
                )
            producer[output] = position
    sorted_already = True
    for position, node in enumerate(nodes):
        for read in reads[position]:
            if read not in outside and read not in producer:
                raise FrontendError(
                    f"{name}: {describe(node)} reads {read!r}, which nothing produces"
                    f"{nearest(read, [*outside, *producer]) if len(producer) < 5000 else ''}"
                )
            sorted_already &= producer.get(read, -1) < position
    return list(nodes) if sorted_already else _sorted(nodes, reads, producer, name)


def _sorted(
    nodes: Sequence[NodeProto], reads: list[list[str]], producer: dict[str, int], name: str
) -> list[NodeProto]:
    import heapq

    waiting = [Counter(producer[r] for r in each if r in producer) for each in reads]
    readers: dict[int, list[int]] = {}
    for position, sources in enumerate(waiting):
        for source in sources:
            readers.setdefault(source, []).append(position)
    missing = [len(sources) for sources in waiting]
    ready = [position for position, count in enumerate(missing) if not count]
    order = []
    while ready:
        position = heapq.heappop(ready)
        order.append(nodes[position])
        for reader in readers.get(position, ()):
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(nodes[i] for i, count in enumerate(missing) if count)
        raise FrontendError(f"{name}: the graph has a cycle; {describe(stuck)} waits for itself")
    return order


def _reads(node: NodeProto) -> list[str]:
    names = [name for name in node.input if name]
    return names + captured(node.attribute) if has_subgraph(node) else names


def describe(node: NodeProto) -> str:
    """How messages name an ONNX node."""
    shown = node.name or next(filter(None, node.output), "")
    op = " ".join(str(node.op_type).split())  # a damaged file's may span lines
    return f"{op[:80]} {shown[:200]!r}"


def has_schema(node: NodeProto, versions: dict[str, int]) -> bool:
    """Whether the onnx package knows the operator."""
    domain = _domain(node.domain)
    version = versions.get(domain)
    return version is not None and onnx.defs.has(node.op_type, version, domain)
