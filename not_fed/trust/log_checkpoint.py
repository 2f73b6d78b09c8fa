"""Checkpoints: what a log says about itself, signed by both of its keys (c2sp.org/tlog-checkpoint).

    not-fed/<federation>/<member>        origin
    20852163                             size
    CsUYapGGPo4dkMgIAUqom/Xajj7h2f...=   root of the RFC 6962 tree of that size

    - <origin> Ed25519 note signature (0x01)
    - <origin> ML-DSA-44 cosignature with the time (0x06)

Both signatures are required, once each; signatures of other keys are ignored. Extension lines, which no auditor can
check and ML-DSA-44 does not sign, are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from not_fed import canonical
from not_fed.errors import TrustError
from not_fed.keys.identity import NAME, check_name
from not_fed.keys.log_keys import LogKeys, LogSigner
from not_fed.trust import log_note
from not_fed.trust.log_note import (
    ED25519_TYPE,
    ML_DSA_44_TYPE,
    TIMESTAMP_BYTES,
    Note,
    NoteMalformed,
    NoteSignature,
    key_id,
    read_note,
)
from not_fed.trust.log_tree import EMPTY_ROOT, HASH_BYTES, MAX_SIZE
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

ED25519_SIGNATURE_BYTES: Final = 64
ML_DSA_44_SIGNATURE_BYTES: Final = 2420
KEEPER_ROLES: Final = ("relay", "aggregator")
_ORIGIN = re.compile(rf"not-fed/({NAME.pattern})/({NAME.pattern})")


class CheckpointRefused(TrustError):
    """The log's checkpoint is not signed by the log, or not for this federation, or not from a possible time."""

    code = "checkpoint-refused"


class NotALog(TrustError):
    """The roster has no keys of a log for this member."""

    code = "not-a-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Size and root of a log: a claim until `verify_checkpoint` returned."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The text of the note."""
        return f"{self.origin}\n{self.size}\n{log_note.encode(self.root)}\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCheckpoint(Checkpoint):
    """A checkpoint that its log signed with both keys at `issued`; only this module makes one.

    `note` has the log's own two signatures and no others: enough to show it to anybody.
    """

    issued: datetime
    note: bytes

    def __str__(self) -> str:
        return f"size {self.size:,}, root {self.root.hex()[:16]}..., {canonical.format_time(self.issued)}"


def log_origin(federation: str, member: str) -> str:
    """What the log of a member is called; raises BadName."""
    return f"not-fed/{check_name(federation)}/{check_name(member)}"


def split_origin(origin: str, *, where: str) -> tuple[str, str]:
    """Federation and member of a log's name; raises CheckpointRefused for names that are none of ours."""
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise _refused("not-fed/<federation>/<member>", "the log of something else", where=where)
    return match[1], match[2]


def keys_of_log(roster: TrustedRoster, origin: str, *, now: datetime, where: str = "checkpoint") -> LogKeys:
    """The keys that the roster has for a log.

    Raises:
        CheckpointRefused: the log of another federation. NotALog; UnknownMember, MemberNotActive.
        WrongRole: a member's log proves nothing unless the member is a relay or an aggregator: an author could
        otherwise keep a log of its own and meet every demand for a proof.
    """
    federation, name = split_origin(origin, where=where)
    if federation != roster.federation:
        raise _refused(f"a log of federation {roster.federation}", f"one of {federation}", where=where)
    keys = roster.member(name, now=now, role=KEEPER_ROLES).log
    if keys is None:
        raise NotALog(
            where=where, expected=f"{name} to have log keys in roster version {roster.version}", got="none",
            hint="a steward enrols an identity that was made with --log",
        )  # fmt: skip
    return keys


def sign_checkpoint(signer: LogSigner, *, federation: str, size: int, root: bytes, now: datetime) -> SignedCheckpoint:
    """A checkpoint by this log, now. That it is consistent with all earlier ones is the caller's duty."""
    checkpoint = Checkpoint(origin=log_origin(federation, signer.name), size=size, root=root)
    timestamp = int(now.timestamp())
    message = _cosigned(checkpoint, timestamp)
    first = signer.sign_ed25519(checkpoint.text())
    second = timestamp.to_bytes(TIMESTAMP_BYTES, "big") + signer.sign_ml_dsa_44(message)
    return _signed(checkpoint, signer.public, first, second)


def read_checkpoint(note: Note, *, where: str = "checkpoint") -> Checkpoint:
    """What a note claims, strictly; raises NoteMalformed."""
    lines = note.text.decode().split("\n")
    if len(lines) != 4 or not all(lines[:3]):
        raise NoteMalformed.because(f"{len(lines) - 1} lines", where=where, expected="origin, size and root")
    size, root = log_note.read_number(lines[1], where=where), log_note.decode(lines[2], where=where)
    if len(root) != HASH_BYTES or (size == 0 and root != EMPTY_ROOT):
        raise NoteMalformed.because("a root that no tree of that size has", where=where)
    return Checkpoint(origin=lines[0], size=size, root=root)


def verify_checkpoint(
    data: bytes, *, keys: LogKeys, origin: str, now: datetime, where: str = "checkpoint"
) -> SignedCheckpoint:
    """A note that a log signed.

    Raises:
        NoteMalformed: another shape.
        CheckpointRefused: another log; a signature missing, repeated or over something else; a time still to come.
    Guarantees: both keys signed this origin, size and root; the time is what the log said and at most 300 s ahead.
    Proved by: tests/attacks/test_log_proofs.py::test_one_signature_is_not_enough
    """
    note = read_note(data, where=where)
    checkpoint = read_checkpoint(note, where=where)
    if checkpoint.origin != origin:
        raise _refused(f"the log {origin}", "another log", where=where)
    first = _only(note, origin, ED25519_TYPE, keys.ed25519, ED25519_SIGNATURE_BYTES, where)
    second = _only(note, origin, ML_DSA_44_TYPE, keys.ml_dsa_44, TIMESTAMP_BYTES + ML_DSA_44_SIGNATURE_BYTES, where)
    timestamp = int.from_bytes(second[:TIMESTAMP_BYTES], "big")
    if not 0 < timestamp <= (now + CLOCK_SKEW).timestamp():
        raise _refused(f"a time up to {canonical.format_time(now)}", "none, or one to come", where=where)
    if not log_note.ed25519_signed(note.text, first, public=keys.ed25519):
        raise _refused("an Ed25519 signature over this note", "one that does not fit", where=where)
    message = _cosigned(checkpoint, timestamp)
    if not log_note.ml_dsa_44_signed(message, second[TIMESTAMP_BYTES:], public=keys.ml_dsa_44):
        raise _refused("an ML-DSA-44 cosignature of this tree", "one that does not fit", where=where)
    return _signed(checkpoint, keys, first, second)


def stored_checkpoint(data: bytes, *, where: str) -> SignedCheckpoint:
    """A checkpoint that this machine itself verified and kept, whoever's keys the roster has by now.

    Raises:
        NoteMalformed: not what `verify_checkpoint` returned.
    """
    note = read_note(data, where=where)
    checkpoint, origin = read_checkpoint(note, where=where), note.signatures[0].name
    lengths = [len(line.value) for line in note.signatures]
    if lengths != [ED25519_SIGNATURE_BYTES, TIMESTAMP_BYTES + ML_DSA_44_SIGNATURE_BYTES] or origin != checkpoint.origin:
        raise NoteMalformed.because("other signatures than the log's own two", where=where)
    timestamp = int.from_bytes(note.signatures[1].value[:TIMESTAMP_BYTES], "big")
    try:
        issued = datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        raise NoteMalformed.because("an impossible time", where=where) from None
    return SignedCheckpoint(origin=origin, size=checkpoint.size, root=checkpoint.root, issued=issued, note=data)


def signed_by(checkpoint: SignedCheckpoint, keys: LogKeys) -> bool:
    """Whether the note names these keys; what it says about them is not checked here."""
    names = [line.key_id for line in read_note(checkpoint.note, where="checkpoint").signatures]
    return names == list(_key_ids(checkpoint.origin, keys))


def verifier_keys(origin: str, keys: LogKeys) -> tuple[str, str]:
    """Both keys as other C2SP clients are configured with them (`vkey`)."""
    return (
        log_note.verifier_key(origin, ED25519_TYPE, keys.ed25519),
        log_note.verifier_key(origin, ML_DSA_44_TYPE, keys.ml_dsa_44),
    )


def _key_ids(origin: str, keys: LogKeys) -> tuple[bytes, bytes]:
    return key_id(origin, ED25519_TYPE, keys.ed25519), key_id(origin, ML_DSA_44_TYPE, keys.ml_dsa_44)


def _only(note: Note, origin: str, kind: bytes, public: bytes, size_bytes: int, where: str) -> bytes:
    """The one signature of this key; its length is part of its form."""
    values = note.by(origin, key_id(origin, kind, public))
    if len(values) != 1 or len(values[0]) != size_bytes:
        raise _refused(
            f"one {'Ed25519' if kind == ED25519_TYPE else 'ML-DSA-44'} signature by the log",
            f"{len(values)}" if len(values) != 1 else f"{len(values[0])} bytes", where=where,
        )  # fmt: skip
    return values[0]


def _cosigned(checkpoint: Checkpoint, timestamp: int) -> bytes:
    return log_note.cosigned_message(
        checkpoint.origin, timestamp=timestamp, origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root
    )


def _signed(checkpoint: Checkpoint, keys: LogKeys, first: bytes, second: bytes) -> SignedCheckpoint:
    if checkpoint.size > MAX_SIZE:
        raise ValueError("a tree of that size")
    ids = _key_ids(checkpoint.origin, keys)
    lines = tuple(
        NoteSignature(checkpoint.origin, name, value) for name, value in zip(ids, (first, second), strict=True)
    )
    issued = datetime.fromtimestamp(int.from_bytes(second[:TIMESTAMP_BYTES], "big"), UTC)
    return SignedCheckpoint(
        origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root, issued=issued,
        note=log_note.write_note(checkpoint.text(), lines),
    )  # fmt: skip


def _refused(expected: str, got: str, *, where: str) -> CheckpointRefused:
    return CheckpointRefused(
        where=where, expected=expected, got=got,
        hint="nothing of it was used; fetch the newest roster, and ask the log's keeper for its checkpoint",
    )  # fmt: skip
