"""The signed papers of a secure sum: the call, a site's key for one round, its upload, its partial sum, its shares.

Each is an exact statement under both signatures of its site; the call travels inside the coordinator's signed task.
Whatever a paper says is bound to its call, and the call to federation, root-signed plan, round, start and cohort.
Source: docs/secure-sum.md, which goes through them message by message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, model_validator

from not_fed import canonical
from not_fed.age import BadKeyText
from not_fed.age.hybrid import public_key
from not_fed.envelope.claims import MAX_RELEASES, AuditResult, DpClaim, Release, check_releases
from not_fed.envelope.dsse import Moment, Name, Sha256, Statement, check_validity, parse_statement, sign_statement
from not_fed.errors import TrustError
from not_fed.keys import Signer
from not_fed.trust.members import TrustedRoster
from not_fed.trust.plans import MAX_SITES

ROUND_KEY_TYPE = "application/vnd.not-fed.round-key.v1+json"
UPLOAD_TYPE = "application/vnd.not-fed.sum-upload.v1+json"
PARTIAL_TYPE = "application/vnd.not-fed.sum-partial.v1+json"
SHARES_TYPE = "application/vnd.not-fed.sum-shares.v1+json"
MAX_KEY_BYTES, MAX_UPLOAD_BYTES, MAX_PARTIAL_BYTES, MAX_SHARES_BYTES = 16 << 10, 256 << 10, 16 << 10, 8 << 20
KEY_VALIDITY = timedelta(days=31)
PUBLIC_KEY_BYTES = 1216
TAG = b"not-fed/secsum/v1"
VECTOR_HEAD = b"not-fed words/1\n"  # before the words, so that a relay knows what it stores; 16 bytes, to stay aligned

_KeyText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{1622}==\z")]
_Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_SITES)]
_Digests = Annotated[dict[Name, Sha256], Field(min_length=1, max_length=MAX_SITES)]


class BadSumPaper(TrustError):
    """A paper of a secure sum is not what its call asks for, or not by whom it names."""

    code = "bad-sum-paper"


class KeyRef(Statement):
    """Which of a site's one-round keys the others seal to."""

    site: Name
    key_sha256: Sha256


class SumCall(Statement):
    """What every answer of one secure sum is bound to; the same for every site.

    Attributes:
        plan_sha256: of the plan in the roster.
        start_sha256: digest of the organ that everybody starts from; of the base's own span in the first round.
        parameters: how many numbers an update has.
        cohort: who takes part, by name.
    """

    v: Literal[1]
    plan_sha256: Sha256
    federation: Name
    run: Name
    round: int = Field(ge=1, le=10_000)
    start_sha256: Sha256
    parameters: int = Field(ge=1, lt=1 << 40)
    cohort: Annotated[tuple[KeyRef, ...], Field(min_length=1, max_length=MAX_SITES)]

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        names = self.names
        if names != sorted(set(names)) or len({one.key_sha256 for one in self.cohort}) != len(names):
            raise ValueError("sites, sorted, each once, each with a key of its own")
        return self

    @property
    def names(self) -> list[str]:
        """The cohort's sites, sorted."""
        return [one.site for one in self.cohort]

    @property
    def sha256(self) -> str:
        """How papers name this call."""
        return hashlib.sha256(encode(TAG, b"call", canonical.dumps(self.model_dump(mode="json")))).hexdigest()

    def helpers(self, count: int) -> list[str]:
        """The `count` sites of the cohort that carry masks, sorted: the same whenever the same start is tried again.

        Who they are follows from federation, plan, start and names, so that the load rotates with each new start and
        a second call from the same start asks the very sites that remember the first.
        """
        start = (self.federation.encode(), self.plan_sha256.encode(), self.start_sha256.encode())
        rank = {name: hashlib.sha256(encode(TAG, b"helper", *start, name.encode())).digest() for name in self.names}
        return sorted(sorted(self.names, key=lambda name: rank[name])[:count])


class RoundKey(Statement):
    """A site's sealing key for one secure sum: used for one call, then forgotten, so that old traffic stays closed.

    Attributes:
        number: counts a site's keys.
        public: the raw hybrid key (ML-KEM-768 and X25519), base64.
    """

    v: Literal[1]
    federation: Name
    site: Name
    number: int = Field(ge=1, lt=1 << 53)
    public: _KeyText
    issued: Moment
    expires: Moment

    def public_bytes(self) -> bytes:
        """The raw key; raises BadSumPaper."""
        try:
            return base64.b64decode(self.public, validate=True)
        except binascii.Error:
            raise bad_paper("key of one round", "base64 of a hybrid key", "something else") from None


class Contribution(Statement):
    """What a site claims about its update: what a passport says of an organ, without naming the organ."""

    dp: DpClaim | None
    audit: AuditResult | None = None
    releases: Annotated[tuple[Release, ...], Field(max_length=MAX_RELEASES)] = ()
    ledger_head: Sha256 | None = None

    @model_validator(mode="after")
    def _noise_is_charged(self) -> Self:
        check_releases(self.releases, self.dp)
        return self


class Upload(Statement):
    """A site's label on its masked vector.

    Attributes:
        vector_sha256: of the masked words, little-endian, as they travel.
        capsules: site -> digest of the sealed capsule for it.
        commitments: helper -> commitment to the seed that only it gets.
        blind: commitment to the key of this site's blinding mask, in a blind sum.
    """

    call_sha256: Sha256
    sender: Annotated[Name, Field(alias="from")]
    vector_sha256: Sha256
    capsules: _Digests
    commitments: _Digests
    blind: Sha256 | None
    contribution: Contribution


class Partial(Statement):
    """A helper's label on the sum of the masks that it carries for one set of sites."""

    call_sha256: Sha256
    sender: Annotated[Name, Field(alias="from")]
    active_sha256: Sha256
    vector_sha256: Sha256


class Shares(Statement):
    """A site's shares of the seeds of lost helpers: uploader -> helper -> share (hexadecimal)."""

    call_sha256: Sha256
    sender: Annotated[Name, Field(alias="from")]
    active_sha256: Sha256
    missing: _Names
    shares: Annotated[
        dict[Name, Annotated[dict[Name, Sha256], Field(max_length=MAX_SITES)]], Field(max_length=MAX_SITES)
    ]


_Paper = TypeVar("_Paper", Upload, Partial, Shares)
_LIMITS: Mapping[type[Statement], tuple[str, str, int]] = {
    Upload: (UPLOAD_TYPE, "upload of a secure sum", MAX_UPLOAD_BYTES),
    Partial: (PARTIAL_TYPE, "partial sum", MAX_PARTIAL_BYTES),
    Shares: (SHARES_TYPE, "shares of a secure sum", MAX_SHARES_BYTES),
}


def encode(*parts: bytes) -> bytes:
    """An injective encoding: each part behind its length, so that no two lists of parts give the same bytes.

    >>> encode(b"a", b"bc") == encode(b"ab", b"c")
    False
    """
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def active_sha256(call_sha256: str, labels: Sequence[bytes]) -> str:
    """How partial sums and shares name the set of uploads that is summed: by call and signed labels, in any order."""
    digests = sorted(hashlib.sha256(label).digest() for label in labels)
    return hashlib.sha256(encode(TAG, b"active", call_sha256.encode(), *digests)).hexdigest()


def start_sha256(base_sha256: str, organs: Mapping[tuple[int, int], str]) -> str:
    """How a call names what everybody trains from: the base, and by their layers the organs that lie in it by now.

    Args:
        organs: (start, stop) -> digest of the organ file.
    """
    placed = [part for (start, stop), digest in sorted(organs.items()) for part in (f"{start}:{stop}", digest)]
    return hashlib.sha256(encode(TAG, b"start", base_sha256.encode(), *(part.encode() for part in placed))).hexdigest()


def sign_paper(paper: _Paper, *, signer: Signer) -> bytes:
    """The signed line of an upload, a partial sum or shares."""
    return sign_statement(paper, payload_type=_LIMITS[type(paper)][0], signer=signer)


def verify_paper(
    line: bytes, kind: type[_Paper], *, call: SumCall, site: str | None, roster: TrustedRoster, now: datetime
) -> _Paper:
    """The paper, once its site, its signatures and its call are checked.

    Args:
        site: who must have signed it; anybody of the cohort when not given.
    Raises:
        MalformedSigned, BadSignature, BadSumPaper; UnknownMember, MemberNotActive, WrongRole.
    """
    payload_type, where, max_bytes = _LIMITS[kind]
    unverified, paper = parse_statement(line, kind, payload_type=payload_type, where=where, max_bytes=max_bytes)
    if paper.sender not in call.names or site not in (None, paper.sender):
        raise bad_paper(where, f"one from {site or 'a site of the cohort'}", f"one from {paper.sender}")
    unverified.verify(roster.member(paper.sender, role="author", now=now).signing)
    if paper.call_sha256 != call.sha256:
        raise bad_paper(where, f"one for call {call.sha256[:12]}", f"one for call {paper.call_sha256[:12]}")
    return paper


def sign_round_key(key: RoundKey, *, signer: Signer) -> bytes:
    """The signed line."""
    return sign_statement(key, payload_type=ROUND_KEY_TYPE, signer=signer)


def verify_round_key(line: bytes, *, site: str, roster: TrustedRoster, now: datetime) -> RoundKey:
    """A site's key for one round; raises as `verify_paper`, and Stale."""
    where = f"key of one round, of {site}"
    unverified, key = parse_statement(line, RoundKey, payload_type=ROUND_KEY_TYPE, where=where, max_bytes=MAX_KEY_BYTES)
    unverified.verify(roster.member(site, role="author", now=now).signing)
    if (key.site, key.federation) != (site, roster.federation):
        raise bad_paper(where, f"one of {site} in {roster.federation}", f"one of {key.site} in {key.federation}")
    check_validity(issued=key.issued, expires=key.expires, now=now, where=where)
    try:
        public_key(key.public_bytes())
    except BadKeyText:
        raise bad_paper(where, "a key that something can be sealed to", "none") from None
    return key


def bad_paper(where: str, expected: str, got: str, *, hint: str = "nothing was sent or added") -> BadSumPaper:
    """The error, in one line."""
    return BadSumPaper(where=where, expected=expected, got=got, hint=hint)
