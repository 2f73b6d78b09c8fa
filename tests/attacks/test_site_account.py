"""Adversary: a coordinator that asks again and again, and a site whose ledger is put back to an older state.

Powers: signs any task; restarts sites; in some of them a backup is restored. Lacks: the say over site.toml.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from not_fed import settings
from not_fed.envelope.claims import DpClaim
from not_fed.envelope.task import ProposedPrivacy
from not_fed.organ import train as training
from not_fed.organ.claims import plan_of, recompute
from not_fed.organ.data import read_data
from not_fed.organ.organ import read_organ
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.reservation import Reservation
from not_fed.simulation import Prepared
from not_fed.simulation.prepare import to_toml
from not_fed.site import making
from not_fed.site.policy import SitePolicy
from tests.support.federation import PRIVACY, a_task, an_organ, ask, parcel_in, ref, refusal, signed, tiny_prepared
from tests.support.folders import records

SITE = "clinic"


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """One round at epsilon 8, and a budget of just that, for each site."""
    return tiny_prepared(tmp_path, epsilon=8.0, rounds=1)


def order(prepared: Prepared, **changes: Any) -> bytes:  # noqa: ANN401
    return signed(prepared, a_task(prepared, privacy=PRIVACY, **changes))


def train(prepared: Prepared, **changes: Any) -> RecordDict:  # noqa: ANN401
    return ask(prepared, SITE, order(prepared, **changes))


def change_privacy(prepared: Prepared, **changes: object) -> None:
    path = prepared.sites[SITE] / "site.toml"
    policy = settings.load(SitePolicy, path).model_dump(mode="json")
    path.write_text(to_toml({**policy, "privacy": {**policy["privacy"], **changes}}))


def rows(prepared: Prepared) -> str:
    return Ledger.at(prepared.sites[SITE] / "ledger").head


def never(*args: object, **options: object) -> Any:  # noqa: ANN401
    raise AssertionError("trained")


@pytest.fixture
def spent(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """The one run that the budget allows has been."""
    assert refusal(train(prepared)) is None
    monkeypatch.setattr(training, "train", never)
    return prepared


def forget(prepared: Prepared) -> None:
    """All that the site remembers of runs is lost; its ledger is not."""
    for path in prepared.sites[SITE].glob("state.db*"):
        path.unlink()


def rewrite_records(prepared: Prepared, change: Callable[[list[str]], list[str]]) -> None:
    path = prepared.sites[SITE] / "records.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_every_way_to_ask_again_is_charged_to_one_account(spent: Prepared) -> None:
    """Own. After the budget is spent: a run of a new name, the same run after the site forgot it, the records in
    another order or file, one record of them among new ones, another federation with a home of its own.

    Powers: signs any task, and gets the site restarted without its memory. Control: records that were never trained on
    have their own account, and are trained.
    """
    assert refusal(train(spent, run="second")) == "budget-spent"
    forget(spent)
    assert refusal(train(spent)) is None  # what was trained stands, and is sealed again: nothing new was computed
    shutil.rmtree(spent.sites[SITE] / "organs")
    forget(spent)
    assert refusal(train(spent)) in ("reservation-over", "ledger-rollback")
    rewrite_records(spent, lambda lines: [line.upper().replace("TEXT", "text") for line in reversed(lines)])
    assert refusal(train(spent, run="third")) == "budget-spent"
    old = json.loads((spent.sites[SITE] / "records.jsonl").read_text().splitlines()[0])["text"]
    rewrite_records(spent, lambda lines: [*fresh(15), json.dumps({"text": old})])
    assert refusal(train(spent, run="fourth")) == "budget-spent"


def test_records_that_were_never_used_have_an_account_of_their_own(prepared: Prepared) -> None:
    """Own. The coordinator waits for new records and asks again, with a new run.

    Powers: signs any task. Control: this is allowed, and the old records' account is as spent as before.
    """
    assert refusal(train(prepared)) is None
    path = prepared.sites[SITE] / "records.jsonl"
    before = path.read_text()
    rewrite_records(prepared, lambda lines: fresh(16))
    assert refusal(train(prepared, run="second")) is None  # control
    path.write_text(before)
    assert refusal(train(prepared, run="third")) == "budget-spent"


def test_two_homes_of_one_holder_share_a_ledger(tmp_path: Path) -> None:
    """Own. A holder takes part in two federations, with a home for each and the same records in both.

    Powers: two coordinators, each of whom asks for all of the budget. Control: without naming one ledger for both, the
    second does not know of the first and trains, which is why site.toml can name it.
    """
    for shared, refused in ((True, "budget-spent"), (False, None)):
        homes = []
        for name in ("one", "two"):
            (tmp_path / f"{name}-{shared}").mkdir()
            homes.append(tiny_prepared(tmp_path / f"{name}-{shared}", epsilon=8.0, rounds=1))
            if shared:
                change_privacy(homes[-1], ledger=str(tmp_path / "ledger"))
        assert refusal(train(homes[0])) is None
        assert refusal(train(homes[1], run="other")) == refused


def test_a_refusal_leaves_as_a_code_and_nothing_else(spent: Prepared) -> None:
    """Own. A coordinator asks for more than is left, to learn from the refusal what has been spent, and on what.

    Powers: reads the answer. Control: the site's own log has the whole story.
    """
    answer = train(spent, run="second")
    assert {name: dict(record) for name, record in answer.items()} == {"answer": {"refused": "budget-spent"}}
    assert "budget-spent" in (spent.sites[SITE] / "log").read_text()


def test_an_old_ledger_is_noticed_by_the_sites_own_organs(prepared: Prepared) -> None:
    """Own. After a run, the ledger is put back to what it was before: from a backup, by deleting it, or its rows alone.

    Powers: writes to the site's disk, but leaves its organs. Control: with the true ledger the next run is judged by
    its budget.
    """
    home = prepared.sites[SITE]
    Ledger.at(home / "ledger")
    shutil.copytree(home / "ledger", home / "backup")
    assert refusal(train(prepared)) is None
    shutil.copytree(home / "ledger", home / "true")

    def put_back(source: Path | None) -> None:
        shutil.rmtree(home / "ledger")
        if source is not None:
            shutil.copytree(source, home / "ledger")

    put_back(home / "backup")
    assert refusal(train(prepared, run="second")) == "ledger-rollback"
    put_back(None)
    assert refusal(train(prepared, run="second")) == "ledger-rollback"
    put_back(home / "true")
    for path in (home / "ledger").glob("ledger.db*"):
        path.unlink()
    assert refusal(train(prepared, run="second")) == "ledger-missing"
    put_back(home / "true")
    assert refusal(train(prepared, run="second")) == "budget-spent"  # control


def test_a_site_that_was_cut_off_after_training_is_not_charged_twice(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. The site dies between the last step and its answer, and the coordinator sends the task again.

    Powers: cuts the power at that moment. Control: the organ that was trained goes out, under its first charge.
    """
    line = order(prepared)
    with monkeypatch.context() as patch:
        patch.setattr(making, "seal_organ", never)
        assert refusal(ask(prepared, SITE, line)) == "internal-error"
    head = rows(prepared)
    monkeypatch.setattr(training, "train", never)
    answer = ask(prepared, SITE, line)
    assert refusal(answer) is None
    assert rows(prepared) == head
    assert parcel_in(answer).sealed
    claim = DpClaim.from_training(
        read_organ(prepared.sites[SITE] / "organs" / prepared.run / "own-1.organ").manifest.training
    )
    assert claim is not None
    assert claim.mechanism.repeated_steps == 0


@pytest.mark.parametrize(("budget", "code"), [(10.0, None), (4.0, "budget-spent")])
def test_a_step_that_a_crash_took_is_counted_and_paid_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, code: str | None
) -> None:
    """Own. The site dies in the middle of a step, whose noise nobody will ever see, and draws the step again.

    Powers: cuts the power at will, to get more steps out of one charge. Control: where the budget has room, the run
    goes on, and its claim says how many steps were repeated and what they cost; where it has none, it ends.
    """
    prepared = tiny_prepared(tmp_path, epsilon=4.0, rounds=1)
    change_privacy(prepared, budget=budget)
    line = signed(prepared, a_task(prepared, privacy=ProposedPrivacy(epsilon=4.0, delta=1e-5)))
    real = Reservation.start_step

    def dies(self: Reservation, *, remaining: int) -> None:
        real(self, remaining=remaining)
        if remaining == 1:
            raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Reservation, "start_step", dies)
        assert refusal(ask(prepared, SITE, line)) == "internal-error"
    answer = ask(prepared, SITE, line)
    assert refusal(answer) == code
    if code is None:
        organ = read_organ(prepared.sites[SITE] / "organs" / prepared.run / "own-1.organ")
        claim = DpClaim.from_training(organ.manifest.training)
        assert claim is not None
        assert claim.mechanism.repeated_steps == 1
        assert claim.epsilon == recompute(claim).value > plan_of(claim).epsilon().value


def test_an_organ_planted_for_the_site_is_not_sent_as_its_own(prepared: Prepared) -> None:
    """Own. A file lies where the round's organ would be: one that claims nothing, before the site has trained.

    Powers: writes an organ into the site's folder. Control: the site trains, and sends what it trained.
    """
    folder = prepared.sites[SITE] / "organs" / prepared.run
    folder.mkdir(parents=True)
    planted = an_organ(prepared, folder / "own-1.organ", add=1.0)
    before = read_organ(planted).sha256
    assert refusal(train(prepared)) is None
    assert read_organ(planted).sha256 != before


def test_rounds_of_one_run_share_what_was_reserved_at_its_first_task(tmp_path: Path) -> None:
    """Own. A coordinator starts a run of two rounds, and another run before the second round.

    Powers: signs any task. Control: the second round goes on with what the first reserved for both.
    """
    prepared = tiny_prepared(tmp_path, epsilon=8.0, rounds=2)
    first = parcel_in(train(prepared))
    assert refusal(train(prepared, run="second")) == "budget-spent"
    second = order(prepared, round=2, parcels=(ref(SITE, first),))
    assert refusal(ask(prepared, SITE, second)) is None  # control
    claims = [
        DpClaim.from_training(read_organ(path).manifest.training)
        for path in sorted((prepared.sites[SITE] / "organs" / prepared.run).glob("own-*.organ"))
    ]
    assert len(claims) == 2
    assert claims[0] == claims[1]


def fresh(count: int) -> list[str]:
    return [json.dumps({"text": text}) for text in records(count, seed=77, shortest=6)]


def test_a_site_file_never_raises_a_budget_that_somebody_set(prepared: Prepared) -> None:
    """Own. The officer set a budget in the ledger; a site.toml with a larger one is put beside it.

    Powers: writes site.toml, or has another home that shares the ledger. Control: a smaller one in site.toml counts.
    """
    home = prepared.sites[SITE]
    ledger = Ledger.at(home / "ledger")
    texts = read_data(home / "records.jsonl").texts
    data = ledger.identify(texts)
    ledger.set_budget(data, name="records.jsonl", unit="record", epsilon=3.0, delta=1e-5)
    change_privacy(prepared, budget=8.0)
    assert refusal(train(prepared)) == "budget-spent"  # of epsilon 8
    assert ledger.standing(data, unit="record").cap.epsilon == 3.0
    assert ledger.standing(data, unit="record").runs == 0
    change_privacy(prepared, budget=2.0)
    assert refusal(train(prepared, run="second")) == "budget-spent"
    assert ledger.standing(data, unit="record").cap.epsilon == 2.0  # control: lowered


def test_two_homes_of_one_holder_in_one_federation_are_two_runs(prepared: Prepared, tmp_path: Path) -> None:
    """Own. Two departments, each a site of the same federation, share a ledger and take part in the same run.

    Powers: none; what one reserves must not stand for the other. Control: their records are the same, and both pay.
    """
    shared = tmp_path / "shared"
    other = next(name for name in prepared.sites if name != SITE)
    (prepared.sites[other] / "records.jsonl").write_bytes((prepared.sites[SITE] / "records.jsonl").read_bytes())
    for site in (SITE, other):
        path = prepared.sites[site] / "site.toml"
        policy = settings.load(SitePolicy, path).model_dump(mode="json")
        path.write_text(to_toml({**policy, "privacy": {**policy["privacy"], "ledger": str(shared), "budget": 10.0}}))
    line = signed(prepared, a_task(prepared, privacy=ProposedPrivacy(epsilon=3.0, delta=1e-5)))
    assert refusal(ask(prepared, SITE, line)) is None
    assert refusal(ask(prepared, other, line)) is None
    entries = Ledger.at(shared).history()
    assert [entry.charge.state for entry in entries] == ["committed", "committed"]
    assert entries[0].alone.value == entries[1].alone.value < entries[1].composed.value


def test_records_with_a_privacy_account_are_not_trained_on_plainly(prepared: Prepared) -> None:
    """Own. After a private run that filled the budget, a task proposes no privacy at all, where none is required.

    Powers: signs tasks. Control: before anything was spent, the officer's word that privacy is optional stands.
    """
    change_privacy(prepared, required=False)
    plain = {"run": "plain", "privacy": None}
    assert refusal(ask(prepared, SITE, signed(prepared, a_task(prepared, **plain)))) is None  # control
    assert refusal(train(prepared)) is None
    again = signed(prepared, a_task(prepared, **{**plain, "run": "again"}))
    assert refusal(ask(prepared, SITE, again)) == "budget-plain"
