"""Adversary: whoever holds the sealed file on its way, and insiders who build a payload chunk by chunk.

Powers: sees and changes every byte, has keys of its own, knows the format. Lacks: the keys of recipients and sender.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from not_fed.age import BadContainer
from not_fed.age.stream import CHUNK_BYTES, NONCE_BYTES, TAG_BYTES
from not_fed.envelope import open as opening
from not_fed.envelope import verify_sealed
from not_fed.errors import TrustError
from tests.support.attacks import afterwards, assert_opens, container_of_chunks
from tests.support.trust import (
    NOW,
    Federation,
    Forger,
    Parcel,
    assert_refused,
    build_container,
    listing,
    organ_bytes,
    split,
)

SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES


def test_no_byte_of_a_sealed_file_can_be_changed(tmp_path: Path, federation: Federation) -> None:
    """A1. One bit of every byte is flipped, one at a time: header, MAC, nonce, payload and tags.

    Powers: writes to the sealed file on its way. Control: with every byte restored it opens.
    """
    parcel = Parcel(tmp_path, federation, to=("hub",))
    sealed = parcel.path.read_bytes()
    before = listing(parcel.folder)
    with parcel.path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(sealed):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place)
            with pytest.raises(TrustError) as caught:
                parcel.open()
            assert caught.value.exit_code == 6
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert listing(parcel.folder) == before
    assert parcel.open().organ.read_bytes() == parcel.organ


def test_no_bit_of_mac_nonce_or_tags_can_be_changed(big: Parcel) -> None:
    """A1. Each bit of the header's MAC, of the nonce, and at both ends of every chunk and tag is flipped.

    Powers: writes to the sealed file on its way. Control: with every bit restored it opens.
    """
    sealed = big.path.read_bytes()
    header, _ = split(sealed)
    start = header.size_bytes + NONCE_BYTES
    places = [*range(header.size_bytes - 44, start)]
    for end in [*range(start + SEALED_CHUNK, len(sealed), SEALED_CHUNK), len(sealed)]:
        places += [max(start, end - SEALED_CHUNK), end - TAG_BYTES - 1, end - TAG_BYTES, end - 1]
    before = listing(big.folder)
    with big.path.open("r+b", buffering=0) as file:
        for place in places:
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([sealed[place] ^ 1 << bit]), place)
                with pytest.raises(TrustError):
                    big.open()
            os.pwrite(file.fileno(), sealed[place : place + 1], place)
    assert listing(big.folder) == before
    assert_opens(big)


def test_verify_refuses_what_open_refuses(parcel: Parcel) -> None:
    """A1. Damage at the end, in the middle, in the header and in the version line, looked for by verifying only.

    Powers: writes to the sealed file on its way. Control: the intact file verifies, with a key and by its label.
    """
    sealed = bytearray(parcel.path.read_bytes())
    hub, roster = parcel.federation.hub, parcel.federation.roster
    assert verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener).author == "clinic"
    assert verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label).sender == "clinic"
    for place in (len(sealed) - 1, len(sealed) // 2, 2000, 30):
        sealed[place] ^= 4
        parcel.path.write_bytes(sealed)
        with pytest.raises(TrustError):
            verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener)
        with pytest.raises(TrustError):
            verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label)
        sealed[place] ^= 4


def test_a_sealed_file_cannot_be_cut(big: Parcel) -> None:
    """A2. The file ends early: at each border of header and chunks, and a byte before and after each.

    Powers: cuts the sealed file on its way, or the line breaks in mid-transfer. Control: the whole file opens.
    """
    sealed = big.path.read_bytes()
    header, payload = split(sealed)
    assert len(payload) > 4 * SEALED_CHUNK
    borders = [header.size_bytes + NONCE_BYTES + number * SEALED_CHUNK for number in range(5)]
    borders += [0, 1, 21, 22, header.size_bytes, header.size_bytes + NONCE_BYTES, len(sealed) - TAG_BYTES]
    for border in borders:
        for end in (border - 1, border, border + 1):
            if 0 <= end < len(sealed):
                big.path.write_bytes(sealed[:end])
                assert_refused(big, TrustError)
    big.path.write_bytes(sealed)
    assert_opens(big)


def test_a_sealed_file_cannot_be_extended(big: Parcel) -> None:
    """A3. A byte, an empty chunk, the last chunk again, or a whole second file follows the end.

    Powers: appends to the sealed file on its way. Control: without the addition it opens.
    """
    sealed = big.path.read_bytes()
    for extra in (b"\0", bytes(SEALED_CHUNK), sealed[-SEALED_CHUNK:], b"\n" + sealed):
        big.path.write_bytes(sealed + extra)
        assert_refused(big, BadContainer)
    big.path.write_bytes(sealed)
    assert_opens(big)


def test_a_file_has_one_end(forger: Forger, parcel: Parcel) -> None:
    """A3. A second chunk marked as last follows the first one, each of them properly encrypted.

    Powers: a recipient's file key, so chunks of any number and mark. Control: one last chunk, by the same hand, opens.
    """
    plain = forger.plain
    for chunks in ([(0, True, plain), (1, True, b"more")], [(0, True, plain), (0, True, plain)]):
        parcel.path.write_bytes(container_of_chunks(forger, chunks))
        assert_refused(parcel, BadContainer)
    parcel.path.write_bytes(container_of_chunks(forger, [(0, True, plain)]))
    assert_opens(parcel)


def test_chunks_cannot_be_swapped_repeated_or_dropped(big: Parcel) -> None:
    """A4. Whole chunks change places, appear twice or are left out, so that the organ would be another.

    Powers: rearranges the sealed file on its way. Control: in the right order the same chunks open.
    """
    header, payload = split(big.path.read_bytes())
    start, rest = big.path.read_bytes()[: header.size_bytes + NONCE_BYTES], payload[NONCE_BYTES:]
    chunks = [rest[at : at + SEALED_CHUNK] for at in range(0, len(rest), SEALED_CHUNK)]
    swapped = [chunks[1], chunks[0], *chunks[2:]]
    for attempt in (swapped, [chunks[0], *chunks], chunks[1:], [*chunks[:2], *chunks[3:]], [*chunks, chunks[-1]]):
        big.path.write_bytes(start + b"".join(attempt))
        assert_refused(big, BadContainer)
    big.path.write_bytes(start + b"".join(chunks))
    assert_opens(big)


def test_an_insiders_chunks_are_numbered_and_only_the_last_is_marked(big: Parcel) -> None:
    """Own. Chunks that skip a number, start at one, are none of them the last, or end with an empty one.

    Powers: a recipient's file key, so chunks of any number and mark. Control: numbered and marked rightly, they open.
    """
    forger = Forger(big)
    parts = [forger.plain[at : at + CHUNK_BYTES] for at in range(0, len(forger.plain), CHUNK_BYTES)]
    last = len(parts) - 1
    right = [(number, number == last, part) for number, part in enumerate(parts)]
    skipping = [(number + (number > 1), mark, part) for number, mark, part in right]
    from_one = [(number + 1, mark, part) for number, mark, part in right]
    unmarked = [(number, False, part) for number, _, part in right]
    marked_early = [(number, number in (1, last), part) for number, part in enumerate(parts)]
    whole = [(number, False, part) for number, part in enumerate(parts[:-1])]
    short_middle = [*right[:1], (1, False, parts[1][:100]), (2, False, parts[1][100:]), *right[2:]]
    for chunks in (skipping, from_one, unmarked, marked_early, [*whole, (last, True, b"")], short_middle):
        big.path.write_bytes(container_of_chunks(forger, chunks))
        assert_refused(big, BadContainer)
    big.path.write_bytes(container_of_chunks(forger, right))
    assert_opens(big)


def test_a_header_cannot_carry_another_files_payload(parcel: Parcel) -> None:
    """A5. The header of one file is put before the payload of another, both for the same recipient.

    Powers: holds many sealed files and joins their parts. Control: the payload opens under its own header.
    """
    first = parcel.path.read_bytes()
    parcel.path.write_bytes(build_container(b"anything", recipients=[parcel.federation.hub.opener.recipient]))
    header, _ = split(parcel.path.read_bytes())
    _, payload = split(first)
    parcel.path.write_bytes(parcel.path.read_bytes()[: header.size_bytes] + payload)
    assert_refused(parcel, BadContainer)
    parcel.path.write_bytes(first)
    assert_opens(parcel)


def test_two_files_of_one_sender_cannot_trade_headers(tmp_path: Path, federation: Federation) -> None:
    """Own. Two parcels from one sender to the same recipients, in the same round, trade their headers or payloads.

    Powers: holds both files and joins their parts. Control: both open as they are.
    """
    parcels = []
    for name, value in (("a", 0.5), ("b", 0.25)):
        (tmp_path / name).mkdir()
        parcels.append(Parcel(tmp_path / name, federation, organ=organ_bytes(value=value)))
    whole = [parcel.path.read_bytes() for parcel in parcels]
    sizes = [split(data)[0].size_bytes for data in whole]
    for one, other in ((0, 1), (1, 0)):
        for border in (sizes[one], sizes[one] + NONCE_BYTES):
            parcels[one].path.write_bytes(whole[one][:border] + whole[other][border:])
            assert_refused(parcels[one], BadContainer)
        parcels[one].path.write_bytes(whole[one])
        assert_opens(parcels[one])


def test_the_same_organ_sealed_twice_shares_nothing(parcel: Parcel) -> None:
    """A14. Two sealed files are compared, to learn whether they hold the same organ: no key, nonce or block is shared.

    Powers: keeps every sealed file that it relays. Control: both files open to the same organ.
    """
    first, forger = parcel.path.read_bytes(), Forger(parcel)
    second = build_container(forger.plain, recipients=[parcel.federation.hub.opener.recipient] * 2)
    blocks = [{data[at : at + 64] for at in range(300, len(data) - 64)} for data in (first, second)]
    assert not blocks[0] & blocks[1]
    for data in (first, second):
        parcel.path.write_bytes(data)
        assert_opens(parcel)


@pytest.mark.parametrize("moment", ["before the organ is read", "within the organ"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, federation: Federation, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A15. The sealed file is overwritten by another good parcel of the same sender, after the first checks.

    Powers: writes to the file while it is being opened. Control: either file opens when nobody writes.
    """
    parcels = []
    for name, value in (("a", 0.5), ("b", 0.25)):
        (tmp_path / name).mkdir()
        parcels.append(Parcel(tmp_path / name, federation, organ=organ_bytes(floats=400_000, value=value)))
    whole, other = (parcel.path.read_bytes() for parcel in parcels)
    target = parcels[0]

    def overwrite() -> None:
        with target.path.open("r+b") as file:  # the same file, not a new one of the same name
            file.write(other)

    where, name = (opening, "check_container") if moment.startswith("before") else (opening, "_check_space")
    with afterwards(monkeypatch, where, name, overwrite):
        assert_refused(target, BadContainer)
    assert_opens(target, organ=parcels[1].organ)
    target.path.write_bytes(whole)
    assert_opens(target)


def test_a_file_that_is_exchanged_while_it_is_read_stays_the_one_that_was_opened(
    tmp_path: Path, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A15. Another file takes the sealed file's name between check and use: what was checked is what is written.

    Powers: renames files in the folder while one is being opened. Control: the file that was opened comes out whole.
    """
    parcels = []
    for name, value in (("a", 0.5), ("b", 0.25)):
        (tmp_path / name).mkdir()
        parcels.append(Parcel(tmp_path / name, federation, organ=organ_bytes(floats=400_000, value=value)))
    with afterwards(monkeypatch, opening, "check_container", lambda: parcels[1].path.replace(parcels[0].path)):
        opened = parcels[0].open()
    assert opened.organ.read_bytes() == parcels[0].organ
    assert opened.organ_sha256 == parcels[0].sealed.organ_sha256


def test_one_waybill_cannot_be_cut_and_pasted_over_ciphertext(forger: Forger, parcel: Parcel) -> None:
    """Own. Known plaintext: the relay knows the first line of each frame, and adds a difference to make it another.

    Powers: changes ciphertext where it knows the plaintext. Control: the untouched ciphertext opens.
    """
    sealed = parcel.path.read_bytes()
    start = split(sealed)[0].size_bytes + NONCE_BYTES
    known, wanted = b"not-fed.sealed/v1\n", b"not-fed.sealed/v2\n"
    assert forger.plain.startswith(known)
    difference = bytes(a ^ b for a, b in zip(known, wanted, strict=True))
    changed = bytes(a ^ b for a, b in zip(sealed[start : start + len(known)], difference, strict=True))
    parcel.path.write_bytes(sealed[:start] + changed + sealed[start + len(known) :])
    assert_refused(parcel, BadContainer)
    parcel.path.write_bytes(sealed)
    assert_opens(parcel)
