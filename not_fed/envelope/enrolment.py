"""What a new site hands to a coordinator: who it is, and the key with which its connection proves itself.

Signed by the identity that is in it, which proves possession and not the name. Trust comes from people: the two
administrators compare `enrolment_fingerprint` over another channel, and stewards put the identity on the roster.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import StringConstraints

from not_fed.age import recipient_key
from not_fed.envelope.dsse import Moment, Name, Statement, parse_statement, sign_statement
from not_fed.errors import NotFedError, TrustError
from not_fed.keys import PublicIdentity, Signer, read_identity
from not_fed.keys.dsse import BadSignature
from not_fed.keys.identity import MAX_IDENTITY_BYTES, spoken
from not_fed.keys.node_key import node_key_id

ENROLMENT_TYPE = "application/vnd.not-fed.enrolment.v1+json"
MAX_ENROLMENT_BYTES = 3 * MAX_IDENTITY_BYTES

Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+!-]{0,63}\z")]


class EnrolmentRefused(TrustError):
    """This enrolment does not prove that its keys belong together."""

    code = "enrolment-refused"


class Enrolment(Statement):
    """One site's wish to take part.

    Attributes:
        identity: the site's identity, the signed line of its `identity.json`.
        node_key: the public half of its connection's key, as OpenSSH text without a comment.
        not_fed: the version that the site runs.
    """

    v: Literal[1]
    federation: Name
    site: Name
    identity: Annotated[str, StringConstraints(max_length=MAX_IDENTITY_BYTES)]
    node_key: Annotated[str, StringConstraints(max_length=1024)]
    not_fed: Version
    issued: Moment


def new_enrolment(
    *, federation: str, identity: bytes, node_key: str, not_fed: str, signer: Signer, now: datetime
) -> bytes:
    """The signed line for a coordinator.

    Args:
        identity: the line of the site's `identity.json`.
        node_key: OpenSSH text; a comment in it is left out.
    """
    enrolment = Enrolment(
        v=1, federation=federation, site=signer.name, identity=identity.decode().removesuffix("\n"),
        node_key=" ".join(node_key.split()[:2]), not_fed=not_fed, issued=now,
    )  # fmt: skip
    return sign_enrolment(enrolment, signer=signer)


def sign_enrolment(enrolment: Enrolment, *, signer: Signer) -> bytes:
    """The signed line, without a line feed."""
    return sign_statement(enrolment, payload_type=ENROLMENT_TYPE, signer=signer)


def verify_enrolment(line: bytes, *, where: str) -> tuple[Enrolment, PublicIdentity]:
    """The enrolment and the identity in it.

    Raises:
        MalformedSigned, NewerFormat: not an enrolment.
        EnrolmentRefused: its identity did not sign it, is of another name, or it names no usable node key.
    Guarantees:
        Whoever wrote it holds both signing keys of the identity. Nothing says that the name is theirs.
    Proved by: tests/attacks/test_enrolment.py::test_nobody_enrols_with_the_identity_of_another_site
    """
    unverified, enrolment = parse_statement(
        line, Enrolment, payload_type=ENROLMENT_TYPE, where=where, max_bytes=MAX_ENROLMENT_BYTES
    )
    try:
        identity = read_identity(enrolment.identity.encode(), where=where)
        unverified.verify(identity.signing)
    except BadSignature:
        raise refused(where, "signed by other keys") from None
    except NotFedError as error:
        raise refused(where, f"an identity that is not one ({error.got})") from None
    if identity.name != enrolment.site:
        raise refused(where, "an identity of another name")
    try:
        node_key_id(enrolment.node_key)
    except (NotFedError, ValueError):
        raise refused(where, "a node key that is none") from None
    return enrolment, identity


def enrolment_fingerprint(line: bytes, *, where: str = "enrolment") -> str:
    """Federation, name and all keys of an enrolment, to be read out: 13 groups, as those of an identity.

    The same for two enrolments that say the same at another time, and another one when any key or name differs.
    """
    enrolment, identity = verify_enrolment(line, where=where)
    return spoken(
        b"not-fed/enrolment/v1", enrolment.federation.encode(), enrolment.site.encode(), identity.ed25519,
        identity.ml_dsa_65, recipient_key(identity.seal), enrolment.node_key.encode(),
    )  # fmt: skip


def refused(where: str, got: str) -> EnrolmentRefused:
    """The error for one observation."""
    return EnrolmentRefused(
        where=where, expected="an enrolment signed by the identity in it, with a key for its connection", got=got,
        hint="ask the site for another copy; nobody was enrolled",
    )  # fmt: skip


__all__ = [
    "ENROLMENT_TYPE", "MAX_ENROLMENT_BYTES", "Enrolment", "EnrolmentRefused", "enrolment_fingerprint", "new_enrolment",
    "sign_enrolment", "verify_enrolment",
]  # fmt: skip
