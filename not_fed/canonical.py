"""JSON that two readers cannot read differently: strict on the way in, one spelling on the way out.

In: UTF-8 without errors, no duplicate keys at any depth, no NaN or Infinity, a depth limit, no surprises from huge
integers. Out: sorted keys, no spaces. Signatures are over bytes (DSSE), so nobody ever re-serialises to verify.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

from not_fed.errors import InputError

MAX_DEPTH = 16
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive: an open string costs one pass, not n
_NO_BRACKETS = re.compile(r"[^\[{\]}]+")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character; we write UTF-8 and never need the escape
MAX_DIGITS = 19  # 64-bit integers, and no quadratic parsing of five thousand digits


_TIME = "%Y-%m-%dT%H:%M:%SZ"


class BadJson(InputError):
    """This is not strict JSON."""

    code = "bad-json"


def dumps(value: object) -> bytes:
    """Canonical bytes: sorted keys, no spaces, UTF-8, one line. Raises ValueError on NaN or Infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def loads(data: bytes, *, where: str) -> Any:  # noqa: ANN401  JSON has no narrower type
    """Parse strict JSON.

    Args:
        data: the bytes; the caller has capped their length.
        where: what they are, for the error.
    Raises:
        BadJson: anything that is not strict JSON; no other exception escapes.
    """
    try:
        text = data.decode("utf-8", "strict")
        _check_depth(text)
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_short_int,
                          parse_float=_finite)  # fmt: skip
    except (ValueError, RecursionError) as error:
        reason = "bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else _reason(error)
        raise BadJson(where=where, expected="strict JSON", got=reason, hint="the file is damaged or not ours") from None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.lower()} at character {error.pos}"  # the message never quotes the document
    return str(error) if isinstance(error, _Refused) else "something else"


class _Refused(ValueError):
    pass


def _check_depth(text: str) -> None:
    """Counts brackets outside strings; json.loads itself would recurse first."""
    if _SURROGATE.search(text):
        raise _Refused("an escaped surrogate")
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for mark in _NO_BRACKETS.sub("", _STRING.sub("", text)):
        depth += 1 if mark in "[{" else -1
        if depth > MAX_DEPTH:
            raise _Refused(f"nesting deeper than {MAX_DEPTH}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Refused("a duplicate key")
    return value


def _no_constant(name: str) -> None:
    raise _Refused(f"the constant {name}")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):  # 1e999 is infinity without saying so
        raise _Refused("a number too large for a float")
    return value


def _short_int(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise _Refused(f"an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def format_time(moment: datetime) -> str:
    """The one spelling of a time in signed objects: UTC, whole seconds, `2026-11-24T09:30:00Z`."""
    return moment.astimezone(UTC).strftime(_TIME)


def parse_time(text: str) -> datetime:
    """The moment behind that spelling; raises ValueError for any other."""
    try:
        moment = datetime.fromisoformat(text)  # a tenth of what strptime costs, and a roster has hundreds of times
    except ValueError:
        moment = None
    if moment is None or moment.strftime(_TIME) != text:
        raise ValueError("a time in another spelling")
    return moment
