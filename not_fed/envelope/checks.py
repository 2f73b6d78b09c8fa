"""Checks 2 to 9 of opening: everything that is settled before one byte of an organ is written.

    2 age header  3 stanzas  4 header MAC  5 payload size  6 frame  7 waybill  8 passport  9 policy and recall
(1 is the file itself; 10 to 14 are the organ's bytes, in open.py.)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from not_fed.age import Header, StreamReader, read_header
from not_fed.age.stream import NONCE_BYTES, Sink
from not_fed.envelope.dsse import check_validity
from not_fed.envelope.frame import Frame, max_pad, read_frame
from not_fed.envelope.label import Label, LabelMismatch
from not_fed.envelope.logged import Inclusion
from not_fed.envelope.passport import Passport, read_passport
from not_fed.envelope.policy import Demand, ImportPolicy, check_demands
from not_fed.envelope.seen import SeenWaybills
from not_fed.envelope.waybill import Waybill, parse_waybill
from not_fed.errors import FitError, TrustError
from not_fed.keys.sealing import Opener
from not_fed.trust.members import TrustedRoster


class WaybillMismatch(TrustError):
    """What is sealed is not what its waybill describes."""

    code = "waybill-mismatch"


class NotAddressed(TrustError):
    """This organ was meant for others."""

    code = "not-addressed"


class OtherFederation(TrustError):
    """This comes from another federation."""

    code = "other-federation"


class OtherRound(TrustError):
    """This belongs to another round."""

    code = "other-round"


class OrganRecalled(TrustError):
    """This organ was withdrawn, by its author or by the stewards."""

    code = "organ-recalled"


class BaseNotExpected(FitError):
    """This organ was cut from another base model."""

    code = "base-not-expected"


class OtherSpan(FitError):
    """This organ is another span, or of another family, than the one expected."""

    code = "other-span"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the caller already knows about what should come, and what its organisation demands; None means anything."""

    federation: str | None = None
    round_number: int | None = None
    base_sha256: str | None = None
    span: tuple[int, int] | None = None
    family: str | None = None
    demands: ImportPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A container whose sender, audience and passport hold; `reader` stands at the organ's first byte.

    Of the `label` all is checked but its digest, which is known when the whole file was read (11).
    """

    header: Header
    frame: Frame
    waybill: Waybill
    passport: Passport
    reader: StreamReader
    label: Label | None
    logged: Inclusion | None
    demands: tuple[Demand, ...]


def check_container(
    file: BinaryIO, size_bytes: int, *, opener: Opener, roster: TrustedRoster, now: datetime,
    expect: Expectation, label: Label | None, logged: Inclusion | None, seen: SeenWaybills | None, tap: Sink,
) -> Checked:  # fmt: skip
    """Checks 2 to 9, in that order, on an open file; raises what `open_organ` lists.

    `tap` is given every byte of the file as it was read, for the digest that a label names.
    """
    header = read_header(file)  # 2
    file_key = opener.unwrap(header, first=_likely(label, opener))  # 3, 4
    payload_bytes = size_bytes - header.size_bytes - NONCE_BYTES
    if label is not None:
        tap(memoryview(header.raw))
    reader = StreamReader(file, file_key=file_key, payload_bytes=payload_bytes, tap=None if label is None else tap)  # 5
    frame = read_frame(reader)  # 6
    waybill = _check_waybill(frame, header, opener=opener, roster=roster, now=now, label=label)  # 7
    _check_expected_round(waybill, expect)
    if seen is not None:
        seen.check(waybill.key)
    passport = _check_passport(frame, waybill, roster=roster, now=now, logged=logged)  # 8
    _check_size(frame, waybill, reader)
    check_policy(passport, roster=roster, expect=expect)  # 9
    demands: tuple[Demand, ...] = ()
    if expect.demands is not None:
        demands = check_demands(expect.demands, passport=passport, sender=waybill.sender, logged=logged, now=now)
    return Checked(
        header=header, frame=frame, waybill=waybill, passport=passport, reader=reader, label=label, logged=logged,
        demands=demands,
    )  # fmt: skip


def _likely(label: Label | None, opener: Opener) -> int:
    """Which stanza is ours, if the sender wrote them in the order of its label; a hint, nothing is believed."""
    return label.to.index(opener.name) if label is not None and opener.name in label.to else 0


def check_policy(passport: Passport, *, roster: TrustedRoster, expect: Expectation) -> None:
    """Raises OrganRecalled, BaseNotExpected or OtherSpan."""
    reason = roster.recall_of(passport.organ_sha256, author=passport.author)
    if reason is not None:
        raise OrganRecalled(
            where=f"roster version {roster.version}, recalls", expected="an organ that is not recalled",
            got=f"{passport.organ_sha256[:16]}..., recalled", hint=f"reason given: {reason}",
        )  # fmt: skip
    if expect.base_sha256 not in (None, passport.base_sha256):
        raise BaseNotExpected(
            where="passport, field base_sha256", expected=f"{str(expect.base_sha256)[:16]}...",
            got=f"{passport.base_sha256[:16]}...", hint="it fits only copies of its own base model",
        )  # fmt: skip
    for field, wanted, got in (("span", expect.span, passport.span), ("family", expect.family, passport.family)):
        if wanted not in (None, got):
            raise OtherSpan(
                where=f"passport, field {field}",
                expected=str(wanted),
                got=str(got),
                hint="ask the sender for the right one",
            )


def _check_waybill(
    frame: Frame, header: Header, *, opener: Opener, roster: TrustedRoster, now: datetime, label: Label | None
) -> Waybill:
    unverified, waybill = parse_waybill(frame.waybill)
    if waybill.federation != roster.federation:
        raise _other_federation("waybill", roster.federation, waybill.federation)
    sender = roster.member(waybill.sender, now=now)
    unverified.verify(sender.signing_for(unverified.key_ids, at=waybill.issued))
    check_validity(issued=waybill.issued, expires=waybill.expires, now=now, where="waybill")
    if waybill.to.get(opener.name) not in opener.fingerprints:
        raise NotAddressed(
            where="waybill, field to", expected=f"{opener.name} with the key of this identity", got="others",
            hint="somebody passed it on; nothing was opened, tell the sender",
        )  # fmt: skip
    if len(header.stanzas) != len(waybill.to):
        raise _mismatch(f"{len(waybill.to)} recipients", f"{len(header.stanzas)} in the container")
    if label is not None:
        _check_label(label, waybill)
    return waybill


def _check_label(label: Label, waybill: Waybill) -> None:
    outside = (label.federation, label.round, label.sender, label.to)
    if outside != (waybill.federation, waybill.round, waybill.sender, tuple(sorted(waybill.to))):
        raise LabelMismatch(
            where="label", expected="what the waybill inside says", got="another sender, audience or round",
            hint="somebody put their own label on it; nothing was opened",
        )  # fmt: skip


def _check_expected_round(waybill: Waybill, expect: Expectation) -> None:
    if expect.federation not in (None, waybill.federation):
        raise _other_federation("waybill", str(expect.federation), waybill.federation)
    if expect.round_number not in (None, waybill.round):
        raise OtherRound(
            where="waybill, field round", expected=str(expect.round_number), got=str(waybill.round),
            hint="nothing was opened; an old organ may have been sent again",
        )  # fmt: skip


def _check_passport(
    frame: Frame, waybill: Waybill, *, roster: TrustedRoster, now: datetime, logged: Inclusion | None
) -> Passport:  # fmt: skip
    if hashlib.sha256(frame.passport).hexdigest() != waybill.passport_sha256:
        raise _mismatch("the passport that the waybill names", "another")
    passport = read_passport(frame.passport, roster=roster, now=now, logged_at=logged.time if logged else None)
    if passport.federation != waybill.federation:
        raise _other_federation("passport", waybill.federation, passport.federation)
    if (passport.organ_sha256, passport.organ_size_bytes) != (waybill.organ.sha256, waybill.organ.size_bytes):
        raise _mismatch("one organ in waybill and passport", "two")
    if passport.round > waybill.round:
        raise _mismatch("a passport of this round or before", f"round {passport.round}")
    if passport.author != waybill.sender and passport.sharing != "federation":
        raise _mismatch(f"{passport.author} as its sender", f"{waybill.sender}, without the author's leave")
    return passport


def _check_size(frame: Frame, waybill: Waybill, reader: StreamReader) -> None:
    expected = frame.overhead_bytes + waybill.organ.size_bytes + waybill.pad
    if waybill.pad > max_pad(waybill.organ.size_bytes):
        raise _mismatch(f"padding of at most {max_pad(waybill.organ.size_bytes):,} bytes", f"{waybill.pad:,}")
    if reader.size_bytes != expected:
        raise _mismatch(f"{expected:,} bytes", f"{reader.size_bytes:,}")


def _other_federation(where: str, expected: str, got: str) -> OtherFederation:
    return OtherFederation(where=f"{where}, field federation", expected=expected, got=got, hint="nothing was opened")


def _mismatch(expected: str, got: str) -> WaybillMismatch:
    return WaybillMismatch(where="sealed organ", expected=expected, got=got, hint="nothing was opened; tell the sender")
