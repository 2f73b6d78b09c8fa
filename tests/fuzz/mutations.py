"""How inputs are broken: as bytes, as JSON, with tokens that parsers trip over. Every change follows from a seed."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeAlias

Mutate: TypeAlias = Callable[[bytes, Sequence[bytes], Random], bytes]

TOKENS = [
    b"", b"\0", b"\n", b"\r\n", b" ", b"\t", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\u006e", b"{", b"}", b"[", b"]",
    b",", b":", b"[" * 40, b'{"a":' * 40, b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"0.0", b"01", b"+1",
    b"9" * 19, b"9" * 20, b"9" * 5000, b"4294967296", b"1e-400", b"\xff", b"\xc0\xaf", b"\xef\xbb\xbf", b"\xed\xa0\x80",
    "\u2028\u0660\u212a".encode(), b"=", b"==", b"-", b"--- ", b"-> ", b"/", b"../", b"A" * 64, b"A" * 65, b"a" * 9000,
    b"application/vnd.not-fed.waybill.v2+json", b"not-fed.sealed/v2", b"\x00\x00\x00\x00\x00\x00\x00\x00", b"\xff" * 8,
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3.0, 1.5, -0.0, 1e308, 5e-324, 1 << 31, (1 << 53) + 1, 10**18, -(10**18), "", "\0",
    "a", "\u0660", "x" * 65, "x" * 5000, "2026-02-30T00:00:00Z", "9999-12-31T23:59:59Z", "1000-01-01T00:00:00Z",
    "0" * 64, "AGE1PQ1", "../", "\x1b[31m", [], {}, [[]], [None], {"": None}, {"a": {"a": {"a": {}}}}, [0] * 300,
]  # fmt: skip
VALUES.append(json.loads("[" * 20 + "]" * 20))


def as_bytes(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Flip, cut, repeat, insert, splice; a few times."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        data = random.choice(_BYTES)(data, others, random)
    return data


def as_json(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Change the tree, and sometimes its spelling; bytes that are no JSON are changed as bytes."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return as_bytes(data, others, random)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        tree = _changed(tree, random)
    return _spelled(tree, others, random)


def _flip(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _replace(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([random.choice((0, 10, 13, 32, 34, 92, 127, 255, random.randrange(256)))]) + data[at + 1 :]


def _cut(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 50)) + data[end:]


def _insert(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(TOKENS) + data[at + random.choice((0, 0, 1, 8)) :]


def _splice(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(others) if others else data
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def _truncate(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _swap_lines(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    lines = data.split(b"\n")
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines)


def _drop_or_double_line(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    return b"\n".join(lines[:at] + lines[at : at + 1] * random.choice((0, 2)) + lines[at + 1 :])


_BYTES: list[Mutate] = [
    _flip, _flip, _replace, _replace, _cut, _repeat, _insert, _insert, _splice, _truncate, _swap_lines,
    _drop_or_double_line,
]  # fmt: skip


def _range(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 1, 2, 4, 16, 64, 1000)))


def _changed(tree: Any, random: Random) -> Any:  # noqa: ANN401
    places = list(_places(tree))
    if not places or random.random() < 0.02:
        return _value(random)
    parent, key = random.choice(places)
    act = random.choice(("value", "value", "value", "drop", "more", "move", "near"))
    if act == "drop":
        del parent[key]
    elif act == "more" and isinstance(parent, dict):
        parent[random.choice(("more", "", "\0", "__proto__", str(key) + " "))] = _value(random)
    elif act == "move":
        other, place = random.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    elif act == "near":
        parent[key] = _near(parent[key], random)
    else:
        parent[key] = _value(random)
    return tree


def _value(random: Random) -> Any:  # noqa: ANN401
    """A fresh copy: trees are changed in place."""
    return copy.deepcopy(random.choice(VALUES))


def _near(value: Any, random: Random) -> Any:  # noqa: ANN401
    """Almost the same."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, -value, float(value), str(value), value << 40))
    if isinstance(value, float):
        return random.choice((-value, value * 1e300, 0.0, int(value) if math.isfinite(value) else 1))
    if isinstance(value, str):
        cut = value[: random.randint(0, len(value))]
        return random.choice((value + "\n", value + "a", cut, value.upper(), value * 2, [value], value[::-1]))
    if isinstance(value, list):
        return random.choice(
            (value * 2, value[::-1], value[1:], {str(place): item for place, item in enumerate(value)})
        )
    return list(value) if random.random() < 0.5 else {name.upper(): item for name, item in value.items()}


def _places(tree: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """Every parent and key."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def _spelled(tree: Any, others: Sequence[bytes], random: Random) -> bytes:  # noqa: ANN401
    style = random.random()
    if style < 0.7:
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    if style < 0.85:
        return json.dumps(tree, indent=random.choice((None, 1)), ensure_ascii=True).encode()
    whole = json.dumps(tree, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")
    return as_bytes(whole, others, random)
