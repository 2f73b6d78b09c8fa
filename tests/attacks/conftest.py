"""One federation for all attacks, and a fresh sealed organ for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from not_fed import files
from not_fed.trust.roster import add_member, pin_roster, update_roster
from tests.support.commands import Desk, World, desk_in
from tests.support.logs import Keeper, leaves, site
from tests.support.rosters import Council
from tests.support.trust import NOW, Federation, Forger, Parcel, Site, organ_bytes


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Clinic, hub and lab."""
    return Federation.make(tmp_path_factory.mktemp("federation") / "roster")


@pytest.fixture
def parcel(tmp_path: Path, federation: Federation) -> Parcel:
    """From the clinic to hub and lab, round 3."""
    return Parcel(tmp_path, federation)


@pytest.fixture
def big(tmp_path: Path, federation: Federation) -> Parcel:
    """The same with an organ of several chunks of 64 KiB."""
    return Parcel(tmp_path, federation, organ=organ_bytes(floats=40_000))


@pytest.fixture
def forger(parcel: Parcel) -> Forger:
    """A recipient's workbench over the parcel: whole plaintext, every line, the format; and the clinic's pen."""
    return Forger(parcel)


@pytest.fixture
def own_federation(tmp_path: Path) -> Federation:
    """A federation of one's own, whose roster a test may change."""
    return Federation.make(tmp_path / "roster")


@pytest.fixture
def own_parcel(tmp_path: Path, own_federation: Federation) -> Parcel:
    """A parcel in it."""
    (tmp_path / "work").mkdir()
    return Parcel(tmp_path / "work", own_federation)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Clinic, hub and lab with key folders."""
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def desk(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A desk with a fresh parcel, for this test alone."""
    return desk_in(tmp_path, world, monkeypatch, capsys)


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """The hub's log, with 300 entries."""
    made = Keeper(tmp_path / "log")
    made.add(*leaves(0, 300))
    return made


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A site's roster folder, as far as the log's memory is concerned."""
    return site(tmp_path / "clinic")


@pytest.fixture
def no_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without O_TMPFILE."""
    monkeypatch.setattr(files, "_open_nameless", lambda folder, mode: None)


@pytest.fixture
def council(tmp_path: Path) -> Council:
    """Three stewards, and a site that trusts them."""
    return Council.make(tmp_path / "council")


@pytest.fixture
def pinned(tmp_path: Path, own_federation: Federation) -> Path:
    """A roster as a site keeps it: pinned once, versions 1 and 2 seen. Beside it: `version1`, and `roster` (2)."""
    site, stewards = tmp_path / "site", own_federation.folder
    pin_roster(stewards, root_sha256=own_federation.root_sha256, out=site, now=NOW)
    shutil.copytree(stewards, tmp_path / "version1")
    add_member(stewards, identity=Site.make("north").public, roles=["author"], steward=own_federation.steward, now=NOW)
    assert update_roster(site, source=stewards, now=NOW).version == 2
    return site
