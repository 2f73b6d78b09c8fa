"""Signed statements: a DSSE line whose payload has an exact shape, from a member of the roster.

The shape is checked before anything in it is used, even to look up who claims to have signed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, StringConstraints, ValidationError

from not_fed import canonical
from not_fed.errors import TrustError
from not_fed.keys import dsse
from not_fed.keys.dsse import BadSignature, MalformedSigned, NewerFormat
from not_fed.keys.identity import NAME
from not_fed.keys.signing import Signer
from not_fed.trust.members import CLOCK_SKEW, Sha256

__all__ = [
    "MAX_VALIDITY",
    "BadSignature",
    "MalformedSigned",
    "Moment",
    "Name",
    "NewerFormat",
    "Sha256",
    "Stale",
    "Statement",
    "check_validity",
    "parse_statement",
    "sign_statement",
]  # fmt: skip


MAX_VALIDITY = timedelta(days=92)


class Stale(TrustError):
    """Its time is over, or has not begun: an old message may have been played back."""

    code = "not-current"


def _moment(value: Any) -> datetime:  # noqa: ANN401  pydantic hands over whatever was there
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(microsecond=0)
    if not isinstance(value, str):
        raise ValueError("a time is text")
    return canonical.parse_time(value)


Moment = Annotated[datetime, BeforeValidator(_moment), PlainSerializer(canonical.format_time)]
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME.pattern}\z")]
_Model = TypeVar("_Model", bound="Statement")
_FIELD = re.compile(r"[a-zA-Z_][a-z0-9_]{0,23}")


class Statement(BaseModel):
    """A payload with an exact set of fields and types: nothing is converted, nothing extra is let through."""

    model_config = ConfigDict(
        defer_build=True, strict=True, frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    def to_payload(self) -> bytes:
        """The bytes that get signed."""
        return canonical.dumps(self.model_dump(mode="json", by_alias=True))

    @classmethod
    def from_payload(cls, payload: bytes, *, where: str) -> Self:
        """Parse, strictly; raises MalformedSigned. The content is a claim until its signatures are checked."""
        try:
            value = canonical.loads(payload, where=where)
            return cls.model_validate_json(canonical.dumps(value), by_alias=True, by_name=False)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(_plain(part) for part in first["loc"][:4]) or "the whole"
            raise MalformedSigned.because(f"field {field}: {first['type']}", where=where) from None
        except (canonical.BadJson, ValueError) as error:
            got = error.got if isinstance(error, canonical.BadJson) else "values of another kind"
            raise MalformedSigned.because(got, where=where) from None


def _plain(part: int | str) -> str:
    """A step on the way to a field, for a message; a name that others chose freely is not repeated."""
    return str(part) if isinstance(part, int) or _FIELD.fullmatch(part) else "?"


def sign_statement(statement: Statement, *, payload_type: str, signer: Signer) -> bytes:
    """The signed line, without a line feed."""
    return dsse.sign(statement.to_payload(), payload_type=payload_type, signer=signer)


def parse_statement(
    line: bytes, model: type[_Model], *, payload_type: str, where: str, max_bytes: int
) -> tuple[dsse.Unverified, _Model]:
    """The envelope and its parsed payload, neither verified yet; raises MalformedSigned or NewerFormat."""
    unverified = dsse.parse(line, payload_type=payload_type, where=where, max_bytes=max_bytes)
    return unverified, model.from_payload(unverified.payload, where=where)


def check_validity(*, issued: datetime, expires: datetime, now: datetime, where: str) -> None:
    """Raises Stale unless issued <= now < expires, give or take a clock that is five minutes off.

    And unless it is valid for at most a quarter. Former keys still sign for their own time, so whoever stole them can
    write an earlier date: a quarter after the change of keys, nothing that they sign is current any more.
    """
    short = timedelta(0) < expires - issued <= MAX_VALIDITY
    if short and issued - now <= CLOCK_SKEW and now - expires < CLOCK_SKEW:
        return  # differences: a sum would overflow at the end of the calendar, which others may write
    raise Stale(
        where=where,
        expected=f"a validity of at most {MAX_VALIDITY.days} days, with {canonical.format_time(now)} in it",
        got=f"{canonical.format_time(issued)} to {canonical.format_time(expires)}",
        hint="nothing was opened; ask for it to be sealed again, and check this machine's clock",
    )  # fmt: skip
