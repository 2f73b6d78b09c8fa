"""Faults of the container: header, stanzas, MAC, chunks. The published age vectors have more (tests/interop)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.support.second_age import hkdf
from tests.support.second_writer import Party, Written, b64, organ_file, payload, stanza
from tests.support.vector_cases.base import CHUNK, Change, SealedCase, case

DAMAGED = "container-damaged"
Stanzas = Callable[[list[bytes], bytes], list[bytes]]
VERSION = 22  # bytes of the version line
X25519 = b"-> X25519 " + b64(bytes(32)) + b"\n" + b64(bytes(32)) + b"\n"
SCRYPT = b"-> scrypt " + b64(bytes(16)) + b" 10\n" + b64(bytes(32)) + b"\n"


def cases() -> Iterator[SealedCase]:
    """Steps 2 to 5, and chunks that do not authenticate."""
    for name, about, change in HEADERS:
        yield case(f"header-{name}", about, DAMAGED, edit_sealed=change)
    for name, about, made in STANZAS:
        yield case(
            f"header-{name}", about, DAMAGED, edit_stanzas=made, to=("hub", "lab") if "two" in name else ("hub",)
        )
    yield case("header-another-reader", "Sealed to the lab alone.", "not-for-this-key", edit_stanzas=only("lab"))
    yield case(
        "header-another-reader-and-damaged", "Whoever is not a recipient does not hear of the damage.",
        "not-for-this-key", edit_stanzas=only("lab"), edit_payload=flipped(500),
    )  # fmt: skip
    yield case("header-stanza-dropped", "A recipient was taken out; the MAC is over both.", DAMAGED,
               to=("hub", "lab"), edit_header=dropped)  # fmt: skip
    yield case("header-stanzas-swapped", "Two recipients in another order.", DAMAGED,
               to=("hub", "lab"), edit_header=swapped)  # fmt: skip
    for name, about, change in PAYLOADS:
        yield case(f"payload-{name}", about, DAMAGED, edit_payload=change)
    for name, about, layout in CHUNKS:
        yield case(f"payload-{name}", about, DAMAGED, organ=organ_file(filler=CHUNK), alter=chunked(layout))


def before(text: bytes, extra: bytes) -> Change:
    """Put something before the first place of some text."""
    return lambda sealed: sealed.replace(text, extra + text, 1)


def headed(extra: bytes) -> Change:
    """Stanzas in place of the ones that are there."""
    return lambda sealed: sealed[:VERSION] + extra + sealed[sealed.index(b"---") :]


def dropped(head: bytes) -> bytes:
    """Without the second stanza."""
    return head[: head.index(b"-> ", VERSION + 1)] + head[head.index(b"---") :]


def swapped(head: bytes) -> bytes:
    """Two stanzas in the other order."""
    second, end = head.index(b"-> ", VERSION + 1), head.index(b"---")
    return head[:VERSION] + head[second:end] + head[VERSION:second] + head[end:]


def only(name: str) -> Stanzas:
    """A stanza for somebody else in place of all."""
    return lambda stanzas, key: [stanza(key, Party(name).seal)]


def flipped(at: int) -> Change:
    """One bit of the payload."""
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def resized(*, enc: int = 1120, ct: int = 32) -> Stanzas:
    """A stanza with an argument or body of another size."""

    def change(stanzas: list[bytes], key: bytes) -> list[bytes]:
        first, body = stanzas[0].rstrip(b"\n").split(b"\n")
        kind, raw = first.rsplit(b" ", 1)
        data = (base64.b64decode(raw + b"==") + bytes(1))[:enc]
        return [kind + b" " + b64(data) + b"\n" + b64((base64.b64decode(body + b"=") + bytes(1))[:ct]) + b"\n"]

    return change


# fmt: off
HEADERS: list[tuple[str, str, Change]] = [
    ("empty", "No byte at all.", lambda s: b""),
    ("another-version", "age v2.", lambda s: s.replace(b"/v1", b"/v2", 1)),
    ("armored", "The armor of age, which is not read.",
     lambda s: b"-----BEGIN AGE ENCRYPTED FILE-----\n" + base64.encodebytes(s[:48])),
    ("no-recipient", "A header without a stanza.", headed(b"")),
    ("too-many-recipients", "257 stanzas.", headed(b"-> a\n\n" * 257)),
    ("line-too-long", "A recipient line of 8,192 bytes before its LF.", headed(b"-> " + b"a" * 8189 + b"\n\n")),
    ("too-long", "A header of more than 512 KiB.",
     lambda s: s[:VERSION] + (b"-> a\n" + (b"A" * 64 + b"\n") * 40 + b"\n") * 205 + s[s.index(b"---"):][:48]),
    ("mac-altered", "Another MAC.",
     lambda s: re.sub(rb"\n--- .{43}\n", b"\n--- " + b64(bytes(32)) + b"\n", s, count=1)),
    ("cut-in-a-stanza", "The file ends within the first stanza.", lambda s: s[:900]),
    ("cut-in-the-mac", "The file ends within the MAC.", lambda s: s[: s.index(b"\n--- ") + 30]),
    ("stanza-doubled", "One recipient twice, under the old MAC.",
     lambda s: s[:VERSION] + s[VERSION : s.index(b"---")] + s[VERSION:]),
]
STANZAS: list[tuple[str, str, Stanzas]] = [
    ("x25519-stanza", "A weaker recipient beside ours, under a right MAC.", lambda all_, key: [*all_, X25519]),
    ("scrypt-stanza", "A passphrase beside ours, under a right MAC.", lambda all_, key: [*all_, SCRYPT]),
    ("grease-stanza", "A stanza of an unknown type, which age ignores.",
     lambda all_, key: [*all_, b"-> x-grease a b\n\n"]),
    ("second-argument", "One argument too many.", lambda all_, key: [all_[0].replace(b"\n", b" more\n", 1)]),
    ("enc-short", "enc of 1,119 bytes.", resized(enc=1119)),
    ("enc-long", "enc of 1,121 bytes.", resized(enc=1121)),
    ("ct-short", "ct of 31 bytes.", resized(ct=31)),
    ("ct-long", "A file key of 17 bytes.", lambda all_, key: [stanza(key + b"!", Party("hub").seal)]),
    ("two-file-keys", "Another file key for the first recipient: two contents for two readers.",
     lambda all_, key: [stanza(bytes(16), Party("hub").seal), all_[1]]),
]
PAYLOADS: list[tuple[str, str, Change]] = [
    ("missing", "The file ends after the header.", lambda p: b""),
    ("nonce-cut", "The file ends within the nonce.", lambda p: p[:15]),
    ("nonce-alone", "A nonce and no chunk.", lambda p: p[:16]),
    ("shorter-than-a-tag", "A last chunk of 15 bytes.", lambda p: p[:31]),
    ("cut-by-a-byte", "The last byte is missing.", lambda p: p[:-1]),
    ("a-byte-more", "A byte follows the last chunk.", lambda p: p + b"\0"),
    ("bit-flipped", "One bit of the first chunk.", flipped(500)),
    ("of-another-file", "Header and payload under two file keys.",
     lambda p: p[:16] + payload(bytes(16), p[:16], b"not-fed.sealed/v1\n")),
]
# A frame of two chunks, laid out by hand: (which one, its number, whether it is marked last).
CHUNKS: list[tuple[str, str, Sequence[tuple[int, int, bool]]]] = [
    ("cut-at-a-chunk", "The last chunk is missing.", [(0, 0, False)]),
    ("chunks-swapped", "Two chunks in the other order.", [(1, 1, False), (0, 0, True)]),
]
# fmt: on


def chunked(layout: Sequence[tuple[int, int, bool]]) -> Callable[[Written], Written]:
    """Another payload for a frame of two chunks."""

    def alter(made: Written) -> Written:
        cipher = ChaCha20Poly1305(hkdf(made.file_key, made.nonce, b"payload"))
        parts = [made.plain[:CHUNK], made.plain[CHUNK:]]
        body = b"".join(
            cipher.encrypt(number.to_bytes(11, "big") + bytes([last]), parts[part], None)
            for part, number, last in layout
        )
        return replace(made, sealed=made.header + made.nonce + body)

    return alter
