"""What real sites let themselves be told, counted by the model of every strategy: the code does what the model says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from not_fed.aggregation.secure import SumLedger
from not_fed.envelope.summing import SumCall
from not_fed.errors import BudgetError
from tests.support.lying_sums import Asked
from tests.support.strategies import Answer, Sum, mask
from tests.support.sums import NAMES, Cohort, Party, new_party, plan_of

ALL = list(NAMES[:4])
STORIES = [[*one] for size in (3, 4) for one in combinations(ALL, size)]
_FORGETFUL: list[bool] = []  # whether sites answer whatever they are asked, for once


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    parties: dict[str, Party] = {name: new_party(name) for name in ALL}
    plan = plan_of(ALL, collude=1, vanish=1)
    return Asked.make(
        Cohort(plan=plan, parties=parties, folder=tmp_path_factory.mktemp("four") / "sites", parameters=2)
    )


def as_mask(names: Sequence[str]) -> int:
    """Sites of a cohort as the model counts them."""
    return mask(tuple(ALL.index(name) for name in names))


def told(asked: Asked, chance: random.Random) -> dict[int, Answer]:
    """What a coordinator gets that asks each site for help and for shares, with two stories, more than once."""
    stories = [(chance.choice(STORIES), chance.choice(asked.helpers)) for _ in range(2)]
    answers: dict[int, Answer] = {}
    for _ in range(2):
        for name in chance.sample(ALL, len(ALL)):
            sites, lost = chance.choice(stories)
            place, active, missing = ALL.index(name), as_mask(sites), 0
            try:
                if name in asked.helpers:
                    asked.help(name, sites)
                    answers.setdefault(place, (active, 0))
                asked.reveal(name, sites, [lost])
                missing = as_mask([lost])
            except BudgetError:
                pass
            if missing:
                before = answers.get(place, (active, 0))
                assert before[0] == active or _FORGETFUL, "one site, and two sets in a round"
                answers[place] = (active, before[1] | missing)
    return answers


def breaks(ready: Asked, folder: Path, trials: int) -> int:
    """In how many trials some colluding site makes two tries of one start show too much."""
    found, chance = 0, random.Random("real")
    for trial in range(trials):
        asked = ready.copy(folder / f"{trial}")
        first = told(asked, chance)
        second = told(asked.upload_again(asked.next_round()), chance)
        rule = asked.cohort.plan.thresholds()
        for colluding in range(4):
            call = Sum(
                cohort=15, helpers=as_mask(asked.helpers), colluding=1 << colluding, shares=rule.shares, vanish=1,
                min_sites=rule.min_sites,
            )  # fmt: skip
            shown = [
                row
                for answers in (first, second)
                for row in call.learned({site: answers[site] for site in call.honest if site in answers})
            ]
            found += not call.is_safe(call.free_of_masks(shown))
    return found


def test_what_real_sites_answer_shows_one_sum_or_none(ready: Asked, tmp_path: Path) -> None:
    assert breaks(ready, tmp_path, 8) == 0


def test_sites_that_promise_nothing_show_more(ready: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same questions to sites whose ledger forgets what it was told: the count would notice."""

    def forget(ledger: SumLedger, call: SumCall, *, me: str, **_: Any) -> tuple[None, None]:  # noqa: ANN401
        with ledger._store.transaction() as database:
            ledger._give(database, call, me)
        return None, None

    monkeypatch.setattr(SumLedger, "bind", forget)
    _FORGETFUL.append(True)
    try:
        assert breaks(ready, tmp_path, 8) > 0
    finally:
        _FORGETFUL.clear()
