"""Adversary: whoever keeps the log, and shows each site what it likes.

Powers: signs anything with both of the log's keys, keeps as many logs as it likes, carries their files. Always: a typed
refusal with exit code 6, and what a site remembers stays as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from not_fed.errors import InputError
from not_fed.keys import LogSigner
from not_fed.trust.log import (
    CheckpointRefused,
    LogForked,
    LogRewritten,
    LogTruncated,
    LogUnproven,
    NoteMalformed,
    SignedCheckpoint,
    check_proof,
    compare,
    keys_of_log,
    verify_checkpoint,
)
from not_fed.trust.log_folder import LAST_SIGNED
from not_fed.trust.log_memory import LogMemoryDamaged, confront, remember, remembered
from not_fed.trust.log_proof import write_consistency
from not_fed.trust.log_sources import read_source, take_over
from not_fed.trust.log_tree import EMPTY_ROOT, leaf_hash
from tests.support.logs import (
    ORIGIN,
    Keeper,
    b64,
    evidence,
    leaf,
    leaves,
    memory,
    roster_with_log,
    site,
)
from tests.support.trust import FEDERATION, NOW, Federation

STAMP = int(NOW.timestamp())


def accepted(data: bytes, keeper: Keeper) -> SignedCheckpoint:
    """The honest control."""
    return verify_checkpoint(data, keys=keeper.keys, origin=ORIGIN, now=NOW)


def fork(keeper: Keeper, folder: Path, *, start: int = 0, count: int = 300) -> Keeper:
    """The same keeper with another log of the same name: `start` entries are shared, the others are not."""
    other = Keeper(folder, signer=keeper.signer)
    other.add(*leaves(0, start), *leaves(start, count, "another"))
    return other


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
