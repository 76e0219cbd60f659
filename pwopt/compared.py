"""What is compared: an ONNX model, an executable or both, from whatever a user names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pwopt.errors import FrontendError, UsageError
from pwopt.ir.graph import Graph
from pwopt.ir.types import TensorType
from pwopt.pipeline import missing_file
from pwopt.running import input_types


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
        source: an ONNX model, as a path or bytes.
        program: an :class:`~pwopt.targets.executable.Executable`.
        from_folder: whether they are what ``pwopt optimize`` wrote.
    """

    source: Path | bytes | None = None
    program: Any = None
    from_folder: bool = False


def opened(given: Any) -> Side:
    """A side from what a user gave.

    Args:
        given: an ONNX model in any form that :func:`pwopt.optimize` takes, an executable, a path to
            either, the folder that ``pwopt optimize`` wrote, or None.

    Raises:
        FrontendError: there is no such file, or it is no model.
        CodegenError: an executable that cannot be loaded.
        UsageError: no such folder or executable, or a folder without either.
    """
    if given is None or hasattr(given, "manifest"):
        return Side(program=given)
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        return _folder(path) if path.is_dir() else _file(path)
    from pwopt import frontend

    model = frontend.converted(given)
    if isinstance(model, Graph):
        model = frontend.export(model)
    return Side(model if isinstance(model, bytes) else model.SerializeToString())


def _folder(path: Path) -> Side:
    source, program = path / "model.onnx", path / "model.so"
    if not source.is_file() and not program.is_file():
        raise UsageError(
            f"{path}: holds neither model.onnx nor model.so; make them with `pwopt optimize`"
        )
    return Side(
        source if source.is_file() else None, _load(program) if program.is_file() else None, True
    )


def _file(path: Path) -> Side:
    if not path.is_file() and path.suffix in ("", ".so"):
        raise UsageError(f"{path}: no such file; make it with `pwopt optimize`")
    if not path.is_file():
        raise FrontendError(missing_file(path))
    with path.open("rb") as file:
        library = file.read(4) == b"\x7fELF" or path.suffix == ".so"
    return Side(program=_load(path)) if library else Side(path)


def _load(path: Path) -> Any:
    from pwopt.targets.executable import load_executable

    return load_executable(path)


def threads_of(programs: Sequence[Any], threads: int | None) -> int:
    """The number of threads of a comparison: as asked for, else the executables' own, else one.

    Raises:
        UsageError: an executable was compiled for another number.
    """
    built = [p.manifest.threads for p in programs]
    wanted = threads or (built[0] if built else 1)
    for number in built:
        if number != wanted:
            raise UsageError(
                f"the executable was compiled for {number} thread{'s' * (number != 1)}: compare "
                f"with that many, or compile it again for {wanted}"
            )
    return wanted


def static_types(
    first: Side, second: Side, input_shapes: Mapping[str, Sequence[int]] | None
) -> dict[str, TensorType]:
    """Static types of the inputs: the shapes given, the model's, or the other's.

    A batch that is open everywhere is 1.

    Raises:
        UsageError: a shape that is known nowhere.
    """
    from pwopt import frontend, sources

    programs = [side.program for side in (first, second) if side.program is not None]
    types = {i.name: TensorType(i.dtype, tuple(i.shape)) for p in programs for i in p.inputs}
    if first.source is not None:
        other = types
        if second.source is not None:
            other = {**input_types(frontend.load(second.source)), **types}
        types = input_types(frontend.load(first.source, input_shapes))
        if not input_shapes:
            types = {n: other.get(n, t) if t.static_shape is None else t for n, t in types.items()}
        if any(t.static_shape is None for t in types.values()):
            types = input_types(sources.read(first.source, input_shapes)[0])
    for name, t in types.items():
        if t.static_shape is None:
            raise UsageError(
                f"input {name!r} is {t}: give its sizes, e.g. --input-shape "
                f"{name}:{sources.example_shape(t)}"
            )
    return types
