"""An author withdraws its own organ: one signed line that counts as soon as it arrives, without any steward.

    <sha256 of the line>.recall    {federation, organ_sha256, reason, by, issued}, signed by both keys of `by`

It travels in a roster's `recalls` folder or by mail, and counts for organs whose passport `by` itself has signed, for
no others. The stewards' list, which is part of the signed roster, counts for everybody's. Neither is ever undone: an
organ that is good after all is published again.

Whoever carries a folder can leave such a file out: it is no part of a signed roster version, because an author must be
able to withdraw at once. What must not be withheld the stewards recall as well (`not-fed recall issue --steward`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from not_fed import canonical, files
from not_fed.errors import NotFedError, TrustError
from not_fed.keys import dsse
from not_fed.keys.signing import Signer
from not_fed.trust.members import CLOCK_SKEW, Name, Reason, Recall, Sha256, TrustedRoster, UnknownMember

PAYLOAD_TYPE: Final = "application/vnd.not-fed.recall.v1+json"
MAX_RECALL_BYTES: Final = 16 * 1024
MAX_OF_ONE_MEMBER: Final = 10_000
SUFFIX: Final = ".recall"
_FILE_NAME = re.compile(r"([0-9a-f]{64})\.recall")


class RecallRefused(TrustError):
    """This withdrawal is not for this federation, or from a time still to come."""

    code = "recall-refused"


class RecallRemoved(TrustError):
    """A newer roster no longer recalls an organ that an older one recalled."""

    code = "recall-removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """A member's withdrawal whose signatures were checked when it came; `line_sha256` names its file."""

    line_sha256: str
    recall: Recall


class _Payload(BaseModel):
    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="forbid")

    federation: Name
    organ_sha256: Sha256
    reason: Reason
    by: Name
    issued: str


def sign_withdrawal(signer: Signer, *, federation: str, organ_sha256: str, reason: str, now: datetime) -> bytes:
    """The signed line; raises MalformedSigned for a reason or digest that cannot be one."""
    try:
        payload = _Payload(
            federation=federation, organ_sha256=organ_sha256, reason=reason, by=signer.name,
            issued=canonical.format_time(now),
        )  # fmt: skip
    except ValidationError:
        raise dsse.MalformedSigned.because(
            "another digest or reason", where="recall", expected="64 hex digits and a reason of 1 to 500 characters"
        ) from None
    return dsse.sign(canonical.dumps(payload.model_dump()), payload_type=PAYLOAD_TYPE, signer=signer)


def read_withdrawal(line: bytes, *, roster: TrustedRoster, now: datetime) -> Withdrawal:
    """Check its shape and both signatures.

    Raises:
        MalformedSigned, NewerFormat. RecallRefused: another federation, or dated in the future.
        UnknownMember, MemberNotActive, KeysRetired, BadSignature: not from a member's keys of that time.
    Guarantees: `by` signed it, with keys that were its own on the date it names, and is not revoked.
    Proved by: tests/attacks/test_recall.py::test_a_withdrawal_needs_its_members_keys_of_that_time
    """
    unverified = dsse.parse(line, payload_type=PAYLOAD_TYPE, where="recall", max_bytes=MAX_RECALL_BYTES)
    try:
        said = _Payload.model_validate(canonical.loads(unverified.payload, where="recall"))
        issued = canonical.parse_time(said.issued)
    except (ValidationError, ValueError, canonical.BadJson):
        raise dsse.MalformedSigned.because("other fields or values", where="recall") from None
    if said.federation != roster.federation or issued - now > CLOCK_SKEW:
        raise RecallRefused(
            where="recall", expected=f"federation {roster.federation}, issued by {canonical.format_time(now)}",
            got="another federation, or a time to come", hint="nothing was changed; ask whoever sent it",
        )  # fmt: skip
    member = roster.members.get(said.by)
    if member is None:
        raise UnknownMember(
            where=f"roster version {roster.version}", expected="a member", got=f"the name {said.by}",
            hint="only members withdraw organs; fetch the newest roster",
        )  # fmt: skip
    unverified.verify(member.signing_for(unverified.key_ids, at=issued))
    recall = Recall(organ_sha256=said.organ_sha256, reason=said.reason, by=said.by, time=issued)
    return Withdrawal(line_sha256=hashlib.sha256(line).hexdigest(), recall=recall)


def collect(
    folder: Path, *, roster: TrustedRoster, known: Iterable[Withdrawal], now: datetime
) -> dict[Withdrawal, bytes]:
    """The withdrawals in a folder that count and are not known yet, each with its line.

    Guarantees: raises nothing; whatever is no withdrawal of a member (garbage, links, FIFOs, another's file under a new
        name, the signature of a stranger) is passed over, so that nobody can lock others out with it. Memory grows with
        the withdrawals that count only: one for each organ, at most 10,000 of one member.
    Proved by: tests/attacks/test_recall.py::test_garbage_among_the_recalls_locks_nobody_out
    """
    seen = {(withdrawal.recall.by, withdrawal.recall.organ_sha256) for withdrawal in known}
    names = {withdrawal.line_sha256 for withdrawal in known}
    count: dict[str | None, int] = {}
    for by, _ in seen:
        count[by] = count.get(by, 0) + 1
    found: dict[Withdrawal, bytes] = {}
    for path in _recall_files(folder, but=names):
        with suppress(NotFedError):
            line = files.read_regular(path, max_bytes=MAX_RECALL_BYTES).removesuffix(b"\n")
            if hashlib.sha256(line).hexdigest() != path.name.removesuffix(SUFFIX):
                continue
            withdrawal = read_withdrawal(line, roster=roster, now=now)
            by, mark = withdrawal.recall.by, (withdrawal.recall.by, withdrawal.recall.organ_sha256)
            if mark not in seen and count.get(by, 0) < MAX_OF_ONE_MEMBER:
                seen.add(mark)
                count[by] = count.get(by, 0) + 1
                found[withdrawal] = line
    return found


def check_none_removed(before: TrustedRoster, after: TrustedRoster) -> None:
    """Raises RecallRemoved when the stewards' list lost an organ: a recall is never undone."""
    missing = sorted(set(before.recalls) - set(after.recalls))
    if missing:
        raise RecallRemoved(
            where=f"roster version {after.version}, recalls",
            expected=f"all {len(before.recalls)} organs that version {before.version} recalls",
            got=f"{len(missing)} of them missing, {missing[0][:16]}... for one",
            hint="nothing was changed; this must not happen: show both versions to all stewards",
        )  # fmt: skip


def _recall_files(folder: Path, *, but: set[str]) -> Iterator[Path]:
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        for entry in entries:
            match = _FILE_NAME.fullmatch(entry.name)
            if match is not None and match[1] not in but:
                yield Path(entry.path)
