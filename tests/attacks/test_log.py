"""Adversary: whoever keeps the log and shows each site what it likes, whoever carries its files, whoever owns its disk.

Powers: a keeper signs anything with both of the log's keys; others see, keep and change every file, and have keys of
their own. Always: a typed refusal with exit code 6, and what a site remembers stays as it was.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from not_fed.errors import InputError, TrustError
from not_fed.keys import LogSigner
from not_fed.trust.log import (
    BadEntry,
    CheckpointRefused,
    LogForked,
    LogProofRefused,
    LogRewritten,
    LogTruncated,
    LogUnproven,
    NotALog,
    NoteMalformed,
    SignedCheckpoint,
    check_proof,
    compare,
    entry,
    keys_of_log,
    read_proof,
    verify_checkpoint,
    verify_proof,
    write_proof,
)
from not_fed.trust.log_folder import LAST_SIGNED, LogDamaged, LogFolder, append_many
from not_fed.trust.log_memory import LogMemoryDamaged, append_remembered, confront, remember, remembered
from not_fed.trust.log_proof import write_consistency
from not_fed.trust.log_sources import read_source, take_over
from not_fed.trust.log_tree import EMPTY_ROOT, leaf_hash, node_hash, nodes_of, prove_inclusion, root_of
from not_fed.trust.members import MemberNotActive, UnknownMember
from tests.support.logs import (
    ORIGIN,
    Keeper,
    b64,
    evidence,
    leaf,
    leaves,
    memory,
    note,
    roster_with_log,
    signature_line,
    site,
)
from tests.support.trust import FEDERATION, NOW, Federation, days

STAMP = int(NOW.timestamp())


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """The hub's log, with 300 entries."""
    made = Keeper(tmp_path / "log")
    made.add(*leaves(0, 300))
    return made


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A site's roster folder."""
    return site(tmp_path / "clinic")


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


def fork(keeper: Keeper, folder: Path, *, start: int = 0, count: int = 300) -> Keeper:
    """The same keeper with another log of the same name: `start` entries are shared, the others are not."""
    other = Keeper(folder, signer=keeper.signer)
    other.add(*leaves(0, start), *leaves(start, count, "another"))
    return other


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


# Growth


def test_a_log_with_two_faces_is_named(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """A64. Split view: the clinic is shown one log, the lab another of the same size; then they compare.

    Powers: the keeper, with both keys, keeps two trees. Control: the same tree, signed again later, is the same.
    """
    other = fork(keeper, tmp_path / "fork", start=299)
    assert keeper.told(clinic).relation == "first"
    again = keeper.signed_note(size=300, root=keeper.log().checkpoint.root, timestamp=STAMP + 60)
    assert remember(clinic, again, keys=keeper.keys, origin=ORIGIN, now=NOW).relation == "same"
    before = memory(clinic)
    for attempt in (lambda: other.told(clinic), lambda: other.handed_over(clinic),
                    lambda: confront(clinic, accepted(other.note, keeper))):  # fmt: skip
        with pytest.raises(LogForked) as caught:
            attempt()
        error = caught.value
        assert (error.exit_code, error.code) == (6, "log-forked")
        for checkpoint, text in ((keeper, error.expected), (other, error.got)):
            assert text == f"size 300, root {checkpoint.log().checkpoint.root.hex()[:16]}..., 2026-11-24T12:00:00Z"
    assert memory(clinic) == before
    (kept,) = evidence(clinic)
    assert str(kept) in error.hint
    said = json.loads(kept.read_bytes())
    assert (said["schema"], said["code"]) == ("not-fed/log-evidence/1", "log-forked")
    shown = [accepted(said[name].encode(), keeper) for name in ("remembered", "offered")]  # anybody can check both
    assert (shown[0].size, shown[0].root != shown[1].root) == (shown[1].size, True)


def test_growth_that_is_no_growth_is_refused(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """A65. A larger log without a consistency proof, with one of another pair of sizes, with an edited one.

    Powers: carries or keeps the log. Control: the honest proof takes the site forward.
    """
    keeper.told(clinic)
    keeper.add(*leaves(300, 350))
    honest, before = keeper.consistency(300), memory(clinic)
    for unproven in (None, keeper.consistency(299), replace(honest, old_size=299), replace(honest, new_size=351)):
        with pytest.raises(LogUnproven):
            keeper.told(clinic, consistency=unproven)
    assert evidence(clinic) == []  # a missing proof contradicts nothing
    path = honest.path
    for bad in (path[1:], path[:-1], (), (*path, path[0]), path[::-1], (leaf_hash(b"x"), *path[1:])):
        with pytest.raises(LogRewritten):
            keeper.told(clinic, consistency=replace(honest, path=bad))
    assert memory(clinic) == before
    done = keeper.told(clinic, consistency=honest)
    assert (done.relation, done.known and done.known.size, done.offered.size) == ("newer", 300, 350)
    assert keeper.told(clinic).relation == "same"


def test_a_log_that_was_rewritten_is_named_and_the_evidence_kept(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """Own. The keeper changes, removes, inserts or reorders one early entry, then grows and proves that growth.

    Powers: the keeper, with both keys and any tree. Control: the true log takes the site forward.
    """
    keeper.told(clinic)
    entries, before = leaves(0, 320), memory(clinic)
    rewritten = {
        "changed": [leaf(5, "another") if item == leaf(5) else item for item in entries],
        "removed": [item for item in entries if item != leaf(5)], "inserted": [leaf(1, "another"), *entries],
        "swapped": [entries[1], entries[0], *entries[2:]], "last": [*entries[:299], *entries[300:]],
    }  # fmt: skip
    for number, (name, kept) in enumerate(rewritten.items(), 1):
        other = Keeper(tmp_path / name, signer=keeper.signer)
        other.add(*kept)
        with pytest.raises(LogRewritten) as caught:
            other.told(clinic, consistency=other.consistency(300))
        assert (caught.value.code, caught.value.exit_code) == ("log-rewritten", 6)
        assert len(evidence(clinic)) == number
    assert memory(clinic) == before
    said = json.loads(evidence(clinic)[0].read_bytes())
    assert [b64(value) for value in other.consistency(300).path] != said["consistency"]
    keeper.add(*entries[300:])
    assert keeper.told(clinic, consistency=keeper.consistency(300)).relation == "newer"


def test_a_log_that_forgets_is_named(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """Own. After 350 entries a smaller log is shown: an old checkpoint alone, and another log of that size.

    Powers: keeps old checkpoints, or is the keeper. Control: shown to be an older state by a proof, it is fine, and
    nothing is forgotten.
    """
    old = keeper.note
    keeper.add(*leaves(300, 350))
    keeper.told(clinic)
    before = memory(clinic)
    with pytest.raises(LogTruncated) as caught:
        remember(clinic, old, keys=keeper.keys, origin=ORIGIN, now=NOW)
    assert (caught.value.code, caught.value.exit_code) == ("log-truncated", 6)
    assert (caught.value.expected[:9], caught.value.got[:9]) == ("size 350,", "size 300,")
    proof = keeper.consistency(300)
    done = remember(clinic, old, keys=keeper.keys, origin=ORIGIN, now=NOW, consistency=proof)
    assert (done.relation, memory(clinic)) == ("older", before)
    other = fork(keeper, tmp_path / "fork", start=100)
    with pytest.raises(LogRewritten):
        other.told(clinic, consistency=proof)
    with pytest.raises(LogTruncated):
        other.handed_over(clinic)
    assert memory(clinic) == before


def test_a_whole_log_on_a_stick_is_compared_by_its_own_tiles(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """Own. A forked log arrives whole, larger than what is remembered, every file of it consistent in itself.

    Powers: the keeper makes both logs. Control: the true log on a stick needs no proof beside it.
    """
    keeper.told(clinic)
    other = fork(keeper, tmp_path / "fork", start=299, count=600)
    before = memory(clinic)
    with pytest.raises(LogRewritten):
        other.handed_over(clinic)
    assert (memory(clinic), len(evidence(clinic))) == (before, 1)
    keeper.add(*leaves(300, 900))
    stick = Path(shutil.copytree(keeper.folder, tmp_path / "stick"))
    (stick / LAST_SIGNED).unlink()  # no reader needs it
    assert Keeper(stick, signer=keeper.signer).handed_over(clinic).relation == "newer"


def test_a_proof_of_growth_does_not_begin_at_nothing(keeper: Keeper, clinic: Path) -> None:
    """Own. A site that remembers 300 entries is shown that the new log grew from 0 entries, or from itself.

    Powers: makes any true statement about its own tree. Control: a site that remembers the empty log takes any log.
    """
    empty = keeper.signed_note(size=0, root=EMPTY_ROOT)
    young = site(clinic.parent / "young")
    remember(young, empty, keys=keeper.keys, origin=ORIGIN, now=NOW)
    assert keeper.told(young).relation == "newer"
    keeper.told(clinic)
    keeper.add(*leaves(300, 320))
    for old_size in (0, 320):
        with pytest.raises(LogUnproven):
            keeper.told(clinic, consistency=keeper.consistency(old_size))
    with pytest.raises(LogTruncated):
        remember(young, empty, keys=keeper.keys, origin=ORIGIN, now=NOW, consistency=keeper.consistency(300))


def test_logs_are_not_compared_with_each_other(keeper: Keeper, clinic: Path, federation: Federation) -> None:
    """Own. The lab's log is offered for the hub's, and another federation's memory is copied into place.

    Powers: has both logs' files; writes to the site's disk. Control: each log is remembered for itself.
    """
    lab = Keeper(keeper.folder.parent / "lab", signer=LogSigner.generate("lab"))
    keeper.told(clinic)
    origin = f"not-fed/{FEDERATION}/lab"
    assert remember(clinic, lab.note, keys=lab.keys, origin=origin, now=NOW).relation == "first"
    assert sorted(memory(clinic)) == ["log.hub.checkpoint", "log.lab.checkpoint"]
    with pytest.raises(CheckpointRefused):
        remember(clinic, lab.note, keys=lab.keys, origin=ORIGIN, now=NOW)
    known, offered = remembered(clinic, origin=ORIGIN), remembered(clinic, origin=origin)
    assert known is not None
    assert offered is not None
    with pytest.raises(CheckpointRefused):
        compare(known, offered)
    elsewhere = Keeper(keeper.folder.parent / "elsewhere", signer=keeper.signer, federation="highlands")
    for foreign in (elsewhere.note, lab.note):
        (clinic / "trusted" / "log.hub.checkpoint").write_bytes(foreign)
        with pytest.raises(LogMemoryDamaged):
            keeper.told(clinic)


def test_a_memory_that_was_damaged_is_not_believed(keeper: Keeper, clinic: Path) -> None:
    """Own. The remembered checkpoint is edited, cut, emptied, replaced by a link, a folder or a huge file.

    Powers: writes to one file of the site. Lacks: the log's keys. Control: restored, all is as before.
    """
    keeper.told(clinic)
    path = clinic / "trusted" / "log.hub.checkpoint"
    whole = path.read_bytes()
    stranger = Keeper(clinic.parent / "stranger", signer=LogSigner.generate("hub"))
    same_size = stranger.signed_note(size=300).partition(b"\n\n")[0]
    for data in (b"", whole[:-3], whole.replace(b"\n300\n", b"\n299\n"), whole + b"x", b"\xff", b"x" * (1 << 20),
                 same_size + b"\n\n" + whole.partition(b"\n\n")[2]):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(LogMemoryDamaged):
            keeper.told(clinic)
        assert path.read_bytes() == data
    path.unlink()
    (clinic / "elsewhere").write_bytes(whole)
    path.symlink_to(clinic / "elsewhere")
    with pytest.raises(LogMemoryDamaged):
        keeper.told(clinic)
    path.unlink()
    path.mkdir()
    with pytest.raises(LogMemoryDamaged):
        keeper.handed_over(clinic)
    path.rmdir()
    path.write_bytes(whole)
    assert keeper.told(clinic).relation == "same"


def test_a_memory_that_was_deleted_does_not_come_back_silently(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """Own. The memory is deleted, so that a forked log can be the first; the answer says "first", not "newer".

    Powers: deletes a file of the site. Control: without that, the fork is named. Not covered: the fork itself is then
    believed by this site, until it compares with another one.
    """
    other = fork(keeper, tmp_path / "fork", start=10)
    keeper.told(clinic)
    with pytest.raises(LogForked):
        other.told(clinic)
    (clinic / "trusted" / "log.hub.checkpoint").unlink()
    done = other.told(clinic)
    assert (done.relation, done.known) == ("first", None)
    with pytest.raises(LogForked):
        keeper.told(clinic)
    shutil.rmtree(clinic / "trusted")
    with pytest.raises(InputError):
        keeper.told(clinic)


def test_new_keys_of_a_log_do_not_wipe_what_is_remembered(keeper: Keeper, clinic: Path, tmp_path: Path) -> None:
    """Own. The stewards give the log new keys; under them a rewritten log is offered as a fresh start.

    Powers: the keeper, under new keys. Control: the same log, grown, signed with the new keys.
    """
    keeper.told(clinic)
    new = LogSigner.generate("hub")
    rewritten = Keeper(tmp_path / "rewritten", signer=new)
    rewritten.add(*leaves(0, 310, "another"))
    with pytest.raises(LogRewritten):
        rewritten.told(clinic, consistency=rewritten.consistency(300))
    grown = Keeper(tmp_path / "grown", signer=new)
    grown.add(*leaves(0, 310))
    assert grown.told(clinic, consistency=grown.consistency(300)).relation == "newer"


def test_evidence_is_bounded_and_never_overwritten(keeper: Keeper, clinic: Path) -> None:
    """Own. The keeper signs contradiction after contradiction to fill the site's disk, or to push the first ones out.

    Powers: signs any number of checkpoints. Control: the first contradiction stays where it was put.
    """
    keeper.told(clinic)
    for number in range(110):
        forked = keeper.signed_note(size=300, root=leaf_hash(b"%d" % number))
        for _ in range(1 + (number == 0)):
            with pytest.raises(LogForked):
                remember(clinic, forked, keys=keeper.keys, origin=ORIGIN, now=NOW)
    kept = evidence(clinic)
    assert [path.name for path in kept] == [f"log.evidence.{number}" for number in range(1, 101)]
    first = accepted(json.loads(kept[0].read_bytes())["offered"].encode(), keeper)
    assert first.root == leaf_hash(b"0")
    assert sum(path.stat().st_size for path in kept) < 1 << 20


def test_a_proof_that_travels_with_an_organ_betrays_a_fork(keeper: Keeper, clinic: Path, tmp_path: Path,
                                                           federation: Federation) -> None:  # fmt: skip
    """Own. An organ arrives with a proof from a forked log: of the remembered size, of an earlier one, of a later one.

    Powers: the keeper signs both trees. Control: the true proof of an earlier size, settled with the log's folder.
    """
    roster, other = roster_with_log(federation, keeper.keys), fork(keeper, tmp_path / "fork", start=150)
    proofs = {}
    for name, folder in (("true", keeper), ("forked", other)):
        proofs[name] = tmp_path / f"{name}.tlog-proof"
        proofs[name].write_bytes(folder.log().proof(leaf(100)))
        assert check_proof(proofs[name].read_bytes(), entry=leaf(100), roster=roster, now=NOW).size == 300
    keeper.told(clinic)
    with pytest.raises(LogForked):
        confront(clinic, accepted(other.note, keeper))
    keeper.add(*leaves(300, 333))
    keeper.told(clinic, consistency=keeper.consistency(300))
    assert confront(clinic, accepted(other.note, keeper)) == "unproven"
    assert take_over(clinic, proofs["true"], roster=roster, now=NOW, evidence=keeper.folder).relation == "older"
    with pytest.raises(LogRewritten):
        take_over(clinic, proofs["forked"], roster=roster, now=NOW, evidence=keeper.folder)
    with pytest.raises(LogTruncated):
        take_over(clinic, proofs["forked"], roster=roster, now=NOW)


def test_what_is_handed_over_as_a_log_is_read_strictly(keeper: Keeper, clinic: Path, federation: Federation,
                                                       tmp_path: Path) -> None:  # fmt: skip
    """Own. A FIFO, a link, a huge file, an empty folder, a consistency proof around another's checkpoint.

    Powers: prepares the stick. Control: checkpoint, proof, consistency file and folder are each taken.
    """
    roster, file = roster_with_log(federation, keeper.keys), tmp_path / "file"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(keeper.folder / "checkpoint")
    (tmp_path / "empty").mkdir()
    (tmp_path / "huge").write_bytes(b"x" * (1 << 20))
    for name in ("fifo", "link", "empty", "huge", "missing"):
        with pytest.raises(InputError):
            take_over(clinic, tmp_path / name, roster=roster, now=NOW)
    stranger = Keeper(tmp_path / "stranger", signer=LogSigner.generate("hub"))
    stranger.add(*leaves(0, 5))
    for data in (stranger.note, write_consistency(old_size=0, path=(), note=stranger.note)):
        file.write_bytes(data)
        with pytest.raises(CheckpointRefused):
            take_over(clinic, file, roster=roster, now=NOW)
    assert memory(clinic) == {}
    for data in (keeper.note, keeper.log().proof(leaf(1)), keeper.log().consistency_text(7)):
        file.write_bytes(data)
        assert take_over(clinic, file, roster=roster, now=NOW).offered.size == 300
    assert take_over(clinic, keeper.folder, roster=roster, now=NOW).relation == "same"
    keeper.add(*leaves(300, 305))
    file.write_bytes(keeper.log().consistency_text(300))
    assert take_over(clinic, file, roster=roster, now=NOW).relation == "newer"
    assert read_source(keeper.folder).verify(roster, now=NOW).size == 305
    assert keys_of_log(roster, ORIGIN, now=NOW) == keeper.keys


# The keeper's disk


def test_a_tile_that_was_swapped_on_disk_yields_no_proof(keeper: Keeper) -> None:
    """Own. Tiles are exchanged, edited, cut, lengthened, replaced by links or removed; then a proof is asked for.

    Powers: owns the disk, has no key. Control: with every byte restored the proof holds.
    """
    tiles = keeper.folder / "tile"
    full, partial, above = tiles / "0" / "000", tiles / "0" / "001.p" / "44", tiles / "1" / "000.p" / "1"
    for path in (full, partial, above):
        whole = path.read_bytes()
        for data in (whole[32:] + whole[:32], b"\0" * len(whole), whole[:-1], whole + b"\0", whole + whole[:32], b""):
            if data == whole:  # a tile of one hash, turned round
                continue
            path.write_bytes(data)
            with pytest.raises(LogDamaged):
                keeper.log().audit()
            touched = 0
            for number in (3, 290):
                try:
                    keeper.verify(keeper.log().proof(leaf(number)), leaf(number))
                except TrustError:
                    touched += 1
            assert touched or path == above  # above, the proof of an entry in a full tile can do without it
        path.unlink()
        with pytest.raises(LogDamaged):
            keeper.log().audit()
        path.symlink_to("/dev/zero")
        with pytest.raises(LogDamaged):
            keeper.log().audit()
        path.unlink()
        path.write_bytes(whole)
    assert keeper.log().audit()["seal"] == 300
    keeper.verify(keeper.log().proof(leaf(290)), leaf(290))


def test_an_audit_finds_any_changed_byte_on_disk(keeper: Keeper) -> None:
    """Own. One byte of one file of the log is changed, at every place of a small log's tiles and bundles.

    Powers: owns the disk, has no key. Control: unchanged, the audit passes and counts 12 entries.
    """
    small = Keeper(keeper.folder.parent / "small", signer=keeper.signer)
    small.add(*leaves(0, 12))
    for path in sorted(path for path in (small.folder / "tile").rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(LogDamaged):
                small.log().audit()
        path.write_bytes(whole)
    assert small.log().audit() == {"seal": 12, "roster": 0, "recall": 0}


def test_a_bundle_longer_or_shorter_than_its_tile_is_refused(keeper: Keeper) -> None:
    """Own. Entry bundles with an entry too many or too few, with one that ends beyond the file, with other bytes.

    Powers: owns the disk, has no key. Control: restored, the audit passes and the log grows.
    """
    path = keeper.folder / "tile" / "entries" / "001.p" / "44"
    whole = path.read_bytes()
    size = 2 + len(leaf(0))
    one = whole[:size]
    for data in (whole + one, whole[:-size], whole[:-1], whole + b"\0", whole + b"\0\0", whole + b"\xff\xff", b"",
                 b"\0\0" + whole, one * 44, whole[size:] + one, whole * 20,
                 whole[:-size] + b"\0\x14" + b"Patient 17, fracture"):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(LogDamaged):
            keeper.log().audit()
        with pytest.raises(LogDamaged):
            keeper.add(leaf(300))
        assert keeper.log().checkpoint.size == 300
    path.write_bytes(whole)
    assert keeper.log().audit()["seal"] == 300
    assert keeper.add(leaf(300)) == [300]


def test_a_damaged_log_signs_nothing(keeper: Keeper) -> None:
    """Own. The tiles at the log's edge are edited so that the next append would sign another history.

    Powers: owns the disk, has no key. Control: restored, it appends.
    """
    before = keeper.note, (keeper.folder / LAST_SIGNED).read_bytes()
    for path in (keeper.folder / "tile/0/001.p/44", keeper.folder / "tile/1/000.p/1"):
        whole = path.read_bytes()
        path.write_bytes(leaf_hash(b"x") + whole[32:])
        with pytest.raises(LogDamaged):
            keeper.add(leaf(300))
        path.unlink()
        with pytest.raises(LogDamaged):
            keeper.add(leaf(300))
        path.write_bytes(whole)
        assert (keeper.note, (keeper.folder / LAST_SIGNED).read_bytes()) == before
    assert keeper.add(leaf(300)) == [300]


def test_a_checkpoint_that_was_set_back_on_disk_does_not_make_a_fork(keeper: Keeper, clinic: Path) -> None:
    """Own. The coordinator's `checkpoint` is replaced by an older one, another log's, a stranger's; then it appends.

    Powers: owns one file on the keeper's disk and keeps old ones. Control: the log goes on from what it signed last.
    """
    old = keeper.note
    keeper.add(*leaves(300, 310))
    keeper.told(clinic)
    path, newest = keeper.folder / "checkpoint", keeper.note
    path.write_bytes(old)
    assert keeper.add(leaf(999)) == [310]
    assert keeper.told(clinic, consistency=keeper.consistency(310)).relation == "newer"
    stranger = Keeper(keeper.folder.parent / "stranger", signer=LogSigner.generate("hub"))
    elsewhere = Keeper(keeper.folder.parent / "elsewhere", signer=keeper.signer, federation="highlands")
    for name in ("checkpoint", LAST_SIGNED):
        whole = (keeper.folder / name).read_bytes()
        for data in (stranger.note, elsewhere.note, b"", whole[:-1], keeper.signed_note(size=500),
                     keeper.signed_note(size=311)):  # fmt: skip
            (keeper.folder / name).write_bytes(data)
            with pytest.raises(TrustError):
                keeper.add(leaf(1000))
            (keeper.folder / name).write_bytes(whole)
    (keeper.folder / LAST_SIGNED).unlink()
    with pytest.raises(LogDamaged):
        keeper.add(leaf(1000))
    (keeper.folder / LAST_SIGNED).write_bytes(newest)  # older than checkpoint: the larger of the two counts
    assert keeper.add(leaf(1000)) == [311]


def test_a_keeper_whose_folder_was_restored_from_an_old_copy_does_not_fork(
    keeper: Keeper, clinic: Path, tmp_path: Path
) -> None:
    """Own. The whole folder is set back to a copy of yesterday; the keeper appends to it without noticing.

    Powers: restores the folder, in good faith or not. Control: with the true folder it appends. Without a memory beside
    the log the keeper does fork, and the next site that compares names it.
    """
    hub = site(tmp_path / "hub")
    yesterday = Path(shutil.copytree(keeper.folder, tmp_path / "yesterday"))

    def add(folder: Path, *entries: bytes) -> list[int]:
        done = append_remembered(
            folder, entries, signer=keeper.signer, memory=hub, origin=ORIGIN, keys=keeper.keys, now=NOW
        )
        return done[1]

    assert add(keeper.folder, *leaves(300, 310)) == list(range(300, 310))
    keeper.told(clinic)
    before = LogFolder(yesterday).note
    with pytest.raises(LogDamaged):
        add(yesterday, leaf(500))
    assert LogFolder(yesterday).note == before
    forked = Keeper(yesterday, signer=keeper.signer)
    forked.add(*leaves(500, 512))  # no memory beside it
    with pytest.raises(LogDamaged):
        add(yesterday, leaf(501))
    with pytest.raises(LogRewritten):
        forked.handed_over(clinic)
    assert add(keeper.folder, leaf(310)) == [310]


def test_a_clock_that_went_back_signs_nothing(keeper: Keeper) -> None:
    """Own. The keeper's clock is set back by a day, to date what it signs before what it has signed.

    Powers: sets the keeper's clock. Control: five minutes are a clock's error.
    """
    with pytest.raises(CheckpointRefused):
        keeper.add(leaf(300), now=NOW - days(1))
    assert keeper.log().checkpoint.size == 300
    assert keeper.add(leaf(300), now=NOW - timedelta(seconds=299)) == [300]


def test_somebody_else_s_keys_do_not_continue_a_log(keeper: Keeper) -> None:
    """Own. An insider with log keys of its own, under the same name or another, appends to the hub's folder.

    Powers: writes to the folder. Lacks: the log's keys. Control: the keeper itself appends.
    """
    before = keeper.note
    for name in ("hub", "lab"):
        with pytest.raises(CheckpointRefused):
            append_many(keeper.folder, [leaf(300)], signer=LogSigner.generate(name), now=NOW)
    assert keeper.note == before
    assert keeper.add(leaf(300)) == [300]


def test_a_log_claims_more_than_it_has(keeper: Keeper, clinic: Path) -> None:
    """Own. A signed checkpoint of 2^62 entries, or of a few more than there are, over the files of 300.

    Powers: the keeper signs any size. Control: the true checkpoint over the same files.
    """
    path, whole = keeper.folder / "checkpoint", keeper.note
    keeper.told(clinic)
    for size in (301, 512, 70_000, 1 << 62, (1 << 63) - 1):
        path.write_bytes(keeper.signed_note(size=size))
        log = keeper.log()
        for attempt in (log.audit, lambda log=log: log.proof(leaf(1)), lambda log=log: log.consistency(300),
                        lambda log=log: log.root_at(7), lambda: keeper.handed_over(clinic)):  # fmt: skip
            with pytest.raises(LogDamaged):
                attempt()
    path.write_bytes(whole)
    assert keeper.handed_over(clinic).relation == "same"
    assert root_of([leaf_hash(item) for item in leaves(0, 300)]) == keeper.log().checkpoint.root


def test_strangers_cannot_be_remembered(keeper: Keeper, clinic: Path) -> None:
    """Own. The first checkpoint that a site ever sees is not the log's own: a stranger's, a half-signed one.

    Powers: reaches the site before the log does. Control: the log's own is the first.
    """
    stranger = Keeper(keeper.folder.parent / "stranger", signer=LogSigner.generate("hub"))
    text, _, lines = keeper.note.partition(b"\n\n")
    half = text + b"\n\n" + lines.splitlines(keepends=True)[0]
    for data in (stranger.note, half, b"", b"\n\n"):
        with pytest.raises((CheckpointRefused, NoteMalformed)):
            remember(clinic, data, keys=keeper.keys, origin=ORIGIN, now=NOW)
    assert memory(clinic) == {}
    assert keeper.told(clinic).relation == "first"
