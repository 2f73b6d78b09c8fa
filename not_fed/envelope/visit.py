"""A member's visit to the coordinator's bank: a fresh nonce, signed by its own keys, opens a session for an hour.

As a site's greeting, in a type of its own, so that neither can be passed off as the other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from not_fed.envelope.dsse import Moment, Name, Statement, parse_statement, sign_statement
from not_fed.envelope.task import Hex128
from not_fed.errors import TrustError
from not_fed.keys import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

VISIT_TYPE = "application/vnd.not-fed.visit.v1+json"
MAX_VISIT_BYTES = 32 << 10


class BadVisit(TrustError):
    """This is not a visit that a member signed for this bank, now."""

    code = "bad-visit"


class Visit(Statement):
    """Attributes: nonce: of the coordinator, used once."""

    v: Literal[1]
    federation: Name
    member: Name
    coordinator: Name
    nonce: Hex128
    issued: Moment


def sign_visit(visit: Visit, *, signer: Signer) -> bytes:
    """The signed line."""
    return sign_statement(visit, payload_type=VISIT_TYPE, signer=signer)


def verify_visit(line: bytes, *, coordinator: str, nonce: str, roster: TrustedRoster, now: datetime) -> Visit:
    """The visit, signed by the active member that it names, for this coordinator and nonce.

    Raises:
        MalformedSigned, BadSignature, BadVisit, UnknownMember, MemberNotActive.
    Proved by: tests/attacks/test_gateway.py::test_a_visit_opens_a_session_for_its_signer_and_once
    """
    unverified, visit = parse_statement(line, Visit, payload_type=VISIT_TYPE, where="visit", max_bytes=MAX_VISIT_BYTES)
    unverified.verify(roster.member(visit.member, now=now).signing)
    got = (visit.federation, visit.coordinator, visit.nonce)
    if got != (roster.federation, coordinator, nonce) or abs(now - visit.issued) > CLOCK_SKEW:
        raise BadVisit(
            where="visit", expected="one for this federation, coordinator, nonce and time", got="another",
            hint="compare the clocks; no session was opened",
        )  # fmt: skip
    return visit
