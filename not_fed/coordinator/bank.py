"""The bank of sealed organs: ciphertext on disk, found by its digest, beside the label that its sender signed.

Nothing else is ever put here. What comes in must be an age file for post-quantum recipients, of exactly the digest and
size that its label names, and the label must be signed by a member of the roster. No key of the coordinator opens it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

from not_fed import files
from not_fed.age import BadContainer, read_header
from not_fed.age.header import MAX_HEADER_BYTES
from not_fed.age.hybrid import KIND
from not_fed.envelope.label import MAX_LABEL_BYTES, Label, check_label
from not_fed.errors import InputError, TrustError
from not_fed.trust.roster import TrustedRoster

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
    """How many files of one kind the bank holds, and their bytes."""

    count: int
    bytes: int


class Bank:
    """Content-addressed files in one private folder: `<sha256>.sealed` and `<sha256>.label`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, sealed: bytes | memoryview, *, label: bytes, roster: TrustedRoster, now: datetime) -> Label:
        """Store a sealed organ and its label; the same one twice is one.

        Raises:
            NotSealed: it is not an age file for post-quantum recipients.
            TrustError: the label is not for these bytes, or not signed by a member.
        Proved by: tests/unit/test_bank.py::test_nothing_but_labelled_ciphertext_is_stored
        """
        checked = self.check(sealed, label=label, roster=roster, now=now)
        digest = hashlib.sha256(sealed).hexdigest()
        self._write(self._path(digest, "sealed"), bytes(sealed))
        self._write(self._path(digest, "label"), label)
        return checked

    def check(self, sealed: bytes | memoryview, *, label: bytes, roster: TrustedRoster, now: datetime) -> Label:
        """What `put` checks, without storing anything; errors as `put`."""
        try:
            kinds = {stanza.kind for stanza in read_header(BytesIO(sealed[:MAX_HEADER_BYTES])).stanzas}
        except BadContainer as error:
            raise _not_sealed(error.got) from None
        if kinds != {KIND}:
            raise _not_sealed("an age file for other keys")
        return check_label(
            label, sealed_sha256=hashlib.sha256(sealed).hexdigest(), size_bytes=len(sealed), roster=roster, now=now
        )

    def get(self, sha256: str) -> tuple[bytes, bytes]:
        """The sealed organ and its label, after checking the digest again.

        Raises:
            NotInBank, BankDamaged.
        """
        path = self.path(sha256)
        sealed = files.read_regular(path, max_bytes=path.stat().st_size)
        if hashlib.sha256(sealed).hexdigest() != sha256:
            raise BankDamaged(
                where=str(path),
                expected=f"SHA-256 {sha256[:12]}",
                got="another",
                hint="restore the coordinator's disk from a backup",
            )
        return sealed, self.label(sha256)

    def holds(self, sha256: str) -> bool:
        """Whether a sealed organ of this digest is here."""
        return self._path(sha256, "sealed").is_file()

    def size(self, sha256: str) -> int:
        """How large it is; raises NotInBank."""
        return self.path(sha256).stat().st_size

    def label(self, sha256: str) -> bytes:
        """The label alone."""
        return files.read_regular(self._path(sha256, "label"), max_bytes=MAX_LABEL_BYTES)

    def path(self, sha256: str) -> Path:
        """Where a sealed organ is; raises NotInBank."""
        path = self._path(sha256, "sealed")
        if not path.is_file():
            raise NotInBank(
                where="bank", expected=f"a sealed organ {sha256[:12]}", got="none", hint="its sender can send it again"
            )
        return path

    def listing(self) -> dict[str, Stored]:
        """What the bank holds, by kind of file; anything unexpected shows up under its own name."""
        sizes: dict[str, list[int]] = {}
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                kind = path.suffix[1:] if _DIGEST.fullmatch(path.stem) else path.name
                sizes.setdefault(kind, []).append(path.stat().st_size)
        return {kind: Stored(count=len(found), bytes=sum(found)) for kind, found in sizes.items()}

    def _path(self, sha256: str, kind: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise NotInBank(
                where="bank", expected="a hex SHA-256", got="something else", hint="name a sealed organ by its digest"
            )
        return self._folder / f"{sha256}.{kind}"

    def _write(self, path: Path, data: bytes) -> None:
        if not path.exists():
            files.write_atomic(path, data)


def _not_sealed(got: str) -> NotSealed:
    return NotSealed(
        where="bank",
        expected="an age file for post-quantum recipients",
        got=got,
        hint="nothing was stored; seal it first",
    )
