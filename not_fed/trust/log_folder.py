"""A log on disk: tiles, entries and a checkpoint, as static files that anybody may copy or serve.

    DIR/checkpoint     the newest signed checkpoint
    DIR/tile/...       c2sp.org/tlog-tiles, see log_tiles
    DIR/.last-signed   the checkpoint that was signed last: written before `checkpoint`, so that a log whose
                       `checkpoint` was set back goes on from here and never signs a second tree of a size

Appending writes entries, tiles, .last-signed and checkpoint in this order, each whole or not at all and synced. Killed
in between, the log is what it was before or after; tiles that no checkpoint covers are written over by the next append.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from not_fed import files
from not_fed.errors import InputError, TrustError
from not_fed.keys.log_keys import LogKeys, LogSigner
from not_fed.trust.log_checkpoint import (
    Checkpoint,
    SignedCheckpoint,
    log_origin,
    read_checkpoint,
    sign_checkpoint,
    split_origin,
    verify_checkpoint,
)
from not_fed.trust.log_entries import KINDS, Kind, check_entry, kind_of
from not_fed.trust.log_note import MAX_NOTE_BYTES, read_note
from not_fed.trust.log_proof import write_consistency, write_proof
from not_fed.trust.log_tiles import TILE_HEIGHT, TILE_WIDTH, LogDamaged, Tiles, bundle, damaged, tile_path
from not_fed.trust.log_tree import (
    EMPTY_ROOT,
    leaf_hash,
    prove_consistency,
    prove_inclusion,
    root_at,
    root_of,
    verify_consistency,
    verify_inclusion,
)

CHECKPOINT: Final = "checkpoint"
LAST_SIGNED: Final = ".last-signed"


class NotLogged(TrustError):
    """This is not in the log."""

    code = "not-logged"


class LogFolder:
    """A log's folder as it is now, for reading: of this machine, or on a stick from somebody else.

    What its checkpoint says is a claim until `verify` returned; but nothing comes out that does not add up to it.
    """

    def __init__(self, folder: Path) -> None:
        """Read the checkpoint; raises NotAFile, NoteMalformed."""
        self.folder = folder
        self.note = files.read_regular(folder / CHECKPOINT, max_bytes=MAX_NOTE_BYTES)
        self.checkpoint: Checkpoint = read_checkpoint(read_note(self.note, where=CHECKPOINT), where=CHECKPOINT)
        self.tiles = Tiles(folder, self.checkpoint.size)

    def verify(self, *, keys: LogKeys, origin: str, now: datetime) -> SignedCheckpoint:
        """The checkpoint, signed by its log; raises as `verify_checkpoint`."""
        return verify_checkpoint(self.note, keys=keys, origin=origin, now=now)

    def find(self, entry: bytes) -> int | None:
        """The index of an entry, the first if there are several."""
        return find(self.tiles, [entry]).get(leaf_hash(entry))

    def proof(self, entry: bytes) -> bytes:
        """A tlog-proof of an entry.

        Raises:
            NotLogged; LogDamaged: the files do not lead to the checkpoint's root.
        Guarantees: the proof verifies against this folder's checkpoint, or is not handed out.
        Proved by: tests/attacks/test_log_disk.py::test_a_tile_that_was_swapped_on_disk_yields_no_proof
        """
        index, size = self.find(entry), self.checkpoint.size
        if index is None:
            raise NotLogged(
                where=f"log {self.checkpoint.origin}", expected=f"one of its {size:,} entries", got="none like this",
                hint="not-fed log add puts it in",
            )  # fmt: skip
        path = prove_inclusion(index, size, self.tiles.node)
        if not verify_inclusion(leaf_hash(entry), path, index=index, size=size, root=self.checkpoint.root):
            raise damaged("a path to another root", where="log")
        return write_proof(index=index, path=path, note=self.note)

    def root_at(self, size: int) -> bytes:
        """The root that the log had at a smaller size; raises LogDamaged, and ValueError for a larger one."""
        root, _ = self._grown_from(size)
        return root

    def consistency(self, old_size: int) -> tuple[bytes, ...]:
        """The proof that the log grew from `old_size` to its checkpoint; raises as `root_at`."""
        _, path = self._grown_from(old_size)
        return path

    def consistency_text(self, old_size: int) -> bytes:
        """That proof with the checkpoint, as a file for others.

        Raises:
            LogDamaged; NotLogged: the log never had that size.
        """
        if not 0 <= old_size <= self.checkpoint.size:
            raise NotLogged(
                where=f"log {self.checkpoint.origin}", expected=f"a size up to {self.checkpoint.size:,}",
                got=f"{old_size:,}", hint="a log proves how it grew, up to what it is now",
            )  # fmt: skip
        return write_consistency(old_size=old_size, path=self.consistency(old_size), note=self.note)

    def audit(self) -> dict[Kind, int]:
        """How many entries of each kind the log has, after reading all of it: every file adds up to the checkpoint.

        Raises:
            LogDamaged.
        Proved by: tests/attacks/test_log_disk.py::test_an_audit_finds_any_changed_byte_on_disk
        """
        counts = dict.fromkeys(KINDS, 0)
        for index in range(self.tiles.tile_count(0)):
            for leaf in self.tiles.entries(index):
                counts[kind_of(leaf)] += 1
        level, roots = 0, [root_of(row) for row in self._rows(0)]
        while self.tiles.tile_count(level + 1):  # a hash there for each full tile here
            level, below = level + 1, roots
            rows = list(self._rows(level))
            if [value for row in rows for value in row] != below[: self.checkpoint.size >> (TILE_HEIGHT * level)]:
                raise damaged("a hash of other tiles than those below it", where=f"tile/{level}")
            roots = [root_of(row) for row in rows]
        if root_at(self.checkpoint.size, self.tiles.node) != self.checkpoint.root:
            raise damaged("another root", where="log")
        return counts

    def _rows(self, level: int) -> Iterator[list[bytes]]:
        return (self.tiles.hashes(level, index) for index in range(self.tiles.tile_count(level)))

    def _grown_from(self, old_size: int) -> tuple[bytes, tuple[bytes, ...]]:
        size = self.checkpoint.size
        path = prove_consistency(old_size, size, self.tiles.node)
        root = root_at(old_size, self.tiles.node)
        if not verify_consistency(path, old_size=old_size, old_root=root, new_size=size, new_root=self.checkpoint.root):
            raise damaged("another root", where="log")
        return root, path


def create_log(folder: Path, *, federation: str, signer: LogSigner, now: datetime) -> SignedCheckpoint:
    """Start an empty log; the folder appears whole or not at all. Raises OutputExists, BadName."""
    signed = sign_checkpoint(signer, federation=federation, size=0, root=EMPTY_ROOT, now=now)
    with files.new_folder(folder) as part:
        for name in (LAST_SIGNED, CHECKPOINT):
            files.write_atomic(part / name, signed.note, mode=0o644)
        part.chmod(0o755)  # nothing in it is secret
    return signed


def append(folder: Path, entry: bytes, *, signer: LogSigner, now: datetime) -> int:
    """The index of `entry`, which is in the log from now on; as `append_many`."""
    return append_many(folder, [entry], signer=signer, now=now)[0]


def append_many(
    folder: Path, entries: Sequence[bytes], *, signer: LogSigner, now: datetime, known: SignedCheckpoint | None = None
) -> list[int]:
    """The indices of `entries`, which are in the log from now on, under one new checkpoint.

    Args:
        entries: leaves as `log_entries.entry` makes them; one that is there already keeps its index.
        known: a checkpoint of this log that was remembered elsewhere. The folder must have grown from it; a folder
            that was restored from an old copy is thus refused, instead of being continued into a fork.
    Raises:
        NotAFile: there is no log. BadEntry. CheckpointRefused: another signer's log, or a clock that went back.
        LogDamaged: the files do not add up, or are behind `known`. And then nothing was signed.
    Guarantees: a new checkpoint is signed only after the tree on disk was shown to have grown from the one signed last;
        one writer at a time; a kill leaves the log before or after.
    Proved by: tests/unit/test_log_folder.py::test_a_kill_at_any_write_leaves_the_log_before_or_after
    """
    leaves = [check_entry(entry) for entry in entries]
    with exclusive(folder):
        last = _last_signed(folder, signer, now)
        tiles = Tiles(folder, last.size)
        if known is not None:
            _check_known(tiles, last, known)
        places = find(tiles, leaves)
        fresh = [leaf for leaf in dict.fromkeys(leaves) if leaf_hash(leaf) not in places]
        places |= {leaf_hash(leaf): last.size + at for at, leaf in enumerate(fresh)}
        if fresh:
            _grow(folder, tiles, last, fresh, signer, now)
        elif files.read_regular(folder / CHECKPOINT, max_bytes=MAX_NOTE_BYTES) != last.note:
            files.write_atomic(folder / CHECKPOINT, last.note, overwrite=True, mode=0o644)
    return [places[leaf_hash(leaf)] for leaf in leaves]


def find(tiles: Tiles, entries: Sequence[bytes]) -> dict[bytes, int]:
    """Leaf hash to index of those entries that are in the tree: one pass over level 0, no index to keep."""
    wanted = {leaf_hash(entry) for entry in entries}
    found: dict[bytes, int] = {}
    for index in range(tiles.tile_count(0)) if wanted else ():
        hashes = tiles.hashes(0, index)
        for value in wanted.intersection(hashes):
            found.setdefault(value, index * TILE_WIDTH + hashes.index(value))
    return found


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One writer at a time, whoever holds this folder's lock; raises NotAFile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise files.NotAFile(where=str(folder), expected="a folder", got="none", hint="check the path") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _last_signed(folder: Path, signer: LogSigner, now: datetime) -> SignedCheckpoint:
    """What the log signed last, checked against the tree: from `.last-signed`, or `checkpoint` should that be ahead."""
    found = []
    for name in (CHECKPOINT, LAST_SIGNED):
        try:
            note = files.read_regular(folder / name, max_bytes=MAX_NOTE_BYTES)
        except InputError as error:
            if name == CHECKPOINT:
                raise
            raise damaged(error.got, where=name, expected="the checkpoint that was signed last") from None
        claimed = read_checkpoint(read_note(note, where=name), where=name)
        origin = log_origin(split_origin(claimed.origin, where=name)[0], signer.name)
        found.append(verify_checkpoint(note, keys=signer.public, origin=origin, now=now, where=name))
    older, newer = sorted(found, key=lambda checkpoint: checkpoint.size)
    _check_known(Tiles(folder, newer.size), newer, older)
    return newer


def _check_known(tiles: Tiles, last: SignedCheckpoint, known: SignedCheckpoint) -> None:
    """The tree on disk has the root that was signed last, and grew from `known`."""
    if known.origin == last.origin and known.size <= last.size:
        path = prove_consistency(known.size, last.size, tiles.node)
        if root_at(last.size, tiles.node) == last.root and verify_consistency(
            path, old_size=known.size, old_root=known.root, new_size=last.size, new_root=last.root
        ):
            return
    raise damaged(str(last), where=f"log {last.origin}", expected=f"a tree that grew from {known}")


def _grow(
    folder: Path, tiles: Tiles, last: SignedCheckpoint, fresh: Sequence[bytes], signer: LogSigner, now: datetime
) -> None:
    """Write what `fresh` adds, show that it is an addition, sign it, publish it."""
    filled = _write_entries(folder, tiles, fresh) + _write_tiles(folder, tiles, [leaf_hash(leaf) for leaf in fresh])
    size = last.size + len(fresh)
    grown = Tiles(folder, size)
    root, path = root_at(size, grown.node), prove_consistency(last.size, size, grown.node)
    if not verify_consistency(path, old_size=last.size, old_root=last.root, new_size=size, new_root=root):
        raise damaged("a tree that did not grow from the last", where="log")
    federation, _ = split_origin(last.origin, where="log")
    signed = sign_checkpoint(signer, federation=federation, size=size, root=root, now=now)
    for name in (LAST_SIGNED, CHECKPOINT):
        files.write_atomic(folder / name, signed.note, overwrite=True, mode=0o644)
    for full in filled:  # its partial states are prefixes of it, and may go
        shutil.rmtree(full.with_name(f"{full.name}.p"), ignore_errors=True)


def _write_entries(folder: Path, tiles: Tiles, fresh: Sequence[bytes]) -> list[Path]:
    """Entry bundles; returns those that are full now."""
    first, width = divmod(tiles.size, TILE_WIDTH)
    row = [*(tiles.entries(first) if width else ()), *fresh]
    filled = []
    for at in range(0, len(row), TILE_WIDTH):
        part = row[at : at + TILE_WIDTH]
        path = folder / tile_path("entries", first + at // TILE_WIDTH, width=len(part))
        _write(folder, path, bundle(part))
        filled += [path] if len(part) == TILE_WIDTH else []
    return filled


def _write_tiles(folder: Path, tiles: Tiles, hashes: Sequence[bytes]) -> list[Path]:
    """Tiles of all levels: the roots of those that fill up are what the level above grows by. Returns the full ones."""
    filled, level, row = [], 0, list(hashes)
    while row:
        first, width = divmod(tiles.size >> (TILE_HEIGHT * level), TILE_WIDTH)
        row = [*(tiles.hashes(level, first) if width else ()), *row]
        above = []
        for at in range(0, len(row), TILE_WIDTH):
            part = row[at : at + TILE_WIDTH]
            path = folder / tile_path(level, first + at // TILE_WIDTH, width=len(part))
            _write(folder, path, b"".join(part))
            if len(part) == TILE_WIDTH:
                filled.append(path)
                above.append(root_of(part))
        level, row = level + 1, above
    return filled


def _write(folder: Path, path: Path, data: bytes) -> None:
    missing = []
    for parent in path.relative_to(folder).parents:
        if (folder / parent).is_dir():
            break
        missing.append(folder / parent)
    for parent in reversed(missing):
        parent.mkdir(mode=0o755)
        files.fsync_folder(parent.parent)
    files.write_atomic(path, data, overwrite=True, mode=0o644)


__all__ = [
    "CHECKPOINT", "LAST_SIGNED", "LogDamaged", "LogFolder", "NotLogged", "append", "append_many",
    "create_log", "exclusive",
]  # fmt: skip
