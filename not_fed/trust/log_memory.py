"""What a site remembers of each log, and what it keeps when a log contradicts itself.

    R/trusted/log.<member>.checkpoint   the newest checkpoint of that member's log that this site accepted, as signed
    R/trusted/log.evidence.<n>          two signed checkpoints that cannot belong to one growing log, to show to others

The first checkpoint of a log is remembered as it is; from then on the log may only grow. Whoever deletes the memory
makes the next checkpoint a first one again, and the command says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from not_fed import canonical, files
from not_fed.errors import NotFedError, TrustError
from not_fed.keys.log_keys import LogKeys, LogSigner
from not_fed.trust.log import (
    LogContradiction,
    LogForked,
    LogRewritten,
    LogUnproven,
    Relation,
    SignedCheckpoint,
    compare,
)
from not_fed.trust.log_checkpoint import signed_by, split_origin, stored_checkpoint, verify_checkpoint
from not_fed.trust.log_folder import LogFolder, append_many, exclusive
from not_fed.trust.log_note import MAX_NOTE_BYTES, encode
from not_fed.trust.log_proof import Consistency

EVIDENCE_SCHEMA: Final = "not-fed/log-evidence/1"
MAX_EVIDENCE: Final = 100  # the first contradictions matter; a log that goes on must not fill the disk
MAX_EVIDENCE_BYTES: Final = 64 * 1024
_Prove = Callable[[SignedCheckpoint], Sequence[bytes] | None]


class LogMemoryDamaged(TrustError):
    """What this site remembered of the log is no longer what it wrote down."""

    code = "log-memory-damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How an offered checkpoint relates to what was remembered before, if anything."""

    relation: Relation
    offered: SignedCheckpoint
    known: SignedCheckpoint | None


def remembered(folder: Path, *, origin: str) -> SignedCheckpoint | None:
    """The newest checkpoint that the roster folder `folder` remembers of a log; raises LogMemoryDamaged."""
    path = _memory(folder, origin)
    if not os.path.lexists(path):
        return None
    try:
        known = stored_checkpoint(files.read_regular(path, max_bytes=MAX_NOTE_BYTES), where=path.name)
    except NotFedError as error:
        raise _memory_damaged(path, error.got) from None
    if known.origin != origin:
        raise _memory_damaged(path, f"the log {known.origin}")
    return known


def remember(
    folder: Path, note: bytes, *, keys: LogKeys, origin: str, now: datetime, consistency: Consistency | None = None
) -> Compared:
    """Check a checkpoint, compare it with what the roster folder remembers, and remember it if it is newer.

    Args:
        note: a checkpoint as its log gave it out.
        consistency: the proof from the smaller of the two to the larger; one about other sizes counts as none.
    Raises:
        NoteMalformed, CheckpointRefused; LogForked, LogTruncated, LogRewritten: both checkpoints are then kept as
        evidence; LogUnproven, LogMemoryDamaged. In each case the memory stays as it was.
    Guarantees: once a tree is remembered, only trees that grew from it take its place.
    Proved by: tests/attacks/test_log.py::test_a_log_that_was_rewritten_is_named_and_the_evidence_kept
    """
    offered = verify_checkpoint(note, keys=keys, origin=origin, now=now)

    def prove(known: SignedCheckpoint) -> Sequence[bytes] | None:
        return None if consistency is None else consistency.between(known.size, offered.size)

    return _settle(folder, offered, keys, now, prove)


def remember_folder(folder: Path, log: LogFolder, *, keys: LogKeys, origin: str, now: datetime) -> Compared:
    """`remember` with the log's whole folder at hand: its own tiles show whether it grew; raises LogDamaged too.

    Guarantees: a log that is larger than what is remembered is either shown to have grown from it, or named as
    rewritten, or its files do not add up; there is nothing in between.
    Proved by: tests/attacks/test_log.py::test_a_whole_log_on_a_stick_is_compared_by_its_own_tiles
    """
    offered = log.verify(keys=keys, origin=origin, now=now)
    return _settle(
        folder, offered, keys, now, lambda known: log.consistency(known.size) if known.size < offered.size else None
    )


def append_remembered(
    log: Path, entries: Sequence[bytes], *, signer: LogSigner, memory: Path, origin: str, keys: LogKeys, now: datetime
) -> tuple[SignedCheckpoint, list[int]]:
    """`append_many` by a keeper who also remembers, in its own roster folder, what it signed.

    Args:
        keys: of this log, from the roster.
    Returns:
        the log's new checkpoint, and the entries' indices.
    Guarantees: a log folder that was restored from an older copy is refused before anything is signed.
    Proved by: tests/attacks/test_log_disk.py::test_a_keeper_whose_folder_was_restored_from_an_old_copy_does_not_fork
    """
    places = append_many(log, entries, signer=signer, now=now, known=remembered(memory, origin=origin))
    done = remember_folder(memory, LogFolder(log), keys=keys, origin=origin, now=now)
    return done.offered, places


def confront(folder: Path, offered: SignedCheckpoint) -> Literal["first", "same", "unproven"]:
    """Compare a verified checkpoint, such as an organ's proof has it, without anything at hand but the memory.

    Raises:
        LogForked: of the same size and with another root; both are kept as evidence. LogMemoryDamaged.
    """
    with exclusive(folder / "trusted"):
        known = remembered(folder, origin=offered.origin)
        if known is None:
            return "first"
        if known.size != offered.size:
            return "unproven"
        _compare(folder, known, offered, None)
    return "same"


def _settle(folder: Path, offered: SignedCheckpoint, keys: LogKeys, now: datetime, prove: _Prove) -> Compared:
    """Compare and remember, with the memory locked from the first look to the last."""
    origin = offered.origin
    relation: Relation = "first"
    with exclusive(folder / "trusted"):
        known = _known(folder, origin, keys, now)
        if known is not None:
            relation = _compare(folder, known, offered, prove(known))
        if relation in ("first", "newer"):
            files.write_atomic(_memory(folder, origin), offered.note, overwrite=True)
    return Compared(relation=relation, offered=offered, known=known)


def _known(folder: Path, origin: str, keys: LogKeys, now: datetime) -> SignedCheckpoint | None:
    """What is remembered; its signatures hold, unless the stewards have given the log new keys since."""
    known = remembered(folder, origin=origin)
    if known is not None and signed_by(known, keys):
        try:
            verify_checkpoint(known.note, keys=keys, origin=origin, now=now)
        except TrustError as error:
            raise _memory_damaged(_memory(folder, origin), error.got) from None
    return known


def _compare(
    folder: Path, known: SignedCheckpoint, offered: SignedCheckpoint, consistency: Sequence[bytes] | None
) -> Relation:
    try:
        return compare(known, offered, consistency=consistency)
    except LogContradiction as error:
        path = _keep_evidence(folder, error.code, known, offered, consistency)
        if path is not None:
            error.hint += f"; both are in {path}"
        raise


def _keep_evidence(
    folder: Path, code: str, known: SignedCheckpoint, offered: SignedCheckpoint, consistency: Sequence[bytes] | None
) -> Path | None:
    """The file with both notes, verbatim; one file for one pair. None when there are enough."""
    data = canonical.dumps({
        "schema": EVIDENCE_SCHEMA, "code": code, "remembered": known.note.decode(), "offered": offered.note.decode(),
        "consistency": None if consistency is None else [encode(value) for value in consistency],
    }) + b"\n"  # fmt: skip
    for number in range(1, MAX_EVIDENCE + 1):
        path = folder / "trusted" / f"log.evidence.{number}"
        if not os.path.lexists(path):
            files.write_atomic(path, data)
            return path
        with suppress(NotFedError):
            if files.read_regular(path, max_bytes=MAX_EVIDENCE_BYTES) == data:
                return path
    return None


def _memory(folder: Path, origin: str) -> Path:
    _, member = split_origin(origin, where="log")
    return folder / "trusted" / f"log.{member}.checkpoint"


def _memory_damaged(path: Path, got: str) -> LogMemoryDamaged:
    return LogMemoryDamaged(
        where=str(path), expected="the checkpoint that was remembered", got=got,
        hint="nothing was accepted; restore the file from a backup, and ask who else can write here",
    )  # fmt: skip


__all__ = [
    "Compared", "LogForked", "LogMemoryDamaged", "LogRewritten", "LogUnproven", "append_remembered", "confront",
    "remember", "remember_folder", "remembered",
]  # fmt: skip
