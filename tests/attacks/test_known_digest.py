"""Adversary: a process that may write to the organ while its owner seals it, and puts times back as they were.

Powers: writes to, lengthens, cuts, replaces the organ's file, before sealing or during it, and sets its times.
Always: a digest that was known is used only for the very state of the file that had it; otherwise nothing is sealed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from not_fed.envelope import seal as module
from not_fed.envelope.header import BadTensorHeader
from not_fed.envelope.open import OrganMismatch
from not_fed.envelope.seal import OrganChanged
from not_fed.snapshots import take_snapshot
from tests.support.attacks import assert_not_sealed, assert_seals, seal_again
from tests.support.trust import Parcel, assert_refused, listing

_OTHER = struct.pack("<f", 0.25)  # a weight that the organ does not have


def _append(parcel: Parcel) -> None:
    with parcel.organ_path.open("ab") as file:
        file.write(_OTHER)


def _write(parcel: Parcel) -> None:
    with parcel.organ_path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(_OTHER)


def _write_and_put_times_back(parcel: Parcel) -> None:
    times = parcel.organ_path.stat()
    _write(parcel)
    os.utime(parcel.organ_path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _cut(parcel: Parcel) -> None:
    os.truncate(parcel.organ_path, len(parcel.organ) - 4)


def _cut_and_mend(parcel: Parcel) -> None:
    _cut(parcel)
    _append(parcel)


def _replace(parcel: Parcel) -> None:
    other = parcel.organ_path.with_name("other")
    other.write_bytes(parcel.organ[:-4] + _OTHER)
    other.replace(parcel.organ_path)


CHANGES: Mapping[str, Callable[[Parcel], None]] = {
    "append": _append, "write": _write, "write-and-put-times-back": _write_and_put_times_back, "cut": _cut,
    "cut-and-mend": _cut_and_mend,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_organ_that_changes_while_its_known_digest_is_used_is_not_sealed(
    big: Parcel, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A82. The digest is known, so nobody hashes the organ: a write in between shows in the state of its file alone.

    Powers: writes to the organ during sealing, and sets its modification time back. Control: at rest it is sealed.
    """
    snapshot, check = take_snapshot(big.organ_path), module._check_organ
    assert_seals(big, snapshot=snapshot)
    before = set(listing(big.folder))

    def then(*arguments: object) -> None:  # after the first look at the file, before its last byte is read
        check(*arguments)  # type: ignore[arg-type]
        CHANGES[change](big)

    monkeypatch.setattr(module, "_check_organ", then)
    with pytest.raises(OrganChanged):
        seal_again(big, snapshot=snapshot)
    assert set(listing(big.folder)) == before


@pytest.mark.parametrize("change", [*CHANGES, "replace"])
def test_an_organ_that_changed_since_its_digest_was_known_is_hashed_again(big: Parcel, change: str) -> None:
    """A82. The organ was changed, or another put in its place, after its digest was taken and before it is sealed.

    Powers: writes to the organ before sealing, and sets its modification time back. Control: the first bytes, put back
    into a file of another state, are hashed again and sealed.
    """
    snapshot = take_snapshot(big.organ_path)
    {**CHANGES, "replace": _replace}[change](big)
    assert_not_sealed(big, (OrganChanged, BadTensorHeader), snapshot=snapshot)
    big.organ_path.write_bytes(big.organ)
    assert_seals(big, snapshot=snapshot)


def test_a_snapshot_with_another_digest_than_the_passport_is_not_believed(parcel: Parcel) -> None:
    """Own. The state is right, the digest is that of the organ as it is, and the passport is about another organ.

    Powers: replaces the organ after its passport was made. Control: the passport's organ is sealed.
    """
    _replace(parcel)
    assert_not_sealed(parcel, OrganChanged, snapshot=take_snapshot(parcel.organ_path))
    parcel.organ_path.write_bytes(parcel.organ)
    assert_seals(parcel, snapshot=take_snapshot(parcel.organ_path))


def test_a_forged_snapshot_ends_at_every_recipient(parcel: Parcel) -> None:
    """Own. State and passport agree with the snapshot, and it lies: nobody hashes, and other bytes are sealed.

    Powers: forges the note of a digest, as one can who owns the sender's account. Control: an honest snapshot is sealed
    and opens.
    """
    honest = take_snapshot(parcel.organ_path)
    assert_seals(parcel, snapshot=honest)
    _replace(parcel)
    lie = replace(honest, state=take_snapshot(parcel.organ_path).state)
    parcel.path = seal_again(parcel, snapshot=lie).path
    assert_refused(parcel, OrganMismatch)
