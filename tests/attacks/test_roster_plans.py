"""Adversary: a coordinator that is online, hands the roster on, and would like another plan for its secure sum.

Powers: proposes plans, keeps every old version, edits what it hands on; signs with the keys of a steward or two.
Lacks: enough stewards' keys, unless stated. Always: sites hold it to the plan that the stewards read, or to none.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.errors import NotFedError
from not_fed.keys import Steward
from not_fed.trust.ceremony import NotASteward, open_draft, propose, settle
from not_fed.trust.diff import plan_words
from not_fed.trust.draft import DraftRefused, write_draft
from not_fed.trust.members import MemberNotActive, RosterMalformed, UnknownMember, WrongRole, read_roster
from not_fed.trust.planning import NoSuchPlan, PlanExists, PlanOfAnother, PlanReplaced, planning, unplanning
from not_fed.trust.plans import MAX_PLANS, SumPlan, UnsafePlan
from not_fed.trust.repository import PLANS, parse_metadata, signed_sha256
from not_fed.trust.roster import (
    RosterAltered,
    RosterRollback,
    RosterUnsigned,
    change_stewards,
    load_roster,
    pin_roster,
    renew_roster,
    revoke_member,
    update_roster,
)
from not_fed.trust.stewards import unchanged
from not_fed.trust.takeover import trusted
from tests.support.plans import as_json, forge_plans, planned_council, plans_file, published, sum_plan
from tests.support.rosters import Council, assert_not_signed, assert_refused, assert_signs, state, steward_identity
from tests.support.trust import NOW, days, listing

GOOD = sum_plan()
ADD = planning(GOOD, now=NOW)


@pytest.fixture
def council(tmp_path: Path) -> Council:
    """Four sites and a coordinator on the roster, no plan yet."""
    return planned_council(tmp_path / "council")


@pytest.fixture
def planned(tmp_path: Path) -> Council:
    """The same with a plan for run spring from the beginning."""
    return planned_council(tmp_path / "council", plans=[GOOD])


def handed_on(folder: Path) -> Path:
    """The file of plans in a roster folder's repository."""
    (path,) = (folder / "repository" / "targets").glob(f"*.{PLANS}")
    return path


def test_a_plan_counts_only_when_enough_stewards_have_signed_it(council: Council, tmp_path: Path) -> None:
    """Own. A plan signed by nobody, by one steward, by one whose place another has taken, by strangers.

    Powers: one steward's keys, or those of a former one. Control: two of the three.
    """
    alice, bob, carol = council.stewards
    change_stewards(council.of("alice"), steward=[alice, bob], remove=["carol"], now=NOW)
    for name in ("bob", "site"):
        update_roster(council.of(name), source=council.of("alice"), now=NOW)
    for number, by in enumerate(([], [alice], [alice, carol], [Steward.generate("alice"), Steward.generate("bob")])):
        forged = forge_plans(council, tmp_path / f"forged{number}", plans_file(as_json()), by=by)
        assert_refused(council.site, RosterUnsigned, forged)
    proposal = propose(council.of("alice"), unchanged, now=NOW, plans=ADD)
    with pytest.raises(NotASteward):
        proposal.sign(carol)
    assert load_roster(council.site, now=NOW).plans == {}
    good = forge_plans(council, tmp_path / "good", plans_file(as_json()), by=[alice, bob])
    assert update_roster(council.site, source=good, now=NOW).plans == {"spring": GOOD}  # control


def test_whoever_hands_the_roster_on_changes_no_plan(council: Council, tmp_path: Path) -> None:
    """Own. The coordinator edits the plan that it hands on, takes it out, adds one, and hands the old roster on.

    Powers: writes every file that a site fetches. Control: what the stewards signed, fetched and pinned.
    """
    source = tmp_path / "source"
    published(council, ADD)
    for attempt in ("edited", "cut", "gone", "renamed", "link"):
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(council.of("alice"), source)
        path, weaker = handed_on(source), canonical.dumps(plans_file(as_json(collude=0, vanish=1)))
        if attempt == "edited":
            path.write_bytes(weaker)
        elif attempt == "cut":
            path.write_bytes(path.read_bytes()[:-2])
        else:
            path.unlink()
        if attempt == "renamed":
            path.with_name(f"{hashlib.sha256(weaker).hexdigest()}.{PLANS}").write_bytes(weaker)
        if attempt == "link":
            (tmp_path / "elsewhere").write_bytes(handed_on(council.of("alice")).read_bytes())
            path.symlink_to(tmp_path / "elsewhere")
        assert_refused(council.site, RosterAltered, source)
    assert update_roster(council.site, source=council.of("alice"), now=NOW).plans == {"spring": GOOD}  # control
    (council.site / "repository" / "targets" / handed_on(council.site).name).write_bytes(b"{}")
    assert load_roster(council.site, now=NOW).plans == {"spring": GOOD}  # what is handed on decides nothing here
    shutil.copytree(council.of("bob"), tmp_path / "before")
    assert_refused(council.site, RosterRollback, tmp_path / "before")


def test_a_site_before_the_plan_has_none(council: Council, tmp_path: Path) -> None:
    """Own. Freeze: the roster with the plan is withheld, and the site is asked for a secure sum all the same.

    Powers: decides what the site fetches. Control: with the roster it has the plan, and can't be led back.
    """
    shutil.copytree(council.of("alice"), tmp_path / "old")
    published(council, ADD)
    assert update_roster(council.site, source=tmp_path / "old", now=NOW).plans.get("spring") is None
    assert update_roster(council.site, source=council.of("alice"), now=NOW).plans.get("spring") == GOOD  # control
    assert_refused(council.site, RosterRollback, tmp_path / "old")
    published(council, unplanning("spring"))
    update_roster(council.site, source=council.of("alice"), now=NOW)
    shutil.rmtree(tmp_path / "old")
    shutil.copytree(council.site, tmp_path / "old")
    renew_roster(council.of("alice"), steward=council.stewards[:2], now=NOW)
    after = update_roster(council.site, source=council.of("alice"), now=NOW)
    assert (after.plans, set(after.removed_runs)) == ({}, {"spring"})


SWAPS: dict[str, Any] = {
    "a colluder less": plans_file(as_json(collude=0)),
    "another site": plans_file(as_json(sites=["clinic", "lab", "north"], vanish=0)),
    "a larger sum": plans_file(as_json(min_sites=4)),
    "another base": plans_file(as_json(base_sha256="cd" * 32)),
    "no vote": plans_file(as_json(quorum=0)),
    "left out": plans_file(as_json(run="summer")),
    "an empty file": plans_file(),
    "no file": None,
}


def test_a_plan_is_not_swapped_under_the_same_run(planned: Council, tmp_path: Path) -> None:
    """Own. A newer roster has another plan for the run, or silently none.

    Powers: all stewards sign it on machines of their own making. Control: a second run gets a plan beside it; and the
    first one's is taken away under its name, which stays used up.
    """
    for swap, content in SWAPS.items():
        forged = forge_plans(planned, tmp_path / swap, content, by=planned.stewards[:2])
        assert_refused(planned.site, PlanReplaced, forged)
        assert_not_signed(planned, forged, (PlanReplaced, DraftRefused))
    more = plans_file(as_json(), as_json(run="summer", collude=0))
    assert_signs(planned, forge_plans(planned, tmp_path / "more", more, by=planned.stewards[:1]))  # control
    update_roster(planned.of("alice"), source=planned.site, now=NOW)
    without = plans_file(as_json(run="summer", collude=0), removed=["spring"])
    away = forge_plans(planned, tmp_path / "away", without, by=planned.stewards[:2])
    assert set(update_roster(planned.site, source=away, now=NOW).plans) == {"summer"}  # control


def test_a_removed_plan_does_not_come_back(planned: Council, tmp_path: Path) -> None:
    """Own. A run's plan is removed, and a later roster has one for that run again, the same or a weaker one.

    Powers: all stewards sign it; two of the versions never reach the site. Control: another run's plan.
    """
    before = published(planned, unplanning("spring"))
    assert (before.plans, set(before.removed_runs)) == ({}, {"spring"})
    with pytest.raises(NoSuchPlan):
        propose(planned.of("alice"), unchanged, now=NOW, plans=unplanning("spring"))
    with pytest.raises(PlanExists):
        propose(planned.of("alice"), unchanged, now=NOW, plans=ADD)
    for number, again in enumerate((plans_file(as_json()), plans_file(as_json(collude=0)), plans_file(), None)):
        forged = forge_plans(planned, tmp_path / f"forged{number}", again, by=planned.stewards)
        with pytest.raises((PlanReplaced, DraftRefused)):
            open_draft(planned.of("alice"), draft=forged, now=NOW)
        assert_refused(planned.of("alice"), PlanReplaced, forged)
    both = forge_plans(planned, tmp_path / "both", plans_file(as_json(), removed=["spring"]), by=planned.stewards)
    assert_refused(planned.of("alice"), RosterMalformed, both)
    weaker = forge_plans(planned, tmp_path / "weaker", plans_file(as_json(collude=0)), by=planned.stewards)
    assert_refused(planned.site, PlanReplaced, weaker)  # it has seen neither the removal nor anything since
    published(planned, planning(sum_plan(run="summer"), now=NOW))
    after = update_roster(planned.site, source=planned.of("alice"), now=NOW)  # control
    assert (set(after.plans), set(after.removed_runs)) == ({"summer"}, {"spring"})


def test_new_stewards_cannot_give_a_run_another_plan(planned: Council, tmp_path: Path) -> None:
    """Own. The stewards are exchanged so that what the old ones signed binds nobody, and the run gets a weaker plan.

    Powers: enough of the old stewards and all of the new ones. Control: a newcomer, and the site for another run, take
    the new stewards' plans.
    """
    new = [Steward.generate(name) for name in ("dave", "erin")]
    after = change_stewards(
        planned.of("alice"), steward=[*planned.stewards, *new], add=[steward_identity(each) for each in new],
        remove=["alice", "bob", "carol"], now=NOW,
    )  # fmt: skip
    assert after.plans == {"spring": GOOD}
    weaker = plans_file(as_json(collude=0), as_json(run="summer"))
    forged = forge_plans(planned, tmp_path / "forged", weaker, by=new)
    assert_refused(planned.of("alice"), PlanReplaced, forged)  # it knows the new stewards' own version before
    shutil.copyfile(
        planned.of("alice") / "repository" / "metadata" / "2.root.json", forged / "metadata" / "2.root.json"
    )
    roster = update_roster(planned.site, source=forged, now=NOW)
    assert set(roster.plans) == {"summer"}  # control
    assert set(load_roster(planned.site, now=NOW).plans) == {"summer"}
    pin_roster(forged, root_sha256=_root(forged), out=tmp_path / "newcomer", now=NOW)
    assert load_roster(tmp_path / "newcomer", now=NOW).plans["spring"].collude == 0  # control


def _root(source: Path) -> str:
    return signed_sha256(parse_metadata((source / "metadata" / "2.root.json").read_bytes()))


def _twice(plan: dict[str, Any]) -> bytes:
    text = canonical.dumps(plans_file(plan))
    return text.replace(b'"vanish":1', b'"vanish":1,"vanish":0')


MALFORMED: dict[str, object] = {
    "t - 1": plans_file(as_json(shares=2)),
    "k - 1": plans_file(as_json(helpers=2)),
    "a threshold": plans_file(as_json(threshold=1)),
    "a helper of one's choice": plans_file(as_json(helpers=["clinic"])),
    "too many may collude": plans_file(as_json(collude=3)),
    "too many may vanish": plans_file(as_json(vanish=2)),
    "a sum of two": plans_file(as_json(min_sites=2)),
    "two sites": plans_file(as_json(sites=["clinic", "lab"], collude=0, vanish=0)),
    "an overflow": plans_file(as_json(value_bits=31)),
    "blind without a vote": plans_file(as_json(blind=True, quorum=0)),
    "true for a number": plans_file(as_json(collude=True)),
    "a fraction for a number": plans_file(as_json(vanish=1.0)),
    "another federation": plans_file(as_json(federation="highlands")),
    "somebody who is no member": plans_file(as_json(sites=["clinic", "lab", "mallory", "ward"])),
    "a site twice": plans_file(as_json(sites=["clinic", "clinic", "lab", "ward"])),
    "the coordinator among the sites": plans_file(as_json(sites=["clinic", "hub", "lab"])),
    "an unknown coordinator": plans_file(as_json(coordinator="mallory")),
    "an unknown field": plans_file(as_json(), note="x"),
    "another format": plans_file(as_json(), format="not-fed.plans/2"),
    "a run twice": plans_file(as_json(), as_json()),
    "a field twice": _twice(as_json()),
    "a number that is none": canonical.dumps(plans_file(as_json())).replace(b'"clip":0.0625', b'"clip":NaN'),
    "5000 digits": canonical.dumps(plans_file(as_json())).replace(b'"vanish":1', b'"vanish":' + b"1" * 5000),
    "depth": b"[" * 100_000,
    "a list": [],
    "nothing": b"",
    "too many": plans_file(*(as_json(run=f"run-{number:04d}") for number in range(MAX_PLANS + 1))),
    "megabytes": plans_file(as_json(), removed=[f"run-{number:07d}" for number in range(400_000)]),
}


CARRIED = {"t - 1", "too many may vanish", "another federation", "somebody who is no member", "a field twice", "depth"}


def test_a_plan_that_breaks_the_rule_is_not_trusted_whoever_signed_it(council: Council, tmp_path: Path) -> None:
    """Own. A plan with thresholds of its own, outside the rule, of another federation, with strangers, of any shape.

    Powers: all three stewards sign it, by mistake or not; writes the file by hand. Control: a good plan, by hand too.
    """
    targets = trusted(council.site, now=NOW)[1].material.contents
    for shape, content in MALFORMED.items():
        data = content if isinstance(content, bytes) else canonical.dumps(content)
        with pytest.raises(RosterMalformed):
            read_roster(targets["roster.json"], targets["recalls.json"], data, version=2, expires_at=NOW)
        if shape in CARRIED:
            forged = forge_plans(council, tmp_path / shape, content, by=council.stewards[:2])
            assert_refused(council.site, RosterMalformed, forged)
            assert_not_signed(council, forged, (RosterMalformed, DraftRefused))
    good = forge_plans(council, tmp_path / "good", plans_file(as_json()), by=council.stewards)
    assert update_roster(council.site, source=good, now=NOW).plans == {"spring": GOOD}  # control


def test_a_file_of_plans_that_is_too_large_is_not_read(council: Council, tmp_path: Path) -> None:
    """Own. A file of plans beyond what any roster file may have, signed; and one that is longer than was signed.

    Powers: fills the disk that a site fetches from. Control: the file as it was signed.
    """
    huge = forge_plans(council, tmp_path / "huge", b" " * 16_000_001, by=council.stewards)
    assert_refused(council.site, RosterAltered, huge)
    good = forge_plans(council, tmp_path / "good", plans_file(as_json()), by=council.stewards)
    (path,) = (good / "targets").glob(f"*.{PLANS}")
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    assert_refused(council.site, RosterAltered, good)
    path.write_bytes(whole)
    assert update_roster(council.site, source=good, now=NOW).plans == {"spring": GOOD}  # control


@pytest.mark.parametrize(("changes", "kind"), [
    ({"collude": 3}, UnsafePlan), ({"vanish": 2}, UnsafePlan), ({"min_sites": 2}, UnsafePlan),
    ({"value_bits": 31}, UnsafePlan), ({"blind": True, "quorum": 0}, UnsafePlan),
    ({"sites": ("clinic", "lab"), "vanish": 0}, UnsafePlan), ({"federation": "highlands"}, PlanOfAnother),
    ({"sites": ("clinic", "lab", "mallory", "north")}, UnknownMember),
    ({"sites": ("clinic", "lab", "north", "reader")}, WrongRole), ({"coordinator": "reader"}, WrongRole),
])  # fmt: skip
def test_a_plan_that_breaks_the_rule_is_not_proposed(
    council: Council, changes: dict[str, Any], kind: type[NotFedError]
) -> None:
    """Own. The coordinator's wish is unsafe, pointless, for others, or names somebody who cannot take part.

    Powers: writes the file that the steward's command is given. Control: a good plan is proposed.
    """
    before = listing(council.folder)
    with pytest.raises(kind):
        propose(council.of("alice"), unchanged, now=NOW, plans=planning(sum_plan(**changes), now=NOW))
    assert listing(council.folder) == before
    proposal = propose(council.of("alice"), unchanged, now=NOW, plans=ADD)
    assert "plan-added" in {change.kind for change in proposal.changes}  # control


def test_a_plan_names_nobody_who_was_revoked(council: Council, tmp_path: Path) -> None:
    """Own. A new plan counts on a site that was revoked, or whose time is over, to make the cohort look larger.

    Powers: proposes it, and signs it by hand with one steward. Control: a plan from before the revocation stays, and
    one without that site is signed.
    """
    published(council, ADD)
    for name in ("bob", "site"):
        update_roster(council.of(name), source=council.of("alice"), now=NOW)
    with pytest.raises(MemberNotActive, match="valid until"):
        late = NOW + days(366)
        propose(council.of("alice"), unchanged, now=late, plans=planning(sum_plan(run="summer"), now=late))
    revoke_member(council.of("alice"), name="ward", steward=council.stewards[:2], now=NOW)
    for name in ("bob", "site"):
        update_roster(council.of(name), source=council.of("alice"), now=NOW)
    with pytest.raises(MemberNotActive, match="revoked"):
        propose(council.of("alice"), unchanged, now=NOW, plans=planning(sum_plan(run="summer"), now=NOW))
    by_hand = plans_file(as_json(), as_json(run="summer"))
    forged = forge_plans(council, tmp_path / "forged", by_hand, by=council.stewards[:1])
    assert_not_signed(council, forged, MemberNotActive)
    assert load_roster(council.site, now=NOW).plans == {"spring": GOOD}  # control
    others = sum_plan(run="summer", sites=("clinic", "lab", "north"), vanish=0, quorum=2)
    assert set(published(council, planning(others, now=NOW)).plans) == {"spring", "summer"}  # control


CHANGED: dict[str, Any] = {
    "coordinator": "reader", "sites": ("clinic", "lab", "ward"), "rounds": 13, "base_sha256": "cd" * 32,
    "spans": ((4, 8), (8, 12)), "collude": 1, "vanish": 0, "min_sites": 3, "word_bits": 16, "value_bits": 23,
    "clip": 0.125, "max_weight": 2, "blind": True, "quorum": 2,
}  # fmt: skip


def test_every_field_of_a_plan_is_shown_before_it_is_signed(council: Council) -> None:
    """Own. Two plans differ in one field, and the difference that the stewards read is the same.

    Powers: shows one, has the other signed. Control: the same plan twice reads the same.
    """
    plain: dict[str, Any] = {"collude": 0, "value_bits": 12}
    assert {*CHANGED, "federation", "run"} == set(SumPlan.model_fields)  # those two are in the title and in each line
    for field, value in CHANGED.items():
        assert list(plan_words(sum_plan(**plain | {field: value}))) != list(plan_words(sum_plan(**plain))), field
    words = list(plan_words(GOOD))
    assert words == list(plan_words(sum_plan()))  # control
    seen = [
        (change.kind, change.text)
        for change in propose(council.of("alice"), unchanged, now=NOW, plans=ADD).changes
        if change.subject == "spring"
    ]
    assert seen == [("plan-added", f"digest {GOOD.sha256}"), *words]


def test_a_plan_in_another_spelling_is_not_signed(council: Council, tmp_path: Path) -> None:
    """Own. The draft's plans.json has spaces, numbers spelled otherwise, fields left to their defaults, an empty list.

    Powers: a steward, who signs digests of any content. Control: the content as our command writes it.
    """
    honest = canonical.dumps(plans_file(as_json())) + b"\n"
    short = {key: value for key, value in as_json().items() if key not in ("blind", "min_sites")}
    attempts = (
        honest + b" ", honest.replace(b",", b", ", 1), canonical.dumps(plans_file(short)) + b"\n",
        honest.replace(b'"clip":0.0625', b'"clip":6.25e-2'), honest.replace(b'"removed":[]', b'"removed":[ ]'),
        canonical.dumps(plans_file()) + b"\n",
    )  # fmt: skip
    for number, content in enumerate(attempts):
        forged = forge_plans(council, tmp_path / f"forged{number}", content, by=council.stewards[:1])
        assert_not_signed(council, forged, DraftRefused)
    assert_signs(council, forge_plans(council, tmp_path / "good", honest, by=council.stewards[:1]))  # control
    assert load_roster(council.site, now=NOW).plans == {"spring": GOOD}


def test_a_draft_with_two_plans_of_a_run_on_the_way_ends_as_one(council: Council, tmp_path: Path) -> None:
    """Own. Two drafts of one version plan the same run differently, and each steward is shown another one.

    Powers: carries the drafts; two stewards who have each signed one. Control: the one that was published first.
    """
    strong = propose(council.of("alice"), unchanged, now=NOW, plans=ADD)
    weak = propose(council.of("carol"), unchanged, now=NOW, plans=planning(sum_plan(collude=0), now=NOW))
    assert strong.draft.fingerprint != weak.draft.fingerprint
    weak.sign(council.steward("carol"))
    write_draft(tmp_path / "weak", weak.draft)
    strong.sign(council.steward("alice"))
    write_draft(tmp_path / "strong", strong.draft)
    assert_signs(council, tmp_path / "strong")  # control
    before = state(council.of("bob"))
    with pytest.raises(NotFedError):
        settle(open_draft(council.of("bob"), draft=tmp_path / "weak", now=NOW), signed_by=None)
    assert state(council.of("bob")) == before
    assert load_roster(council.site, now=NOW).plans == {"spring": GOOD}
