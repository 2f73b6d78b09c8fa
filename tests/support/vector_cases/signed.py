"""Signed lines and payloads with a fault of shape. The tests sign payloads on the spot: the shape is checked first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.second_writer import LEFT_OUT, Draft
from tests.support.vector_cases.base import (
    AUDIT,
    CHARGED,
    DP,
    FOUND,
    NOISED,
    PERSON,
    PUBLIC,
    Change,
    fields,
    loosely,
    payload_of,
    swap,
)

Kind = Literal["waybill", "passport", "label"]


@dataclass(frozen=True, kw_only=True)
class SignedCase:
    """A payload, or a line where the fault lies in the line; `code` is None when there is none."""

    name: str
    about: str
    kind: Kind
    code: str | None = "signed-malformed"
    payload: bytes | None = None
    line: bytes | None = None


def cases() -> Iterator[SignedCase]:
    """Every rule of lines, JSON and shapes."""
    for name, about, change in LINES:
        made = Draft(edit_waybill=change)
        yield SignedCase(name=f"line-{name}", about=about, kind="waybill", line=made.waybill_line(made.passport_line()))
    for kind, name, about, change in SHAPES:
        yield SignedCase(name=f"{kind}-{name}", about=about, kind=kind, payload=change(honest(kind)))
    for kind, name, about, change in WELL_FORMED:
        yield SignedCase(name=f"{kind}-{name}", about=about, kind=kind, code=None, payload=change(honest(kind)))


def honest(kind: Kind) -> bytes:
    """A payload without a fault."""
    draft = Draft(label={})
    passport = draft.passport_line()
    lines = {"passport": passport, "waybill": draft.waybill_line(passport), "label": draft.label_line(bytes(99)) or b""}
    return payload_of(lines[kind])


def put(**changed: Any) -> Change:  # noqa: ANN401
    """Replace or leave out fields; `sender` stands for `from`."""
    named = {"from" if name == "sender" else name: value for name, value in changed.items()}

    def change(value: dict[str, Any]) -> dict[str, Any]:
        return {name: item for name, item in (value | named).items() if item != LEFT_OUT}

    return fields(change)


def person(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
    """The claim for people with another mechanism."""
    return PERSON | {"mechanism": PERSON["mechanism"] | changed}


def predicate(**changed: Any) -> Change:  # noqa: ANN401
    """The same within a passport's predicate."""

    def change(value: dict[str, Any]) -> dict[str, Any]:
        inner = {name: item for name, item in (value["predicate"] | changed).items() if item != LEFT_OUT}
        return value | {"predicate": inner}

    return fields(change)


def statement(**changed: Any) -> Change:  # noqa: ANN401
    """The same outside of it."""
    return put(**{"_type" if name == "kind" else name: value for name, value in changed.items()})


def signature(place: int, **changed: Any) -> Change:  # noqa: ANN401
    """The same within a signature."""
    return fields(lambda value: value["signatures"][place].update(changed))


def reordered(line: bytes) -> bytes:
    """payloadType before payload."""
    value = json.loads(line)
    return json.dumps({"payloadType": value["payloadType"], **value}, separators=(",", ":")).encode()


def unpadded(line: bytes) -> bytes:
    """A signature without its padding."""
    value = json.loads(line)
    return signature(0, sig=value["signatures"][0]["sig"].rstrip("="))(line)


def url_alphabet(line: bytes) -> bytes:
    """A signature in base64url."""
    value = json.loads(line)
    return signature(1, sig="-_" + value["signatures"][1]["sig"][2:])(line)


def without(claim: dict[str, Any], name: str) -> dict[str, Any]:
    """A claim without a field."""
    return {key: value for key, value in claim.items() if key != name}


def ignored(value: bytes) -> Change:
    """A field of the predicate that nobody looks at."""
    return lambda body: body.replace(b'"author"', b'"x":' + value + b',"author"', 1)


# fmt: off
LINES: list[tuple[str, str, Change]] = [
    ("empty", "Nothing.", lambda line: b""),
    ("not-json", "Text.", lambda line: b"hello"),
    ("a-list", "A list.", lambda line: b"[]"),
    ("white-space", "A space after a colon.", swap('":"', '": "')),
    ("white-space-after", "A space after the object.", lambda line: line + b" "),
    ("carriage-return", "A CR before the LF.", lambda line: line + b"\r"),
    ("key-order", "payloadType before payload.", reordered),
    ("escaped", "An escape that is not needed.", swap("application/", "application\\/")),
    ("duplicate-key", "payloadType twice.", swap('"payloadType"', '"payloadType":"x","payloadType"')),
    ("extra-field", "A field more.", fields(lambda v: v | {"more": 1})),
    ("no-signature", "An empty list.", fields(lambda v: v | {"signatures": []})),
    ("signatures-an-object", "An object for the list.", fields(lambda v: v | {"signatures": {"a": 1, "b": 2}})),
    ("signature-extra-field", "A field more in a signature.", signature(0, alg="x")),
    ("signature-a-number", "A number for a signature.", signature(1, sig=7)),
    ("keyid-null", "null for a key.", signature(0, keyid=None)),
    ("signature-unpadded", "base64 without its padding.", unpadded),
    ("signature-url-alphabet", "base64url.", url_alphabet),
    ("payload-not-canonical", "Unused bits that are not zero.", fields(lambda v: v | {"payload": "e31="})),
    ("payload-an-object", "The payload itself, not encoded.", fields(lambda v: v | {"payload": {}})),
    ("type-a-list", "A list for the type.", fields(lambda v: v | {"payloadType": []})),
    ("type-without-version", "waybill+json.", swap(".waybill.v1+json", ".waybill+json")),
]
TOO_MANY = {f"r{number}": "ab" * 32 for number in range(251)}
SHAPES: list[tuple[Kind, str, str, Change]] = [
    ("waybill", "null-field", "null for a number.", put(pad=None)),
    ("waybill", "duplicate-key", "round twice.", swap('"round":3', '"round":3,"round":3')),
    ("waybill", "duplicate-key-by-escape", "round twice, once with an escape.",
     swap('"round":3', '"round":3,"r\\u006fund":3')),
    ("waybill", "true-for-a-number", "round is true.", put(round=True)),
    ("waybill", "fraction-for-an-integer", "3.0.", put(round=3.0)),
    ("waybill", "exponent-for-an-integer", "3e0.", swap('"round":3', '"round":3e0')),
    ("waybill", "text-for-a-number", "Three in quotes.", put(round="3")),
    ("waybill", "round-negative", "-1.", put(round=-1)),
    ("waybill", "round-above-its-limit", "2^31 + 1.", put(round=(1 << 31) + 1)),
    ("waybill", "pad-negative", "-1.", put(pad=-1)),
    ("waybill", "pad-above-its-limit", "2^40 + 1.", put(pad=(1 << 40) + 1)),
    ("waybill", "integer-of-twenty-digits", "More than 19 digits.", swap('"pad":0', '"pad":10000000000000000000')),
    ("waybill", "nan", "NaN is not JSON.", swap('"pad":0', '"pad":NaN')),
    ("waybill", "infinity", "-Infinity is not JSON.", swap('"pad":0', '"pad":-Infinity')),
    ("waybill", "leading-zero", "03 is not JSON.", swap('"round":3', '"round":03')),
    ("waybill", "plus-sign", "+3 is not JSON.", swap('"round":3', '"round":+3')),
    ("waybill", "trailing-comma", "A comma before the last brace.", lambda body: body[:-1] + b",}"),
    ("waybill", "single-quotes", "'round'.", swap('"round"', "'round'")),
    ("waybill", "comment", "A comment.", swap('"round"', '/* */"round"')),
    ("waybill", "two-values", "Something after the object.", lambda body: body + b"{}"),
    ("waybill", "cut", "The last brace is missing.", lambda body: body[:-1]),
    ("waybill", "empty", "Nothing.", lambda body: b""),
    ("waybill", "nested-too-deep", "17 deep.", lambda body: body[:-1] + b',"x":' + b"[" * 16 + b"]" * 16 + b"}"),
    ("waybill", "nested-deep-enough-for-a-crash", "20,000 deep.", lambda body: b"[" * 20_000),
    ("waybill", "not-utf-8", "A byte that is not UTF-8.", lambda body: body.replace(b"clinic", b"clin\xff", 1)),
    ("waybill", "utf-16", "UTF-16.", lambda body: body.decode().encode("utf-16")),
    ("waybill", "overlong-utf-8", "A slash in two bytes.", lambda body: body.replace(b"clinic", b"cl\xc0\xafnic", 1)),
    ("waybill", "byte-order-mark", "UTF-8 with a byte order mark.", lambda body: b"\xef\xbb\xbf" + body),
    ("waybill", "surrogate", "Half a character.", swap("clinic", "\\ud800")),
    ("waybill", "surrogate-pair", "Both halves.", swap("clinic", "\\uD83D\\uDE00")),
    ("waybill", "control-character", "A raw line feed within a text.", swap("clinic", "clin\nic")),
    ("waybill", "unknown-escape", "A backslash and x.", swap("clinic", "clin\\x69c")),
    ("waybill", "a-list", "A list with the object.", lambda body: b"[" + body + b"]"),
    ("waybill", "name-with-a-space", "A name outside its alphabet.", put(sender="the clinic")),
    ("waybill", "name-too-long", "65 characters.", put(sender="c" * 65)),
    ("waybill", "name-empty", "No character.", put(sender="")),
    ("waybill", "name-with-a-line-feed", "A name and a line feed.", put(sender="clinic\n")),
    ("waybill", "name-beginning-with-a-dash", "-clinic.", put(sender="-clinic")),
    ("waybill", "name-not-ascii", "A letter that looks like c.", put(sender="\u0441linic")),
    ("waybill", "recipient-with-a-slash", "A name outside its alphabet.", put(to={"../hub": "ab" * 32})),
    ("waybill", "recipients-none", "No recipient.", put(to={})),
    ("waybill", "recipients-above-their-limit", "251.", put(to=TOO_MANY)),
    ("waybill", "recipients-a-list", "Names without keys.", put(to=["hub"])),
    ("waybill", "recipient-without-key", "null for a key.", put(to={"hub": None})),
    ("waybill", "id-upper-case", "Hex digits in upper case.", put(id="AB" * 16)),
    ("waybill", "id-with-a-line-feed", "32 digits and a line feed.", put(id="ab" * 16 + "\n")),
    ("waybill", "digest-short", "62 digits.", put(passport_sha256="ab" * 31)),
    ("waybill", "organ-extra-field", "A field more in organ.",
     put(organ={"sha256": "ab" * 32, "size_bytes": 5, "x": 1})),
    ("waybill", "organ-empty", "size_bytes is 0.", put(organ={"sha256": "ab" * 32, "size_bytes": 0})),
    ("waybill", "organ-a-list", "A list.", put(organ=["ab" * 32, 5])),
    ("waybill", "time-with-an-offset", "+00:00 for Z.", put(issued="2026-11-24T12:00:00+00:00")),
    ("waybill", "time-lower-case", "t and z.", put(issued="2026-11-24t12:00:00z")),
    ("waybill", "time-with-fractions", "Milliseconds.", put(issued="2026-11-24T12:00:00.000Z")),
    ("waybill", "time-without-zeros", "One digit for the hour.", put(issued="2026-11-24T9:00:00Z")),
    ("waybill", "time-that-is-none", "30 February.", put(issued="2026-02-30T12:00:00Z")),
    ("waybill", "time-leap-second", "Second 60.", put(issued="2026-11-24T11:59:60Z")),
    ("waybill", "time-before-the-year-1000", "Year 999.", put(issued="0999-11-24T12:00:00Z")),
    ("waybill", "time-a-number", "Seconds since 1970.", put(issued=1_795_000_000)),
    ("label", "extra-field", "A field more.", put(more=1)),
    ("label", "recipient-twice", "A recipient twice.", put(to=["hub", "hub"])),
    ("label", "recipients-none", "No recipient.", put(to=[])),
    ("label", "recipients-an-object", "As in a waybill.", put(to={"hub": "ab" * 32})),
    ("label", "recipients-above-their-limit", "251.", put(to=sorted(TOO_MANY))),
    ("label", "sealed-missing", "No digest.", put(sealed=LEFT_OUT)),
    ("label", "sealed-size-text", "A size in quotes.", put(sealed={"sha256": "ab" * 32, "size_bytes": "5"})),
    ("passport", "another-statement", "Statement v0.1.", statement(kind="https://in-toto.io/Statement/v0.1")),
    ("passport", "extra-field-outside", "A field more beside the predicate.", statement(more=1)),
    ("passport", "predicate-a-list", "A list.", statement(predicate=[])),
    ("passport", "subject-none", "No subject.", statement(subject=[])),
    ("passport", "subject-twice", "Two subjects.",
     statement(subject=[{"name": "organ", "digest": {"sha256": "ab" * 32}}] * 2)),
    ("passport", "subject-of-another-name", "model.",
     statement(subject=[{"name": "model", "digest": {"sha256": "ab" * 32}}])),
    ("passport", "subject-second-digest", "A second digest.",
     statement(subject=[{"name": "organ", "digest": {"sha256": "ab" * 32, "md5": "ab"}}])),
    ("passport", "sharing-unknown", "Everybody.", predicate(sharing="everybody")),
    ("passport", "dp-missing", "Not even null.", predicate(dp=LEFT_OUT)),
    ("passport", "span-empty", "[4, 4].", predicate(span=[4, 4])),
    ("passport", "span-backwards", "[4, 2].", predicate(span=[4, 2])),
    ("passport", "span-of-three", "Three numbers.", predicate(span=[2, 4, 6])),
    ("passport", "span-above-its-limit", "Layer 65,536.", predicate(span=[2, 65_536])),
    ("passport", "family-with-a-slash", "A family outside its alphabet.", predicate(family="llama/3")),
    ("passport", "metric-text", "A metric that is text.", predicate(metrics={"loss": "low"})),
    ("passport", "metric-boolean", "A metric that is true.", predicate(metrics={"loss": True})),
    ("passport", "metric-name", "A metric with an escape character.", predicate(metrics={"\x1b[31m": 1})),
    ("passport", "metric-above-its-limit", "1e31.", predicate(metrics={"loss": 1e31})),
    ("passport", "metric-infinite", "A number that is infinity as a double.", swap('"loss":2.5', '"loss":1e999')),
    ("passport", "metrics-above-their-limit", "65.", predicate(metrics={f"m{number}": 0 for number in range(65)})),
    ("passport", "dp-extra-field", "A field more in dp.", predicate(dp=DP | {"more": 1})),
    ("passport", "dp-unit-unknown", "A unit that is none.", predicate(dp=DP | {"unit": "site"})),
    ("passport", "dp-delta-one", "delta is 1.", predicate(dp=DP | {"delta": 1})),
    ("passport", "dp-epsilon-zero", "epsilon is 0.", predicate(dp=DP | {"epsilon": 0})),
    ("passport", "dp-epsilon-text", "epsilon in quotes.", predicate(dp=DP | {"epsilon": "3.1"})),
    ("passport", "dp-without-mechanism", "A number alone.", predicate(dp=without(DP, "mechanism"))),
    ("passport", "dp-accountant-empty", "No text.", predicate(dp=DP | {"accountant": ""})),
    ("passport", "audit-incomplete", "No confidence.", predicate(audit=without(AUDIT, "confidence"))),
    ("passport", "dp-several-records-of-one", "Four records in a unit of one record.",
     predicate(dp=PERSON | {"unit": "record"})),
    ("passport", "dp-release-twice", "A release twice in the mechanism.",
     predicate(dp=person(releases=[CHARGED, CHARGED]))),
    ("passport", "dp-release-without-noise", "A release that has a name alone.",
     predicate(dp=person(releases=[{"name": "mean_loss"}]))),
    ("passport", "dp-repeated-release-of-none", "What was repeated is not among the releases.",
     predicate(dp=person(releases=[]))),
    ("passport", "dp-repeated-steps-negative", "Minus one.", predicate(dp=person(repeated_steps=-1))),
    ("passport", "audit-verdict-unknown", "fine.", predicate(audit=FOUND | {"verdict": "fine"})),
    ("passport", "audit-noise-ratio-negative", "-1.", predicate(audit=FOUND | {"noise_ratio": -1})),
    ("passport", "release-how-unknown", "Neither noised nor public.", predicate(releases=[PUBLIC | {"how": "secret"}])),
    ("passport", "release-public-with-noise", "A public one has a noise multiplier.",
     predicate(dp=PERSON, releases=[NOISED | {"how": "public"}])),
    ("passport", "release-noised-without-noise", "A noised one without its divisor.",
     predicate(dp=PERSON, releases=[without(NOISED, "divisor")])),
    ("passport", "release-not-in-the-claim", "The claim counts another name.",
     predicate(dp=PERSON, releases=[NOISED | {"name": "loss"}])),
    ("passport", "release-of-less-noise", "Less noise than the claim counts.",
     predicate(dp=PERSON, releases=[NOISED | {"noise_multiplier": 9}])),
    ("passport", "release-without-a-claim", "A noised number, and no claim.", predicate(releases=[NOISED])),
    ("passport", "release-twice-beside-the-organ", "A number twice.", predicate(releases=[PUBLIC, PUBLIC])),
    ("passport", "releases-above-their-limit", "65.",
     predicate(releases=[PUBLIC | {"name": f"n{number}"} for number in range(65)])),
    ("passport", "ledger-head-short", "62 digits.", predicate(ledger_head="ab" * 31)),
    ("passport", "policy-of-one-signature", "ed25519.", predicate(signature_policy="ed25519")),
    ("passport", "salt-short", "30 digits.", predicate(salt="5a" * 15)),
    ("passport", "parents-null", "null for a list.", predicate(parents=None)),
    ("passport", "parents-not-digests", "Names.", predicate(parents=["knee"])),
    # In a field that is ignored, where nothing but the JSON can be at fault.
    *(("passport", f"ignored-{name}", about, ignored(value)) for name, about, value in (
        ("nested-seventeen-deep", "One too many.", b"[" * 15 + b"]" * 15),
        ("objects-seventeen-deep", "One too many.", b'{"a":' * 15 + b"0" + b"}" * 15),
        ("integer-of-twenty-digits", "One too many.", b"-10000000000000000000"), ("nan", "NaN.", b"NaN"),
        ("infinity", "Infinity.", b"Infinity"), ("infinite", "Infinity as a double.", b"-1e999"),
        ("surrogate", "Half a character.", b'"\\udfff"'), ("surrogate-pair", "Both halves.", b'"\\uD83D\\uDE00"'),
        ("surrogate-after-a-backslash", "The characters, though no escape.", b'"\\\\ud800"'),
        ("duplicate-key", "A key twice, deep inside.", b'[{"a":{"b":1,"b":1}}]'),
        ("duplicate-key-by-escape", "A key twice, once with an escape.", b'{"a":1,"\\u0061":1}'),
        ("control-character", "A raw tab.", b'"\t"'), ("not-utf-8", "Latin 1.", b'"\xe9"'),
        ("utf-8-surrogate", "Half a character in UTF-8.", b'"\xed\xa0\x80"'), ("no-value", "Nothing.", b""),
        ("cut-escape", "Three digits.", b'"\\u006"'), ("fraction-without-digits", "1.", b"1."),
        ("bare-word", "undefined.", b"undefined"), ("octal", "010.", b"010"), ("hexadecimal", "0x10.", b"0x10"),
        ("form-feed", "White space that JSON does not have.", b"\x0c1"), ("no-break-space", "Another.", b"\xc2\xa01"),
    )),
]
MOST: dict[str, str] = {name: TOO_MANY[name] for name in list(TOO_MANY)[:250]}
LIMITS: dict[str, Any] = {"pad": 1 << 40, "round": 1 << 31, "to": MOST}
WELL_FORMED: list[tuple[Kind, str, str, Change]] = [
    ("waybill", "as-it-should-be", "No fault.", lambda body: body),
    ("waybill", "at-its-limits", "The largest of each.", put(**LIMITS, sender="c" * 64)),
    ("waybill", "spelled-otherwise", "White space, another order, an escape.", loosely),
    ("waybill", "minus-zero", "-0 is an integer.", swap('"pad":0', '"pad":-0')),
    ("waybill", "times-at-their-limits", "Years 1000 and 9999.",
     put(issued="1000-01-01T00:00:00Z", expires="9999-12-31T23:59:59Z")),
    ("label", "as-it-should-be", "No fault.", lambda body: body),
    ("label", "at-its-limits", "The largest of each.", put(to=sorted(LIMITS["to"]), round=1 << 31)),
    ("passport", "as-it-should-be", "No fault.", lambda body: body),
    ("passport", "for-people-with-releases", "All that a claim, an audit and a release can have.",
     predicate(dp=PERSON, audit=FOUND, releases=[NOISED, PUBLIC], ledger_head="3e" * 32)),
    ("passport", "at-its-limits", "The largest of each.", predicate(
        parents=["ab" * 32] * 64, span=[0, 65_535], family="f" * 64, round=1 << 31, organ_size_bytes=1 << 40,
        dp=DP | {"epsilon": 1e12, "accountant": "\u00e9" * 200}, metrics={f"m{place}": -1e30 for place in range(64)})),
    *(("passport", f"ignored-{name}", about, ignored(value)) for name, about, value in (
        ("nested-sixteen-deep", "The limit.", b"[" * 14 + b"]" * 14),
        ("brackets-in-a-text", "They do not nest.", b'"' + b"[{" * 40 + b'\\"[[[["'),
        ("integer-of-nineteen-digits", "The limit.", b"-9999999999999999999"),
        ("number-of-many-digits", "A fraction may have them.", b"1." + b"0" * 400 + b"1e-400"),
        ("escapes", "All that JSON has.", b'"\\u0000\\"\\\\\\/\\b\\f\\n\\r\\t\\uFFFF"'),
        ("utf-8", "Two to four bytes, and U+2028.", "\u00e9\u20ac\U0001f600\u2028".encode().join((b'"', b'"'))),
        ("same-key-in-two-places", "Only in one object it would be a fault.", b'[{"a":1},{"a":1}]'),
    )),
]
# fmt: on
