"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pwopt.errors import PwoptError, UsageError

# What pwopt writes; a folder that holds anything else is not pwopt's to replace.
FILES = re.compile(
    r"(model|repro-\d+)\.onnx(\.[0-9a-f]{16}\.data)?|model\.so|repro-\d+\.txt|report\.(json|html)"
    r"|(channels-[\w.-]+|layers|sweep)\.(png|svg)"
)
REPORT = "report.json"
PAGE = "report.html"
GENERATOR = "pwopt"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_replaceable(folder: Path) -> None:
    """Makes sure that writing ``folder`` loses nothing that pwopt did not write.

    Raises:
        UsageError: it is a file, the current folder, or holds something of the user's.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder for the output")
    names = {entry.name for entry in folder.iterdir()}
    if folder.resolve() == Path.cwd():
        raise UsageError(f"{folder}: is the current folder; name another one for the output")
    if not names:
        return
    if not is_ours(folder / REPORT):
        raise UsageError(
            f"{folder}: is not empty and pwopt did not write it; name another folder with -o"
        )
    if foreign := sorted(name for name in names if not FILES.fullmatch(name)):
        raise UsageError(
            f"{folder}: holds {foreign[0]!r}, which pwopt did not write; move it or name another "
            "folder with -o"
        )


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends well.

    It lies beside ``folder``, so that the exchange is one rename; an interrupted or failed block
    leaves the old folder as it was and nothing else.

    Raises:
        UsageError: see :func:`check_replaceable`.
        PwoptError: the folder cannot be written.
    """
    check_replaceable(folder)
    folder = folder.resolve()
    made = _make_parents(folder.parent)
    stage = None
    try:
        try:
            stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            stage.chmod(0o777 & ~_umask())
        except OSError as error:
            raise PwoptError(f"{folder}: cannot be written: {error.strerror}") from error
        try:
            yield stage
            _put_in_place(stage, folder)
            made = []
        except OSError as error:
            where = error.filename or folder
            raise PwoptError(f"{where}: cannot be written: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def is_ours(report: Path) -> bool:
    """Whether a file is a ``report.json`` of pwopt."""
    try:
        content = json.loads(report.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("generator") == GENERATOR


def _make_parents(folder: Path) -> list[Path]:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
        except OSError as error:
            for parent in reversed(made):
                parent.rmdir()
            raise PwoptError(f"{each}: cannot be written: {error.strerror}") from error
        made.append(each)
    return made


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _put_in_place(stage: Path, folder: Path) -> None:
    for file in stage.iterdir():  # the rename must not reach the disk before the contents
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if not folder.exists():
        stage.rename(folder)
    elif not _exchange(stage, folder):
        # No atomic exchange on this system: two renames, the first undone if the second fails.
        old = stage.with_name(stage.name + ".old")
        folder.rename(old)
        try:
            stage.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders atomically (Linux), so that at no moment there is none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(a), os.fsencode(b)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
