"""The second reader's JSON, base64 and shapes, from docs/format.md alone."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn


class Refused(Exception):
    """Not opened; `code` is the page's word for why."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def refuse(code: str) -> NoReturn:
    """Stop here."""
    raise Refused(code)


def need(holds: object, code: str) -> None:
    """Go on only if it holds."""
    if not holds:
        refuse(code)


def b64(text: bytes, code: str = "container-damaged") -> bytes:
    """Unpadded canonical base64."""
    need(re.fullmatch(rb"[A-Za-z0-9+/]*", text) and len(text) % 4 != 1, code)
    data = base64.b64decode(text + b"=" * (-len(text) % 4))
    need(base64.b64encode(data).rstrip(b"=") == text, code)
    return data


def padded(text: str, code: str) -> bytes:
    """Canonical base64 with padding."""
    need(len(text) % 4 == 0, code)
    return b64(text.rstrip("=").encode() if text[-2:].count("=") == len(text) - len(text.rstrip("=")) else b"=", code)


def spell(text: str) -> str:
    """A JSON string in its one spelling: only what must be escaped is."""
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
    return '"' + "".join(short.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in text) + '"'


class Json:
    """RFC 8259 by hand, with the page's limits."""

    def __init__(self, data: bytes, code: str) -> None:
        self.code, self.at = code, 0
        try:
            self.text = data.decode("utf-8")
        except UnicodeDecodeError:
            refuse(code)
        need(not re.search(r"\\u[dD][89a-fA-F]", self.text), code)

    def document(self) -> Any:  # noqa: ANN401
        """The whole text as one value."""
        value = self.value(0)
        self.space()
        need(self.at == len(self.text), self.code)
        return value

    def space(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\t", "\n", "\r"):
            self.at += 1

    def take(self, pattern: str) -> str | None:
        found = re.compile(pattern).match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[0]

    def value(self, depth: int) -> Any:  # noqa: ANN401
        self.space()
        need(depth <= 16, self.code)
        mark = self.text[self.at : self.at + 1]
        if mark in ("{", "["):
            need(depth < 16, self.code)
            self.at += 1
            return self.members(depth + 1) if mark == "{" else self.items(depth + 1)
        if mark == '"':
            return self.string()
        if (word := self.take(r"true|false|null")) is not None:
            return {"true": True, "false": False, "null": None}[word]
        return self.number()

    def number(self) -> int | float:
        found = self.take(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
        need(found, self.code)
        if re.fullmatch(r"-?[0-9]+", found or ""):
            need(len((found or "").lstrip("-")) <= 19, self.code)
            return int(found or "")
        value = float(found or "")
        need(abs(value) < float("inf"), self.code)
        return value

    def string(self) -> str:
        escapes = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
        raw = self.take(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+"')
        need(raw is not None, self.code)
        return re.sub(
            r"\\(u.{4}|.)", lambda m: chr(int(m[1][1:], 16)) if m[1][0] == "u" else escapes[m[1]], (raw or "")[1:-1]
        )

    def rest(self, close: str) -> bool:
        """Whether another entry follows; the closing mark is consumed."""
        self.space()
        mark = self.text[self.at : self.at + 1]
        self.at += 1
        need(mark in (",", close) and mark, self.code)
        return mark == ","

    def items(self, depth: int) -> list[Any]:
        self.space()
        if self.take(r"\]"):
            return []
        found = [self.value(depth)]
        while self.rest("]"):
            found.append(self.value(depth))
        return found

    def members(self, depth: int) -> dict[str, Any]:
        self.space()
        found: dict[str, Any] = {}
        if self.take(r"\}"):
            return found
        more = True
        while more:
            self.space()
            key = self.string()
            self.space()
            need(self.take(":") and key not in found, self.code)
            found[key] = self.value(depth)
            more = self.rest("}")
        return found


Check = Callable[[Any], bool]


def whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def number(holds: Callable[[float], bool]) -> Check:
    return lambda value: type(value) in (int, float) and holds(value)


def text(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None


def listed(check: Check, low: int, high: int) -> Check:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(check, value))


def mapped(key: Check, check: Check, low: int, high: int) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and low <= len(value) <= high
        and all(key(name) and check(item) for name, item in value.items())
    )


def shaped(fields: Mapping[str, Check], optional: Sequence[str] = (), *, ignore: bool = False) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and (ignore or set(value) <= set(fields))
        and all(name in value or name in optional for name in fields)
        and all(fields[name](item) for name, item in value.items() if name in fields)
    )


def nullable(check: Check) -> Check:
    return lambda value: value is None or check(value)


def is_time(value: Any) -> bool:  # noqa: ANN401
    if not text(r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")(value):
        return False
    try:
        read_time(value)
    except ValueError:
        return False
    return True


def read_time(value: str) -> datetime:
    """The moment."""
    return datetime(*(int(part) for part in re.findall("[0-9]+", value)), tzinfo=UTC)  # type: ignore[misc,arg-type]


def is_span(value: Any) -> bool:  # noqa: ANN401
    return listed(whole(0, 65_535), 2, 2)(value) and value[0] < value[1]


NAME, SHA256_HEX, HEX32 = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), text("[0-9a-f]{64}"), text("[0-9a-f]{32}")
FAMILY, WORDS = text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"), text(".{1,200}")
ANYTHING = mapped(text(".*"), lambda _: True, 0, 1 << 30)
COUNT, ROUND = whole(1, 1 << 40), whole(0, 1 << 31)
POSITIVE, FRACTION = number(lambda value: 0 < value <= 1e12), number(lambda value: 0 < value < 1)
SAME_POLICY = text(r"ed25519\+ml-dsa-65")
ADDRESSED = {"federation": NAME, "from": NAME, "round": ROUND, "issued": is_time, "expires": is_time}
IS_WAYBILL = shaped({
    **ADDRESSED, "id": HEX32, "to": mapped(NAME, SHA256_HEX, 1, 250), "passport_sha256": SHA256_HEX,
    "organ": shaped({"sha256": SHA256_HEX, "size_bytes": COUNT}), "pad": whole(0, 1 << 40),
})  # fmt: skip
IS_LABEL = shaped({
    **ADDRESSED, "sealed": shaped({"sha256": SHA256_HEX, "size_bytes": COUNT}),
    "to": lambda value: listed(NAME, 1, 250)(value) and value == sorted(set(value)),
})  # fmt: skip
IS_STATEMENT = shaped({
    "_type": text(r"https://in-toto\.io/Statement/v1"), "predicateType": text(".*"), "predicate": ANYTHING,
    "subject": listed(shaped({"name": text("organ"), "digest": shaped({"sha256": SHA256_HEX})}), 1, 1),
})  # fmt: skip
RELEASED = listed(shaped({"name": FAMILY, "noise_multiplier": POSITIVE}), 0, 64)
MECHANISM = shaped({
    "sample_rate": number(lambda value: 0 < value <= 1), "steps": COUNT, "noise_multiplier": POSITIVE,
    "max_grad_norm": POSITIVE, "divisor": POSITIVE, "runs": COUNT, "adjacency": text("add_or_remove_one"),
    "noise_added_at": text("site|coordinator"), "records_per_person": COUNT, "repeated_steps": whole(0, 1 << 40),
    "releases": lambda value: RELEASED(value) and each_once(value), "repeated_releases": mapped(FAMILY, COUNT, 0, 64),
}, optional=("runs", "adjacency", "noise_added_at", "records_per_person", "repeated_steps", "releases",
             "repeated_releases"))  # fmt: skip
CLAIM = shaped({"epsilon": POSITIVE, "delta": FRACTION, "unit": text("record|person"), "accountant": WORDS,
                "mechanism": MECHANISM})  # fmt: skip
NOT_NEGATIVE = number(lambda value: 0 <= value <= 1e12)
FOUND = {"delta": FRACTION, "fdp_epsilon_lower_bound": NOT_NEGATIVE, "expected_at_most": NOT_NEGATIVE,
         "fdp_expected_at_most": NOT_NEGATIVE, "noise_ratio": NOT_NEGATIVE, "steps": COUNT,
         "verdict": text("consistent|contradicts")}  # fmt: skip
AUDIT = shaped({"method": WORDS, "epsilon_lower_bound": NOT_NEGATIVE, "confidence": FRACTION, "canaries": COUNT,
                **{name: nullable(check) for name, check in FOUND.items()}}, optional=tuple(FOUND))  # fmt: skip
NUMBER = number(lambda value: -1e30 <= value <= 1e30)
NOISE = ("noise_multiplier", "sensitivity", "divisor")
RELEASE = shaped({"name": FAMILY, "value": NUMBER, "how": text("noised|public"),
                  **{name: nullable(POSITIVE) for name in NOISE}}, optional=NOISE)  # fmt: skip


def each_once(releases: list[dict[str, Any]]) -> bool:
    return len({one["name"] for one in releases}) == len(releases)


def is_claim(value: Any) -> bool:  # noqa: ANN401
    """The fields one by one, and then against each other."""
    if not CLAIM(value):
        return False
    how = value["mechanism"]
    names = {one["name"] for one in how.get("releases", [])}
    return (value["unit"] == "person" or how.get("records_per_person", 1) == 1) and (
        set(how.get("repeated_releases", {})) <= names
    )


def is_predicate(value: Any) -> bool:  # noqa: ANN401
    """The fields one by one, and then the numbers that left against the claim that has to count them."""
    if not PREDICATE(value):
        return False
    left, claim = value.get("releases", []), value["dp"] or {"mechanism": {}}
    charged = {one["name"]: one["noise_multiplier"] for one in claim["mechanism"].get("releases", [])}
    for one in left:
        noise = [one.get(name) is not None for name in NOISE]
        if noise != [one["how"] == "noised"] * 3:
            return False
        if one["how"] == "noised" and charged.get(one["name"]) != one["noise_multiplier"]:
            return False
    return each_once(left)


PREDICATE = shaped({
    "author": NAME, "federation": NAME, "round": ROUND, "organ_size_bytes": COUNT, "base_sha256": SHA256_HEX,
    "span": is_span, "family": FAMILY, "parents": listed(SHA256_HEX, 0, 4096), "dp": nullable(is_claim),
    "audit": nullable(AUDIT), "metrics": mapped(FAMILY, NUMBER, 0, 64), "releases": listed(RELEASE, 0, 64),
    "ledger_head": nullable(SHA256_HEX), "created": is_time, "sharing": text("addressees|federation"), "salt": HEX32,
    "signature_policy": SAME_POLICY,
}, optional=("parents", "audit", "releases", "ledger_head", "signature_policy"), ignore=True)  # fmt: skip
IS_PREDICATE: Check = is_predicate
IS_MANIFEST = shaped({
    "format": text(r"not-fed\.organ/1"), "blood_type": shaped({"family": FAMILY}, ignore=True), "span": is_span,
    "base_sha256": SHA256_HEX, "span_sha256": SHA256_HEX, "parents": listed(SHA256_HEX, 0, 1 << 30),
    "training": nullable(ANYTHING),
})  # fmt: skip
