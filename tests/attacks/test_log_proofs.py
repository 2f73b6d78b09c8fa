"""Adversary: whoever carries a log's checkpoints and proofs, or signs them with keys that are not for this.

Powers: sees, keeps and changes every file; has keys of its own; has broken one of the two algorithms; or is the keeper
and signs any text. Always: a typed refusal with exit code 6.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.errors import TrustError
from not_fed.keys import LogSigner
from not_fed.trust.log import (
    BadEntry,
    CheckpointRefused,
    LogProofRefused,
    NotALog,
    NoteMalformed,
    SignedCheckpoint,
    check_proof,
    entry,
    read_proof,
    verify_checkpoint,
    verify_proof,
    write_proof,
)
from not_fed.trust.log_sources import take_over
from not_fed.trust.log_tree import EMPTY_ROOT, leaf_hash, node_hash, nodes_of, prove_inclusion
from not_fed.trust.members import MemberNotActive, UnknownMember
from tests.support.logs import (
    ORIGIN,
    Keeper,
    b64,
    leaf,
    leaves,
    memory,
    note,
    roster_with_log,
    signature_line,
)
from tests.support.trust import FEDERATION, NOW, Federation, days

STAMP = int(NOW.timestamp())


def refused(data: bytes, keeper: Keeper, kind: type[TrustError] | tuple[type[TrustError], ...], **more: object) -> None:
    """A checkpoint is refused, alone and inside a proof."""
    arguments = {"keys": keeper.keys, "origin": ORIGIN, "now": NOW} | more
    with pytest.raises(kind) as caught:
        verify_checkpoint(data, **arguments)  # type: ignore[arg-type]
    assert caught.value.exit_code == 6
    with pytest.raises(kind):
        verify_proof(write_proof(index=0, path=(), note=data), entry=leaf(0), **arguments)  # type: ignore[arg-type]


def accepted(data: bytes, keeper: Keeper) -> SignedCheckpoint:
    """The honest control."""
    return verify_checkpoint(data, keys=keeper.keys, origin=ORIGIN, now=NOW)


# Proofs


def test_a_proof_of_another_entry_is_refused(keeper: Keeper) -> None:
    """A61. A proof is shown for another entry, or with another index, a node too many, too few, changed or swapped.

    Powers: has honest proofs of every entry and edits them. Control: the honest proof of the entry holds.
    """
    honest = read_proof(keeper.log().proof(leaf(77)))
    assert keeper.verify(keeper.log().proof(leaf(77)), leaf(77)).size == 300
    path, stranger = honest.path, leaf_hash(b"stranger")
    bad = [write_proof(index=index, path=path, note=honest.note) for index in (0, 76, 78, 333, 1 << 62)]
    for changed in (path[1:], path[:-1], (), (*path, stranger), (stranger, *path), (*path, path[-1]), path[::-1],
                    (path[1], path[0], *path[2:]), (*path[:3], stranger, *path[4:]), path * 7):  # fmt: skip
        bad.append(write_proof(index=77, path=changed, note=honest.note))
    for data in bad:
        with pytest.raises(LogProofRefused) as caught:
            keeper.verify(data, leaf(77))
        assert caught.value.exit_code == 6
    for other in (leaf(76), leaf(78), leaf(300), leaf(77, "another")):
        with pytest.raises(LogProofRefused):
            keeper.verify(keeper.log().proof(leaf(77)), other)


def test_a_proof_of_one_kind_does_not_serve_for_another(keeper: Keeper) -> None:
    """Own. The proof that a recall is logged is shown as proof of a seal or a roster of the same digest.

    Powers: chooses digests of its own recalls. Control: it does prove the recall.
    """
    digest = "5a" * 32
    keeper.add(entry("recall", digest))
    proof = keeper.log().proof(entry("recall", digest))
    assert keeper.verify(proof, entry("recall", digest)).size == 301
    for kind in ("seal", "roster"):
        with pytest.raises(LogProofRefused):
            keeper.verify(proof, entry(kind, digest))  # type: ignore[arg-type]


def test_an_inner_node_is_not_a_leaf(tmp_path: Path) -> None:
    """Own. Second preimage: the 64 bytes below an inner node are shown as an entry, one level up in the tree.

    Powers: knows the whole tree. Control: the leaf below that node is proved.
    """
    keeper = Keeper(tmp_path / "log")
    entries = leaves(0, 4)
    keeper.add(*entries)
    hashes = [leaf_hash(item) for item in entries]
    inner = hashes[0] + hashes[1]
    assert node_hash(hashes[0], hashes[1]) != leaf_hash(inner)
    short = prove_inclusion(0, 2, nodes_of([node_hash(*hashes[:2]), node_hash(*hashes[2:])]))
    for index in range(4):
        for item in (inner, b"\x01" + inner, inner[:32]):
            with pytest.raises(LogProofRefused):
                keeper.verify(write_proof(index=index, path=short, note=keeper.note), item)
    with pytest.raises(BadEntry):
        keeper.add(inner)
    assert keeper.verify(keeper.log().proof(entries[0]), entries[0]).size == 4


def test_nothing_is_in_an_empty_log_and_nothing_beyond_a_log_s_size(keeper: Keeper, tmp_path: Path) -> None:
    """Own. Proofs from an empty tree, with an index at or beyond the size, and with sizes that no tree has.

    Powers: the keeper itself signs the checkpoints. Control: an entry of a tree with one entry needs no path.
    """
    only = keeper.signed_note(size=1, root=leaf_hash(leaf(5)))
    assert keeper.verify(write_proof(index=0, path=(), note=only), leaf(5)).size == 1
    empty = keeper.signed_note(size=0, root=EMPTY_ROOT)
    for signed, index in ((empty, 0), (empty, 1), (only, 1), (only, (1 << 63) - 1)):
        with pytest.raises(LogProofRefused):
            keeper.verify(write_proof(index=index, path=(), note=signed), leaf(5))
    with pytest.raises(NoteMalformed):
        keeper.verify(write_proof(index=0, path=(), note=keeper.signed_note(size=0, root=leaf_hash(leaf(5)))), leaf(5))
    huge = keeper.signed_note(size=(1 << 63) - 1, root=leaf_hash(leaf(5)))
    for length in (0, 1, 62, 63):
        with pytest.raises(LogProofRefused):
            keeper.verify(write_proof(index=0, path=(b"\1" * 32,) * length, note=huge), leaf(5))


def test_a_proof_cannot_be_joined_to_another_checkpoint(keeper: Keeper) -> None:
    """Own. The path of one state of the log, the checkpoint of another, and two checkpoints one after the other.

    Powers: has honest proofs of every state. Control: path and checkpoint of one state.
    """
    early = read_proof(keeper.log().proof(leaf(10)))
    keeper.add(*leaves(300, 310))
    late = read_proof(keeper.log().proof(leaf(10)))
    for path, signed in ((early.path, late.note), (late.path, early.note)):
        with pytest.raises(LogProofRefused):
            keeper.verify(write_proof(index=10, path=path, note=signed), leaf(10))
    for tail in (late.note + early.note, early.note + b"\n" + late.note, late.note + b"index 3\n"):
        with pytest.raises((NoteMalformed, LogProofRefused)):
            keeper.verify(write_proof(index=10, path=late.path, note=tail), leaf(10))
    keeper.verify(write_proof(index=10, path=late.path, note=late.note), leaf(10))


def test_a_flood_in_a_proof_costs_nothing(keeper: Keeper) -> None:
    """Own. A proof of megabytes, of a million hashes, with long lines, with unauthenticated extra data.

    Powers: writes the file beside the organ. Control: the honest proof is 4 KB.
    """
    honest = keeper.log().proof(leaf(0))
    assert len(honest) < 4096
    keeper.verify(honest, leaf(0))
    head, _, rest = honest.partition(b"\n\n")
    magic, index, *path = head.split(b"\n")
    for data in (
        b"\n".join([magic, index, *path * 100_000]) + b"\n\n" + rest, honest + b"\n" * (1 << 20), b"A" * (1 << 22),
        b"\n".join([magic, index, *path, b"A" * 300_000]) + b"\n\n" + rest, magic * 100_000,
        b"\n".join([magic, b"extra YWdl", index, *path]) + b"\n\n" + rest,
        b"\n".join([magic, b"index " + b"9" * 200_000, *path]) + b"\n\n" + rest,
    ):  # fmt: skip
        with pytest.raises(NoteMalformed):
            keeper.verify(data, leaf(0))


# Checkpoints


def test_one_signature_is_not_enough(keeper: Keeper) -> None:
    """A62. A checkpoint with only the Ed25519 or only the ML-DSA-44 signature, none, or one of them twice.

    Powers: has broken one of the two algorithms, or strips what is there. Control: both, in either order.
    """
    text, _, lines = keeper.note.partition(b"\n\n")
    first, second = lines.splitlines(keepends=True)
    strange = signature_line("stranger", b"\x01", b"k" * 32, b"s" * 64)
    for kept in (first, second, strange, first + first, second + second, first + second + first,
                 first + second + second, first + strange, strange + second):  # fmt: skip
        refused(text + b"\n\n" + kept, keeper, CheckpointRefused)
    for kept in (first + second, second + first):
        assert accepted(text + b"\n\n" + kept, keeper).size == 300


def test_size_and_root_cannot_be_edited(keeper: Keeper) -> None:
    """A63. Size, root, origin, time, or any byte of the note is changed after signing.

    Powers: carries the note. Control: unchanged it is accepted.
    """
    whole = keeper.note
    text, _, lines = whole.partition(b"\n\n")
    origin, size, root = text.split(b"\n")
    assert accepted(whole, keeper).size == 300
    for edited in ((origin, b"301", root), (origin, b"30", root), (origin, size, b64(b"\x01" * 32).encode()),
                   (origin.replace(b"hub", b"lab"), size, root)):  # fmt: skip
        refused(b"\n".join(edited) + b"\n\n" + lines, keeper, CheckpointRefused)
    for place in [*range(len(text) + 60), *range(len(text) + 60, len(whole), 41)]:
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        refused(changed, keeper, (CheckpointRefused, NoteMalformed))


def test_the_cosignature_is_over_this_very_tree(keeper: Keeper) -> None:
    """Own. Ed25519 is over one tree and ML-DSA-44 over another size, root, origin, cosigner, or a subtree's start.

    Powers: has broken Ed25519 and has old cosignatures of this log. Control: both over the same.
    """
    assert accepted(keeper.signed_note(size=9), keeper).size == 9
    for bad in (
        keeper.signed_note(size=9, cosigned_size=8), keeper.signed_note(size=9, cosigned_root=b"\x12" * 32),
        keeper.signed_note(size=9, start=1), keeper.signed_note(size=9, cosigner="not-fed/lowlands/lab"),
        keeper.signed_note(size=9, cosigner=ORIGIN + "x"), keeper.signed_note(size=9, start=9),
    ):  # fmt: skip
        refused(bad, keeper, CheckpointRefused)


def test_a_time_that_is_still_to_come_is_refused(keeper: Keeper) -> None:
    """Own. A checkpoint from the future, from no time at all, and from the end of all times; then an edited time.

    Powers: the keeper signs any time. Control: now, long ago, and a clock that is five minutes ahead.
    """
    for stamp in (STAMP, STAMP + 300, 1):
        got = accepted(keeper.signed_note(timestamp=stamp), keeper)
        assert got.issued == datetime.fromtimestamp(stamp, UTC)
    for stamp in (0, STAMP + 301, STAMP + 10**9, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        refused(keeper.signed_note(timestamp=stamp), keeper, CheckpointRefused)
    text, _, lines = keeper.signed_note().partition(b"\n\n")
    raw = base64.b64decode(lines.splitlines()[1].split(b" ")[2])
    older = raw[:4] + struct.pack(">Q", STAMP - 9) + raw[12:]
    edited = lines.splitlines(keepends=True)[0] + f"— {ORIGIN} {b64(older)}\n".encode()
    refused(text + b"\n\n" + edited, keeper, CheckpointRefused)


def test_only_the_log_s_own_keys_sign_checkpoints(keeper: Keeper, federation: Federation) -> None:
    """Own. Signed with the site's signing key or another log's, each mixed with one right key; key ids copied.

    Powers: an insider with keys of its own, under the log's name and key ids. Control: the log's own keys.
    """
    text = f"{ORIGIN}\n1\n{b64(b'1' * 32)}\n".encode()
    other = Keeper(keeper.folder.parent / "other", signer=LogSigner.generate("hub"))
    right, wrong = keeper.signed_note(root=b"1" * 32), other.signed_note(root=b"1" * 32)
    (first, second), (other_first, other_second) = (
        data.partition(b"\n\n")[2].splitlines(keepends=True) for data in (right, wrong)
    )
    assert accepted(right, keeper).size == 1
    for lines in (other_first + other_second, first + other_second, other_first + second):
        refused(text + b"\n" + lines, keeper, CheckpointRefused)
    names = [base64.b64decode(line.split(b" ")[2])[:4] for line in (first, second)]
    for pair in ((other_first, other_second), (first, other_second), (other_first, second)):
        copied = b"".join(
            f"— {ORIGIN} {b64(name + base64.b64decode(line.split(b' ')[2])[4:])}\n".encode()
            for name, line in zip(names, pair, strict=True)
        )
        refused(text + b"\n" + copied, keeper, CheckpointRefused)
    ed25519, ml_dsa_65 = federation.hub.signer.sign(text)
    public = federation.hub.signer.public
    first_line = ORIGIN, b"\x01", public.ed25519, ed25519
    second_line = ORIGIN, b"\x06", public.ml_dsa_65, struct.pack(">Q", STAMP) + ml_dsa_65
    refused(note(text, [first_line, second_line]), keeper, CheckpointRefused)


def test_no_signature_of_another_type_stands_in(keeper: Keeper) -> None:
    """Own. Downgrade: Ed25519 cosignature (0x04) for ML-DSA-44, other type bytes, the two values exchanged.

    Powers: has the log's Ed25519 key only. Control: 0x01 and 0x06.
    """
    text = f"{ORIGIN}\n1\n{b64(b'1' * 32)}\n".encode()
    stamp = struct.pack(">Q", STAMP)
    sign, keys = keeper.signer.sign_ed25519, keeper.keys
    old_style = stamp + sign(f"cosignature/v1\ntime {STAMP}\n".encode() + text)
    first = (ORIGIN, b"\x01", keys.ed25519, sign(text))
    for second in ((ORIGIN, b"\x04", keys.ed25519, old_style), (ORIGIN, b"\x06", keys.ed25519, old_style),
                   (ORIGIN, b"\x06", keys.ml_dsa_44, old_style), (ORIGIN, b"\x06", keys.ml_dsa_44, stamp),
                   (ORIGIN, b"\x01", keys.ml_dsa_44, sign(text)),
                   (ORIGIN, b"\x06", keys.ml_dsa_44, sign(text))):  # fmt: skip
        refused(note(text, [first, second]), keeper, CheckpointRefused)
    assert accepted(keeper.signed_note(root=b"1" * 32), keeper).size == 1


def test_a_flood_of_signatures_is_refused_and_strangers_are_ignored(keeper: Keeper) -> None:
    """Own. Thirty-three signature lines, a note of a megabyte; and lines that share the log's name or key id, not both.

    Powers: adds lines to an honest note. Control: 30 unknown lines of any size are ignored.
    """
    text, _, lines = keeper.signed_note().partition(b"\n\n")
    first, _ = lines.splitlines(keepends=True)
    identifier = base64.b64decode(first.split(b" ")[2])[:4]
    same_name = f"— {ORIGIN} {b64(b'abcd' + b's' * 64)}\n".encode()
    same_id = f"— another {b64(identifier + b's' * 64)}\n".encode()
    large = signature_line("post.quantum", b"\x10", b"k", b"s" * 5000)
    for ignored in (same_name * 30, same_id * 30, large * 30, same_name + same_id):
        assert accepted(text + b"\n\n" + ignored + lines, keeper).size == 1
    for flood in (same_name * 31, large * 40, b"x" * (1 << 20), same_id * 10_000):
        refused(text + b"\n\n" + flood + lines, keeper, NoteMalformed)


def test_a_note_with_control_characters_does_not_reach_the_terminal(keeper: Keeper) -> None:
    """Own. CR, NUL, escape sequences, a second text and extension lines, all signed by the log itself.

    Powers: the keeper signs any text. Control: the plain three lines.
    """
    for origin in (ORIGIN + "\r", ORIGIN + "\0", "\x1b[2J" + ORIGIN, ORIGIN + "\n"):
        refused(keeper.signed_note(origin=origin, name=ORIGIN), keeper, NoteMalformed, origin=origin)
    for lines in ("more\n", "\nmore\n", " \n"):
        refused(keeper.signed_note(lines=lines), keeper, NoteMalformed)
    for size in ("01", "+1", " 1", "1 ", "1e3", "\u0661", "9223372036854775808"):
        refused(keeper.signed_note(size=size, cosigned_size=1), keeper, NoteMalformed)
    assert accepted(keeper.signed_note(), keeper).size == 1


# Whose log


def test_the_log_of_another_federation_is_refused(keeper: Keeper, federation: Federation, tmp_path: Path) -> None:
    """Own. The same keeper with the same keys keeps a log of another federation; its proofs are shown here.

    Powers: signs for both. Control: the proof from this federation's log, found through the roster.
    """
    roster = roster_with_log(federation, keeper.keys)
    elsewhere = Keeper(tmp_path / "elsewhere", signer=keeper.signer, federation="highlands")
    elsewhere.add(*leaves(0, 300))
    assert check_proof(keeper.log().proof(leaf(3)), entry=leaf(3), roster=roster, now=NOW).size == 300
    with pytest.raises(CheckpointRefused):
        check_proof(elsewhere.log().proof(leaf(3)), entry=leaf(3), roster=roster, now=NOW)
    refused(elsewhere.note, keeper, CheckpointRefused)
    for origin in ("not-fed/highlands/hub", f"not-fed/{FEDERATION}/lab"):  # under this log's key ids
        refused(keeper.signed_note(origin=origin, name=ORIGIN, cosigner=origin), keeper, CheckpointRefused)
    renamed = elsewhere.note.replace(b"not-fed/highlands/", b"not-fed/lowlands/")
    refused(renamed, keeper, CheckpointRefused)


def test_only_a_current_member_with_log_keys_keeps_a_log(keeper: Keeper, federation: Federation) -> None:
    """Own. A log by somebody who is not on the roster, is revoked, is past its time, or never got log keys.

    Powers: has keys and a well-formed log. Control: enrolled, active, with these keys.
    """
    roster, proof = roster_with_log(federation, keeper.keys), keeper.log().proof(leaf(0))
    assert check_proof(proof, entry=leaf(0), roster=roster, now=NOW).size == 300
    hub = roster.members["hub"]
    cases = {
        NotALog: {**roster.members, "hub": replace(hub, log=None)},
        MemberNotActive: {**roster.members, "hub": replace(hub, active=False)},
        UnknownMember: {name: member for name, member in roster.members.items() if name != "hub"},
        CheckpointRefused: {**roster.members, "hub": replace(hub, log=LogSigner.generate("hub").public)},
    }
    for kind, members in cases.items():
        with pytest.raises(kind):
            check_proof(proof, entry=leaf(0), roster=replace(roster, members=members), now=NOW)
    with pytest.raises(MemberNotActive):
        check_proof(proof, entry=leaf(0), roster=roster, now=NOW + days(4000))


def test_the_name_of_a_log_is_no_path(keeper: Keeper, federation: Federation, clinic: Path) -> None:
    """Own. Origins with `..`, slashes, other schemes: signed, handed over as a checkpoint, to be written somewhere.

    Powers: the keeper signs any origin. Control: the real name is remembered in one file.
    """
    roster, before = roster_with_log(federation, keeper.keys), sorted(clinic.rglob("*"))
    for origin in ("not-fed/lowlands/../../x", "not-fed/lowlands/..", "/etc/passwd", "not-fed/lowlands/hub/x",
                   "example.com/log", "old 3", "not-fed/lowlands/.hub"):  # fmt: skip
        source = clinic.parent / "note"
        source.write_bytes(keeper.signed_note(origin=origin))
        with pytest.raises(TrustError):
            take_over(clinic, source, roster=roster, now=NOW)
    assert sorted(clinic.rglob("*")) == before
    source.write_bytes(keeper.note)
    assert take_over(clinic, source, roster=roster, now=NOW).relation == "first"
    assert list(memory(clinic)) == ["log.hub.checkpoint"]
