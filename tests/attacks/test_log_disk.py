"""Adversary: whoever owns the disk that the log lies on.

Powers: reads, keeps and changes every file of the log. Lacks: the log's keys, unless a test says so. Always: a typed
refusal with exit code 6, and nothing is signed or handed out.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed import files
from not_fed.errors import TrustError
from not_fed.keys import LogSigner
from not_fed.trust.log import (
    CheckpointRefused,
    LogForked,
    LogRewritten,
)
from not_fed.trust.log_folder import LAST_SIGNED, LogDamaged, LogFolder, append_many
from not_fed.trust.log_memory import append_remembered
from not_fed.trust.log_tree import leaf_hash, root_of
from tests.support.logs import (
    ORIGIN,
    Keeper,
    leaf,
    leaves,
    site,
)
from tests.support.trust import NOW, days


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
                    proof = keeper.log().proof(leaf(number))
                except TrustError:
                    touched += 1
                else:
                    keeper.verify(proof, leaf(number))  # whatever is handed out holds
            assert touched or path == above  # above, the proof of an entry in a full tile can do without it
            if path == full and len(data) == len(whole):
                with pytest.raises(LogDamaged):
                    keeper.log().consistency(100)
                with pytest.raises(LogDamaged):
                    keeper.log().root_at(100)
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
        for item in (leaf(300), leaf(5)):  # leaf 5 is there, in another tile
            with pytest.raises(LogDamaged):
                keeper.add(item)
        path.unlink()
        with pytest.raises(LogDamaged):
            keeper.add(leaf(300))
        path.write_bytes(whole)
        assert (keeper.note, (keeper.folder / LAST_SIGNED).read_bytes()) == before
    assert keeper.add(leaf(300)) == [300]


def test_a_disk_that_writes_something_else_gets_no_signature(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. While the log grows, the disk changes an old hash in a tile that is being written, or drops the write.

    Powers: is the disk, or somebody in its way. Control: a disk that writes what it is told.
    """
    before, write = (keeper.note, (keeper.folder / LAST_SIGNED).read_bytes()), files.write_atomic

    def altering(path: Path, data: bytes, **more: bool | int) -> None:
        changed = path.parent.name == "001.p" and path.parent.parent.name == "0"
        write(path, leaf_hash(b"x") + data[32:] if changed else data, **more)  # type: ignore[arg-type]

    def dropping(path: Path, data: bytes, **more: bool | int) -> None:
        if path.parent.parent.name != "0":
            write(path, data, **more)  # type: ignore[arg-type]

    for disk in (altering, dropping):
        monkeypatch.setattr(files, "write_atomic", disk)
        with pytest.raises(LogDamaged):
            keeper.add(leaf(300))
        monkeypatch.undo()
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
    path.write_bytes(keeper.signed_note(size=300))
    log = keeper.log()
    for attempt in (log.audit, lambda: log.proof(leaf(1)), lambda: log.consistency(300), lambda: log.consistency(7)):
        with pytest.raises(LogDamaged):
            attempt()
    with pytest.raises(LogForked):
        keeper.handed_over(clinic)
    path.write_bytes(whole)
    assert keeper.handed_over(clinic).relation == "same"
    assert root_of([leaf_hash(item) for item in leaves(0, 300)]) == keeper.log().checkpoint.root
