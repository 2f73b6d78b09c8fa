"""Signed notes, checkpoints and proofs as text: the specification's own example, and every other spelling refused."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from not_fed.trust import log_note
from not_fed.trust.log import CheckpointRefused, NoteMalformed, read_proof, verifier_keys, verify_checkpoint
from not_fed.trust.log_checkpoint import log_origin, sign_checkpoint, split_origin, stored_checkpoint
from not_fed.trust.log_note import ED25519_TYPE, ML_DSA_44_TYPE, ed25519_signed, key_id, read_note
from not_fed.trust.log_proof import checkpoint_in, read_consistency, write_consistency, write_proof
from not_fed.trust.log_tree import EMPTY_ROOT
from tests.support.logs import ORIGIN, Keeper, b64, cosigned, signature_line
from tests.support.trust import FEDERATION, NOW

# c2sp.org/signed-note, "Verifier keys", "Example"
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE = (
    "This is an example message.\n"
    "\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """A log of three entries."""
    return Keeper(tmp_path / "log")


def test_the_example_of_the_signed_note_specification_verifies() -> None:
    name, identifier, encoded = VKEY.split("+")
    kind, public = base64.b64decode(encoded)[:1], base64.b64decode(encoded)[1:]
    assert (kind, key_id(name, kind, public).hex()) == (ED25519_TYPE, identifier)
    assert log_note.verifier_key(name, kind, public) == VKEY
    note = read_note(EXAMPLE, where="example")
    (signature,) = note.by(name, bytes.fromhex(identifier))
    assert note.text == b"This is an example message.\n"
    assert ed25519_signed(note.text, signature, public=public)
    assert not ed25519_signed(note.text + b"\n", signature, public=public)
    assert not ed25519_signed(note.text, signature[:-1], public=public)
    assert not ed25519_signed(note.text, signature, public=public[:-1])


def test_a_checkpoint_has_the_specified_bytes_and_both_signatures_are_over_them(keeper: Keeper) -> None:
    signed = sign_checkpoint(keeper.signer, federation=FEDERATION, size=7, root=b"\x22" * 32, now=NOW)
    note = read_note(signed.note, where="note")
    root = b64(b"\x22" * 32)
    assert note.text == f"not-fed/{FEDERATION}/hub\n7\n{root}\n".encode()
    first, second = note.signatures
    assert (first.name, second.name) == (ORIGIN, ORIGIN)
    assert (len(first.value), len(second.value)) == (64, 8 + 2420)
    assert first.key_id == key_id(ORIGIN, b"\x01", keeper.keys.ed25519)
    assert second.key_id == key_id(ORIGIN, b"\x06", keeper.keys.ml_dsa_44)
    stamp = int(NOW.timestamp())
    message = cosigned(ORIGIN, stamp, origin=ORIGIN, start=0, end=7, root=b"\x22" * 32)
    assert message == log_note.cosigned_message(ORIGIN, timestamp=stamp, origin=ORIGIN, size=7, root=b"\x22" * 32)
    assert int.from_bytes(second.value[:8], "big") == stamp
    assert ed25519_signed(note.text, first.value, public=keeper.keys.ed25519)
    assert log_note.ml_dsa_44_signed(message, second.value[8:], public=keeper.keys.ml_dsa_44)


def test_a_checkpoint_written_from_the_specification_alone_is_accepted(keeper: Keeper) -> None:
    got = verify_checkpoint(keeper.signed_note(size=5), keys=keeper.keys, origin=ORIGIN, now=NOW)
    assert (got.origin, got.size, got.root, got.issued) == (ORIGIN, 5, b"\x11" * 32, NOW)
    assert str(got) == "size 5, root 1111111111111111..., 2026-11-24T12:00:00Z"
    assert stored_checkpoint(got.note, where="memory") == got
    again = verify_checkpoint(got.note, keys=keeper.keys, origin=ORIGIN, now=NOW + timedelta(days=4000))
    assert again == got


def test_others_can_be_configured_with_the_log_s_keys(keeper: Keeper) -> None:
    expected = ((ED25519_TYPE, keeper.keys.ed25519), (ML_DSA_44_TYPE, keeper.keys.ml_dsa_44))
    for text, (kind, public) in zip(verifier_keys(ORIGIN, keeper.keys), expected, strict=True):
        name, identifier, encoded = text.split("+", 2)
        assert (name, base64.b64decode(encoded)) == (ORIGIN, kind + public)
        assert identifier == key_id(ORIGIN, kind, public).hex()


def spoiled(note: bytes) -> dict[str, bytes]:
    """A note in every spelling that is not the one."""
    text, _, signatures = note.partition(b"\n\n")
    origin, size, root = text.split(b"\n")
    lines = signatures.splitlines(keepends=True)
    first = lines[0].removesuffix(b"\n")
    name, value = first.split(b" ")[1:]

    def with_head(*parts: bytes) -> bytes:
        return b"\n".join(parts) + b"\n\n" + signatures

    def with_first(line: bytes) -> bytes:
        return text + b"\n\n" + line + b"\n" + lines[1]

    return {
        "empty": b"", "no signatures": text + b"\n\n", "no blank line": text + b"\n" + signatures,
        "no text": b"\n\n" + signatures, "only signatures": signatures, "no last line feed": note[:-1],
        "line feed too many": note + b"\n", "something after": note + b"x\n", "something before": b"\n" + note,
        "CR": note.replace(b"\n", b"\r\n"), "one CR": with_head(origin, size + b"\r", root),
        "NUL": with_head(origin + b"\0", size, root), "tab": with_head(origin + b"\t", size, root),
        "DEL": with_head(origin + b"\x7f", size, root), "escape": with_head(b"\x1b[2J" + origin, size, root),
        "byte order mark": b"\xef\xbb\xbf" + note, "not UTF-8": with_head(origin + b"\xff", size, root),
        "surrogate": with_head(origin + b"\xed\xa0\x80", size, root),
        "extension line": with_head(origin, size, root, b"more"), "empty origin": with_head(b"", size, root),
        "two lines": with_head(origin, size), "four lines swapped": with_head(size, origin, root),
        "leading zero": with_head(origin, b"0" + size, root), "plus": with_head(origin, b"+" + size, root),
        "minus": with_head(origin, b"-" + size, root), "space": with_head(origin, b" " + size, root),
        "underscore": with_head(origin, b"1_0", root), "2^63": with_head(origin, b"9223372036854775808", root),
        "twenty digits": with_head(origin, b"1" * 20, root), "a thousand digits": with_head(origin, b"1" * 1000, root),
        "arabic digits": with_head(origin, "\u0661".encode(), root), "hexadecimal": with_head(origin, b"0x1", root),
        "size 0 with a root": with_head(origin, b"0", root), "no padding": with_head(origin, size, root.rstrip(b"=")),
        "two lines of base64": with_head(origin, size, root[:20] + b"\n" + root[20:]),
        "31 bytes": with_head(origin, size, base64.b64encode(b"\x11" * 31)),
        "33 bytes": with_head(origin, size, base64.b64encode(b"\x11" * 33)),
        "loose last bits": with_head(origin, size, root[:-2] + bytes([root[-2] + 1]) + b"="),
        "url alphabet": with_head(origin, size, base64.urlsafe_b64encode(b"\xff" * 32)),
        "hyphen for the dash": with_first(b"-" + first.removeprefix("—".encode())),
        "no space": with_first(first.replace(b" ", b"", 1)), "two spaces": with_first(first.replace(b" ", b"  ", 1)),
        "no name": with_first("— ".encode() + value), "plus in a name": with_first("— a+b ".encode() + value),
        "space in a name": with_first("— a\u2003b ".encode() + value),
        "no break space": with_first("— a\u00a0b ".encode() + value),
        "only a key id": with_first(f"— {name.decode()} {b64(b'1234')}".encode()),
        "no value": with_first(b" ".join([first.split(b" ")[0], name])),
        "space at the end": with_first(first + b" "), "signature with loose base64": with_first(first + b"="),
        "blank line between signatures": text + b"\n\n" + lines[0] + b"\n" + lines[1],
        "too many": note + signature_line("a", b"\x01", b"", b"x") * 31,
        "too long": note + signature_line("a", b"\x01", b"", b"x" * 9000) * 30,
    }  # fmt: skip


def test_every_other_spelling_of_a_note_is_refused(keeper: Keeper) -> None:
    note = keeper.signed_note()
    assert verify_checkpoint(note, keys=keeper.keys, origin=ORIGIN, now=NOW).size == 1  # control
    for what, data in spoiled(note).items():
        with pytest.raises((NoteMalformed, CheckpointRefused)) as caught:
            verify_checkpoint(data, keys=keeper.keys, origin=ORIGIN, now=NOW)
        assert isinstance(caught.value, NoteMalformed) or what == "byte order mark", what  # that one is another origin


def test_what_a_note_may_carry_besides_is_carried(keeper: Keeper) -> None:
    """Unknown signatures before, between and after ours, up to 32 lines in all; C2SP asks for at least 16."""
    text, blank, signatures = keeper.signed_note().partition(b"\n\n")
    first, second = signatures.splitlines(keepends=True)
    strange = signature_line("witness.example/ü", b"\x04", b"k" * 32, b"s" * 72)
    for count in (1, 14, 30):
        for placed in (strange * count + first + second, first + strange * count + second):
            got = verify_checkpoint(text + blank + placed, keys=keeper.keys, origin=ORIGIN, now=NOW)
            assert got.note == keeper_note(text, first, second)


def keeper_note(text: bytes, first: bytes, second: bytes) -> bytes:
    return text + b"\n\n" + first + second


def test_what_a_site_stored_is_read_as_strictly(keeper: Keeper) -> None:
    note = keeper.signed_note()
    text, blank, signatures = note.partition(b"\n\n")
    first, second = signatures.splitlines(keepends=True)
    assert stored_checkpoint(note, where="memory").issued == NOW  # control
    stranger = signature_line("other", b"\x01", b"k" * 32, b"s" * 64)
    far = signature_line(ORIGIN, b"\x06", b"k", b"\xff" * 2428)
    for lines in (second + first, first, first + second + stranger, first + first, stranger + second, first + far):
        with pytest.raises(NoteMalformed):
            stored_checkpoint(text + blank + lines, where="memory")


def test_origins_name_a_federation_and_a_member_and_nothing_else() -> None:
    assert split_origin(log_origin("low-lands", "hub.1"), where="x") == ("low-lands", "hub.1")
    for text in ("", "not-fed/a", "not-fed/a/b/c", "not-fed/a/../b", "not-fed/a/b\n", "example.com/log", "not-fed//b",
                 "not-fed/a/.b", f"not-fed/a/{'b' * 65}", "Not-fed/a/b", " not-fed/a/b"):  # fmt: skip
        with pytest.raises(CheckpointRefused):
            split_origin(text, where="x")


def test_the_empty_log_has_a_checkpoint_too(keeper: Keeper) -> None:
    signed = sign_checkpoint(keeper.signer, federation=FEDERATION, size=0, root=EMPTY_ROOT, now=NOW)
    assert verify_checkpoint(signed.note, keys=keeper.keys, origin=ORIGIN, now=NOW) == signed
    assert signed.note.startswith(f"{ORIGIN}\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n".encode())


def test_proofs_are_written_as_specified_and_read_back() -> None:
    note = b"origin\n3\n" + base64.b64encode(b"\x11" * 32) + b"\n\n" + signature_line("a", b"\x01", b"k", b"s")
    path = (b"\x01" * 32, b"\x02" * 32)
    proof = write_proof(index=2, path=path, note=note)
    lines = [b64(value) for value in path]
    assert proof == f"c2sp.org/tlog-proof@v1\nindex 2\n{lines[0]}\n{lines[1]}\n\n".encode() + note
    read = read_proof(proof)
    assert (read.index, read.path, read.note, read.checkpoint().size) == (2, path, note, 3)
    assert read_proof(write_proof(index=0, path=(), note=note)).path == ()
    grown = write_consistency(old_size=1, path=path, note=note)
    assert grown == f"old 1\n{lines[0]}\n{lines[1]}\n\n".encode() + note
    got = read_consistency(grown)
    assert (got.old_size, got.new_size, got.path, got.note) == (1, 3, path, note)
    assert (got.between(1, 3), got.between(3, 1), got.between(1, 2)) == (path, path, None)
    assert checkpoint_in(proof) == (note, None)
    assert checkpoint_in(grown) == (note, got)
    assert checkpoint_in(note) == (note, None)


def test_every_other_spelling_of_a_proof_is_refused() -> None:
    note = b"origin\n3\n" + base64.b64encode(b"\x11" * 32) + b"\n\n" + signature_line("a", b"\x01", b"k", b"s")
    value = base64.b64encode(b"\x01" * 32)
    head, good = b"c2sp.org/tlog-proof@v1", b"index 2"

    def joined(*lines: bytes) -> bytes:
        return b"\n".join(lines) + b"\n\n" + note

    assert read_proof(joined(head, good, value)).index == 2  # control
    for data in (
        b"", head, joined(), joined(head), joined(head, value), joined(b"c2sp.org/tlog-proof@v2", good, value),
        joined(head + b" ", good), joined(head, b"extra YQ==", good, value), joined(head, b"index 02", value),
        joined(head, b"index -1"), joined(head, b"index"), joined(head, b"index 9223372036854775808"),
        joined(head, b"Index 2"), joined(head, good, value[:-1]), joined(head, good, b"AA=="), joined(head, good, good),
        joined(head, good, *[value] * 64), joined(head, good, value + b" "), joined(head, good, value, b"\xff"),
        head + b"\n" + good + b"\n" + value + b"\n" + note.replace(b"\n\n", b"\n"), b"\n\n" + joined(head, good),
        joined(head, good, value).replace(b"\n", b"\r\n"), joined(head, good, b"A" * 300_000),
        joined(head, good) + b"x\n" * 150_000,
    ):  # fmt: skip
        with pytest.raises(NoteMalformed):
            read_proof(data)
    for data in (joined(b"old 02"), joined(b"old"), joined(b"new 2"), joined(b"old 2", *[value] * 64), b"old 2\n\n",
                 joined(b"old 2", b"AA=="), b"old 1\n\norigin\n3\n\n" + note):  # fmt: skip
        with pytest.raises(NoteMalformed):
            read_consistency(data)


def test_times_are_read_in_whole_seconds(keeper: Keeper) -> None:
    moment = datetime(2026, 11, 24, 12, 0, 0, 999_999, tzinfo=UTC)
    signed = sign_checkpoint(keeper.signer, federation=FEDERATION, size=0, root=EMPTY_ROOT, now=moment)
    assert signed.issued == NOW
