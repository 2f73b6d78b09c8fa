"""What a site asks of a task before it takes part in a secure sum, or goes on from a blind one."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from not_fed.aggregation.secure.ledger import LedgerRolledBack, RoundKeyGone
from not_fed.aggregation.secure.site import BadCapsule, NotTheSignedPlan
from not_fed.envelope.papers import NO_PAPERS
from not_fed.home import Home
from not_fed.site import steps, summing
from not_fed.site.arrivals import Gathered
from not_fed.site.log_file import LOG_FILE
from not_fed.site.state import KeptSum, SiteState
from not_fed.site.sumkeys import FOLDER, forget_sums, sums
from tests.support.plans import sum_plan
from tests.support.sums import NAMES, Cohort, new_party, plan_of


def a_job(**changes: Any) -> Any:  # noqa: ANN401
    """As much of a job as `plan_of` looks at: a task that says what the plan does, but for `changes`."""
    plan = sum_plan()
    task = {
        "run": plan.run, "sites": plan.sites, "coordinator": plan.coordinator, "rounds": plan.rounds,
        "base_sha256": plan.base_sha256, "spans": plan.spans, "quorum": plan.quorum,
    }  # fmt: skip
    return SimpleNamespace(roster=SimpleNamespace(plans={plan.run: plan}), task=SimpleNamespace(**{**task, **changes}))


def test_a_task_that_says_what_the_plan_does_is_under_the_plan() -> None:
    assert summing.plan_of(a_job()) == sum_plan()
    assert summing.plan_of(a_job(sites=tuple(reversed(sum_plan().sites)))) == sum_plan()


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": (*sum_plan().sites, "zz-stranger")},
        {"sites": sum_plan().sites[:-1]},
        {"coordinator": "other-hub"},
        {"rounds": sum_plan().rounds + 1},
        {"base_sha256": "cd" * 32},
        {"spans": ((1, 2),)},
        {"quorum": sum_plan().quorum + 1},
        {"run": "another"},
    ],
)
def test_a_task_that_says_anything_else_than_the_plan_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotTheSignedPlan):
        summing.plan_of(a_job(**changes))


@pytest.mark.parametrize("claims", [True, False])
def test_a_blind_site_counts_the_votes_on_what_counts_in_every_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claims: bool
) -> None:
    """Also where the coordinator claims that nothing was kept."""
    state, spans = SiteState(tmp_path), ((0, 1), (1, 2))
    for number in (1, 2, 3):
        state.keep_sum(KeptSum(run="spring", round=number, file="x", organ_sha256=f"{number}", proposal=f"p{number}"))
    total = SimpleNamespace(call=SimpleNamespace(round=3))
    task = SimpleNamespace(
        run="spring", total=total if claims else None, span_of=lambda number: spans[(number - 1) % len(spans)]
    )
    counted: list[object] = []
    monkeypatch.setattr(steps, "check_votes", lambda job, papers, *, kept: counted.append(kept))
    steps._keep_blind(SimpleNamespace(task=task, state=state), None, NO_PAPERS)  # type: ignore[arg-type]
    assert counted == [{2: ("2", "p2"), 3: ("3", "p3")}]


def test_why_a_sum_could_not_be_read_is_in_the_sites_log_and_not_in_its_vote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise BadCapsule(where="capsule of ward", expected="the blinding key", got="another", hint="none")

    monkeypatch.setattr(steps, "read_blind", refuse)
    task = SimpleNamespace(run="spring", round=4, total=object())
    job, began = (
        SimpleNamespace(task=task, home=SimpleNamespace(folder=tmp_path)),
        Gathered(start=None, body=(), organs={}),
    )
    judged = steps._judge(job, (), object(), began, NO_PAPERS)  # type: ignore[arg-type]
    assert (judged.accept, judged.reason, dict(judged.notes)) == (False, "cannot-read-sum", {})
    assert "round 4" in (said := (tmp_path / LOG_FILE).read_text())
    assert "capsule of ward" in said


def test_a_site_that_lost_its_memory_of_sums_begins_a_new_one_when_told_to(tmp_path: Path) -> None:
    """Without being told it refuses; what was sealed to the keys of before is not opened either way."""
    cohort = Cohort(plan=plan_of(NAMES[:3]), parties={name: new_party(name) for name in NAMES[:3]}, folder=tmp_path)
    home, state = Home(tmp_path / "a"), SiteState(tmp_path / "a")
    with sums(home, state) as ledger:
        cohort.ledgers["a"] = ledger
        call = cohort.call(cohort.keys())
        assert ledger.sealed_key(call, me="a")
    assert state.sum_writes() > 0
    shutil.rmtree(home.folder / FOLDER)
    with pytest.raises(LedgerRolledBack), sums(home, state):
        pass
    forget_sums(home)
    with sums(home, state) as ledger:
        with pytest.raises(RoundKeyGone):
            ledger.sealed_key(call, me="a")
        cohort.ledgers["a"] = ledger
        assert cohort.site("a").offer_key()
