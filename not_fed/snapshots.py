"""A file's digest together with the state of the file that has it, so that nobody needs to compute it again.

A state is what the file system says of a file: device, inode, size, and the times of its last change. The change time
(ctime) cannot be set by a program, so a file that was written to has another state, even if its owner puts size and
modification time back. Two gaps remain, and both fail closed, since whoever receives the organ compares its digest:
a write within one tick of the clock (we wait until a fresh file is older than that), and a write through a memory map
that was already dirty. Digests of large files are remembered between runs, in the user's own cache; a forged note can
only make us sign a digest that the sealed organ does not have, and every recipient refuses that.
Proved by: tests/unit/test_snapshots.py, tests/attacks/test_memory.py
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

from not_fed import canonical, files
from not_fed.errors import InputError

WORTH_NOTING_BYTES = 16 << 20  # a smaller file is hashed as fast as its note is found
MAX_NOTES = 1024
_TICK_NS = 20_000_000  # the coarsest clock of a file system that we know is 10 ms
_DIGEST_CHARACTERS = 64


class FileChanging(InputError):
    """Somebody is writing to this file."""

    code = "file-changing"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """What the file system says of a file; equal states of one path mean equal bytes, but see the module's gaps."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: int | Path) -> Self:
        """Of a descriptor or of what a path leads to."""
        status = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(
            device=status.st_dev, inode=status.st_ino, size_bytes=status.st_size, modified_ns=status.st_mtime_ns,
            changed_ns=status.st_ctime_ns,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The SHA-256 of a file in one state."""

    sha256: str
    state: FileState


def take_snapshot(path: Path) -> Snapshot:
    """The digest of a regular file, from a note if it is still in the noted state, in constant memory otherwise.

    Raises:
        NotAFile. FileChanging: it changed while it was read.
    """
    with files.open_regular(path) as file:
        state = _settled(file.fileno())
        worth = state.size_bytes >= WORTH_NOTING_BYTES
        digest = recall("file", [(path, state)]) if worth else None
        if digest is None:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if FileState.of(file.fileno()) != state:
                raise FileChanging(
                    where=str(path), expected="a file at rest", got="one that changed while it was read",
                    hint="wait until whoever writes it is done",
                )  # fmt: skip
            if worth:
                note("file", [(path, state)], digest)
    return Snapshot(sha256=digest, state=state)


def note_written(path: Path, sha256: str) -> None:
    """Remember the digest of a file that was just written, so that sealing it need not read it first."""
    with suppress(OSError):
        if path.stat().st_size >= WORTH_NOTING_BYTES:
            with files.open_regular(path) as file:
                state = _settled(file.fileno())
            note("file", [(path, state)], sha256)


def recall(kind: str, states: Sequence[tuple[Path, FileState]]) -> str | None:
    """The digest that was noted for files in these very states; None when there is none, or not one of our own."""
    with suppress(InputError), files.open_regular(_note(kind, states), max_bytes=_DIGEST_CHARACTERS) as file:
        status = os.fstat(file.fileno())
        text = file.read(_DIGEST_CHARACTERS).decode("ascii", "replace")
        ours = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if ours and len(text) == _DIGEST_CHARACTERS and set(text) <= set("0123456789abcdef"):
            return text
    return None


def note(kind: str, states: Sequence[tuple[Path, FileState]], digest: str) -> None:
    """Remember a digest; a cache that cannot be written costs time, nothing else."""
    with suppress(OSError, InputError):
        path = _note(kind, states)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, digest.encode("ascii"), overwrite=True)
        _forget_oldest(path.parent)


def _note(kind: str, states: Sequence[tuple[Path, FileState]]) -> Path:
    known = [kind, *([str(path.resolve()), *astuple(state)] for path, state in states)]
    return files.cache_folder() / "digests" / hashlib.sha256(canonical.dumps(known)).hexdigest()


def _forget_oldest(folder: Path) -> None:
    notes = list(folder.iterdir())
    if len(notes) > MAX_NOTES:
        for old in sorted(notes, key=lambda path: path.lstat().st_mtime_ns)[: MAX_NOTES // 2]:
            old.unlink(missing_ok=True)


def _settled(descriptor: int) -> FileState:
    """The state once its last change is so long ago that any later one gets another time."""
    state = FileState.of(descriptor)
    if abs(time.time_ns() - max(state.changed_ns, state.modified_ns)) < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        state = FileState.of(descriptor)
    return state
