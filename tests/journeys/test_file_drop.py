"""The same federation with a stick instead of a network: same checks, same state, same aggregate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from not_fed import files
from not_fed.coordinator.drop import AnswerOutdated, export_orders, import_answers
from not_fed.coordinator.rounds import TooFewAnswers
from not_fed.coordinator.state import CoordinatorState, Step, run_lock
from not_fed.simulation import Prepared, run
from not_fed.site.drop import NothingToCarry, OrderOutdated, export_answer, import_order
from not_fed.site.state import SiteState
from not_fed.transfer import stick
from tests.support.dropped import Post, now
from tests.support.federation import SITES, state_of, tiny_prepared


def aggregates(prepared: Prepared) -> dict[str, str]:
    """The last aggregate's digest at each site."""
    return {
        site: files.sha256(home / "organs" / prepared.run / f"aggregate-{prepared.rounds}.organ")
        for site, home in prepared.sites.items()
    }


def post(tmp_path: Path, **options: object) -> Post:
    return Post(tiny_prepared(tmp_path, **options), tmp_path / "sticks")


@pytest.mark.parametrize("mode", ["bank", "trusted"])
@pytest.mark.parametrize("log", [False, True], ids=["plain", "log"])
def test_a_federation_without_a_network_reaches_the_same_aggregate(mode: str, log: bool, tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    network = tiny_prepared(tmp_path / "network", mode=mode, log=log)
    by_hand = post(tmp_path, mode=mode, log=log)
    run(network)
    done = by_hand.finish()
    assert done.complete
    assert by_hand.codes == {}
    assert aggregates(by_hand.prepared) == aggregates(network)
    assert len(set(aggregates(network).values())) == 1


def test_a_run_may_change_from_the_stick_to_the_network(tmp_path: Path) -> None:
    (tmp_path / "network").mkdir()
    network = tiny_prepared(tmp_path / "network", log=True)
    run(network)
    by_hand = post(tmp_path, log=True)
    by_hand.step()
    run(by_hand.prepared)
    assert aggregates(by_hand.prepared) == aggregates(network)


def test_a_round_waits_for_every_site_or_for_a_person_to_close_it(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    done = by_hand.step("clinic", "ward")
    assert (done.closed, done.awaited) == (False, ("hospice",))
    done = by_hand.take_in("clinic", close=True)
    assert (done.closed, done.counted) == (True, {"clinic": "again"})
    assert by_hand.hand_out().step == Step(run="first", round=2, kind="train")


def test_too_few_answers_close_nothing_and_lose_nothing(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    by_hand.step("clinic")
    with pytest.raises(TooFewAnswers):
        by_hand.take_in("clinic", close=True)
    done = by_hand.step("hospice", "ward")
    assert done.closed


def test_a_lost_stick_is_written_again(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    by_hand.hand_out()
    shutil.rmtree(by_hand.stick("clinic"))  # on its way to the site
    by_hand.hand_out()
    by_hand.work("clinic")
    before = files.sha256(by_hand.stick("clinic") / "answers" / "clinic" / "organ.sealed")
    shutil.rmtree(by_hand.stick("clinic"))  # and on its way back
    export_answer(by_hand.prepared.sites["clinic"], by_hand.stick("clinic"))
    assert files.sha256(by_hand.stick("clinic") / "answers" / "clinic" / "organ.sealed") == before
    assert by_hand.take_in("clinic").counted == {"clinic": "sealed"}


def test_a_doubled_stick_is_answered_from_the_store(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    by_hand.hand_out()
    first = by_hand.work("clinic")
    home = by_hand.prepared.sites["clinic"]
    organ = home / "organs" / "first" / "own-1.organ"
    stamp = organ.stat().st_mtime_ns
    assert by_hand.work("clinic") == first
    assert organ.stat().st_mtime_ns == stamp
    assert len(SiteState(home).results("first")) == 1


def test_a_stick_that_comes_twice_counts_once(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    by_hand.step("clinic")
    state = CoordinatorState(by_hand.prepared.coordinator)
    before = state.answers("first")
    assert by_hand.take_in("clinic").counted == {"clinic": "again"}
    assert state.answers("first") == before


def test_a_stale_stick_changes_nothing_on_either_side(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    by_hand.step("hospice", "ward")
    by_hand.hand_out()
    by_hand.work("clinic")
    shutil.copytree(by_hand.stick("clinic"), tmp_path / "old")
    by_hand.take_in("clinic")
    by_hand.step("clinic")  # round 2
    coordinator, site = by_hand.prepared.coordinator, by_hand.prepared.sites["clinic"]
    done = import_answers(coordinator, tmp_path / "old", now=now())
    assert isinstance(done.errors["clinic"], AnswerOutdated)
    assert done.counted == {}
    before = state_of(site)
    with pytest.raises(OrderOutdated):
        import_order(site, tmp_path / "old", now=now())
    assert state_of(site) == before


def test_a_refusal_is_carried_and_named(tmp_path: Path) -> None:
    by_hand = post(tmp_path, policy={"ward": {"max_rounds": 1}})
    by_hand.hand_out()
    with pytest.raises(Exception, match="rounds"):
        by_hand.work("ward")
    home = by_hand.prepared.sites["ward"]
    assert export_answer(home, by_hand.stick("ward")).refused == "policy-rounds"
    assert by_hand.take_in("ward").counted == {"ward": "refused"}
    (noted,) = CoordinatorState(by_hand.prepared.coordinator).answers("first")
    assert (noted.site, noted.code) == ("ward", "policy-rounds")


def test_nothing_is_exported_before_an_order_came(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    with pytest.raises(NothingToCarry):
        export_answer(by_hand.prepared.sites["clinic"], by_hand.stick("clinic"))


def test_two_commands_do_not_drive_one_run(tmp_path: Path) -> None:
    by_hand = post(tmp_path)
    with run_lock(by_hand.prepared.coordinator), pytest.raises(Exception, match="run") as caught:
        export_orders(by_hand.prepared.coordinator, tmp_path / "stick", now=now())
    assert caught.value.code == "run-locked"  # type: ignore[attr-defined]
    assert not (tmp_path / "stick").exists()


def test_a_complete_run_says_so(tmp_path: Path) -> None:
    by_hand = post(tmp_path, rounds=1)
    by_hand.finish()
    assert by_hand.hand_out().step is None
    assert import_answers(by_hand.prepared.coordinator, by_hand.stick("clinic"), now=now()).complete


def test_what_lies_on_a_stick_is_signed_or_sealed(tmp_path: Path) -> None:
    by_hand = post(tmp_path, log=True)
    by_hand.step()
    by_hand.hand_out()
    orders = by_hand.folder / "table" / stick.ORDERS
    assert sorted(path.name for path in orders.iterdir()) == list(SITES)
    kinds = {path.suffix or path.name for path in (orders / "clinic").iterdir()}
    assert kinds == {".sealed", ".label", ".proof", "task"}
    assert {path.stem for path in (orders / "clinic").glob("*.sealed")} == {
        one.sealed_sha256 for one in CoordinatorState(by_hand.prepared.coordinator).answers("first")
        if one.site != "clinic"
    }  # fmt: skip
