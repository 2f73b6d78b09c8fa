"""A site's signed receipt for a private task: how far its privacy ledger had come, kept by the coordinator for it.

A site whose disk is restored from a backup has forgotten what it spent since. The coordinator hands the newest receipt
back with its next order; a ledger that does not know the row named in it is refused by the site itself. A coordinator
that hands nothing back leaves the site with what its own organs remember.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, parse_statement, sign_statement
from not_fed.envelope.task import Hex128
from not_fed.errors import TrustError
from not_fed.keys import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

RECEIPT_TYPE = "application/vnd.not-fed.receipt.v1+json"
MAX_RECEIPT_BYTES = 32 << 10


class BadReceipt(TrustError):
    """This is not a receipt that the site signed for this coordinator."""

    code = "bad-receipt"


class Receipt(Statement):
    """What a site says about its ledger when it has answered a task.

    Attributes:
        task: the id of the task.
        ledger_head: digest of the ledger's newest row.
    """

    v: Literal[1]
    federation: Name
    site: Name
    coordinator: Name
    task: Hex128
    ledger_head: Sha256
    issued: Moment


def sign_receipt(receipt: Receipt, *, signer: Signer) -> bytes:
    """The signed line that goes to the coordinator with the answer."""
    return sign_statement(receipt, payload_type=RECEIPT_TYPE, signer=signer)


def verify_receipt(line: bytes, *, site: str, coordinator: str, roster: TrustedRoster, now: datetime) -> Receipt:
    """The receipt, signed by that site for that coordinator with the keys that were the site's when it was issued.

    Raises:
        MalformedSigned, BadSignature, KeysRetired, UnknownMember, MemberNotActive, WrongRole: not signed by the site.
        BadReceipt: for another site, coordinator or federation; or from the future, so that no newer would replace it.
    Proved by: tests/attacks/test_site_receipts.py::test_a_receipt_that_is_not_the_sites_own_is_refused
    """
    unverified, receipt = parse_statement(
        line, Receipt, payload_type=RECEIPT_TYPE, where="receipt", max_bytes=MAX_RECEIPT_BYTES
    )
    member = roster.member(site, role="author", now=now)
    unverified.verify(member.signing_for(unverified.key_ids, at=receipt.issued))
    if (receipt.federation, receipt.site, receipt.coordinator) != (roster.federation, site, coordinator):
        raise BadReceipt(
            where="receipt", expected=f"one by {site} for {coordinator} in {roster.federation}", got="another",
            hint="nothing was trained or spent",
        )  # fmt: skip
    if receipt.issued - now > CLOCK_SKEW:
        raise BadReceipt(
            where="receipt, field issued", expected="a time that has come", got="a later one",
            hint="set the site's clock; nothing was trained or spent",
        )  # fmt: skip
    return receipt
