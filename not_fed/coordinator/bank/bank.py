"""The bank of sealed organs, found by their digest. No key of the coordinator opens one.

What comes in must be an age file for post-quantum recipients, or the masked words of a secure sum, of exactly the
digest and size that its label names, and the label must be signed by a member of the roster.

Of each sealed organ, under its SHA-256: `chunks` (a ChunkList), the chunks under their own digests, and `label`. The
label is written last: what has none is an upload that is not finished, and for everybody else not there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

from not_fed import files
from not_fed.age import BadContainer, read_header
from not_fed.age.header import MAX_HEADER_BYTES
from not_fed.age.hybrid import KIND
from not_fed.coordinator.bank.storage import FolderStorage, Storage, storage_of
from not_fed.coordinator.deployment import BankTable, load_deployment
from not_fed.envelope.label import Label, check_label
from not_fed.envelope.summing import VECTOR_HEAD
from not_fed.errors import InputError, TrustError
from not_fed.transfer.chunks import BadChunks, ChunkList
from not_fed.trust.roster import TrustedRoster

LABEL, CHUNKS = "label", "chunks"
ABANDONED_AFTER = timedelta(days=2)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class NotSealed(TrustError):
    """This is not a sealed organ; nothing of it was stored."""

    code = "not-sealed"


class NotInBank(InputError):
    """The bank holds no sealed organ of this digest."""

    code = "not-in-bank"


class BankDamaged(InputError):
    """A file in the bank is not what it was when it was stored."""

    code = "bank-damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How many objects of one kind the bank holds, and their bytes."""

    count: int
    bytes: int


class Bank:
    """Sealed organs in one storage."""

    def __init__(self, storage: Storage | Path, *, chunk_bytes: int = BankTable().chunk_bytes) -> None:
        self._storage: Storage = FolderStorage(storage) if isinstance(storage, Path) else storage
        self._chunk_bytes = chunk_bytes

    @classmethod
    def at(cls, home: Path) -> Bank:
        """The bank of the coordinator at `home`, as coordinator.toml says; raises BadSettings, StorageMissing."""
        deployment = load_deployment(home)
        table = BankTable() if deployment is None else deployment.bank
        return cls(storage_of(table.storage, home=home), chunk_bytes=table.chunk_bytes)

    # -- whole files ----------------------------------------------------------------------------------------------

    def put(self, sealed: bytes | memoryview | Path, *, label: bytes, roster: TrustedRoster, now: datetime) -> Label:
        """Store a sealed organ and its label; the same one twice is one.

        Args:
            sealed: its bytes, or a file, which is read twice in constant memory.
        Raises:
            NotSealed: it is not an age file for post-quantum recipients.
            TrustError: the label is not for these bytes, or not signed by a member. StorageFailed, NoSpace.
        Proved by: tests/unit/test_bank.py::test_nothing_but_labelled_ciphertext_is_stored
        """
        listed, head = self._cut(sealed)
        _check_sealed(head)
        checked = check_label(label, sealed_sha256=listed.sha256, size_bytes=listed.size_bytes, roster=roster, now=now)
        if not self.holds(listed.sha256):
            for index, chunk in enumerate(self._pieces(sealed)):
                self.write_chunk(listed, index, chunk)
            self._publish(listed, label)
        return checked

    def get(self, sha256: str) -> tuple[bytes, bytes]:
        """A small sealed organ and its label, after checking the digest again; raises NotInBank, BankDamaged."""
        listed = self.listed(sha256)
        sealed = b"".join(self._chunk(listed, index) for index in range(len(listed.chunks)))
        if hashlib.sha256(sealed).hexdigest() != sha256:
            raise _damaged(sha256)
        return sealed, self.label(sha256)

    def fetch(self, sha256: str, out: Path) -> None:
        """Write a sealed organ to a file, in constant memory; it appears whole or not at all.

        Raises:
            NotInBank, BankDamaged, OutputExists, NoSpace, StorageFailed.
        """
        listed, whole = self.listed(sha256), hashlib.sha256()
        with files.new_file(out) as file:
            for index in range(len(listed.chunks)):
                chunk = self._chunk(listed, index)
                whole.update(chunk)
                file.write(chunk)
            if whole.hexdigest() != sha256:
                raise _damaged(sha256)

    def holds(self, sha256: str) -> bool:
        """Whether a whole sealed organ of this digest is here."""
        return bool(_DIGEST.fullmatch(sha256)) and self._storage.read(f"{sha256}/{LABEL}") is not None

    def size(self, sha256: str) -> int:
        """How large it is; raises NotInBank."""
        return self.listed(sha256).size_bytes

    def label(self, sha256: str) -> bytes:
        """Its label; raises NotInBank."""
        found = self._storage.read(f"{_named(sha256)}/{LABEL}")
        if found is None:
            raise _not_in_bank(sha256)
        return found

    def listed(self, sha256: str) -> ChunkList:
        """How it is cut; raises NotInBank, BankDamaged."""
        self.label(sha256)
        listed = self.announced(sha256)
        if listed is None:
            raise _damaged(sha256)
        return listed

    def read_chunk(self, sha256: str, index: int) -> bytes:
        """One chunk, its digest checked again; raises NotInBank, BankDamaged."""
        listed = self.listed(sha256)
        if not 0 <= index < len(listed.chunks):
            raise _not_in_bank(sha256)
        chunk = self._chunk(listed, index)
        if hashlib.sha256(chunk).hexdigest() != listed.chunks[index]:
            raise _damaged(sha256)
        return chunk

    # -- uploads --------------------------------------------------------------------------------------------------

    def announce(self, listed: ChunkList) -> None:
        """Begin an upload, or go on with one; another way to cut the same file begins anew."""
        known = self.announced(listed.sha256)
        if known is not None and known != listed:
            self._storage.remove(listed.sha256)
        if known != listed:
            self._storage.write(f"{listed.sha256}/{CHUNKS}", listed.to_bytes())

    def announced(self, sha256: str) -> ChunkList | None:
        """How an upload, finished or not, is cut; None when there is none. Raises BankDamaged."""
        data = self._storage.read(f"{_named(sha256)}/{CHUNKS}")
        if data is None:
            return None
        try:
            listed = ChunkList.parse(data, where="bank")
        except BadChunks:
            raise _damaged(sha256) from None
        if listed.sha256 != sha256:
            raise _damaged(sha256)
        return listed

    def arrived(self, listed: ChunkList) -> list[int]:
        """The chunks of an upload that are here, by number."""
        there = self._storage.names(listed.sha256)
        return [
            index
            for index, digest in enumerate(listed.chunks)
            if there.get(_chunk_name(index, digest)) == listed.size_of(index)
        ]

    def write_chunk(self, listed: ChunkList, index: int, chunk: bytes | memoryview) -> None:
        """Store a chunk, whose digest the caller has compared with the list."""
        self._storage.write(f"{listed.sha256}/{_chunk_name(index, listed.chunks[index])}", bytes(chunk))

    def finish(self, sha256: str, *, label: bytes, roster: TrustedRoster, now: datetime) -> Label:
        """Check a whole upload and make it visible; what is not what its label says is deleted.

        Raises:
            NotInBank: nothing was announced, or chunks are missing. NotSealed, TrustError: as `put`; it was deleted.
        """
        listed = self.announced(sha256)
        if listed is None or len(self.arrived(listed)) != len(listed.chunks):
            raise _not_in_bank(sha256)
        whole, head = hashlib.sha256(), b""
        for index in range(len(listed.chunks)):
            chunk = self._chunk(listed, index)
            whole.update(chunk)
            head += chunk[: MAX_HEADER_BYTES - len(head)]
        try:
            _check_sealed(head)
            size = listed.size_bytes
            checked = check_label(label, sealed_sha256=whole.hexdigest(), size_bytes=size, roster=roster, now=now)
        except TrustError:
            self._storage.remove(sha256)
            raise
        self._publish(listed, label)
        return checked

    # -- what there is --------------------------------------------------------------------------------------------

    def listing(self) -> dict[str, Stored]:
        """What the bank holds, by kind; whatever does not belong here shows up under its own name."""
        found: dict[str, list[int]] = {}
        for group, _ in self._storage.groups():
            names = self._storage.names(group) if _DIGEST.fullmatch(group) else {}
            if not names:
                found.setdefault(group, []).append(0)
            whole = LABEL in names
            sealed = sum(size for name, size in names.items() if name not in (LABEL, CHUNKS))
            for kind, size in (("sealed", sealed), ("label", names[LABEL])) if whole else (("unfinished", sealed),):
                if names:
                    found.setdefault(kind, []).append(size)
        return {kind: Stored(count=len(sizes), bytes=sum(sizes)) for kind, sizes in sorted(found.items())}

    def total_bytes(self) -> int:
        """All that is stored, unfinished uploads too."""
        return sum(sum(self._storage.names(group).values()) for group, _ in self._storage.groups())

    def free_bytes(self) -> int | None:
        """What the storage has room for; None where nobody knows."""
        return self._storage.free_bytes()

    def collect(self, *, now: datetime, keep: timedelta, wanted: frozenset[str]) -> list[str]:
        """Delete what nobody needs: organs older than `keep` that are not `wanted`, and uploads nobody finished.

        Returns:
            the digests of what was deleted.
        Proved by: tests/unit/test_bank.py::test_what_an_open_run_needs_is_never_collected
        """
        gone = []
        for group, written in list(self._storage.groups()):
            age = now.timestamp() - written
            whole = self.holds(group)
            due = age > keep.total_seconds() if whole else age > ABANDONED_AFTER.total_seconds()
            if _DIGEST.fullmatch(group) and group not in wanted and due:
                self._storage.drop(f"{group}/{LABEL}")  # first it is not there any more, then it goes
                self._storage.remove(group)
                gone.append(group)
        return gone

    def discard(self, sha256: str) -> None:
        """Delete one that nobody needs any more, as the words of a secure sum once it is formed; twice is once."""
        self._storage.drop(f"{_named(sha256)}/{LABEL}")
        self._storage.remove(sha256)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _publish(self, listed: ChunkList, label: bytes) -> None:
        self._storage.write(f"{listed.sha256}/{CHUNKS}", listed.to_bytes())
        self._storage.write(f"{listed.sha256}/{LABEL}", label)

    def _chunk(self, listed: ChunkList, index: int) -> bytes:
        chunk = self._storage.read(f"{listed.sha256}/{_chunk_name(index, listed.chunks[index])}")
        if chunk is None or len(chunk) != listed.size_of(index):
            raise _damaged(listed.sha256)
        return chunk

    def _cut(self, sealed: bytes | memoryview | Path) -> tuple[ChunkList, bytes]:
        """The list of chunks, and as much of the beginning as holds the header."""
        whole, digests, size, head = hashlib.sha256(), [], 0, b""
        for chunk in self._pieces(sealed):
            whole.update(chunk)
            digests.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
            head += bytes(chunk[: max(0, MAX_HEADER_BYTES - len(head))])
        if not digests:
            raise _not_sealed("an empty file")
        return ChunkList(
            sha256=whole.hexdigest(), size_bytes=size, chunk_bytes=self._chunk_bytes, chunks=tuple(digests)
        ), head

    def _pieces(self, sealed: bytes | memoryview | Path) -> Iterator[bytes | memoryview]:
        if isinstance(sealed, Path):
            with files.open_regular(sealed) as file:
                while chunk := file.read(self._chunk_bytes):
                    yield chunk
            return
        view = memoryview(sealed)
        for start in range(0, len(view), self._chunk_bytes):
            yield view[start : start + self._chunk_bytes]


def _chunk_name(index: int, digest: str) -> str:
    return f"{index:06d}-{digest}"


def _named(sha256: str) -> str:
    if not _DIGEST.fullmatch(sha256):
        raise NotInBank(
            where="bank", expected="a hex SHA-256", got="something else", hint="name a sealed organ by its digest"
        )
    return sha256


def _check_sealed(head: bytes) -> None:
    if head.startswith(VECTOR_HEAD):  # words of a secure sum, under the sites' masks
        return
    try:
        kinds = {stanza.kind for stanza in read_header(BytesIO(head)).stanzas}
    except BadContainer as error:
        raise _not_sealed(error.got) from None
    if kinds != {KIND}:
        raise _not_sealed("an age file for other keys")


def _not_in_bank(sha256: str) -> NotInBank:
    return NotInBank(
        where="bank", expected=f"a sealed organ {sha256[:12]}", got="none", hint="its sender can send it again"
    )


def _damaged(sha256: str) -> BankDamaged:
    return BankDamaged(
        where=f"bank, sealed organ {sha256[:12]}", expected=f"SHA-256 {sha256[:12]}", got="another",
        hint="restore the coordinator's bank from a backup, or delete it there: its sender can send it again",
    )  # fmt: skip


def _not_sealed(got: str) -> NotSealed:
    return NotSealed(
        where="bank", expected="an age file for post-quantum recipients", got=got,
        hint="nothing was stored; seal it first",
    )  # fmt: skip
