"""Proofs as text that travels: inclusion (c2sp.org/tlog-proof@v1) and consistency (as c2sp.org/tlog-witness takes it).

    c2sp.org/tlog-proof@v1                 old 20852014
    index 73894                            PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
    gSKyXoYZUgZ6jduWYrkDOARinOMGJve...=    ...
    ...
                                           (checkpoint)
    (checkpoint)

The `extra` line of a tlog-proof is not authenticated and has no use here: refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from not_fed.errors import TrustError
from not_fed.keys.log_keys import LogKeys
from not_fed.trust.log_checkpoint import Checkpoint, SignedCheckpoint, keys_of_log, read_checkpoint, verify_checkpoint
from not_fed.trust.log_note import MAX_NOTE_BYTES, NoteMalformed, decode, encode, read_note, read_number, read_text
from not_fed.trust.log_tree import HASH_BYTES, MAX_PATH, leaf_hash, verify_inclusion
from not_fed.trust.members import TrustedRoster

PROOF_MAGIC: Final = "c2sp.org/tlog-proof@v1"
PROOF_SUFFIX: Final = ".tlog-proof"
MAX_PROOF_BYTES: Final = MAX_NOTE_BYTES + 8 * 1024
_INDEX, _OLD = "index ", "old "


class LogProofRefused(TrustError):
    """The proof does not show that this is in the log."""

    code = "log-proof-refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """A parsed inclusion proof: a claim, checkpoint and all, until `verify_proof` returned."""

    index: int
    path: tuple[bytes, ...]
    note: bytes

    def checkpoint(self) -> Checkpoint:
        """What its checkpoint claims; to learn whose keys to check it with."""
        return read_checkpoint(read_note(self.note, where="log proof"), where="log proof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """A parsed consistency proof from a tree of `old_size` to the one of `new_size` in `note`; a claim."""

    old_size: int
    new_size: int
    path: tuple[bytes, ...]
    note: bytes

    def between(self, one: int, other: int) -> tuple[bytes, ...] | None:
        """The path, if it is about trees of these two sizes; a proof about others says nothing about them."""
        return self.path if {one, other} == {self.old_size, self.new_size} else None


def proof_path(sealed: Path) -> Path:
    """Where a sealed organ's log proof lies: beside it, `<name>.tlog-proof`."""
    return sealed.parent / f"{sealed.name}{PROOF_SUFFIX}"


def write_proof(*, index: int, path: Sequence[bytes], note: bytes) -> bytes:
    """The text of an inclusion proof."""
    return _write(f"{PROOF_MAGIC}\n{_INDEX}{index}", path, note)


def read_proof(data: bytes, *, where: str = "log proof") -> LogProof:
    """Read an inclusion proof, strictly; raises NoteMalformed."""
    head, note = _split(data, where=where)
    if head[0] != PROOF_MAGIC:
        raise NoteMalformed.because("another first line", where=where, expected=PROOF_MAGIC)
    return LogProof(index=_number(head[1:2], _INDEX, where), path=_hashes(head[2:], where), note=note)


def write_consistency(*, old_size: int, path: Sequence[bytes], note: bytes) -> bytes:
    """The text of a consistency proof: the body that a C2SP witness takes at add-checkpoint."""
    return _write(f"{_OLD}{old_size}", path, note)


def read_consistency(data: bytes, *, where: str = "consistency proof") -> Consistency:
    """Read a consistency proof, strictly; raises NoteMalformed."""
    head, note = _split(data, where=where)
    old_size, path = _number(head[:1], _OLD, where), _hashes(head[1:], where)
    new_size = read_checkpoint(read_note(note, where=where), where=where).size
    return Consistency(old_size=old_size, new_size=new_size, path=path, note=note)


def checkpoint_in(data: bytes) -> tuple[bytes, Consistency | None]:
    """The note in a file that is a checkpoint, or an inclusion or consistency proof with one; raises NoteMalformed."""
    if data.startswith(f"{PROOF_MAGIC}\n".encode()):
        return read_proof(data).note, None
    if data.startswith(_OLD.encode()):
        proof = read_consistency(data)
        return proof.note, proof
    return data, None


def verify_proof(data: bytes, *, entry: bytes, keys: LogKeys, origin: str, now: datetime) -> SignedCheckpoint:
    """The checkpoint of a log that contains `entry`.

    Args:
        data: an inclusion proof, as the file beside a sealed organ has it.
        entry: what should be in the log, `log_entries.entry(kind, digest)`: computed by the caller, never taken from
            the proof.
    Raises:
        NoteMalformed, CheckpointRefused; LogProofRefused: the path does not lead from the entry to the signed root.
    Guarantees: the log signed, with both keys, a tree with this entry at this index. Needs no network.
    Proved by: tests/attacks/test_log_proofs.py::test_a_proof_of_another_entry_is_refused
    """
    proof = read_proof(data)
    signed = verify_checkpoint(proof.note, keys=keys, origin=origin, now=now, where="log proof")
    leaf = leaf_hash(entry)
    if not verify_inclusion(leaf, proof.path, index=proof.index, size=signed.size, root=signed.root):
        raise LogProofRefused(
            where="log proof", expected=f"a path to the root of {signed.size:,} entries",
            got="one that leads elsewhere", hint="ask the log's keeper for a proof of this very file",
        )  # fmt: skip
    return signed


def check_proof(data: bytes, *, entry: bytes, roster: TrustedRoster, now: datetime) -> SignedCheckpoint:
    """`verify_proof` for whichever log of the roster the proof is from.

    Raises:
        as `verify_proof` and `keys_of_log`.
    """
    origin = read_proof(data).checkpoint().origin
    keys = keys_of_log(roster, origin, now=now, where="log proof")
    return verify_proof(data, entry=entry, keys=keys, origin=origin, now=now)


def _write(head: str, path: Sequence[bytes], note: bytes) -> bytes:
    return "\n".join([head, *(encode(value) for value in path), "", ""]).encode() + note


def _split(data: bytes, *, where: str) -> tuple[list[str], bytes]:
    """The lines before the first empty one, and the note after it."""
    if len(data) > MAX_PROOF_BYTES:
        raise NoteMalformed.because(f"more than {MAX_PROOF_BYTES:,} bytes", where=where)
    head, blank, note = read_text(data, where=where).partition("\n\n")
    lines = head.split("\n")
    if not blank or len(lines) > MAX_PATH + 2:
        raise NoteMalformed.because("no checkpoint after the proof, or too long a proof", where=where)
    return lines, note.encode()


def _number(line: list[str], word: str, where: str) -> int:
    if not line or not line[0].startswith(word):
        raise NoteMalformed.because("another line", where=where, expected=f"`{word}` and a number")
    return read_number(line[0].removeprefix(word), where=where)


def _hashes(lines: Sequence[str], where: str) -> tuple[bytes, ...]:
    path = tuple(decode(line, where=where) for line in lines)
    if len(path) > MAX_PATH or any(len(value) != HASH_BYTES for value in path):
        raise NoteMalformed.because("hashes of another length, or too many", where=where)
    return path
