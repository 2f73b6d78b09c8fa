"""Plans of secure sums in a roster: how they get in, what they leave as it was, and what people and programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from not_fed.keys import Secret, Steward, create_keys
from not_fed.trust import memory
from not_fed.trust.ceremony import open_draft, propose, settle
from not_fed.trust.diff import changes_between
from not_fed.trust.members import MemberNotActive, UnknownMember
from not_fed.trust.planning import NoSuchPlan, PlanExists, TooManyPlans, planning, unplanning
from not_fed.trust.plans import MAX_PLANS, UnsafePlan
from not_fed.trust.repository import PLANS, TARGETS
from not_fed.trust.roster import (
    TrustedRoster,
    add_member,
    add_plan,
    change_stewards,
    create_roster,
    load_roster,
    pin_roster,
    recall_organ,
    remove_plan,
    renew_roster,
    revoke_member,
    root_sha256,
    update_roster,
)
from not_fed.trust.stewards import unchanged
from not_fed.trust.takeover import trusted
from tests.support.coordinators import Hub
from tests.support.gateways import open_gate
from tests.support.plans import SITES, planned_council, published, sum_plan
from tests.support.rosters import Council, state, steward_identity
from tests.support.trust import FEDERATION, NOW, Site, days, listing

GOOD = sum_plan()


@pytest.fixture
def council(tmp_path: Path) -> Council:
    """Four sites and a coordinator, no plan yet."""
    return planned_council(tmp_path / "council")


def targets_in(folder: Path) -> set[str]:
    return {path.name.partition(".")[2] for path in (folder / "repository" / "targets").iterdir()}


def state_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "trusted" / memory.STATE).read_bytes())
    return value


def test_a_roster_without_plans_is_what_it_was_before_there_were_any(council: Council) -> None:
    for change in (renew_roster, lambda folder, **more: revoke_member(folder, name="ward", **more)):
        change(council.of("alice"), steward=council.stewards[:2], now=NOW)
    update_roster(council.site, source=council.of("alice"), now=NOW)
    for folder in (council.of("alice"), council.site):
        assert targets_in(folder) == set(TARGETS)
        assert set(state_of(folder)) == {
            "format", "roots", "timestamp", "snapshot", "targets", "contents", "withdrawn", "kept", "accepted",
        }  # fmt: skip
        assert set(state_of(folder)["contents"]) == {"roster", "recalls"}
        assert load_roster(folder, now=NOW).plans == {}
        assert set(trusted(folder, now=NOW)[1].targets.targets) == set(TARGETS)


def test_a_plan_arrives_and_stays_through_everything_else(council: Council, tmp_path: Path) -> None:
    published(council, planning(GOOD, now=NOW))
    assert targets_in(council.of("alice")) == {*TARGETS, PLANS}
    assert update_roster(council.site, source=council.of("alice"), now=NOW).plans == {"spring": GOOD}
    two, alice = council.stewards[:2], council.of("alice")
    add_member(alice, identity=Site.make("east").public, roles=["author"], steward=two, now=NOW)
    revoke_member(alice, name="ward", steward=two, now=NOW)
    recall_organ(alice, organ_sha256="ee" * 32, reason="poisoned", steward=two, now=NOW)
    change_stewards(alice, steward=two, add=[steward_identity(Steward.generate("dave"))], remove=["carol"], now=NOW)
    renew_roster(alice, steward=two, now=NOW + days(80))
    roster = update_roster(council.site, source=alice, now=NOW + days(80))
    assert (roster.version, roster.plans) == (7, {"spring": GOOD})
    assert load_roster(council.site, now=NOW + days(80)).plans["spring"].sha256 == GOOD.sha256
    pin_roster(alice, root_sha256=root_sha256(alice), out=tmp_path / "late", now=NOW + days(80))
    assert load_roster(tmp_path / "late", now=NOW + days(80)).plans == {"spring": GOOD}


def test_two_runs_have_a_plan_each(council: Council) -> None:
    summer, two = sum_plan(run="summer", collude=0, blind=True), council.stewards[:2]
    add_plan(council.of("alice"), plan=summer, steward=two, now=NOW)
    assert add_plan(council.of("alice"), plan=GOOD, steward=two, now=NOW).plans == {"spring": GOOD, "summer": summer}
    with pytest.raises(PlanExists, match="spring, which has one"):
        add_plan(council.of("alice"), plan=sum_plan(rounds=13), steward=two, now=NOW)
    with pytest.raises(PlanExists):
        add_plan(council.of("alice"), plan=GOOD, steward=two, now=NOW)  # the same one, too
    after = remove_plan(council.of("alice"), run="spring", steward=two, now=NOW)
    assert (after.plans, set(after.removed_runs)) == ({"summer": summer}, {"spring"})
    with pytest.raises(PlanExists, match="spring, which had one"):
        add_plan(council.of("alice"), plan=GOOD, steward=two, now=NOW)
    with pytest.raises(NoSuchPlan):
        remove_plan(council.of("alice"), run="spring", steward=two, now=NOW)
    assert update_roster(council.site, source=council.of("alice"), now=NOW).plans == {"summer": summer}
    assert targets_in(remove_last(council)) == {*TARGETS, PLANS}  # the names that are used up stay


def remove_last(council: Council) -> Path:
    remove_plan(council.of("alice"), run="summer", steward=council.stewards[:2], now=NOW)
    update_roster(council.site, source=council.of("alice"), now=NOW)
    return council.site


def test_a_roster_is_created_with_its_plans(tmp_path: Path) -> None:
    members = [
        *((Site.make(name).public, ["author", "receiver"]) for name in SITES),
        (Site.make("hub").public, ["relay", "aggregator"]),
    ]
    one, two = Steward.generate("one"), sum_plan(run="summer")

    def created(name: str, *plans: Any) -> TrustedRoster:  # noqa: ANN401
        create_roster(tmp_path / name, federation=FEDERATION, steward=one, members=members, plans=plans, now=NOW)
        return load_roster(tmp_path / name, now=NOW)

    assert created("both", two, GOOD).plans == {"spring": GOOD, "summer": two}
    for bad, kind in ((sum_plan(collude=2), UnsafePlan), (sum_plan(sites=("a", "b", "c"), vanish=0), UnknownMember)):
        with pytest.raises(kind):
            created("bad", bad)
    with pytest.raises(PlanExists):
        created("bad", GOOD, GOOD)
    assert [path.name for path in tmp_path.iterdir()] == ["both"]


def test_a_plan_may_be_proposed_by_one_and_signed_by_another(council: Council) -> None:
    proposal = propose(council.of("alice"), unchanged, now=NOW, plans=planning(GOOD, now=NOW))
    proposal.sign(council.steward("alice"))
    settled = settle(proposal, signed_by=council.steward("alice"))
    assert settled.draft is not None
    shown = open_draft(council.of("bob"), draft=settled.draft, now=NOW)
    assert shown.changes == proposal.changes
    assert dict.fromkeys(change.kind for change in shown.changes) == dict.fromkeys([
        "plan-added", "plan-sites", "plan-rounds", "plan-base", "plan-collude", "plan-vanish", "plan-helpers",
        "plan-least", "plan-numbers", "plan-result", "plan-vote", "expires", "roster-holds",
    ])  # fmt: skip
    shown.sign(council.steward("bob"))
    roster = settle(shown, signed_by=council.steward("bob")).roster
    assert roster is not None
    assert roster.plans == {"spring": GOOD}


def test_a_plan_is_told_in_words(council: Council) -> None:
    def words(**changes: Any) -> dict[str, str]:  # noqa: ANN401
        edit = planning(sum_plan(**changes), now=NOW)
        changed = propose(council.of("alice"), unchanged, now=NOW, plans=edit).changes
        return {change.kind.removeprefix("plan-"): change.text for change in changed if change.subject == "spring"}

    usual = words()
    assert usual["sites"] == "4 sites: clinic, lab, north, ward; coordinator hub"
    assert usual["rounds"] == "12 rounds, layers 4:8"
    assert usual["collude"] == "up to 1 of 4 sites may collude with the coordinator"
    assert usual["vanish"] == "1 helper may vanish after the uploads; 3 sites then open what is lost with them"
    assert usual["helpers"] == "3 sites a round carry the masks of all others"
    assert usual["least"] == "a sum of fewer than 3 sites is never formed"
    assert usual["numbers"] == "24 bits in words of 32, changes cut at 0.0625, all sites count alike"
    assert usual["result"] == "the coordinator reads the sum"
    assert usual["vote"] == "3 of 4 sites must accept each sum before it is used"
    other = words(collude=0, vanish=0, min_sites=4, blind=True, max_weight=50, rounds=1, spans=((4, 8), (8, 12)))
    assert other["rounds"] == "1 round, layers 4:8, 8:12 in turn"
    assert "no site may collude" in other["collude"]
    assert "the round is lost" in other["vanish"]
    assert other["least"] == "a sum of fewer than 4 sites is never formed (as chosen)"
    assert other["numbers"].endswith("a site's weight is 1 to 50")
    assert other["result"] == "hidden from the coordinator (blind)"
    assert words(quorum=0)["vote"] == "none: each sum is used as it is"


def test_what_an_update_changed_of_the_plans_is_told(council: Council) -> None:
    versions = [trusted(council.site, now=NOW)[1]]
    for edit in (planning(GOOD, now=NOW), planning(sum_plan(run="summer"), now=NOW), unplanning("spring")):
        published(council, edit)
        update_roster(council.site, source=council.of("alice"), now=NOW)
        versions.append(trusted(council.site, now=NOW)[1])

    def told(before: int, after: int) -> list[tuple[str, str]]:
        changes = changes_between(versions[before], versions[after])
        heads = ("plan-added", "plan-removed", "plan-replaced")
        return [(change.kind, change.subject) for change in changes if change.kind in heads]

    assert told(0, 1) == [("plan-added", "spring")]
    assert told(1, 3) == [("plan-removed", "spring"), ("plan-added", "summer")]
    assert told(0, 3) == [("plan-added", "summer"), ("plan-removed", "spring")]
    assert told(2, 2) == []


def test_whoever_takes_part_later_leaves_the_plan_as_it_is(council: Council) -> None:
    published(council, planning(GOOD, now=NOW))
    two = council.stewards[:2]
    assert revoke_member(council.of("alice"), name="ward", steward=two, now=NOW).plans == {"spring": GOOD}
    with pytest.raises(MemberNotActive):
        add_plan(council.of("alice"), plan=sum_plan(run="summer"), steward=two, now=NOW)
    add_member(
        council.of("alice"), identity=Site.make("ward").public, roles=["author", "receiver"], steward=two, now=NOW
    )
    assert set(add_plan(council.of("alice"), plan=sum_plan(run="summer"), steward=two, now=NOW).plans) == {
        "spring", "summer",
    }  # fmt: skip


def test_there_is_room_for_a_number_of_plans(council: Council) -> None:
    many = [sum_plan(run=f"run-{number:03d}") for number in range(MAX_PLANS + 1)]
    full = published(council, planning(*many[1:], now=NOW))
    assert len(full.plans) == MAX_PLANS
    before = state(council.of("alice")), listing(council.folder)
    with pytest.raises(TooManyPlans):
        propose(council.of("alice"), unchanged, now=NOW, plans=planning(many[0], now=NOW))
    assert (state(council.of("alice")), listing(council.folder)) == before
    published(council, unplanning("run-001"))
    assert len(published(council, planning(many[0], now=NOW)).plans) == MAX_PLANS


def test_a_site_gets_the_plan_from_its_coordinator_without_hands(tmp_path: Path) -> None:
    hub, now = Hub.make(tmp_path, sites=("clinic", "lab", "north")), datetime.now(UTC)
    plan = sum_plan(sites=("clinic", "lab", "north"), vanish=0)
    pin_roster(hub.home / "roster", root_sha256=root_sha256(hub.home / "roster"), out=tmp_path / "site")
    add_plan(hub.stewards_roster, plan=plan, steward=hub.steward)
    hub.take_over_roster()
    (tmp_path / "fetched").mkdir()
    with open_gate(hub) as gate, gate.bank("clinic") as bank:
        bank.fetch_roster(tmp_path / "fetched")
    assert update_roster(tmp_path / "site", source=tmp_path / "fetched", now=now).plans == {"spring": plan}


PASSPHRASE = "correct horse"
FEDERATION_TOML = f"""
name = "hub"
federation = "{FEDERATION}"
run = "spring"
mode = "secure-sum"
sites = ["ward", "north", "lab", "clinic"]
rounds = 12
base_sha256 = "{"ab" * 32}"
base = "smollm2-135m"
span = [4, 8]

[training]
lr = 1e-4
epochs = 1
batch_tokens = 4096
max_tokens = 512

[secure_sum]
collude = 1
vanish = 1
quorum = 3
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stewards' keys, a roster R that both have signed, and a coordinator's file."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "pw").write_text(PASSPHRASE + "\n")
    (folder / "pw").chmod(0o600)
    secret = Secret(PASSPHRASE.encode())
    keys = [
        create_keys(folder / name, name=name, passphrase=secret, work_factor=2, steward=True) for name in ("s1", "s2")
    ]
    assert len(keys) == 2
    from not_fed.keys import load_steward

    members = [
        *((Site.make(name).public, ["author", "receiver"]) for name in SITES),
        (Site.make("hub").public, ["relay", "aggregator"]),
    ]
    stewards = [load_steward(folder / name, passphrase=secret) for name in ("s1", "s2")]
    create_roster(folder / "R", federation=FEDERATION, steward=stewards, members=members)
    (folder / "federation.toml").write_text(FEDERATION_TOML)
    return folder


def said(folder: Path, *words: str) -> tuple[int, str, str]:
    """The command without a terminal: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "from not_fed.cli.main import main; main()", "roster", *words], cwd=folder, text=True,
        capture_output=True, input="",
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_refuses_an_unsafe_plan_and_writes_nothing(desk: Path) -> None:
    before = listing(desk / "R")
    (desk / "unsafe.toml").write_text(FEDERATION_TOML.replace("vanish = 1", "vanish = 2"))
    code, out, err = said(
        desk, "plan", "R", "--from", "unsafe.toml", "--steward", "s1", "--passphrase-file", "pw", "--yes"
    )
    assert (code, out) == (4, "")
    assert "error[plan-unsafe]" in err
    assert "vanish of at most 1 with 4 sites and collude 1" in err
    assert "3 sites must answer to stand in for a lost helper" in err
    (desk / "bank.toml").write_text(FEDERATION_TOML.partition("[secure_sum]")[0].replace("secure-sum", "bank"))
    code, _, err = said(desk, "plan", "R", "--from", "bank.toml", "--steward", "s1", "--passphrase-file", "pw", "--yes")
    assert (code, "other modes need no signed plan" in err) == (4, True)
    code, _, err = said(desk, "plan", "R", "--from", "federation.toml")
    assert (code, "--steward KEYS" in err) == (2, True)
    assert listing(desk / "R") == before


def test_the_command_shows_asks_signs_and_lists(desk: Path) -> None:
    words = ("plan", "R", "--from", "federation.toml", "--steward", "s1", "--passphrase-file", "pw")
    code, out, err = said(desk, *words)
    assert (code, out) == (2, "")  # no terminal and no --yes means no
    assert "up to 1 of 4 sites may collude with the coordinator" in err
    assert not (desk / "R" / "draft").exists()
    code, out, err = said(desk, *words, "--yes")
    assert code == 0
    assert "plan added    spring: digest" in err
    assert "awaited      1 of s2" in out
    code, out, _ = said(desk, "sign", "R", "--steward", "s2", "--passphrase-file", "pw", "--yes")
    assert code == 0
    assert "plans        spring" in out
    code, out, _ = said(desk, "show", "R", "--json")
    (plan,) = json.loads(out)["plans"]
    assert plan | {"run": "spring", "shares": 3, "helpers": 3, "min_sites": 3, "collude": 1, "blind": False} == plan
    assert plan["sha256"] == load_roster(desk / "R", now=datetime.now(UTC)).plans["spring"].sha256
    code, out, _ = said(desk, "plan", "R")
    assert "collude  up to 1 of 4 sites may collude with the coordinator" in out
    assert said(desk, *words, "--yes")[0] == 4  # a run has one plan
    for keys in ("s1", "s2"):
        place = ("plan", "R", "--remove", "spring") if keys == "s1" else ("sign", "R")
        assert said(desk, *place, "--steward", keys, "--passphrase-file", "pw", "--yes")[0] == 0
    code, out, _ = said(desk, "plan", "R", "--json")
    assert json.loads(out) == {"schema": "not-fed/plans/1", "plans": [], "removed": ["spring"]}
