"""The bank stores labelled ciphertext and nothing else."""

from __future__ import annotations

import hashlib
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from not_fed.age import encrypt_with_passphrase
from not_fed.coordinator.bank import Bank, BankDamaged, NotInBank, NotSealed
from not_fed.envelope.label import LabelMismatch
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.simulation import Prepared
from not_fed.trust.roster import TrustedRoster
from tests.support.federation import Parcel, an_organ, seal_as, tiny_prepared


def clock() -> datetime:
    """Now: not when this file was read, which under pytest-xdist is minutes before its tests run."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return tiny_prepared(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def roster(prepared: Prepared) -> TrustedRoster:
    return Home(prepared.coordinator).roster(clock())


@pytest.fixture(scope="module")
def parcel(prepared: Prepared) -> Parcel:
    return seal_as(prepared, "clinic", an_organ(prepared, prepared.folder / "one.organ"))


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "bank")


def test_a_sealed_organ_comes_back_with_its_label(
    bank: Bank, parcel: Parcel, roster: TrustedRoster, tmp_path: Path
) -> None:
    label = bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())
    bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())
    assert label.sender == "clinic"
    assert bank.get(parcel.sha256) == (parcel.sealed, parcel.label)
    assert {kind: stored.count for kind, stored in bank.listing().items()} == {"sealed": 1, "label": 1}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "bank" / parcel.sha256).iterdir()} == {0o600}


def test_nothing_but_labelled_ciphertext_is_stored(
    bank: Bank, prepared: Prepared, parcel: Parcel, roster: TrustedRoster
) -> None:
    organ = (prepared.folder / "one.organ").read_bytes()
    secret = encrypt_with_passphrase(organ, passphrase=b"x", work_factor=1)
    for data in (b"", b"plain text", organ, b"age-encryption.org/v1\n" + organ, secret):
        with pytest.raises(NotSealed):
            bank.put(data, label=parcel.label, roster=roster, now=clock())
    for changed in (parcel.sealed + b"x", parcel.sealed[:-1], parcel.sealed[:-1] + b"x"):
        with pytest.raises(LabelMismatch):
            bank.put(changed, label=parcel.label, roster=roster, now=clock())
    for label in (b"", b"{}", parcel.label.replace(b"payload", b"Payload", 1)):
        with pytest.raises(NotFedError):
            bank.put(parcel.sealed, label=label, roster=roster, now=clock())
    assert bank.listing() == {}
    bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())  # control: the door does open


def test_a_chunk_that_changed_on_disk_is_not_handed_out(
    bank: Bank, parcel: Parcel, roster: TrustedRoster, tmp_path: Path
) -> None:
    bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())
    assert bank.get(parcel.sha256)[0] == parcel.sealed  # control: as it was stored it is handed out
    (chunk,) = (tmp_path / "bank" / parcel.sha256).glob("000000-*")
    chunk.write_bytes(parcel.sealed[:-1] + bytes([parcel.sealed[-1] ^ 1]))
    for take in (
        bank.get,
        lambda digest: bank.fetch(digest, tmp_path / "out"),
        lambda digest: bank.read_chunk(digest, 0),
    ):
        with pytest.raises(BankDamaged):
            take(parcel.sha256)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [hashlib.sha256(b"absent").hexdigest(), "../passphrase", "", "AB" * 32])
def test_only_digests_find_anything(bank: Bank, name: str) -> None:
    with pytest.raises(NotInBank):
        bank.get(name)


def test_a_foreign_file_shows_in_the_listing(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "bank" / "notes.txt").write_text("should not be here")
    assert list(bank.listing()) == ["notes.txt"]
