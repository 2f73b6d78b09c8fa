"""Adversary: as in test_container.py. Here nothing is clever: every kind of place is damaged in every kind of way."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from not_fed.age.stream import CHUNK_BYTES, NONCE_BYTES, TAG_BYTES
from not_fed.envelope import open_organ, verify_sealed
from not_fed.errors import TrustError
from tests.support.attacks import assert_opens
from tests.support.trust import NOW, Federation, Forger, Parcel, build_container, listing, organ_bytes, split

SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES


@pytest.fixture
def wide(tmp_path: Path, federation: Federation) -> Parcel:
    """An organ of two and a bit chunks."""
    return Parcel(tmp_path, federation, organ=organ_bytes(floats=20_000))


def assert_both_refuse(parcel: Parcel, data: bytes) -> None:
    """Opening and verifying end in a typed refusal of trust, and leave nothing; the file is put back."""
    whole = parcel.path.read_bytes()
    assert data != whole
    parcel.path.write_bytes(data)
    before, roster, opener = listing(parcel.folder), parcel.federation.roster, parcel.federation.hub.opener
    out = parcel.folder / "opened.organ"
    with pytest.raises(TrustError) as opened:
        open_organ(parcel.path, opener=opener, roster=roster, out=out, now=NOW)
    with pytest.raises(TrustError) as verified:
        verify_sealed(parcel.path, opener=opener, roster=roster, now=NOW, label=None)
    with pytest.raises(TrustError):
        verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label)
    assert opened.value.as_json() == verified.value.as_json()
    assert listing(parcel.folder) == before
    parcel.path.write_bytes(whole)


def seal_again(forger: Forger, plain: bytes) -> None:
    """What any recipient can do: another container for the same recipients."""
    forger.parcel.path.write_bytes(build_container(plain, recipients=forger.to))


def borders(sealed: bytes) -> dict[str, int]:
    """Where each part of the file begins."""
    header, payload = split(sealed)
    head, start = sealed[: header.size_bytes], header.size_bytes + NONCE_BYTES
    second = head.index(b"-> ", 23)
    places = {
        "version": 0, "version number": 20, "its line feed": 21, "first stanza": 22, "kind": 25, "enc": 40,
        "end of enc": head.index(b"\n", 40), "ct": head.index(b"\n", 40) + 1, "second stanza": second,
        "end of the stanzas": head.rindex(b"--- "), "mac": head.rindex(b"--- ") + 4, "end of the header": len(head) - 1,
        "nonce": header.size_bytes, "first chunk": start, "waybill": start + 18, "passport": start + 6000,
        "organ": start + 12_000,
    }  # fmt: skip
    for number, at in enumerate(range(start, len(sealed), SEALED_CHUNK)):
        end = min(at + SEALED_CHUNK, len(sealed))
        places |= {f"chunk {number}": at, f"within chunk {number}": (at + end) // 2, f"tag {number}": end - TAG_BYTES}
    assert len(payload) > 2 * SEALED_CHUNK
    return {**places, "last byte": len(sealed) - 1}


def damaged(data: bytes, at: int) -> Iterator[bytes]:
    """Cut, insert, repeat, blank and exchange, a byte and a block, at one place."""
    for size in (1, TAG_BYTES, SEALED_CHUNK):
        part = data[at : at + size]
        yield data[:at] + data[at + size :]
        yield data[:at] + os.urandom(size) + data[at:]
        yield data[: at + size] + part + data[at + size :]
        yield data[:at] + bytes(0xFF ^ byte for byte in part) + data[at + size :]
        yield data[:at] + data[at + size : at + 2 * size] + part + data[at + 2 * size :]


def test_no_part_can_be_cut_inserted_repeated_blanked_or_exchanged(wide: Parcel) -> None:
    """A1, A2, A4. At each border and within each part, bytes, blocks and chunks go, come, repeat or trade places.

    Powers: holds the sealed file on its way. Lacks: every key. Control: the untouched file opens at the end, for both.
    """
    sealed = wide.path.read_bytes()
    tried = 0
    for at in borders(sealed).values():
        for data in damaged(sealed, at):
            if data != sealed:
                assert_both_refuse(wide, data)
                tried += 1
    assert tried > 300
    assert_opens(wide)


def test_no_byte_that_an_insider_seals_again_can_be_changed(forger: Forger, parcel: Parcel) -> None:
    """Own. Inside the seal, a bit of every seventh byte of waybill, passport and organ, and of each border, is flipped.

    Powers: is a recipient: has the plaintext, and seals whatever it likes. Lacks: the sender's and the author's keys.
    Control: the same plaintext, sealed by hand and not changed, opens.
    """
    plain, places = forger.plain, set(range(0, len(forger.plain), 7))
    lines = [place for place, byte in enumerate(plain[:15_000]) if byte == 0x0A][:3]
    for place in (*lines, len(plain) - 1):
        places |= {place - 1, place, min(place + 1, len(plain) - 1)}
    for place in sorted(places):
        seal_again(forger, plain[:place] + bytes([plain[place] ^ 1 << place % 8]) + plain[place + 1 :])
        with pytest.raises(TrustError):
            parcel.open()
    seal_again(forger, plain)
    assert_opens(parcel)


def test_no_part_that_an_insider_seals_again_can_be_cut_inserted_or_repeated(forger: Forger, parcel: Parcel) -> None:
    """Own. Inside the seal, bytes and blocks of the lines and of the organ go, come, repeat or trade places.

    Powers: is a recipient: has the plaintext, and seals whatever it likes. Lacks: the sender's and the author's keys.
    Control: the same plaintext, sealed by hand and not changed, opens.
    """
    plain, chance = forger.plain, random.Random(7)
    lines = [place for place, byte in enumerate(plain[:15_000]) if byte == 0x0A][:3]
    places = [0, 5, *(edge + step for edge in lines for step in (-1, 0, 1)), len(plain) - 1]
    for at in [*places, *(chance.randrange(len(plain)) for _ in range(20))]:
        for data in damaged(plain, at):
            if data != plain:
                seal_again(forger, data)
                with pytest.raises(TrustError):
                    parcel.open()
    seal_again(forger, plain)
    assert_opens(parcel)
