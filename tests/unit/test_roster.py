"""The roster in the hands of its stewards and of those who trust it."""

from __future__ import annotations

import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed.errors import InputError
from not_fed.keys import Steward
from not_fed.trust.ceremony import propose, publish
from not_fed.trust.repository import parse_metadata, signed_sha256
from not_fed.trust.roster import (
    BadRole,
    add_member,
    create_roster,
    load_roster,
    pin_roster,
    recall_organ,
    renew_roster,
    revoke_member,
    root_sha256,
    update_roster,
)
from not_fed.trust.stewards import BadExpiry, extending, threshold
from tests.support.trust import FEDERATION, NOW, Federation, Site, days, listing


def test_a_roster_travels_as_files_and_needs_no_network(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    site = tmp_path / "site"
    pin_roster(tmp_path / "r" / "repository", root_sha256=federation.root_sha256.upper(), out=site, now=NOW)
    roster = load_roster(site, now=NOW)
    assert roster == federation.roster
    assert (roster.federation, roster.version, sorted(roster.members)) == (FEDERATION, 1, ["clinic", "hub", "lab"])
    assert roster.members["hub"].fingerprint == federation.hub.public.fingerprint
    assert root_sha256(site) == federation.root_sha256


def test_each_change_is_the_next_version_and_arrives(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    steward, folder, site = federation.steward, tmp_path / "r", tmp_path / "site"
    pin_roster(folder, root_sha256=federation.root_sha256, out=site, now=NOW)
    assert (
        add_member(folder, identity=Site.make("north").public, roles=["relay"], steward=steward, now=NOW).version == 2
    )
    assert revoke_member(folder, name="lab", steward=steward, now=NOW).version == 3
    assert recall_organ(folder, organ_sha256="ee" * 32, reason="poisoned", steward=steward, now=NOW).version == 4
    assert load_roster(site, now=NOW).version == 1  # nothing arrives by itself
    roster = update_roster(site, source=folder, now=NOW)
    assert roster.version == 4
    assert roster.members["north"].roles == {"relay"}
    assert not roster.members["lab"].active
    assert roster.recalls == {"ee" * 32: "poisoned"}
    assert update_roster(site, source=folder, now=NOW) == roster == load_roster(site, now=NOW)


def test_renewing_moves_the_dates_and_nothing_else(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    assert federation.roster.expires_at == NOW + days(90)
    renewed = renew_roster(tmp_path / "r", steward=federation.steward, now=NOW + days(80), expires_in=days(30))
    assert renewed.expires_at == NOW + days(110)
    assert renewed.members == federation.roster.members


def test_loading_changes_nothing_on_disk(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    before = listing(tmp_path)
    load_roster(federation.folder, now=NOW)
    assert listing(tmp_path) == before


def test_many_loads_at_once_agree(tmp_path: Path) -> None:
    federation, results = Federation.make(tmp_path / "r"), []
    threads = [
        threading.Thread(target=lambda: results.append(load_roster(federation.folder, now=NOW))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [federation.roster] * 8


@pytest.mark.parametrize("roles", [[], ["boss"], ["author", ""]])
def test_roles_are_the_known_ones(tmp_path: Path, roles: list[str]) -> None:
    with pytest.raises(BadRole):
        create_roster(
            tmp_path / "r",
            federation=FEDERATION,
            steward=Steward.generate("s"),
            members=[(Site.make("a").public, roles)],
        )
    assert listing(tmp_path) == {}


def test_a_roster_must_expire_and_have_a_name(tmp_path: Path) -> None:
    steward = Steward.generate("s")
    with pytest.raises(BadExpiry):
        create_roster(tmp_path / "r", federation=FEDERATION, steward=steward, members=[], expires_in=timedelta(0))
    with pytest.raises(InputError):
        create_roster(tmp_path / "r", federation="../x", steward=steward, members=[])
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("stewards", range(1, 8))
def test_no_algorithm_alone_reaches_the_threshold(stewards: int) -> None:
    assert stewards < threshold(stewards) <= 2 * stewards


def test_a_roster_of_seven_stewards_still_loads(tmp_path: Path) -> None:
    """Each steward adds 7 KB of signatures to every file; TUF's own cap for a timestamp is 16 KB."""
    stewards = [Steward.generate(str(number)) for number in range(7)]
    create_roster(tmp_path / "r", federation=FEDERATION, steward=stewards, members=[], now=NOW)
    assert load_roster(tmp_path / "r", now=NOW).version == 1


def test_a_site_that_pinned_late_hands_the_first_root_on(tmp_path: Path) -> None:
    """It was told the digest of the second root; a newcomer, who was told the first, can pin from its copy."""
    federation, late, newcomer = Federation.make(tmp_path / "r"), tmp_path / "late", tmp_path / "newcomer"
    renew_roster(tmp_path / "r", steward=federation.steward, now=NOW)
    second = signed_sha256(parse_metadata((tmp_path / "r/repository/metadata/2.root.json").read_bytes()))
    pin_roster(tmp_path / "r", root_sha256=second, out=late, now=NOW)
    assert root_sha256(late) == second
    renew_roster(tmp_path / "r", steward=federation.steward, now=NOW)
    update_roster(late, source=tmp_path / "r", now=NOW)
    pin_roster(late, root_sha256=federation.root_sha256, out=newcomer, now=NOW)
    assert load_roster(newcomer, now=NOW) == load_roster(late, now=NOW)


def test_a_copy_to_hand_on_that_was_lost_is_made_again(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "repository")
    assert load_roster(tmp_path / "r", now=NOW) == federation.roster
    renew_roster(tmp_path / "r", steward=federation.steward, now=NOW)
    pin_roster(tmp_path / "r", root_sha256=federation.root_sha256, out=tmp_path / "site", now=NOW)
    assert load_roster(tmp_path / "site", now=NOW).version == 2


def test_a_membership_can_be_extended(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    proposal = propose(tmp_path / "r", extending("lab", now=NOW + days(300)), now=NOW + days(300))
    proposal.sign(federation.steward)
    roster = publish(proposal)
    assert roster.member("lab", now=NOW + days(600)).name == "lab"
    assert roster.members["hub"] == federation.roster.members["hub"]


def test_a_roster_renews_its_root_before_that_expires(tmp_path: Path) -> None:
    federation = Federation.make(tmp_path / "r")
    roster = revoke_member(tmp_path / "r", name="lab", steward=federation.steward, now=NOW + days(400))
    assert roster.expires_at == NOW + days(490)
    assert root_sha256(tmp_path / "r") == federation.root_sha256
