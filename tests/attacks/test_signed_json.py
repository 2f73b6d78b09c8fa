"""Adversary: a member who signs JSON that two readers could read differently, or that should crash or stall a reader.

Powers: a full member with both signing keys, any bytes as a payload, properly signed. Lacks: nothing but honesty.
Always: a typed refusal before anything of it is used, in the time of an honest file.
"""

from __future__ import annotations

import json
import time

import pytest

from not_fed.envelope.dsse import MalformedSigned
from not_fed.envelope.label import PAYLOAD_TYPE as LABEL_TYPE
from not_fed.envelope.waybill import PAYLOAD_TYPE as WAYBILL_TYPE
from not_fed.errors import TrustError
from not_fed.keys import dsse
from tests.support.attacks import (
    PLACES,
    TYPES,
    Place,
    assert_line_holds,
    assert_line_refused,
    assert_opens,
    check_outside,
    honest_line,
    honest_payload,
    misshapen,
)
from tests.support.trust import Forger, Parcel, assert_refused, edited

everywhere = pytest.mark.parametrize("place", PLACES)
HOSTILE_PAYLOADS: list[object] = [
    [], None, 3, "text", True, {}, b"{", b"\xff\xfe", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":1e999}',
    b"[" * 200 + b"]" * 200, b'{"id":' + b"9" * 5000 + b"}", b"",
]  # fmt: skip


def _assert_payloads_refused(forger: Forger, place: Place, *payloads: object) -> None:
    """Each payload, properly signed by the clinic, is refused in that place; the honest one is accepted."""
    for payload in payloads:
        assert_line_refused(forger, place, forger.sign(payload, TYPES[place]), TrustError)
    assert_line_holds(forger, place)


@everywhere
def test_payloads_of_another_shape_are_refused_before_use(forger: Forger, place: Place) -> None:
    """A34. Lists, texts, numbers, broken JSON, duplicate keys, NaN, deep nesting: in place of the payload, and signed.

    Powers: a member with both keys. Control: the honest payload, signed by the same hand, is accepted.
    """
    _assert_payloads_refused(forger, place, *HOSTILE_PAYLOADS)


@everywhere
def test_every_field_of_a_signed_object_is_checked(forger: Forger, place: Place) -> None:
    """A34. Each field is missing, or of every other JSON type (true for a number too); or there is one field too many.

    Powers: a member with both keys. Control: the honest payload, signed by the same hand, is accepted.
    """
    _assert_payloads_refused(forger, place, *misshapen(honest_payload(forger, place)))


@everywhere
def test_a_duplicate_key_is_refused_at_any_depth(forger: Forger, place: Place) -> None:
    """Own. A key stands twice, spelled alike or with an escape, at the top or deeper, with equal or other values.

    Powers: a member with both keys, hoping that relay and recipient read different values. Control: each key once.
    """
    text = _text(forger, place)
    first = b'"_type":' if place == "passport" else b'"federation":'
    inner = {"passport": b'"span":[', "waybill": b'"size_bytes":', "label": b'"size_bytes":'}[place]
    value = {"passport": b"2,4],", "waybill": b"4,", "label": b"4,"}[place]
    assert text.count(first) == text.count(inner) == 1
    twice = text.replace(inner, inner + value + inner)
    name = first[2:-2]
    escaped = text.replace(first, b'"' + first[1:2] + name + b'":1,"\\u%04x' % first[1] + name + b'":')
    assert json.loads(twice)
    assert json.loads(escaped)
    _assert_payloads_refused(forger, place, text.replace(first, first + b'"x",' + first), twice, escaped)


@everywhere
def test_bytes_that_are_not_plain_utf8_are_refused(forger: Forger, place: Place) -> None:
    """Own. A byte order mark, UTF-16, overlong UTF-8, half a surrogate raw or escaped, NUL, Latin-1.

    Powers: a member with both keys, hoping that readers guess encodings. Control: the same payload in UTF-8.
    """
    text = _text(forger, place)
    said = b"lowlands"
    _assert_payloads_refused(
        forger, place, b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), text.replace(said, b"\xc0\xaf" + said),
        text.replace(said, b"\xed\xa0\x80" + said), text.replace(said, b"\\ud800" + said), text + b"\0",
        text.replace(said, b"\xe9" + said), text.replace(said, b"low\\u0000lands"), b"\0" + text,
    )  # fmt: skip


@everywhere
def test_names_hold_no_invisible_or_moving_characters(forger: Forger, place: Place) -> None:
    """Own. Line separators, right-to-left marks, escapes, tabs or a NUL inside the federation's name.

    Powers: a member with both keys, who wants a name to look like another. Control: the plain name is accepted.
    """
    text = _text(forger, place)
    hidden = ("\u2028", "\u2029", "\u202e", "\u200b", "\ufeff", "\x1b[2J", "\t", "\n", "\\", "\x7f", "\x85", "/", " ")
    spelled = [text.replace(b"lowlands", json.dumps(f"low{mark}lands")[1:-1].encode()) for mark in hidden]
    raw = [text.replace(b"lowlands", f"low{mark}lands".encode()) for mark in ("\u2028", "\u202e", "\ufeff", "\x85")]
    _assert_payloads_refused(forger, place, *spelled, *raw)


@everywhere
def test_times_have_one_spelling(forger: Forger, place: Place) -> None:
    """Own. Time zones, leap seconds, fractions, week dates, years of five digits, 24:00, the 30th of February.

    Powers: a member with both keys, hoping that two readers see two moments. Control: whole seconds in UTC.
    """
    field = "created" if place == "passport" else "issued"
    times = (
        "2026-11-24T12:00:00+00:00", "2026-11-24T13:00:00+01:00", "2026-11-24T12:00:00", "2026-11-24 12:00:00Z",
        "2026-11-24T12:00:00.000Z", "2026-11-24T12:00Z", "2026-11-24T12:00:60Z", "2016-12-31T23:59:60Z",
        "2026-11-24T24:00:00Z", "2026-02-30T12:00:00Z", "2026-W48-2T12:00:00Z", "10000-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z", "-2026-11-24T12:00:00Z", "2026-11-24T12:00:00z", "2026-11-24t12:00:00Z",
        "\uff12\uff10\uff12\uff16-11-24T12:00:00Z", " 2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z\n", "1764000000",
        "now", "",
    )  # fmt: skip
    honest = honest_payload(forger, place)
    for when in times:
        if place == "passport":
            payload = honest | {"predicate": honest["predicate"] | {field: when}}
        else:
            payload = honest | {field: when}
        assert_line_refused(forger, place, forger.sign(payload, TYPES[place]), MalformedSigned)
    assert_line_holds(forger, place)


@pytest.mark.parametrize("when", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
@everywhere
def test_the_ends_of_the_calendar_overflow_nothing(forger: Forger, place: Place, when: str) -> None:
    """Own. A time at the very end or beginning of the calendar, where adding five minutes of slack would overflow.

    Powers: a member with both keys. Control: a time of today is accepted.
    """
    parcel, honest = forger.parcel, honest_payload(forger, place)
    fields = ["created"] if place == "passport" else ["issued", "expires"]
    for chosen in ([field] for field in fields):
        changes = dict.fromkeys(chosen, when)
        payload = honest | ({"predicate": honest["predicate"] | changes} if place == "passport" else changes)
        line = forger.sign(payload, TYPES[place])
        try:
            if place == "label":
                check_outside(parcel, line)
            elif place == "waybill":
                forger.write(waybill=line)
                assert_opens(parcel)
            else:
                forger.rewrite(passport=line)
                assert_opens(parcel)
        except TrustError:
            continue  # refused for its dates, and by nothing but a typed refusal
        assert when.startswith("9999") or place == "passport", "a waybill that ended 2,000 years ago was accepted"
    assert_line_holds(forger, place)


@everywhere
def test_numbers_are_exact(forger: Forger, place: Place) -> None:
    """Own. Round numbers as floats, with exponents, signs, leading zeros, twenty digits, or beyond 64 bits.

    Powers: a member with both keys, hoping that readers round differently. Control: the whole number is accepted.
    """
    text = _text(forger, place)
    assert text.count(b'"round":3') == 1
    spellings = (b"3.0", b"3e0", b"30e-1", b"+3", b"03", b"3.", b"0x3", b"3_0", b"-3", b"9" * 20, b"1" + b"0" * 400,
                 b"18446744073709551619", b"3.00000000000000000001", b"true", b'"3"', b"1e2", b"Infinity")  # fmt: skip
    for spelling in spellings:
        payload = text.replace(b'"round":3', b'"round":' + spelling)
        assert_line_refused(forger, place, forger.sign(payload, TYPES[place]), TrustError)
    assert_line_holds(forger, place)


@everywhere
def test_nothing_takes_longer_than_its_length(forger: Forger, place: Place) -> None:
    """Own. Payloads made to be slow: deep nesting, unclosed quotes, backslashes, huge numbers, thousands of keys.

    Powers: a member with both keys, who wants to stall every reader. Control: the honest payload takes milliseconds.
    """
    size = 24_000  # what fits into a label and a waybill, base64 and signatures included
    slow = (
        b"[" * size, b"{" * size, b'{"a":' * (size // 5), b'"' * size, b'"' + b"\\" * size,
        b'{"a":"' + b"\\\\" * (size // 2), b" " * size, b'["' + b'","' * (size // 3),
        b"[" + b"1," * (size // 2), b'{"a":' + b"9" * size + b"}", b"-" * size, b'{"a":1e' + b"9" * 1000 + b"}",
        b"{" + b",".join(b'"%d":0' % number for number in range(2500)) + b"}",
    )  # fmt: skip
    started = time.process_time()
    _assert_payloads_refused(forger, place, *slow)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("place", ["waybill", "passport"])
def test_a_signed_line_has_one_spelling(forger: Forger, parcel: Parcel, place: Place) -> None:
    """A34. The same envelope is written otherwise: spaces, escapes, other base64, another field.

    Powers: a recipient who edits signed lines, so that two files of one meaning have two digests.
    Control: the one spelling is accepted.
    """
    line, name = honest_line(forger, place), {"waybill": b"waybill.v1", "passport": b"in-toto"}[place]
    value = json.loads(line)
    for other in (
        json.dumps(value).encode(),
        line + b" ",
        b" " + line,
        line.replace(name, name[:3] + b"\\u%04x" % name[3] + name[4:]),
        edited(line, payload=value["payload"].rstrip("=") + "===="),
        edited(line, payload=value["payload"].replace("+", "-").replace("/", "_") + "-"),
        edited(line, extra=1),
        json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode(),
    ):
        assert other != line
        assert_line_refused(forger, place, other, TrustError)
    with pytest.raises(MalformedSigned):
        dsse.parse(b"[]", payload_type=WAYBILL_TYPE, where="test")
    assert_line_holds(forger, place)


def test_an_envelope_of_another_shape_is_refused(parcel: Parcel) -> None:
    """Own. The envelope itself is a list, a number, half a line, deeply nested, or has signatures that are none.

    Powers: writes any label file; needs no key. Control: the label as it was signed is accepted.
    """
    label = parcel.sealed.label
    value = json.loads(label)
    envelopes: list[object] = [
        [], None, 1, "x", {}, {"payload": value["payload"]}, value | {"signatures": {}}, value | {"signatures": [1, 2]},
        value | {"signatures": [{}, {}]}, value | {"payload": 1}, value | {"payloadType": None},
        value | {"payload": "%%%"}, value | {"signatures": [{"keyid": 1, "sig": 2}] * 2},
        value | {"signatures": value["signatures"] * 1000}, value | {"payloadType": [LABEL_TYPE]},
    ]  # fmt: skip
    texts = [json.dumps(envelope).encode() for envelope in envelopes]
    texts += [label[: len(label) // 2], label[1:], b"[" * 60_000, b'{"payload":"' + b"A" * 60_000, b"\xff" * 100]
    for text in texts:
        with pytest.raises(MalformedSigned):
            check_outside(parcel, text)
        assert_refused(parcel, MalformedSigned, label=text)
    assert_opens(parcel, label=label)


def test_what_is_quoted_to_people_is_described_and_not_repeated(forger: Forger, parcel: Parcel) -> None:
    """Own. Hostile text is put into names and fields, hoping that the refusal repeats it to whoever reads the screen.

    Powers: a member with both keys. Control: the honest parcel opens.
    """
    text = "IGNORE ALL WARNINGS \x1b[2J http://example.org/"
    extra = forger.sign(forger.waybill | {text: 1}, WAYBILL_TYPE)
    for line in (forger.waybill_with(id=text), forger.waybill_with(sender=text), extra,
                 forger.sign({text: text}, WAYBILL_TYPE), forger.waybill_with(to={text: "00" * 32})):  # fmt: skip
        forger.write(waybill=line)
        said = " ".join(assert_refused(parcel, MalformedSigned).as_json().values())
        assert "IGNORE" not in said
        assert "\x1b" not in said
    forger.write()
    assert_opens(parcel)


def _text(forger: Forger, place: Place) -> bytes:
    """The honest payload's bytes."""
    return json.dumps(honest_payload(forger, place), sort_keys=True, separators=(",", ":")).encode()
