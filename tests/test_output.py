"""Output folders appear whole or not at all, and never replace what is not pwopt's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pwopt import output
from pwopt.errors import PwoptError, UsageError

OURS = json.dumps({"generator": "pwopt"})


def write(folder: Path, text: str = OURS) -> None:
    with output.staged(folder) as stage:
        (stage / "report.json").write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_new_folder_with_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b") == {"out"}
    assert (tmp_path / "a" / "b" / "out" / "report.json").read_text() == OURS


def test_replaces_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder)
    (folder / "model.onnx").write_text("old")
    write(folder)
    assert names(folder) == {"report.json"}
    assert names(tmp_path) == {"out"}


def test_replaces_reproducers_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder)
    for name in ("repro-1.onnx", "repro-12.txt", f"repro-2.onnx.{'0f' * 8}.data", "layers.svg"):
        (folder / name).write_text("old")
    write(folder)
    assert names(folder) == {"report.json"}


def test_replaces_without_an_atomic_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_exchange", lambda a, b: False)
    test_replaces_as_a_whole(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, PwoptError, OSError(28, "No space left")])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        with output.staged(folder) as stage:
            (stage / "model.onnx").write_text("half")
            raise error

    with pytest.raises((KeyboardInterrupt, PwoptError)):
        fail(tmp_path / "a" / "out")
    assert not names(tmp_path)
    write(tmp_path / "old")
    with pytest.raises((KeyboardInterrupt, PwoptError)):
        fail(tmp_path / "old")
    assert names(tmp_path) == {"old"}
    assert names(tmp_path / "old") == {"report.json"}


def test_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="pwopt did not write it"):
        write(foreign)
    write(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"'notes\.txt', which pwopt did not write"):
        write(tmp_path / "out")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="is a file"):
        write(file)
    with pytest.raises(PwoptError, match="cannot be written"):
        write(file / "out")


def test_refuses_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is the current folder"):
        write(Path())


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert names(tmp_path / "out") == {"report.json"}


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == {"report.json"}
