"""A site's signed vote on a round's aggregate, after it has tried it on records that nobody trained on.

One bit and one word of a closed list leave, and no number: how good the aggregate is says something about the records.
Digests say what was voted on, so that a vote serves no other question: the proposal, as everybody was sent it; the
organ that the site opened or summed itself; the organ that it was compared with.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, parse_statement, sign_statement
from not_fed.errors import TrustError
from not_fed.keys import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

VOTE_TYPE = "application/vnd.not-fed.vote.v1+json"
MAX_VOTE_BYTES = 32 << 10

Reason = Literal["better", "worse", "not-finite", "does-not-fit", "cannot-open", "cannot-read-sum", "no-held-out"]
ACCEPTS: Final = "better"  # no worse than the start by more than the site's own tolerance
ABSTAINS: Final = "no-held-out"  # also where the site's policy or its budget does not let it look
_UNREAD: Final = ("cannot-open", "cannot-read-sum")  # there is no organ to name


class BadVote(TrustError):
    """This is not a vote that its site signed in this federation by now."""

    code = "bad-vote"


class Vote(Statement):
    """What one site says about the aggregate of one round.

    Attributes:
        coordinator: for whom it was cast, so that it serves nobody else.
        proposal_sha256: of what was put to the vote, as the coordinator knows it: the sealed aggregate in mode trusted,
            the call of a secure sum. Every site was sent the same one.
        start_sha256: of the organ that the round began from; None is the base's own span.
        candidate_sha256: of the organ that this site opened or summed; None where it could do neither.
        accept: true for `better` and for nothing else.
    """

    v: Literal[1]
    federation: Name
    run: Name
    round: int = Field(ge=1, le=10_000)
    coordinator: Name
    site: Name
    proposal_sha256: Sha256
    start_sha256: Sha256 | None
    candidate_sha256: Sha256 | None
    accept: bool
    reason: Reason
    issued: Moment

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.accept != (self.reason == ACCEPTS):
            raise ValueError("accept exactly with the reason better")
        if self.candidate_sha256 is None and self.reason not in (*_UNREAD, "not-finite"):
            raise ValueError("the candidate of whoever could read it")
        if self.candidate_sha256 is not None and self.reason in _UNREAD:
            raise ValueError("no candidate of whoever could not read it")
        return self


def sign_vote(vote: Vote, *, signer: Signer) -> bytes:
    """The signed line that goes to the coordinator, and from there to every site."""
    return sign_statement(vote, payload_type=VOTE_TYPE, signer=signer)


def verify_vote(line: bytes, *, roster: TrustedRoster, now: datetime) -> Vote:
    """The vote, signed by the site that it names with the keys that were the site's when it was cast.

    Whether it answers the question at hand is asked of a ballot (`not_fed.envelope.verdict`).

    Raises:
        MalformedSigned, BadSignature, KeysRetired: not a vote, or not signed by the site that it names.
        UnknownMember, MemberNotActive, WrongRole: the roster does not know the site as one that takes part.
        BadVote: of another federation, or from the future.
    Proved by: tests/attacks/test_votes.py::test_a_vote_that_a_site_did_not_cast_does_not_count
    """
    unverified, vote = parse_statement(line, Vote, payload_type=VOTE_TYPE, where="vote", max_bytes=MAX_VOTE_BYTES)
    member = roster.member(vote.site, role="author", now=now)
    unverified.verify(member.signing_for(unverified.key_ids, at=vote.issued))
    if vote.federation != roster.federation:
        raise BadVote(
            where="vote, field federation", expected=roster.federation, got=vote.federation, hint="it was not counted"
        )
    if vote.issued - now > CLOCK_SKEW:
        raise BadVote(
            where=f"vote of {vote.site}, field issued", expected="a time that has come", got="a later one",
            hint="set the clock that is wrong; the vote was not counted",
        )  # fmt: skip
    return vote
