"""What a coordinator hands to a site that is to join: where it is, how its certificate is checked, what it plans.

An invitation is not signed: nobody knows a key yet under which its signature would say anything. The two administrators
compare its fingerprint over another channel than it came. A site's own policy decides about all that it proposes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from not_fed import canonical, files
from not_fed.envelope.dsse import MalformedSigned, Name, Sha256, Statement
from not_fed.envelope.enrolment import Version
from not_fed.envelope.task import Mode, ProposedPrivacy
from not_fed.errors import InputError
from not_fed.keys.identity import spoken

MAX_INVITATION_BYTES = 64 << 10
SUFFIX = ".invitation"
_ADDRESS = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}"


class BadInvitation(InputError):
    """This is not an invitation of a coordinator."""

    code = "bad-invitation"


class BadAddress(InputError):
    """This is not a host and a port."""

    code = "bad-address"


Address = Annotated[str, StringConstraints(pattern=rf"^{_ADDRESS}\z")]


class Invitation(Statement):
    """What a site needs to know before it can join.

    Attributes:
        address: host:port of the coordinator's gateway.
        ca_certificate: PEM of the authority that signed the gateway's certificate; None: one that every machine knows.
        bundle_sha256: digest of the only bundle that the site is asked to accept.
        base: the base model, a name or a hub id; base_sha256 is what counts.
        privacy: what each run will ask for; None: no differential privacy.
    """

    v: Literal[1]
    federation: Name
    coordinator: Name
    address: Address
    ca_certificate: Annotated[str, StringConstraints(max_length=16 << 10)] | None
    bundle_sha256: Sha256
    base: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    base_sha256: Sha256
    spans: tuple[tuple[int, int], ...] = Field(min_length=1, max_length=64)
    mode: Mode
    rounds: int = Field(ge=1, le=10_000)
    privacy: ProposedPrivacy | None
    not_fed: Version

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(not 0 <= start < stop for start, stop in self.spans):
            raise ValueError("each span [start, stop] with 0 <= start < stop")
        return self


def write_invitation(invitation: Invitation, *, out: Path, overwrite: bool = False) -> str:
    """Write it and return its fingerprint; raises OutputExists."""
    data = invitation.to_payload() + b"\n"
    files.write_atomic(out, data, overwrite=overwrite, mode=0o644)
    return invitation_fingerprint(data)


def read_invitation(path: Path) -> Invitation:
    """The invitation in a file, a claim until its fingerprint was compared.

    Raises:
        NotAFile, FileTooLarge; BadInvitation: anything else than one canonical object of this shape.
    """
    data = files.read_regular(path, max_bytes=MAX_INVITATION_BYTES)
    try:
        invitation = Invitation.from_payload(data, where=path.name)
    except MalformedSigned as error:
        raise _bad(path.name, error.got) from None
    if data != invitation.to_payload() + b"\n":  # two files that say the same would have two fingerprints
        raise _bad(path.name, "another spelling of one")
    return invitation


def invitation_fingerprint(data: bytes) -> str:
    """A file's content in 13 groups of 4 letters and digits, to be read out over the telephone."""
    return spoken(b"not-fed/invitation/v1", data)


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of `host:port`; raises BadAddress."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(_ADDRESS, address) or int(port) >= 1 << 16:
        raise BadAddress(
            where="address", expected="host:port", got=canonical.dumps(address[:80]).decode(),
            hint="for example hub.example.org:8443",
        )  # fmt: skip
    return host.strip("[]"), int(port)


def _bad(where: str, got: str) -> BadInvitation:
    return BadInvitation(
        where=where,
        expected="what `not-fed coordinator init` wrote",
        got=got,
        hint="ask the coordinator for another copy",
    )
