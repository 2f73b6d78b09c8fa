"""The passport: what an organ's author claims about it, signed, the same for every recipient.

An in-toto Statement v1 whose subject is the organ's digest and whose predicate is `urn:not-fed:passport:v1`. A signed
epsilon is a claim and not a proof; the mechanism beside it is all that the number was computed from.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from not_fed import canonical, files
from not_fed.envelope import manifest as manifests
from not_fed.envelope.claims import (
    MAX_RELEASES,
    AuditResult,
    BadClaim,
    Count,
    DpClaim,
    Number,
    NumberName,
    Release,
    check_releases,
    ledger_head_from_training,
    promise,
    releases_from_training,
)
from not_fed.envelope.dsse import MalformedSigned, Moment, Name, NewerFormat, Sha256, Stale, Statement
from not_fed.envelope.header import check_organ_header
from not_fed.envelope.summing import Contribution
from not_fed.keys import dsse
from not_fed.keys.signing import Signer
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:not-fed:passport:v1"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_PASSPORT_BYTES = 1 << 20
AUTHOR_ROLES = ("author", "aggregator")

MAX_ROUND = 1 << 31
Round = Annotated[int, Field(ge=0, le=MAX_ROUND)]


class Contributor(Statement):
    """One site behind an aggregate whose organs nobody has: what it signed, and the epsilon that it claims.

    Attributes:
        upload_sha256: digest of its signed upload to the secure sum.
        epsilon, delta, unit: its own claim; None where it trained without differential privacy.
    """

    site: Name
    upload_sha256: Sha256
    epsilon: float | None
    delta: float | None
    unit: Literal["record", "person"] | None

    @model_validator(mode="after")
    def _a_claim_is_whole(self) -> Self:
        if len({value is None for value in (self.epsilon, self.delta, self.unit)}) != 1:
            raise ValueError("epsilon, delta and unit, or none of them")
        return self

    def __str__(self) -> str:
        """The site and its claim, in one line."""
        if self.epsilon is None or self.delta is None or self.unit is None:
            return f"{self.site}, no differential privacy claimed"
        return f"{self.site}, {promise(self.epsilon, delta=self.delta, unit=self.unit)}"


class Passport(Statement):
    """What the author claims. Unknown fields are ignored, here alone, as in-toto asks of consumers.

    Attributes:
        metrics: numbers measured on text that is nobody's secret.
        releases: every number computed from the private records that left beside the organ, and how.
        contributors: the sites behind a secure sum, each with its own claim: `dp` is the weakest of them.
        ledger_head: the newest row of the author's privacy ledger when the organ was made; an older ledger that is put
            back does not have it.
    """

    model_config = ConfigDict(extra="ignore")

    author: Name
    federation: Name
    round: Round
    organ_sha256: Sha256
    organ_size_bytes: Count
    base_sha256: Sha256
    span: tuple[manifests.Layer, manifests.Layer]
    family: manifests.Family
    parents: Annotated[tuple[Sha256, ...], Field(max_length=4096)] = ()
    dp: DpClaim | None
    audit: AuditResult | None = None
    metrics: Annotated[dict[NumberName, Number], Field(max_length=64)]
    releases: Annotated[tuple[Release, ...], Field(max_length=MAX_RELEASES)] = ()
    ledger_head: Sha256 | None = None
    contributors: Annotated[tuple[Contributor, ...], Field(max_length=250)] = ()
    created: Moment
    sharing: Literal["addressees", "federation"]
    salt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\z")]
    signature_policy: Literal["ed25519+ml-dsa-65"] = "ed25519+ml-dsa-65"

    @model_validator(mode="after")
    def _span_has_layers(self) -> Self:
        if self.span[0] >= self.span[1]:
            raise ValueError("a span of at least one layer")
        return self

    @model_validator(mode="after")
    def _noise_is_charged(self) -> Self:
        check_releases(self.releases, self.dp)
        return self

    def to_payload(self) -> bytes:
        """The in-toto statement."""
        predicate = self.model_dump(mode="json")
        digest = predicate.pop("organ_sha256")
        if not self.contributors:  # as passports were before there were any
            del predicate["contributors"]
        return canonical.dumps({
            "_type": STATEMENT_TYPE, "predicateType": PREDICATE_TYPE, "predicate": predicate,
            "subject": [{"name": "organ", "digest": {"sha256": digest}}],
        })  # fmt: skip


class _Digest(Statement):
    sha256: Sha256


class _Subject(Statement):
    name: Literal["organ"]
    digest: _Digest


class _InToto(Statement):
    statement_type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[list[_Subject], Field(min_length=1, max_length=1)]
    predicate_type: Annotated[str, Field(alias="predicateType")]
    predicate: dict[str, Any]


def new_passport(
    organ: Path, *, author: str, federation: str, round_number: int, now: datetime,
    metrics: Mapping[str, float] | None = None, public: Mapping[str, float] | None = None,
    sharing: Literal["addressees", "federation"] = "addressees", organ_sha256: str | None = None,
    contributors: tuple[Contributor, ...] = (),
) -> Passport:  # fmt: skip
    """A passport for an organ file, unsigned, from what its own manifest says.

    Args:
        round_number: 0 outside of a federation's rounds.
        metrics: what the author measured on text that is nobody's secret.
        public: numbers computed from the private records that the site's policy names as public. Those with noise
            come from the manifest, as claim, audit and ledger head do.
        sharing: whether a recipient may pass it on within the federation, or only the addressees may have it.
        organ_sha256: the file's digest when the caller has just computed it.
        contributors: the sites behind a secure sum.
    Raises:
        BadTensorHeader, NotAnOrgan, BadClaim, NotAFile.
    """
    with files.open_regular(organ) as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        manifest = manifests.read_manifest(check_organ_header(file, size_bytes, where=organ.name), where=organ.name)
    try:
        return Passport(
            author=author, federation=federation, round=round_number, organ_sha256=organ_sha256 or files.sha256(organ),
            organ_size_bytes=size_bytes, base_sha256=manifest.base_sha256, span=manifest.span, family=manifest.family,
            parents=tuple(manifest.parents), dp=DpClaim.from_training(manifest.training),
            audit=AuditResult.from_training(manifest.training), metrics=dict(metrics or {}),
            releases=releases_from_training(manifest.training) + _public(public or {}),
            ledger_head=ledger_head_from_training(manifest.training), contributors=contributors, created=now,
            sharing=sharing, salt=secrets.token_hex(16),
        )  # fmt: skip
    except ValidationError as error:
        field = next(iter(error.errors(include_input=False)[0]["loc"]), "releases")
        raise BadClaim(
            where=f"passport, field {field}", expected="what docs/format.md allows", got="something else",
            hint="names are plain, rounds small whole numbers, metrics finite",
        ) from None  # fmt: skip


def contributors_of(uploads: Mapping[str, tuple[str, Contribution]]) -> tuple[Contributor, ...]:
    """How a passport lists the sites behind a secure sum; `uploads` has the digest and the claim of each."""
    return tuple(
        Contributor(
            site=site, upload_sha256=digest, epsilon=one.dp.epsilon if one.dp else None,
            delta=one.dp.delta if one.dp else None, unit=one.dp.unit if one.dp else None,
        )
        for site, (digest, one) in sorted(uploads.items())
    )  # fmt: skip


def _public(numbers: Mapping[str, float]) -> tuple[Release, ...]:
    return tuple(Release(name=name, value=float(value), how="public") for name, value in sorted(numbers.items()))


def issue_passport(passport: Passport, *, signer: Signer) -> bytes:
    """The signed passport, one line without a line feed; `signer` must be its author."""
    if signer.name != passport.author:
        raise BadClaim(
            where="passport", expected=f"keys of {passport.author}", got=f"of {signer.name}", hint="sign your own"
        )
    return dsse.sign(passport.to_payload(), payload_type=PAYLOAD_TYPE, signer=signer)


def parse_passport(line: bytes) -> tuple[dsse.Unverified, Passport]:
    """The envelope and what it claims, unverified; raises MalformedSigned or NewerFormat."""
    unverified = dsse.parse(line, payload_type=PAYLOAD_TYPE, where="passport", max_bytes=MAX_PASSPORT_BYTES)
    statement = _InToto.from_payload(unverified.payload, where="passport")
    if statement.predicate_type != PREDICATE_TYPE:
        if statement.predicate_type.startswith("urn:not-fed:passport:v"):
            raise NewerFormat(
                where="passport", expected=PREDICATE_TYPE, got="another version of it", hint="update not-fed"
            )
        raise MalformedSigned.because("another predicate", where="passport", expected=PREDICATE_TYPE)
    flat = {**statement.predicate, "organ_sha256": statement.subject[0].digest.sha256}
    return unverified, Passport.from_payload(canonical.dumps(flat), where="passport, predicate")


def read_passport(
    line: bytes, *, roster: TrustedRoster, now: datetime, logged_at: datetime | None = None
) -> Passport:  # fmt: skip
    """A passport whose author is on the roster and signed it, with the keys that were the author's at that time.

    Args:
        logged_at: when a log had it at the latest. An author whose time on the roster is over since, and who was not
            revoked, is still the author of what it made before.
    Raises:
        MalformedSigned, NewerFormat, BadSignature, KeysRetired; UnknownMember, MemberNotActive, WrongRole.
        Stale: made after now, or after it was logged.
    """
    unverified, passport = parse_passport(line)
    moment = logged_at or now
    author = roster.member(passport.author, role=AUTHOR_ROLES, now=moment)
    unverified.verify(author.signing_for(unverified.key_ids, at=passport.created))
    if passport.created - moment > CLOCK_SKEW:
        raise Stale(
            where="passport, field created", expected=f"at most {canonical.format_time(moment)}",
            got=canonical.format_time(passport.created), hint="nothing was opened; check this machine's clock",
        )  # fmt: skip
    return passport
