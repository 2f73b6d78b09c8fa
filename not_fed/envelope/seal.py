"""Seal an organ: sign who sends it to whom, encrypt it to exactly those, and label it for the relay."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from not_fed import files
from not_fed.age import StreamWriter, write_header
from not_fed.age.header import FILE_KEY_BYTES
from not_fed.age.hybrid import wrap
from not_fed.age.stream import NONCE_BYTES, Sink, sealed_size
from not_fed.envelope.digest import BackgroundDigest
from not_fed.envelope.dsse import MAX_VALIDITY
from not_fed.envelope.frame import READ_BYTES, Frame, padme
from not_fed.envelope.header import check_organ_header
from not_fed.envelope.label import MAX_LABEL_BYTES, RECIPIENT_ROLES, is_own_label, label_path, write_label
from not_fed.envelope.manifest import read_manifest
from not_fed.envelope.passport import MAX_ROUND, Passport, read_passport
from not_fed.envelope.waybill import MAX_RECIPIENTS, write_waybill
from not_fed.errors import InputError, TrustError
from not_fed.keys.dsse import BadSignature
from not_fed.keys.sealing import recipient_fingerprint
from not_fed.keys.signing import Signer
from not_fed.snapshots import FileState, Snapshot
from not_fed.trust.members import Member, TrustedRoster

VALID_FOR = timedelta(days=14)


class BadRecipients(InputError):
    """An organ is sealed to others, each named once."""

    code = "bad-recipients"


class OrganChanged(TrustError):
    """The organ is not the one in its passport, or changed while it was being sealed."""

    code = "organ-changed"


class CannotDispatch(TrustError):
    """The passport does not let this sender send this organ in this round."""

    code = "cannot-dispatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What `seal_organ` wrote: the container at `path` and the label's line beside it, as `<name>.label`."""

    path: Path
    sha256: str
    size_bytes: int
    label: bytes
    waybill_id: str
    organ_sha256: str
    recipients: tuple[str, ...]
    expires: datetime


def seal_organ(
    organ: Path, *, passport: bytes, sender: Signer, recipients: Sequence[str], roster: TrustedRoster, federation: str,
    round_number: int, out: Path, now: datetime, ttl: timedelta = VALID_FOR, pad: bool = False,
    snapshot: Snapshot | None = None,
) -> Sealed:  # fmt: skip
    """Write `out` and `out`.label; both appear whole, or neither does.

    Args:
        passport: the author's signed line for this very file; the author may be somebody else.
        recipients: names on the roster.
        round_number: the round in which it is sent; 0 outside of rounds.
        ttl: how long recipients may open it.
        pad: hide the exact size.
        snapshot: the digest of `organ` as its passport has it, and the file's state then. When the file is in that
            state before its first byte is read and after its last, it is not hashed once more: a change in between
            gives it another state. What a state cannot show (see `snapshots`) is sealed under a digest that it does
            not have, and every recipient refuses it. In another state, or without a snapshot, it is hashed here.
    Raises:
        BadRecipients, OutputExists, NotAFile, BadTensorHeader, NotAnOrgan: nothing was written.
        UnknownMember, MemberNotActive, WrongRole: sender, author or a recipient, by today's roster.
        MalformedSigned, BadSignature, CannotDispatch, OrganChanged: the passport does not cover it.
    """
    members = _recipients(recipients, sender=sender, roster=roster, now=now)
    claimed = _check_passport(passport, sender=sender, roster=roster, now=now)
    _check_dispatch(claimed, sender=sender, roster=roster, federation=federation, round_number=round_number)
    expires = (now + _check_ttl(ttl)).replace(microsecond=0)
    to = {member.name: recipient_fingerprint(member.recipient) for member in members}
    padding = padme(claimed.organ_size_bytes) if pad else 0
    waybill, line = write_waybill(
        claimed, passport_sha256=hashlib.sha256(passport).hexdigest(), signer=sender, to=to, round_number=round_number,
        issued=now, expires=expires, pad=padding,
    )  # fmt: skip
    with ExitStack() as undo, files.open_regular(organ) as source:
        known = snapshot if snapshot == _seen(source, claimed.organ_sha256) else None
        _check_organ(source, claimed, organ.name)
        with files.new_file(out) as file:
            sha256 = _encrypt(source, file, Frame(line, passport), members, claimed, padding, known)
            size_bytes = file.tell()
            label = write_label(
                federation=federation, round_number=round_number, signer=sender, to=tuple(to), issued=now,
                expires=expires, sealed_sha256=sha256, size_bytes=size_bytes,
            )  # fmt: skip
            _remove_orphan(label_path(out), sender=sender)
            files.write_atomic(label_path(out), label + b"\n")
            undo.callback(label_path(out).unlink)
        undo.pop_all()
    return Sealed(
        path=out, sha256=sha256, size_bytes=size_bytes, label=label, waybill_id=waybill.id,
        organ_sha256=claimed.organ_sha256, recipients=tuple(sorted(to)), expires=expires,
    )  # fmt: skip


def _remove_orphan(label: Path, *, sender: Signer) -> None:
    """The label comes first, so a kill may leave one without its sealed file: the sender's own makes way."""
    with suppress(files.NotAFile, files.FileTooLarge):
        if is_own_label(files.read_regular(label, max_bytes=MAX_LABEL_BYTES + 1), signer=sender):
            label.unlink()


def _recipients(names: Sequence[str], *, sender: Signer, roster: TrustedRoster, now: datetime) -> list[Member]:
    if isinstance(names, str) or len(set(names)) != len(names) or not 1 <= len(names) <= MAX_RECIPIENTS:
        raise BadRecipients(
            where="recipients", expected=f"1 to {MAX_RECIPIENTS} names, each once", got=f"{len(names)} names",
            hint="name each site once: --to clinic --to hub",
        )  # fmt: skip
    if set(names) == {sender.name}:
        raise BadRecipients(
            where="recipients", expected="somebody else than the sender", got="the sender alone", hint="name a site"
        )
    return [roster.member(name, role=RECIPIENT_ROLES, now=now) for name in sorted(names)]


def _check_passport(line: bytes, *, sender: Signer, roster: TrustedRoster, now: datetime) -> Passport:
    if roster.member(sender.name, now=now).signing != sender.public:
        raise BadSignature(
            where="sender", expected=f"the keys that the roster has for {sender.name}", got="other keys",
            hint="ask a steward to enrol your new identity",
        )  # fmt: skip
    return read_passport(line, roster=roster, now=now)


def _check_ttl(ttl: timedelta) -> timedelta:
    if timedelta(seconds=1) <= ttl <= MAX_VALIDITY:
        return ttl
    raise CannotDispatch(
        where="validity", expected=f"a second to {MAX_VALIDITY.days} days", got=f"{ttl.days:,} days",
        hint="recipients could never open it, or for ever; 14 days is the usual",
    )  # fmt: skip


def _check_dispatch(
    passport: Passport, *, sender: Signer, roster: TrustedRoster, federation: str, round_number: int
) -> None:
    """What a recipient would refuse, said before anything is sealed."""
    for expected, got in (
        (f"federation {roster.federation}", f"federation {federation}"),
        (f"federation {federation}", f"federation {passport.federation}"),
    ):
        if expected != got:
            raise CannotDispatch(where="passport", expected=expected, got=got, hint="use that federation's roster")
    if not passport.round <= round_number <= MAX_ROUND:
        raise CannotDispatch(
            where="round", expected=f"a round from {passport.round} (the organ's) to {MAX_ROUND}",
            got=f"round {round_number}", hint="name the round with --round",
        )  # fmt: skip
    if passport.author != sender.name and passport.sharing != "federation":
        raise CannotDispatch(
            where="passport", expected=f"leave of {passport.author} to pass it on", got="sharing with addressees only",
            hint="ask the author to send it",
        )  # fmt: skip


def _check_organ(source: BinaryIO, passport: Passport, where: str) -> None:
    size_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    manifest = read_manifest(check_organ_header(source, size_bytes, where=where), where=where)
    source.seek(0)
    said = (manifest.base_sha256, manifest.span, manifest.family)
    if (size_bytes, *said) != (passport.organ_size_bytes, passport.base_sha256, passport.span, passport.family):
        raise _changed(where)


def _encrypt(
    source: BinaryIO, file: BinaryIO, frame: Frame, members: Sequence[Member], passport: Passport, padding: int,
    known: Snapshot | None,
) -> str:  # fmt: skip
    """Header and payload; returns the SHA-256 of all that was written."""
    file_key, nonce = os.urandom(FILE_KEY_BYTES), os.urandom(NONCE_BYTES)
    stanzas = [wrap(file_key, recipient=member.recipient) for member in members]
    header = write_header(stanzas, file_key=file_key)
    plain_bytes = frame.overhead_bytes + passport.organ_size_bytes + padding
    files.reserve(file, len(header) + sealed_size(plain_bytes))
    with BackgroundDigest() as sealed, BackgroundDigest() as organ:

        def sink(block: bytes | memoryview) -> None:
            sealed.update(block)
            file.write(block)

        sink(header + nonce)
        writer = StreamWriter(sink, file_key=file_key, nonce=nonce)
        writer.write(frame.to_bytes())
        _copy(source, writer, passport.organ_size_bytes, tap=None if known else organ.update)
        if known is None and organ.hexdigest() != passport.organ_sha256:
            raise _changed("organ")
        if known is not None and _seen(source, passport.organ_sha256) != known:
            raise _changed("organ")
        for start in range(0, padding, READ_BYTES):
            writer.write(bytes(min(READ_BYTES, padding - start)))
        writer.finish()
        return sealed.hexdigest()


def _seen(source: BinaryIO, sha256: str) -> Snapshot:
    return Snapshot(sha256=sha256, state=FileState.of(source.fileno()))


def _copy(source: BinaryIO, writer: StreamWriter, size_bytes: int, *, tap: Sink | None) -> None:
    """Read straight into the writer's own blocks."""
    left = size_bytes
    while left:
        room = writer.room()[:left]
        count = source.readinto(room)  # type: ignore[attr-defined]
        if not count:
            raise _changed("organ")
        if tap is not None:
            tap(room[:count])
        writer.advance(count)
        left -= count


def _changed(where: str) -> OrganChanged:
    return OrganChanged(
        where=where, expected="the organ that its passport describes", got="another digest, size, base or span",
        hint="nothing was written; make a new passport, and let nobody write to the organ meanwhile",
    )  # fmt: skip
