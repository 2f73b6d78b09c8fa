"""The bank stores labelled ciphertext and nothing else."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from not_fed.age import encrypt_with_passphrase
from not_fed.coordinator.bank import Bank, BankDamaged, NotInBank, NotSealed, Stored
from not_fed.coordinator.bank.storage import StorageMissing, storage_of
from not_fed.coordinator.collecting import collect_garbage, wanted_organs
from not_fed.coordinator.deployment import load_deployment
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.label import LabelMismatch
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.simulation import Prepared, run
from not_fed.transfer.chunks import list_chunks
from not_fed.trust.roster import TrustedRoster
from tests.support.coordinators import Hub
from tests.support.federation import Parcel, an_organ, seal_as, tiny_prepared
from tests.support.gateways import seal_bytes


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


def test_a_large_file_passes_in_pieces_and_comes_out_the_same(
    tmp_path: Path, parcel: Parcel, roster: TrustedRoster
) -> None:
    bank = Bank(tmp_path / "bank", chunk_bytes=64 << 10)
    (tmp_path / "sealed").write_bytes(parcel.sealed)
    bank.put(tmp_path / "sealed", label=parcel.label, roster=roster, now=clock())
    assert len(bank.listed(parcel.sha256).chunks) > 1
    bank.fetch(parcel.sha256, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == parcel.sealed == bank.get(parcel.sha256)[0]


def test_an_upload_is_not_there_before_it_is_whole(tmp_path: Path, parcel: Parcel, roster: TrustedRoster) -> None:
    bank = Bank(tmp_path / "bank")
    (tmp_path / "sealed").write_bytes(parcel.sealed)
    listed = list_chunks(tmp_path / "sealed", chunk_bytes=64 << 10)
    bank.announce(listed)
    pieces = [parcel.sealed[at : at + (64 << 10)] for at in range(0, len(parcel.sealed), 64 << 10)]
    for index, piece in enumerate(pieces[:-1]):
        bank.write_chunk(listed, index, piece)
    again = Bank(tmp_path / "bank")  # after a restart
    again.announce(listed)
    assert again.arrived(listed) == list(range(len(pieces) - 1))
    assert not again.holds(parcel.sha256)
    for look in (again.get, again.label, again.listed, lambda digest: again.read_chunk(digest, 0)):
        with pytest.raises(NotInBank):
            look(parcel.sha256)
    with pytest.raises(NotInBank):
        again.finish(parcel.sha256, label=parcel.label, roster=roster, now=clock())
    again.write_chunk(listed, len(pieces) - 1, pieces[-1])
    again.finish(parcel.sha256, label=parcel.label, roster=roster, now=clock())
    assert again.get(parcel.sha256)[0] == parcel.sealed


def test_what_an_open_run_needs_is_never_collected(tmp_path: Path, parcel: Parcel, roster: TrustedRoster) -> None:
    bank, month = Bank(tmp_path / "bank"), timedelta(days=30)
    bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())
    (tmp_path / "half").write_bytes(b"half of something")
    half = list_chunks(tmp_path / "half", chunk_bytes=64 << 10)
    bank.announce(half)
    (tmp_path / "bank" / "notes.txt").write_text("whose?")
    later = clock() + timedelta(days=31)
    assert bank.collect(now=clock(), keep=month, wanted=frozenset()) == []
    assert bank.collect(now=later, keep=month, wanted=frozenset({parcel.sha256})) == [half.sha256]
    assert bank.holds(parcel.sha256)
    assert bank.collect(now=later, keep=month, wanted=frozenset()) == [parcel.sha256]
    assert list(bank.listing()) == ["notes.txt"]


def test_a_coordinator_wants_what_its_open_run_has_counted(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path / "run", rounds=1)
    result = run(prepared)
    counted = {one.sealed_sha256 for one in CoordinatorState(prepared.coordinator).answers(prepared.run)} - {None}
    assert counted
    assert wanted_organs(prepared.coordinator) == frozenset()  # it is complete
    with closing(sqlite3.connect(prepared.coordinator / "state.db")) as database, database:
        database.execute("UPDATE runs SET ended = NULL")
    assert wanted_organs(prepared.coordinator) == counted
    assert collect_garbage(prepared.coordinator, now=clock() + timedelta(days=99)) == []
    assert Bank.at(result.prepared.coordinator).listing()["sealed"].count == len(counted)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server that runs here."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("sealed")
        yield "s3://sealed/bank"
        server.stop()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning:botocore.*",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_bucket_does_what_a_folder_does(bucket: str, tmp_path: Path, parcel: Parcel, roster: TrustedRoster) -> None:
    bank = Bank(storage_of(bucket, home=tmp_path), chunk_bytes=64 << 10)
    assert not bank.holds(parcel.sha256)
    assert bank.listing() == {}
    bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())
    bank.put(parcel.sealed, label=parcel.label, roster=roster, now=clock())
    again = Bank(storage_of(bucket, home=tmp_path))
    assert again.get(parcel.sha256) == (parcel.sealed, parcel.label)
    again.fetch(parcel.sha256, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == parcel.sealed
    assert again.listing()["sealed"] == Stored(count=1, bytes=len(parcel.sealed))
    assert again.collect(now=clock(), keep=timedelta(days=1), wanted=frozenset()) == []
    assert again.collect(now=clock() + timedelta(days=2), keep=timedelta(days=1), wanted=frozenset()) == [parcel.sha256]
    assert again.listing() == {}


def test_a_storage_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageMissing):
        storage_of("nothing-of-the-kind://bucket", home=tmp_path)


def test_what_has_just_come_is_kept_though_nothing_counts_it_yet(tmp_path: Path) -> None:
    hub = Hub.make(tmp_path)
    toml = hub.home / "coordinator.toml"
    toml.write_text(toml.read_text().replace("[bank]\n", "[bank]\nkeep_days = 0\n", 1))
    assert load_deployment(hub.home).bank.keep_days == 0  # type: ignore[union-attr]
    now = datetime.now(UTC)
    one = seal_bytes(hub, tmp_path / "one", sender="clinic", size_bytes=100_000)
    Bank.at(hub.home).put(one.path, label=one.label, roster=Home(hub.home).roster(now), now=now)
    assert collect_garbage(hub.home, now=now + timedelta(hours=1)) == []
    assert collect_garbage(hub.home, now=now + timedelta(days=3)) == [one.sha256]
