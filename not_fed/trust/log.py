"""The log: an append-only list of seals, roster versions and recalls, kept by the coordinator, checked by everyone.

Decisions without I/O: what an entry is, whether a checkpoint is the log's, whether a proof holds, and whether two
checkpoints can belong to one log that only ever grew. A log that shows two faces, forgets or rewrites is named, and its
own signatures are the evidence.
Sources: RFC 6962 section 2.1; RFC 9162 sections 2.1.3 and 2.1.4; c2sp.org/tlog-checkpoint, tlog-cosignature, tlog-proof
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from not_fed.errors import TrustError
from not_fed.trust.log_checkpoint import (
    Checkpoint,
    CheckpointRefused,
    NotALog,
    SignedCheckpoint,
    keys_of_log,
    log_origin,
    sign_checkpoint,
    verifier_keys,
    verify_checkpoint,
)
from not_fed.trust.log_entries import BadEntry, Kind, Logged, NotLoggable, check_entry, entry, entry_of, kind_of
from not_fed.trust.log_note import NoteMalformed
from not_fed.trust.log_proof import (
    MAX_PROOF_BYTES,
    Consistency,
    LogProof,
    LogProofRefused,
    check_proof,
    checkpoint_in,
    proof_path,
    read_consistency,
    read_proof,
    verify_proof,
    write_consistency,
    write_proof,
)
from not_fed.trust.log_tree import verify_consistency, verify_inclusion

__all__ = [
    "MAX_PROOF_BYTES", "BadEntry", "Checkpoint", "CheckpointRefused", "Consistency", "Kind", "LogContradiction",
    "LogForked", "LogProof", "LogProofRefused", "LogRewritten", "LogTruncated", "LogUnproven", "Logged", "NotALog",
    "NotLoggable", "NoteMalformed", "Relation", "SignedCheckpoint", "check_entry", "check_proof", "checkpoint_in",
    "compare", "entry", "entry_of", "keys_of_log", "kind_of", "log_origin", "proof_path", "read_consistency",
    "read_proof", "sign_checkpoint", "verifier_keys", "verify_checkpoint", "verify_consistency", "verify_inclusion",
    "verify_proof", "write_consistency", "write_proof",
]  # fmt: skip

Relation = Literal["first", "same", "newer", "older"]


class LogContradiction(TrustError):
    """Two checkpoints of one log do not belong together."""

    code = "log-contradiction"


class LogForked(LogContradiction):
    """The log signed two different trees of one size: it shows two faces."""

    code = "log-forked"


class LogTruncated(LogContradiction):
    """The log is smaller than it was, and nothing shows that this is only an older state of it."""

    code = "log-truncated"


class LogRewritten(LogContradiction):
    """One tree of the log did not grow from the other: entries were changed or removed."""

    code = "log-rewritten"


class LogUnproven(TrustError):
    """Nothing shows yet that the log grew from what this site remembers."""

    code = "log-unproven"


def compare(
    known: SignedCheckpoint, offered: SignedCheckpoint, *, consistency: Sequence[bytes] | None = None
) -> Relation:
    """How a checkpoint relates to the one this site remembers: "same", "newer" or "older".

    Args:
        known: what was verified and remembered earlier.
        offered: a verified checkpoint of the same log.
        consistency: the proof from the smaller to the larger; not needed for equal sizes, nor when `known` is empty.
    Raises:
        LogForked: same size, other root. LogRewritten: another size, and the proof does not hold. Without a proof:
        LogTruncated for a smaller one, LogUnproven for a larger one. CheckpointRefused: of another log.
    Guarantees: "newer" and "older" only with a proof that holds; nothing but the two trees decides.
    Proved by: tests/attacks/test_log.py::test_a_log_with_two_faces_is_named
    """
    if known.origin != offered.origin:
        raise CheckpointRefused(
            where="checkpoint", expected=f"the log {known.origin}", got=f"the log {offered.origin}",
            hint="each log is compared with itself only",
        )  # fmt: skip
    if known.size == offered.size:
        if known.root != offered.root:
            raise _contradiction(LogForked, known, offered)
        return "same"
    older, newer = sorted((known, offered), key=lambda checkpoint: checkpoint.size)
    if consistency is None and known.size == 0:
        consistency = ()  # whatever is there now, it grew from nothing
    grown = consistency is not None and verify_consistency(
        consistency, old_size=older.size, old_root=older.root, new_size=newer.size, new_root=newer.root
    )
    if grown:
        return "newer" if offered is newer else "older"
    if consistency is not None:
        raise _contradiction(LogRewritten, known, offered)
    raise _contradiction(LogTruncated if offered is older else LogUnproven, known, offered)


def _contradiction(kind: type[TrustError], known: SignedCheckpoint, offered: SignedCheckpoint) -> TrustError:
    hints: dict[type[TrustError], str] = {
        LogForked: "show both signed checkpoints to the stewards and the other sites; do not rely on this log",
        LogTruncated: f"an older copy? a consistency proof from size {offered.size} to {known.size} would show it",
        LogRewritten: "ask for the proof again; if it fails again, show both signed checkpoints to the stewards",
        LogUnproven: f"ask the log's keeper: not-fed log consistency DIR --from {known.size}",
    }
    return kind(where=f"log {known.origin}", expected=str(known), got=str(offered), hint=hints[kind])
