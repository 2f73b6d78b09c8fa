"""Adversary: whoever holds the sealed file on its way, and insiders who build a container by hand.

Powers: sees and changes every byte, has keys of its own, knows the format. Lacks: the keys of recipients and sender.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from not_fed.age import BadContainer, NotForThisKey
from not_fed.age.header import Stanza, decode64, encode64, write_header
from not_fed.age.hybrid import KIND, wrap
from not_fed.age.stream import CHUNK_BYTES, NONCE_BYTES, TAG_BYTES
from not_fed.envelope import verify_sealed
from not_fed.envelope.checks import WaybillMismatch
from not_fed.errors import TrustError
from not_fed.keys.dsse import NewerFormat
from tests.support.trust import (
    NOW,
    Federation,
    Forger,
    Parcel,
    Site,
    assert_refused,
    build_container,
    listing,
    organ_bytes,
    split,
)

SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES


def test_the_untouched_file_opens_for_each_recipient(parcel: Parcel) -> None:
    """Control: the door does open."""
    for place, site in enumerate((parcel.federation.hub, parcel.federation.lab)):
        opened = parcel.open(site, out=parcel.folder / f"{place}.organ", label=parcel.sealed.label)
        assert opened.organ.read_bytes() == parcel.organ
        assert (opened.sender, opened.author) == ("clinic", "clinic")


def test_no_byte_of_a_sealed_file_can_be_changed(tmp_path: Path, federation: Federation) -> None:
    """Every byte, one bit each (which bit depends on the place): header, MAC, nonce, payload and tags."""
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


def test_an_organ_of_several_chunks_cannot_be_cut_or_extended(parcel: Parcel) -> None:
    """Cut at each chunk border, around it, and at each border of the header; extended by a byte and by a chunk."""
    big = _big(parcel)
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
    for extra in (b"\0", bytes(SEALED_CHUNK), sealed[-SEALED_CHUNK:], b"\n" + sealed):
        big.path.write_bytes(sealed + extra)
        assert_refused(big, BadContainer)


def test_chunks_cannot_be_swapped_repeated_or_dropped(parcel: Parcel) -> None:
    big = _big(parcel)
    header, payload = split(big.path.read_bytes())
    start, rest = big.path.read_bytes()[: header.size_bytes + NONCE_BYTES], payload[NONCE_BYTES:]
    chunks = [rest[at : at + SEALED_CHUNK] for at in range(0, len(rest), SEALED_CHUNK)]
    swapped = [chunks[1], chunks[0], *chunks[2:]]
    for attempt in (swapped, [chunks[0], *chunks], chunks[1:], [*chunks[:2], *chunks[3:]], [*chunks, chunks[-1]]):
        big.path.write_bytes(start + b"".join(attempt))
        assert_refused(big, BadContainer)


def test_a_header_cannot_carry_another_files_payload(parcel: Parcel) -> None:
    first = parcel.path.read_bytes()
    parcel.path.write_bytes(build_container(b"anything", recipients=[parcel.federation.hub.opener.recipient]))
    header, _ = split(parcel.path.read_bytes())
    _, payload = split(first)
    parcel.path.write_bytes(parcel.path.read_bytes()[: header.size_bytes] + payload)
    assert_refused(parcel, BadContainer)


def test_recipients_cannot_be_dropped_added_repeated_or_reordered(parcel: Parcel) -> None:
    """Without the file key the header's MAC cannot be made again, so whoever remains notices."""
    sealed = parcel.path.read_bytes()
    header, payload = split(sealed)
    hub, lab = header.stanzas
    outsider = wrap(os.urandom(16), recipient=Site.make("mallory").opener.recipient)
    for stanzas in ([hub], [hub, lab, hub], [lab, hub], [hub, lab, outsider], [outsider, hub, lab], [hub, outsider]):
        parcel.path.write_bytes(_with_stanzas(stanzas, header.mac) + payload)
        assert_refused(parcel, BadContainer)


def test_a_recipient_of_a_weaker_kind_is_refused_even_under_a_right_mac(parcel: Parcel) -> None:
    """A downgrade: an insider who holds the file key adds an X25519 or scrypt stanza for somebody without PQ keys."""
    file_key, plain = _insider(parcel)
    ours = wrap(file_key, recipient=parcel.federation.hub.opener.recipient)
    for weaker in (
        Stanza("X25519", (encode64(bytes(32)),), bytes(32)),
        Stanza("scrypt", (encode64(bytes(16)), "10"), bytes(32)),
        Stanza("ssh-ed25519", ("abcd", encode64(bytes(32))), bytes(32)),
        Stanza(KIND, (ours.arguments[0], "more"), ours.body),
        Stanza(KIND, (encode64(decode64(ours.arguments[0])[:-1]),), ours.body),
        Stanza(KIND, ours.arguments, ours.body + b"\0"),
        Stanza("joint-grease", (), b""),
    ):
        parcel.path.write_bytes(build_container(plain, recipients=[], stanzas=[ours, weaker], file_key=file_key))
        assert "recipient" in assert_refused(parcel, BadContainer).got


def test_a_sender_cannot_give_two_recipients_two_organs(parcel: Parcel) -> None:
    """Equivocation: two file keys in one header. The MAC commits to one key, so the second recipient refuses."""
    first, second = os.urandom(16), os.urandom(16)
    federation = parcel.federation
    stanzas = [
        wrap(first, recipient=federation.hub.opener.recipient),
        wrap(second, recipient=federation.lab.opener.recipient),
    ]
    _, plain = _insider(parcel)
    parcel.path.write_bytes(build_container(plain, recipients=[], stanzas=stanzas, file_key=first))
    assert parcel.open(federation.hub).sender == "clinic"  # control: the first one's header does hold
    assert_refused(parcel, BadContainer, by=federation.lab, out=parcel.folder / "second.organ")


def test_whoever_is_not_a_recipient_learns_nothing_but_that(parcel: Parcel) -> None:
    """The same message for an intact and for a damaged file: no check that comes after the keys is told."""
    outsider = Site.make("mallory")
    whole = assert_refused(parcel, NotForThisKey, by=outsider)
    sealed = bytearray(parcel.path.read_bytes())
    sealed[-1] ^= 1
    parcel.path.write_bytes(sealed)
    damaged = assert_refused(parcel, NotForThisKey, by=outsider)
    assert whole.as_json() == damaged.as_json()


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"age-encryption.org/v1\n", id="version-only"),
        pytest.param(b"age-encryption.org/v2\n--- " + b"A" * 43 + b"\n", id="another-version"),
        pytest.param(b"age-encryption.org/v1\r\n", id="crlf"),
        pytest.param(b"-----BEGIN AGE ENCRYPTED FILE-----\n", id="armor"),
        pytest.param(b"age-encryption.org/v1\n--- " + b"A" * 43 + b"\n" + bytes(64), id="no-recipient"),
        pytest.param(b"age-encryption.org/v1\n-> " + b"a" * 1_000_000, id="a-line-of-a-megabyte"),
        pytest.param(b"age-encryption.org/v1\n" + b"-> a\n\n" * 10_000, id="ten-thousand-recipients"),
        pytest.param(b"age-encryption.org/v1\n->\n\n--- " + b"A" * 43 + b"\n", id="no-kind"),
        pytest.param(b"age-encryption.org/v1\n-> \xff\n\n--- " + b"A" * 43 + b"\n", id="not-ascii"),
        pytest.param(b"age-encryption.org/v1\n-> a\n\n---" + b"A" * 43 + b"\n", id="mac-without-space"),
        pytest.param(b"age-encryption.org/v1\n-> a\n\n--- " + b"A" * 42 + b"B\n", id="mac-not-canonical"),
        pytest.param(b"age-encryption.org/v1\n-> a\nAA==\n--- " + b"A" * 43 + b"\n", id="padded-base64"),
        pytest.param(bytes(100_000), id="zeros"),
    ],
)
def test_what_is_not_an_age_file_is_refused(parcel: Parcel, hostile: bytes) -> None:
    parcel.path.write_bytes(hostile)
    assert_refused(parcel, BadContainer)


def test_a_frame_of_another_kind_is_refused(parcel: Parcel) -> None:
    """An insider seals anything but a frame."""
    _, plain = _insider(parcel)
    to = [site.opener.recipient for site in (parcel.federation.hub, parcel.federation.lab)]
    for content, kind in (
        (b"", BadContainer),
        (b"hello", BadContainer),
        (b"x" * 3_000_000, BadContainer),
        (plain.replace(b"not-fed.sealed/v1\n", b"not-fed.sealed/v1\r\n", 1), TrustError),
        (plain.replace(b"not-fed.sealed/v1\n", b"not-fed.sealed/v2\n", 1), NewerFormat),
        (b"not-fed.sealed/v1\n" + b"x" * 70_000 + b"\n", BadContainer),
        (b"not-fed.sealed/v1\n" + plain.split(b"\n")[1] + b"\n" + b"x" * 2_000_000, BadContainer),
        (plain[:-1], WaybillMismatch),
        (plain + b"\0", WaybillMismatch),
    ):
        parcel.path.write_bytes(build_container(content, recipients=to))
        assert_refused(parcel, kind)
    parcel.path.write_bytes(build_container(plain, recipients=to))
    assert parcel.open().organ.read_bytes() == parcel.organ  # control: the honest frame, sealed by hand, opens


def test_the_same_organ_sealed_twice_shares_nothing(parcel: Parcel) -> None:
    """No key, nonce, encapsulation or block of ciphertext in common, so that nobody can tell it is the same."""
    first = parcel.path.read_bytes()
    _, plain = _insider(parcel)
    second = build_container(plain, recipients=[parcel.federation.hub.opener.recipient] * 2)
    blocks = [{data[at : at + 64] for at in range(300, len(data) - 64)} for data in (first, second)]
    assert not blocks[0] & blocks[1]


def test_verify_refuses_what_open_refuses(parcel: Parcel) -> None:
    sealed = bytearray(parcel.path.read_bytes())
    hub, roster = parcel.federation.hub, parcel.federation.roster
    assert verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener).author == "clinic"
    for place in (len(sealed) - 1, len(sealed) // 2, 2000, 30):
        sealed[place] ^= 4
        parcel.path.write_bytes(sealed)
        with pytest.raises(TrustError):
            verify_sealed(parcel.path, roster=roster, now=NOW, label=None, opener=hub.opener)
        with pytest.raises(TrustError):
            verify_sealed(parcel.path, roster=roster, now=NOW, label=parcel.sealed.label)
        sealed[place] ^= 4


def _big(parcel: Parcel) -> Parcel:
    folder = parcel.folder / "big"
    folder.mkdir()
    return Parcel(folder, parcel.federation, organ=organ_bytes(floats=40_000))


def _insider(parcel: Parcel) -> tuple[bytes, bytes]:
    """What any recipient has: a file key, and the whole plaintext."""
    return os.urandom(16), Forger(parcel).plain


def _with_stanzas(stanzas: list[Stanza], mac: bytes) -> bytes:
    """A header with these recipients under somebody else's MAC."""
    made = write_header(stanzas, file_key=bytes(16))
    return made[: made.rindex(b"--- ")] + b"--- " + encode64(mac).encode() + b"\n"
