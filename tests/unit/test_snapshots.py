"""A digest is used again only for a file in the very state that had it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from not_fed import files, snapshots
from not_fed.organ.writing import write_safetensors
from not_fed.snapshots import FileChanging, FileState, note, note_written, recall, take_snapshot


@pytest.fixture(autouse=True)
def _notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(snapshots, "WORTH_NOTING_BYTES", 1)


@pytest.fixture
def organ(tmp_path: Path) -> Path:
    """A file."""
    path = tmp_path / "file"
    path.write_bytes(b"before")
    return path


def notes(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "digests"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_the_second_time_the_note_answers(organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take_snapshot(organ)
    assert first.sha256 == hashlib.sha256(b"before").hexdigest()
    assert [path.read_text() for path in notes(tmp_path)] == [first.sha256]
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert take_snapshot(organ) == first


def put_back(path: Path, data: bytes) -> None:
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_bytes(b"after!"), lambda path: path.write_bytes(b"before, and more"),
     lambda path: put_back(path, b"after!"), lambda path: (path.unlink(), path.write_bytes(b"after!"))],
    ids=["in-place", "longer", "with-its-old-time", "another-file"],
)  # fmt: skip
def test_a_changed_file_is_hashed_again(organ: Path, change: Callable[[Path], object]) -> None:
    before = take_snapshot(organ)
    change(organ)
    after = take_snapshot(organ)
    assert after.sha256 == hashlib.sha256(organ.read_bytes()).hexdigest() != before.sha256
    assert after.state != before.state


def test_what_was_written_is_known(organ: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_written(organ, "ab" * 32)
    assert take_snapshot(organ).sha256 == "ab" * 32
    note_written(organ.with_name("missing"), "ab" * 32)


def test_a_file_that_changes_while_it_is_read_has_no_digest(organ: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hashlib.file_digest

    def then(file: object, name: str) -> object:
        found = real(file, name)  # type: ignore[call-overload]
        organ.write_bytes(b"after!")
        return found

    monkeypatch.setattr(hashlib, "file_digest", then)
    with pytest.raises(FileChanging):
        take_snapshot(organ)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_text("x" * 64), lambda path: path.write_text("ab" * 40), lambda path: path.write_text(""),
     lambda path: path.chmod(0o666), lambda path: (path.unlink(), path.symlink_to("/dev/zero"))],
    ids=["no-digest", "too-long", "empty", "others-may-write", "a-link"],
)  # fmt: skip
def test_a_note_that_is_not_ours_counts_for_nothing(
    organ: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    good = take_snapshot(organ)
    note_written(organ, "ab" * 32)
    (path,) = notes(tmp_path)
    assert take_snapshot(organ).sha256 == "ab" * 32  # control
    spoil(path)
    assert take_snapshot(organ) == good


def test_small_files_are_not_noted(organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "WORTH_NOTING_BYTES", 7)
    take_snapshot(organ)
    note_written(organ, "ab" * 32)
    assert not notes(tmp_path)


def test_a_cache_that_cannot_be_written_costs_nothing_else(organ: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FED_CACHE", os.devnull)
    assert take_snapshot(organ).sha256 == files.sha256(organ)


def test_the_oldest_notes_are_forgotten(organ: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_NOTES", 8)
    state = FileState.of(organ)
    for number in range(20):
        note(f"kind {number}", [(organ, state)], "ab" * 32)
    assert len(notes(tmp_path)) <= 8
    assert recall("kind 19", [(organ, state)]) == "ab" * 32
    assert recall("kind 0", [(organ, state)]) is None


def test_kinds_are_kept_apart(organ: Path) -> None:
    state = FileState.of(organ)
    note("tensors", [(organ, state)], "ab" * 32)
    assert recall("file", [(organ, state)]) is None


def test_a_large_organ_is_hashed_while_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when it is sealed, nobody reads it for its digest."""
    blocks = {"layers.0.a": [b"ab" * 6, b"cd" * 2], "layers.1.b": [b"ef" * 8]}
    shapes = dict.fromkeys(blocks, ("F32", (4,), 16))
    write_safetensors(tmp_path / "organ", shapes, metadata={}, blocks=blocks.__getitem__)
    true = files.sha256(tmp_path / "organ")
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert take_snapshot(tmp_path / "organ").sha256 == true
