"""Which records and people a data set holds, as keyed hashes: enough to see that two share some, and nothing else.

The key lies in the ledger's folder. Whoever has the ledger without the key learns nothing about a text; whoever has
both can test a text that they already suspect, so the folder is as private as the data.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from not_fed import files
from not_fed.errors import InputError

KEY_FILE = "hash.key"
KEY_BYTES = 32
RECORD, PERSON = b"r", b"p"  # the first byte of a member
_HASH_BYTES = 16


class LedgerKeyUnusable(InputError):
    """The key under which the ledger knows its records is missing, damaged or open to others."""

    code = "ledger-key"


@dataclass(frozen=True, slots=True)
class DataIdentity:
    """A data set as the ledger knows it: a set, so that order, copies and names do not matter.

    Attributes:
        members: a keyed hash of each record, and of each person where people are known; sorted, without repetition.
        fingerprint: hex, of all of them.
        has_people: whether people are known.
    """

    members: tuple[bytes, ...]
    fingerprint: str
    has_people: bool

    def __repr__(self) -> str:
        return f"DataIdentity({self.fingerprint[:12]}...)"  # how many there are is private


class HashKey:
    """The ledger's secret key. It cannot be printed."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "HashKey(hidden)"

    @classmethod
    def load(cls, folder: Path) -> HashKey:
        """Read the key.

        Raises:
            LedgerKeyUnusable: it is missing, of another size, or others may read it. Nothing goes on without it: with
                a new key, every record would look like one that was never spent.
        """
        try:
            with files.open_regular(folder / KEY_FILE, max_bytes=KEY_BYTES) as file:
                shared = os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
                key = file.read(KEY_BYTES + 1)
        except InputError as error:
            raise _unusable(error.got) from None
        if shared:
            raise _unusable("a file that others may open")
        if len(key) != KEY_BYTES:
            raise _unusable(f"{len(key)} bytes")
        return cls(key)

    @classmethod
    def create(cls, folder: Path) -> None:
        """Write a new key, durably, unless there is one."""
        if not os.path.lexists(folder / KEY_FILE):
            files.write_atomic(folder / KEY_FILE, secrets.token_bytes(KEY_BYTES))

    def mark(self) -> str:
        """What tells this key from another, without telling the key."""
        return hmac.digest(self._key, b"not-fed ledger key", "sha256").hex()

    def identify(self, texts: Iterable[str], people: Sequence[str] | None = None) -> DataIdentity:
        """Hash every record and person.

        Args:
            texts: the records. Case, white space and Unicode spelling do not make another record; any other letter
                does.
            people: whom each record is about; None where that is not known.
        Proved by: tests/unit/test_identity.py::test_order_copies_and_spelling_do_not_make_other_data
        """
        found = {self._hash(RECORD, text) for text in texts}
        if people is not None:
            found.update(self._hash(PERSON, person) for person in set(people))
        members = tuple(sorted(found))
        return DataIdentity(members, fingerprint_of(members), people is not None)

    def _hash(self, kind: bytes, text: str) -> bytes:
        return kind + hmac.digest(self._key, kind + normalised(text), "sha256")[:_HASH_BYTES]


def fingerprint_of(members: Iterable[bytes]) -> str:
    """Of sorted members; they are keyed, so it is."""
    digest = hashlib.sha256(b"not-fed data set")
    for member in members:
        digest.update(member)
    return digest.hexdigest()


def normalised(text: str) -> bytes:
    """A record or an id as the ledger compares it: case, white space and Unicode spelling do not matter."""
    spelled = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(spelled.casefold().split()).encode("utf-8", "surrogatepass")


def _unusable(got: str) -> LedgerKeyUnusable:
    return LedgerKeyUnusable(
        where=f"ledger, file {KEY_FILE}", expected=f"{KEY_BYTES} bytes that only the owner may open", got=got,
        hint="restore it from the backup of the same ledger; nothing was trained or spent",
    )  # fmt: skip


def wrong_key() -> LedgerKeyUnusable:
    """The error for a key that this ledger was not written under."""
    return _unusable("the key of another ledger")
