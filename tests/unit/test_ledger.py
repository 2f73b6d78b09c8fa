"""Budgets belong to records and people, whatever the file is called, and nothing is spent beyond them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from not_fed.errors import InputError
from not_fed.privacy.accounting import BadPlan, NoisedRelease, WeakEpsilon, compose, plan_dp
from not_fed.privacy.ledger.ledger import FOLDER, Ledger, LedgerMissing, ReservationChanged, ledger_folder
from not_fed.privacy.ledger.reservation import ReservationOver, StepsStarted
from not_fed.privacy.ledger.scope import BudgetSpent, DeltaDiffers, PlainAfterPrivate, UnitsMixed
from tests.support.ledgers import DELTA, budgeted, notes, plan, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def test_a_run_is_reserved_counted_and_committed(folder: Path) -> None:
    ledger, data = budgeted(folder)
    reserved = ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one")
    heads = {reserved.head}
    for step in range(10):
        reserved.start_step(remaining=9 - step)
    assert (reserved.repeated_steps, reserved.repeated_releases) == (0, {})
    reserved.commit()
    reserved.commit()
    heads.add(reserved.head)
    assert len(heads) == 2
    with pytest.raises(ReservationOver):
        reserved.start_step(remaining=0)
    with pytest.raises(ReservationOver):
        ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one")
    standing = Ledger.at(folder).standing(data, unit="record")
    assert (standing.runs, standing.spent) == (1, plan().epsilon())
    assert standing.spent.value < standing.enforced < 8
    ledger.verify(heads)


def test_a_run_that_was_interrupted_goes_on_with_what_it_has(folder: Path) -> None:
    ledger, data = budgeted(folder)
    ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one").start_step(remaining=9)
    again = Ledger.at(folder).reserve(data, name="renamed.jsonl", plan=plan(), run="one")
    for step in range(9):
        again.start_step(remaining=8 - step)
    assert again.repeated_steps == 0
    assert ledger.standing(data, unit="record").runs == 1
    for other in (plan(noise=1.4), plan(steps=11)):
        with pytest.raises(ReservationChanged, match="another plan"):
            ledger.reserve(data, name="notes.jsonl", plan=other, run="one")
    with pytest.raises(ReservationChanged, match="other records"):
        ledger.reserve(ledger.identify(notes(0, 51)), name="notes.jsonl", plan=plan(), run="one")


def test_repeated_steps_are_charged_before_they_start(folder: Path) -> None:
    """A crash after step 7 of 10 that lost 2 of them: 12 are started, and epsilon is that of 12."""
    ledger, data = budgeted(folder)
    reserved = ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one")
    for step in range(7):
        reserved.start_step(remaining=9 - step)
    resumed = Ledger.at(folder).reserve(data, name="notes.jsonl", plan=plan(), run="one")
    resumed.start_step(remaining=4)
    assert resumed.repeated_steps == 2, "known at the first repeated step, and not after the last"
    for step in range(4):
        resumed.start_step(remaining=3 - step)
    assert resumed.repeated_steps == 2
    assert ledger.standing(data, unit="record").spent == compose([plan(steps=12)])
    assert resumed.plan.as_claim(repeated_steps=2)["epsilon"] == compose([plan(steps=12)]).value


def test_repeated_steps_that_do_not_fit_are_refused_and_not_started(folder: Path) -> None:
    ledger, data = budgeted(folder)
    reserved = ledger.reserve(data, name="notes.jsonl", plan=plan(steps=60), run="one")
    for step in range(60):
        reserved.start_step(remaining=59 - step)
    while reserved.repeated_steps < 100:
        try:
            reserved.start_step(remaining=0)
        except BudgetSpent as error:
            assert "what was started stays charged" in error.hint
            break
    standing = ledger.standing(data, unit="record")
    assert standing.enforced <= 8
    assert reserved.repeated_steps == 2
    ledger.verify()


def test_a_release_made_again_is_charged_again(folder: Path) -> None:
    ledger, data = budgeted(folder)
    with_release = replace(plan(runs=2), releases=(NoisedRelease(name="mean_loss", noise_multiplier=10.0),))
    reserved = ledger.reserve(data, name="notes.jsonl", plan=with_release, run="one")
    reserved.start_release("mean_loss", remaining=1)
    assert reserved.repeated_releases == {}
    reserved.start_release("mean_loss", remaining=1)
    assert reserved.repeated_releases == {"mean_loss": 1}
    with pytest.raises(BadPlan):
        reserved.start_release("accuracy")
    (entry,) = ledger.history(data)
    assert (1.0, 10.0, 3) in entry.charge.mechanisms
    assert entry.alone.value == with_release.as_claim(repeated_releases={"mean_loss": 1})["epsilon"]


def test_a_claim_counts_what_another_process_of_the_same_run_repeated(folder: Path) -> None:
    """One run started twice at once: whoever finishes claims all that was started under its name."""
    ledger, data = budgeted(folder)
    one, other = (ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one") for _ in range(2))
    for process in (one, other):
        for step in range(plan().steps):
            process.start_step(remaining=plan().steps - 1 - step)
    assert one.repeated_steps == other.repeated_steps == plan().steps


def test_only_what_was_not_begun_can_be_given_back(folder: Path) -> None:
    ledger, data = budgeted(folder)
    ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one").release()
    assert ledger.standing(data, unit="record").runs == 0
    begun = ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one")
    begun.start_step(remaining=9)
    with pytest.raises(StepsStarted):
        begun.release()
    begun.start_step(remaining=8)
    assert ledger.standing(data, unit="record").runs == 1
    ledger.verify()


def test_what_does_not_fit_is_refused_with_what_would(folder: Path) -> None:
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    rows = ledger.verify()
    with pytest.raises(BudgetSpent) as caught:
        ledger.reserve(data, name="notes.jsonl", plan=plan(noise=0.78), run="two")
    assert caught.value.exit_code == 7
    for said in ("at most epsilon 8 at delta 1e-05", "by PLD", "Renyi order 4", "per record", "added or removed"):
        assert said in f"{caught.value} {caught.value.hint}"
    assert "noise_multiplier 0.9" in caught.value.hint
    assert "3 steps" in caught.value.hint
    assert ledger.verify() == rows, "nothing was written"
    run(ledger, data, "two", plan(noise=0.99))


def test_without_a_budget_an_account_opens_with_ten(folder: Path) -> None:
    ledger = Ledger.at(folder)
    data = ledger.identify(notes())
    run(ledger, data, "one", plan(delta=1e-6))
    standing = ledger.standing(data, unit="record")
    assert (standing.cap.epsilon, standing.cap.delta, standing.explicit) == (10.0, 1e-6, False)


def test_a_policy_can_lower_a_budget_and_not_raise_it(folder: Path) -> None:
    ledger, data = budgeted(folder, epsilon=2.0)
    with pytest.raises(BudgetSpent):
        ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one", cap=8.0)
    ledger.set_budget(data, name="notes.jsonl", unit="record", epsilon=8.0, delta=DELTA)
    with pytest.raises(BudgetSpent):
        ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one", cap=2.0)
    ledger.reserve(data, name="notes.jsonl", plan=plan(), run="one", cap=4.0)


def test_shared_records_are_charged_and_disjoint_data_is_not(folder: Path) -> None:
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    shared, apart = ledger.identify(notes(49, 99)), ledger.identify(notes(50, 99))
    assert ledger.standing(shared, unit="record").runs == 1
    assert ledger.standing(shared, unit="record").cap.epsilon == 8
    assert ledger.standing(apart, unit="record").runs == 0
    run(ledger, apart, "two", plan(delta=1e-6))
    assert ledger.standing(data, unit="record").runs == 1
    with pytest.raises(DeltaDiffers):
        ledger.reserve(shared, name="both", plan=plan(), run="three")  # its other half is accounted at 1e-6
    run(ledger, ledger.identify(notes(0, 10)), "four")
    assert ledger.standing(data, unit="record").runs == 2
    assert ledger.standing(ledger.identify(notes(20, 30)), unit="record").runs == 1, "those ten were not in it"


def test_a_data_set_that_grew_keeps_what_it_spent_and_its_budget(folder: Path) -> None:
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    grown = ledger.identify(notes(0, 60))
    run(ledger, grown, "two")
    standing = ledger.standing(grown, unit="record")
    assert (standing.runs, standing.cap.epsilon, standing.cap.order) == (2, 8.0, 4)
    ledger.set_budget(grown, name="notes.jsonl", unit="record", epsilon=10.0, delta=DELTA)
    for known in (data, grown):
        again = ledger.standing(known, unit="record")
        assert (again.cap.epsilon, again.cap.order) == (10.0, 4), "a new budget of 10 would have order 3"
    ledger.set_budget(data, name="notes.jsonl", unit="record", epsilon=5.0, delta=DELTA)
    assert ledger.standing(grown, unit="record").cap.epsilon == 5.0, "the tightest counts"


def test_setting_what_is_set_adds_no_row(folder: Path) -> None:
    ledger, data = budgeted(folder)
    rows = ledger.verify()
    ledger.set_budget(data, name="other name", unit="record", epsilon=8, delta=DELTA)
    assert ledger.verify() == rows


def test_people_carry_their_budget_to_new_records(folder: Path) -> None:
    """Unit person: another note of the same patient is the same patient's budget."""
    ledger = Ledger.at(folder)
    people = [f"patient {number % 5}" for number in range(50)]
    data = ledger.identify(notes(), people)
    run(ledger, data, "one", plan(unit="person"))
    later = ledger.identify(notes(100, 103), ["patient 4", "patient 8", "patient 9"])
    assert ledger.standing(later, unit="person").runs == 1
    assert ledger.standing(ledger.identify(notes(100, 103), ["x", "y", "z"]), unit="person").runs == 0
    renamed = ledger.identify(notes(49, 60), ["new name"] * 11)
    assert ledger.standing(renamed, unit="person").runs == 1, "a new pseudonym over the same note"


@pytest.mark.parametrize("first", ["record", "person"])
def test_units_do_not_mix_on_data_that_overlaps(folder: Path, first: str) -> None:
    ledger = Ledger.at(folder)
    records, persons = ledger.identify(notes()), ledger.identify(notes(40, 60), [f"p{number}" for number in range(20)])
    pairs = [(records, plan()), (persons, plan(unit="person"))]
    (data, chosen), (other, refused) = pairs if first == "record" else pairs[::-1]
    run(ledger, data, "one", chosen)
    with pytest.raises(UnitsMixed):
        ledger.reserve(other, name="other", plan=refused, run="two")
    with pytest.raises(UnitsMixed):
        ledger.set_budget(data, name="same", unit=refused.unit, epsilon=8.0, delta=DELTA)


def test_a_unit_can_be_set_anew_while_nothing_was_spent(folder: Path) -> None:
    ledger, data = budgeted(folder)
    with pytest.raises(UnitsMixed):
        ledger.reserve(data, name="notes", plan=plan(unit="person"), run="one")
    ledger.set_budget(data, name="notes", unit="person", epsilon=3.0, delta=1e-6)
    assert ledger.standing(data, unit="person").cap.order == 9
    run(ledger, data, "one", plan(unit="person", noise=2.0, delta=1e-6))


def test_one_account_has_one_delta(folder: Path) -> None:
    ledger, data = budgeted(folder)
    with pytest.raises(DeltaDiffers, match="1e-05"):
        ledger.reserve(data, name="notes", plan=plan(delta=1e-6), run="one")
    run(ledger, data, "one")
    with pytest.raises(DeltaDiffers):
        ledger.set_budget(data, name="notes", unit="record", epsilon=8.0, delta=1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (float("nan"), 1e-5), (1.0, 0.0), (1.0, 0.5)])
def test_a_budget_that_is_none_is_refused(folder: Path, epsilon: float, delta: float) -> None:
    ledger = Ledger.at(folder)
    with pytest.raises(BadPlan):
        ledger.set_budget(ledger.identify(notes()), name="n", unit="record", epsilon=epsilon, delta=delta)


def test_a_budget_that_protects_next_to_nothing_is_refused_unless_meant(folder: Path) -> None:
    ledger = Ledger.at(folder)
    data = ledger.identify(notes())
    with pytest.raises(WeakEpsilon):
        ledger.set_budget(data, name="n", unit="record", epsilon=20.0, delta=DELTA)
    ledger.set_budget(data, name="n", unit="record", epsilon=20.0, delta=DELTA, allow_weak=True)
    with pytest.raises(InputError, match="purpose"):
        ledger.reserve(data, name="n", plan=plan(), run="one", purpose="fun")


def test_a_dry_run_says_what_reserving_would_do_and_does_nothing(folder: Path) -> None:
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    rows = ledger.verify()
    cost = ledger.would_cost(data, plan=plan())
    assert cost.allowed
    assert cost.fits is None
    assert cost.alone == cost.now.spent == plan().epsilon()
    assert cost.then.spent == compose([plan(steps=20)])
    assert cost.alone.value < cost.renyi
    assert cost.then.left < cost.now.left < 8
    denied = ledger.would_cost(data, plan=plan(), cap=4.0)
    assert not denied.allowed
    assert denied.fits is not None
    assert ledger.verify() == rows
    stranger = ledger.would_cost(ledger.identify(["new"]), plan=plan())
    assert (stranger.allowed, stranger.now.runs, stranger.now.cap.epsilon) == (True, 0, 10.0)
    assert ledger.verify() == rows


@pytest.mark.parametrize("people", [None, ["p", "p", "q"]], ids=["record", "person"])
def test_records_with_an_account_are_not_trained_on_without_privacy(folder: Path, people: list[str] | None) -> None:
    ledger = Ledger.at(folder)
    texts = ["a", "b", "c"]
    unit = "record" if people is None else "person"
    ledger.require_no_account(ledger.identify(texts))
    ledger.set_budget(ledger.identify(texts, people), name="n", unit=unit, epsilon=3.0, delta=DELTA)  # type: ignore[arg-type]
    with pytest.raises(PlainAfterPrivate):
        ledger.require_no_account(ledger.identify(["c", "x"]))  # one shared record is enough
    ledger.require_no_account(ledger.identify(["x", "y"]))


def test_history_says_each_run_alone_and_composed(folder: Path) -> None:
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    run(ledger, ledger.identify(notes(0, 60)), "two", plan(noise=2.0))
    entries = ledger.history(data)
    assert [entry.charge.run for entry in entries] == ["one", "two"]
    assert entries[0].composed == entries[0].alone == plan().epsilon()
    assert entries[1].composed == compose([plan(), plan(noise=2.0)])
    assert [entry.charge.run for entry in ledger.history()] == ["one", "two"]
    assert [standing.runs for standing in ledger.standings()] == [2, 2]


def test_a_ledger_works_without_torch(folder: Path) -> None:
    """A security officer's laptop has none."""
    program = f"""
import sys
from tests.support.ledgers import Path, budgeted, run
ledger, data = budgeted(Path({str(folder)!r}))
run(ledger, data, "one")
ledger.history(data), ledger.standings(), ledger.verify()
print(sorted({{"torch", "transformers", "opacus"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert result.stdout == "[]\n"


def test_reloading_changes_no_number(folder: Path) -> None:
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    assert Ledger.at(folder).standing(data, unit="record") == ledger.standing(data, unit="record")


def test_a_ledger_of_a_hundred_thousand_records_answers_at_once(folder: Path) -> None:
    """Loose limits for a busy machine; usual are 1 s, 0.5 s and 25 ms (6 ms in a session)."""
    ledger = Ledger.at(folder)
    started = time.process_time()
    data = ledger.identify(f"note {number}: {'pain ' * 20}" for number in range(100_000))
    reserved = ledger.reserve(data, name="big", plan=plan(), run="one")
    assert time.process_time() - started < 10
    started = time.process_time()
    with reserved.session():
        for step in range(10):
            reserved.start_step(remaining=9 - step)
    assert (time.process_time() - started) / 10 < 0.05


def test_the_folder_is_private_and_where_one_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert ledger_folder() == tmp_path / "data" / "not-fed" / "ledger"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_folder() == tmp_path / ".local" / "share" / "not-fed" / "ledger"
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    with pytest.raises(LedgerMissing):
        Ledger.at(ledger_folder(), must_exist=True)
    Ledger.at(ledger_folder())
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "mine", *(tmp_path / "mine").iterdir()]}
    assert modes.pop("mine") == 0o700
    assert set(modes.values()) == {0o600}
    assert os.environ[FOLDER] == str(tmp_path / "mine")


def test_what_is_left_is_what_one_further_run_may_be_asked_for(folder: Path) -> None:
    """As an epsilon by PLD, as everybody asks: a little less fits, a little more does not."""
    ledger, data = budgeted(folder)
    run(ledger, data, "one")
    left = ledger.standing(data, unit="record").left
    for share, fits in ((0.99, True), (1.01, False)):
        wanted = plan_dp(epsilon=share * left, delta=DELTA, sample_rate=0.2, steps=10, max_grad_norm=1, divisor=10)
        assert ledger.would_cost(data, plan=wanted).allowed is fits
