"""Open a sealed organ, or verify one without writing anything: the same checks, in the same order.

Checks 1 to 9 (checks.py) come before one byte is written; 10 to 14 before the file has a name:
    10 decrypt into a file without a name, digests on other threads   11 the last chunk seen, length and digest equal,
    and the label's digest, if there is a label   12 tensor header, manifest and passport agree; no NaN, no infinity,
    nothing absurd   13 fsync, link, fsync   14 remember the waybill
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from not_fed import files
from not_fed.age import BadContainer, StreamReader
from not_fed.age.stream import BLOCK_BYTES, Sink
from not_fed.envelope.checks import Checked, Expectation, OtherFederation, OtherRound, check_container
from not_fed.envelope.claims import DpClaim
from not_fed.envelope.digest import BackgroundDigest
from not_fed.envelope.finite import Peaks, ReadAt, check_weights
from not_fed.envelope.frame import MAX_SEALED_BYTES, READ_BYTES
from not_fed.envelope.header import BadTensorHeader, Readable, TensorHeader, check_organ_header
from not_fed.envelope.label import read_label
from not_fed.envelope.logged import Inclusion, check_inclusion
from not_fed.envelope.manifest import NotAnOrgan, read_manifest
from not_fed.envelope.passport import Passport
from not_fed.envelope.policy import Demand, refuse_unseen
from not_fed.envelope.seen import SeenWaybills
from not_fed.errors import TrustError
from not_fed.keys.sealing import Opener
from not_fed.trust.members import TrustedRoster

_SLACK_BYTES = 1 << 20
_KEPT_BYTES = 256 * 1024  # the header of an organ of a thousand tensors


class OrganMismatch(TrustError):
    """The sealed bytes are not the organ that its author signed."""

    code = "organ-mismatch"


class OrganMalformed(TrustError):
    """A signed file that is not a well-formed organ: whoever signed it made a mistake or means harm."""

    code = "organ-malformed"


class NothingToVerify(TrustError):
    """Without its label and without a key to open it, nothing about this file can be known."""

    code = "nothing-to-verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An organ that was written, and who stands behind it."""

    organ: Path
    organ_sha256: str
    sender: str
    author: str
    passport: Passport
    passport_bytes: bytes
    waybill_key: str
    expires: datetime
    logged: Inclusion | None
    demands: tuple[Demand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What is known about a sealed organ. From the label alone, what is inside stays None.

    Attributes:
        header: the organ's tensors and manifest, for a look at whether it fits.
        logged: where the log has it, when a proof was at hand.
        demands: those of the import policy, all met.
    """

    sender: str
    recipients: tuple[str, ...]
    federation: str
    round_number: int
    passport: Passport | None = None
    header: TensorHeader | None = field(default=None, repr=False)
    logged: Inclusion | None = None
    demands: tuple[Demand, ...] = ()

    @property
    def author(self) -> str | None:
        """Who made the organ, which need not be who sent it."""
        return self.passport.author if self.passport else None

    @property
    def dp(self) -> DpClaim | None:
        """The privacy claim; None without a key, or when the author claims none."""
        return self.passport.dp if self.passport else None


class _Write(Protocol):
    def __call__(self, block: memoryview, /) -> object: ...


def open_organ(
    sealed: Path, *, opener: Opener, roster: TrustedRoster, out: Path, now: datetime,
    expect: Expectation | None = None, label: bytes | None = None, proof: bytes | None = None,
    seen: SeenWaybills | None = None,
) -> Opened:  # fmt: skip
    """Check everything, then write the organ to `out` and its passport to `out`.passport; both or neither.

    Raises:
        TrustError: BadContainer, NotForThisKey, NewerFormat, MalformedSigned, BadSignature, Stale, NotAddressed,
            WaybillMismatch, WaybillReplayed, LabelMismatch, OtherFederation, OtherRound, OrganRecalled, OrganMismatch,
            OrganMalformed, OrganNotFinite, OrganAbsurd, UnknownMember, MemberNotActive, WrongRole.
        FitError: BaseNotExpected, OtherSpan. The demands of the import policy: see `policy.check_demands`.
        InputError: OutputExists, NotAFile, FileTooLarge, NoSpace.
    Guarantees:
        When it raises, nothing lies at `out` that was not there before, and no temporary file is left.
        No tensor byte is interpreted before the whole organ is known to be the one that its author signed; until then
        it passes through two digests and through `finite.Peaks`, which treat all bytes alike.
    Proved by: tests/attacks/test_container.py, test_signatures.py, test_frame.py, test_filesystem.py, test_memory.py
    """
    passport_out = passport_path(out)
    with (
        ExitStack() as undo,
        files.open_regular(sealed, max_bytes=MAX_SEALED_BYTES) as file,
        BackgroundDigest() as outside,
    ):
        checked = _check(
            file, opener=opener, roster=roster, now=now, expect=expect, label=label, proof=proof, seen=seen,
            tap=outside.update,
        )  # fmt: skip
        line = checked.frame.passport + b"\n"
        known = _has_passport(passport_out, line)
        with files.new_file(out) as target:
            _check_space(out, checked.passport.organ_size_bytes)
            files.reserve(target, checked.passport.organ_size_bytes)
            peaks = _stream(checked, target.write, outside=outside)
            target.seek(0)
            _check_organ(target, checked.passport, peaks=peaks, read_at=_reading_at(target))
            if not known:
                files.write_atomic(passport_out, line)
                undo.callback(passport_out.unlink)
        undo.callback(out.unlink)
        if seen is not None:
            seen.record(checked.waybill.key, checked.waybill.expires)
        undo.pop_all()
    return Opened(
        organ=out, organ_sha256=checked.passport.organ_sha256, sender=checked.waybill.sender,
        author=checked.passport.author, passport=checked.passport, passport_bytes=checked.frame.passport,
        waybill_key=checked.waybill.key, expires=checked.waybill.expires, logged=checked.logged,
        demands=checked.demands,
    )  # fmt: skip


def verify_sealed(
    sealed: Path, *, roster: TrustedRoster, now: datetime, label: bytes | None, proof: bytes | None = None,
    opener: Opener | None = None, expect: Expectation | None = None, seen: SeenWaybills | None = None,
) -> Verified:  # fmt: skip
    """Check a sealed organ and write nothing.

    Without `opener`: the label's signature, digest and size, by the roster. With it: all that `open_organ` checks;
    `seen` is asked, and not told.

    Raises:
        NothingToVerify: neither a label nor an opener. Otherwise as `open_organ`.
    """
    with files.open_regular(sealed, max_bytes=MAX_SEALED_BYTES) as file, BackgroundDigest() as outside:
        if opener is None:
            return _verify_label(file, label, proof, roster=roster, now=now, expect=expect or Expectation())
        checked = _check(
            file, opener=opener, roster=roster, now=now, expect=expect, label=label, proof=proof, seen=seen,
            tap=outside.update,
        )  # fmt: skip
        organ = _Inside(
            checked.reader, start=checked.frame.overhead_bytes, size_bytes=checked.passport.organ_size_bytes
        )
        peaks = _stream(checked, organ.keep, outside=outside)
        header = _check_organ(organ, checked.passport, peaks=peaks, read_at=organ.read_at)
    waybill = checked.waybill
    return Verified(
        sender=waybill.sender, recipients=tuple(sorted(waybill.to)), federation=waybill.federation,
        round_number=waybill.round, passport=checked.passport, header=header, logged=checked.logged,
        demands=checked.demands,
    )  # fmt: skip


def passport_path(organ: Path) -> Path:
    """Where an organ's passport lies: beside it, `<name>.passport`."""
    return organ.parent / f"{organ.name}.passport"  # of "." too, which has no name and is refused later


def _check(
    file: BinaryIO, *, opener: Opener, roster: TrustedRoster, now: datetime, expect: Expectation | None,
    label: bytes | None, proof: bytes | None, seen: SeenWaybills | None, tap: Sink,
) -> Checked:  # fmt: skip
    size_bytes = os.fstat(file.fileno()).st_size
    outside = None if label is None else read_label(label, size_bytes=size_bytes, roster=roster, now=now)
    return check_container(
        file, size_bytes, opener=opener, roster=roster, now=now, expect=expect or Expectation(), label=outside,
        logged=_logged(proof, label, roster=roster, now=now), seen=seen, tap=tap,
    )  # fmt: skip


def _logged(proof: bytes | None, label: bytes | None, *, roster: TrustedRoster, now: datetime) -> Inclusion | None:
    """A proof is about a label: without one it proves nothing, and counts as none."""
    if proof is None or label is None:
        return None
    return check_inclusion(proof, label=label, roster=roster, now=now)


def _verify_label(
    file: BinaryIO, label: bytes | None, proof: bytes | None, *, roster: TrustedRoster, now: datetime,
    expect: Expectation,
) -> Verified:  # fmt: skip
    if label is None:
        raise NothingToVerify(
            where="sealed file", expected="its label beside it, or --identity", got="neither",
            hint="ask the sender for the .label file, or name your key folder",
        )  # fmt: skip
    size_bytes = os.fstat(file.fileno()).st_size
    checked = read_label(label, size_bytes=size_bytes, roster=roster, now=now)  # before 64 GiB of nothing are hashed
    checked.check_digest(hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]
    if expect.federation not in (None, checked.federation):
        raise OtherFederation(
            where="label", expected=str(expect.federation), got=checked.federation, hint="nothing was opened"
        )
    if expect.round_number not in (None, checked.round):
        raise OtherRound(where="label", expected=str(expect.round_number), got=str(checked.round), hint="it may be old")
    if expect.demands is not None:
        refuse_unseen(expect.demands)
    return Verified(
        sender=checked.sender, recipients=checked.to, federation=checked.federation, round_number=checked.round,
        logged=_logged(proof, label, roster=roster, now=now),
    )  # fmt: skip


def _stream(checked: Checked, write: _Write, *, outside: BackgroundDigest) -> Peaks:
    """Decrypt the organ into `write`; raises unless length, digest, padding and end are what was signed."""
    reader, peaks = checked.reader, Peaks()
    with BackgroundDigest(also=peaks.add) as inside:
        for block in reader.blocks(checked.passport.organ_size_bytes):
            inside.update(block)
            write(block)
        if inside.hexdigest() != checked.passport.organ_sha256:
            raise OrganMismatch(
                where="organ", expected=f"SHA-256 {checked.passport.organ_sha256[:16]}...", got="another",
                hint="nothing was written; the sender sealed something else than the author signed",
            )  # fmt: skip
    _check_padding(reader, checked.waybill.pad)
    reader.finish()
    if checked.label is not None:
        checked.label.check_digest(outside.hexdigest())
    return peaks


def _check_padding(reader: StreamReader, pad: int) -> None:
    while pad:
        block = reader.take(min(pad, READ_BYTES))
        if not block or any(block):
            raise BadContainer.because("padding that is not zero")
        pad -= len(block)


class _Inside:
    """An organ that stays in its container: its head is kept as it passes, the rest decrypted again where needed.

    The block that was decrypted last is kept too: who asks in the order of the bytes, however often, has each chunk
    decrypted once more and no oftener.
    What is read a second time was authenticated chunk by chunk, not by the organ's digest: who may open it and changes
    the file meanwhile could show this check another organ, which `open_organ` would refuse.
    """

    def __init__(self, reader: StreamReader, *, start: int, size_bytes: int) -> None:
        self._reader, self._start, self._size_bytes, self._at = reader, start, size_bytes, 0
        self._kept = bytearray()
        self._block, self._block_at = memoryview(b""), 0

    def keep(self, block: memoryview) -> None:
        self._kept += block[: _KEPT_BYTES - len(self._kept)]

    def read(self, size: int, /) -> bytes:
        into = bytearray(min(size, self._size_bytes - self._at))
        self.read_at(self._at, memoryview(into))
        self._at += len(into)
        return bytes(into)

    def read_at(self, offset: int, into: memoryview, /) -> None:
        if offset + len(into) <= len(self._kept):
            into[:] = self._kept[offset : offset + len(into)]
            return
        while into:
            part = self._decrypted(offset)[: len(into)]
            into[: len(part)] = part
            into, offset = into[len(part) :], offset + len(part)

    def _decrypted(self, offset: int) -> memoryview:
        """What was decrypted from `offset` on, at least one byte."""
        if not self._block_at <= offset < self._block_at + len(self._block):
            self._reader.seek(self._start + offset)
            self._block, self._block_at = self._reader.take(BLOCK_BYTES), offset
            if not self._block:
                raise BadContainer.because("an end within the organ")
        return self._block[offset - self._block_at :]


def _reading_at(file: BinaryIO) -> ReadAt:
    def read_at(offset: int, into: memoryview, /) -> None:
        file.seek(offset)
        file.readinto(into)  # type: ignore[attr-defined]  # our own file, which is as long as was written

    return read_at


def _check_organ(file: Readable, passport: Passport, *, peaks: Peaks, read_at: ReadAt) -> TensorHeader:
    """Check 12: a well-formed organ, of the base and span that the passport claims, its weights finite and sane."""
    try:
        header = check_organ_header(file, passport.organ_size_bytes, where="organ")
        manifest = read_manifest(header, where="organ")
    except (BadTensorHeader, NotAnOrgan) as error:
        raise OrganMalformed(
            where=error.where, expected=error.expected, got=error.got, hint="nothing was written; tell the author"
        ) from None
    said = (manifest.base_sha256, manifest.span, manifest.family)
    if said != (passport.base_sha256, passport.span, passport.family):
        raise OrganMismatch(
            where="organ, manifest", expected="the base, span and family of its passport", got="others",
            hint="nothing was written; tell the author",
        )  # fmt: skip
    check_weights(header, read_at=read_at, peaks=peaks)
    return header


def _check_space(out: Path, organ_bytes: int) -> None:
    needed, free = organ_bytes + _SLACK_BYTES, shutil.disk_usage(out.parent).free
    if free < needed:
        raise files.NoSpace(
            where=str(out.parent), expected=f"{needed:,} bytes free", got=f"{free:,}", hint="free some space"
        )


def _has_passport(path: Path, line: bytes) -> bool:
    """Whether this very passport is there already, from an attempt that was cut off; any other is not overwritten."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file() or files.read_regular(path, max_bytes=1 << 22) != line:
        raise files.OutputExists(
            where=str(path), expected="no passport, or this organ's", got="another file", hint="move it away"
        )
    return True
