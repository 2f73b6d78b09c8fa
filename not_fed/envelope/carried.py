"""A site's answer as it is carried by hand: one signed line that says for which step it is and what belongs to it.

Over a network the coordinator knows from whose connection an answer came. On a stick nobody knows who wrote what, so
all of it, a refusal too, is signed by the site. The sealed organ lies beside the line, which names its digest.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, parse_statement, sign_statement
from not_fed.envelope.label import MAX_LABEL_BYTES
from not_fed.envelope.receipt import MAX_RECEIPT_BYTES
from not_fed.envelope.task import Hex128, Kind, Mode
from not_fed.errors import InputError, TrustError
from not_fed.keys import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

CARRIED_TYPE = "application/vnd.not-fed.carried-answer.v1+json"
MAX_CARRIED_BYTES = 256 << 10

Code = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+){0,7}\z", max_length=64)]
LeftOut = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64} [a-z0-9-]{1,64}\z")]


class BadCarriedAnswer(TrustError):
    """This is not an answer that the site signed for this coordinator."""

    code = "bad-carried-answer"


class NotByFile(InputError):
    """A secure sum, or a vote, needs several trips within a round, which nobody wants to carry."""

    code = "not-by-file"


def require_by_file(mode: Mode, *, quorum: int) -> None:
    """Raises NotByFile where a round has more than one trip."""
    if mode == "secure-sum" or quorum:
        raise NotByFile(
            where="mode of the run", expected="bank, or trusted without a quorum, where orders travel by file",
            got=mode, hint="nothing was done; this run needs a network: not-fed coordinator serve, not-fed site join",
        )  # fmt: skip


class CarriedAnswer(Statement):
    """What a site answers to one step.

    Attributes:
        task: the id of the task; run, round, kind: its step.
        label, sealed_sha256, size_bytes: of the sealed organ beside it, all three or none.
        received: how many organs of others were taken in.
        refused: an error code instead of an answer.
        left_out: digest and error code of each organ that could not be used.
        receipt: how far the site's ledger has come, to be kept for it.
        not_fed: the site's version.
    """

    v: Literal[1]
    federation: Name
    coordinator: Name
    site: Name
    task: Hex128
    run: Name
    round: int = Field(ge=1, le=10_000)
    kind: Kind
    label: Annotated[str, StringConstraints(max_length=MAX_LABEL_BYTES)] | None
    sealed_sha256: Sha256 | None
    size_bytes: Annotated[int, Field(ge=1, lt=1 << 53)] | None
    received: int = Field(ge=0, le=250)
    refused: Code | None
    left_out: tuple[LeftOut, ...] = Field(max_length=250)
    receipt: Annotated[str, StringConstraints(max_length=MAX_RECEIPT_BYTES)] | None
    not_fed: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+!-]{1,40}\z")]
    issued: Moment

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        organ = {self.label is None, self.sealed_sha256 is None, self.size_bytes is None}
        if len(organ) != 1:
            raise ValueError("label, digest and size of one sealed organ, or none of them")
        if self.refused is not None and (self.label is not None or self.received):
            raise ValueError("a refusal or an answer")
        return self


def sign_carried(answer: CarriedAnswer, *, signer: Signer) -> bytes:
    """The signed line that is carried to the coordinator."""
    return sign_statement(answer, payload_type=CARRIED_TYPE, signer=signer)


def verify_carried(line: bytes, *, site: str, coordinator: str, roster: TrustedRoster, now: datetime) -> CarriedAnswer:
    """The answer, signed by that site for that coordinator with keys that were the site's when it was issued.

    Raises:
        MalformedSigned, BadSignature, KeysRetired, UnknownMember, MemberNotActive, WrongRole: not signed by the site.
        BadCarriedAnswer: of another site, for another coordinator or federation; or from the future.
    Proved by: tests/attacks/test_file_drop.py::test_a_forged_answer_is_refused
    """
    unverified, answer = parse_statement(
        line, CarriedAnswer, payload_type=CARRIED_TYPE, where="answer", max_bytes=MAX_CARRIED_BYTES
    )
    member = roster.member(site, role="author", now=now)
    if (answer.federation, answer.site, answer.coordinator) != (roster.federation, site, coordinator):
        raise _bad(f"one by {site} for {coordinator} in {roster.federation}", "another")
    unverified.verify(member.signing_for(unverified.key_ids, at=answer.issued))
    if answer.issued - now > CLOCK_SKEW:
        raise _bad("a time that has come", "a later one")
    return answer


def _bad(expected: str, got: str) -> BadCarriedAnswer:
    return BadCarriedAnswer(
        where="answer", expected=expected, got=got, hint="nothing was counted; check which stick this is"
    )
