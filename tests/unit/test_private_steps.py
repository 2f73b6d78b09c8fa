"""A private run through the real step: what it reserves, draws, clips and leaves; what an interruption costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from not_fed.files import OutputExists
from not_fed.organ import private_steps
from not_fed.organ import train as training
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import NobodyPays, PublicRecords, ToLedger
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.extract import extract
from not_fed.organ.layout import Layout
from not_fed.organ.organ import OrganInfo
from not_fed.organ.steps import SpanData
from not_fed.organ.train import Speed, Trained, TrainSettings, train
from not_fed.organ.units import NoPeople, UnitUnderstates
from not_fed.privacy.accounting import DpPlan, NoisedRelease
from not_fed.privacy.audit.probe import AuditAlarm
from not_fed.privacy.dp_sgd import noisy_gradient
from not_fed.privacy.engine.book_keeping import BookKeeping
from not_fed.privacy.engine.engine import SentinelDisagrees
from not_fed.privacy.engine.trainable import Losses
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.scope import BudgetSpent
from not_fed.progress import Progress, silent
from tests.support import tiny
from tests.support.folders import records, save_base
from tests.support.seeded import Seeded
from tests.support.spending import Killed, Watched, charged, charges, killed_at, started

SPAN = Span(1, 3)
PLAN = DpPlan(sample_rate=0.3, steps=4, noise_multiplier=1.5, max_grad_norm=1.0, divisor=10, delta=1e-5)
PER_PERSON = replace(PLAN, unit="person", records_per_person=3)
SETTINGS = TrainSettings(span=SPAN, lr=1e-2, max_tokens=32, dp=PLAN)
TEXTS = Records(tuple(records(40)))
PEOPLE = Records(TEXTS.texts, tuple(f"p{number % 11}" for number in range(40)), "patient_id", 4)
UNITS = [(TEXTS, PLAN), (PEOPLE, PER_PERSON)]
WIDE = Speed()
MICRO = 36  # padded positions; a person brings up to three records of up to eleven
MEAN_LOSS = NoisedRelease(name="mean_loss", noise_multiplier=10.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def ledger(own_ledger: Path) -> Ledger:
    return Ledger.at(own_ledger)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(
    base: Base, out: Path, *, data: Records = TEXTS, plan: DpPlan = PLAN, charge: object = None,
    speed: Speed = WIDE, progress: Progress = silent, **settings: object,
) -> Trained:  # fmt: skip
    """One private run, on public records unless a charge is given."""
    chosen = replace(SETTINGS, dp=plan, **settings)  # type: ignore[arg-type]
    paid = PublicRecords() if charge is None else charge
    return train(base, records=data, settings=chosen, out=out, charge=paid, speed=speed, progress=progress)  # type: ignore[arg-type]


def weights(organ: Path) -> dict[str, Tensor]:
    with safe_open(organ, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# what it learns and says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "plan"), UNITS, ids=["record", "person"])
def test_a_private_run_learns_and_its_manifest_tells_nothing_about_the_records(
    base: Base, tmp_path: Path, data: Records, plan: DpPlan
) -> None:
    many = Records(tuple(records(200)), None if data.people is None else tuple(f"p{i // 2}" for i in range(200)))
    plan = replace(plan, steps=12, noise_multiplier=0.8)
    trained = run(base, tmp_path / "o.organ", data=many, plan=plan)
    how = trained.organ.manifest.training
    assert how is not None
    assert how.keys() == {"mode", "lr", "precision", "steps", "engine", "dp", "audit", "releases", "ledger_head"}
    assert how["dp"] == plan.as_claim()
    assert (how["engine"], how["releases"], how["ledger_head"]) == ("book-keeping", [], None)
    assert how["audit"]["verdict"] == "consistent"
    held_out = Evaluator(base, records=records(30, seed=9), span=SPAN)
    assert held_out.perplexity(tmp_path / "o.organ").value < held_out.perplexity().value


def test_nothing_of_a_drawn_batch_is_returned_shown_or_stored(base: Base, tmp_path: Path) -> None:
    shown: list[tuple[str, str]] = []

    def watch(what: str, *, done: int, total: int, note: str = "") -> None:
        shown.append((what, note))
        if what == "training" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "o.organ", data=PEOPLE, plan=PER_PERSON, progress=watch)
    assert {note for _, note in shown} == {""}
    (resume,) = tmp_path.glob(".*.resume")
    with safe_open(resume, framework="pt") as kept:
        metadata, names = kept.metadata(), set(kept.keys())
    assert metadata.keys() == {"run", "attempt", "done", "facts"}
    assert json.loads(metadata["facts"]) == {"released": []}
    ours = {f"{part}/{name}" for part in ("weight", "exp_avg", "exp_avg_sq") for name in base.span_names(SPAN)}
    probe = {"own/places", "own/counts", "own/members", "own/scores", "own/before", "own/numbers"}
    assert names == ours | probe  # and the probe's are made of noised gradients and its own coins
    trained = run(base, tmp_path / "o.organ", data=PEOPLE, plan=PER_PERSON)
    assert (trained.loss_curve, trained.loss_first, trained.loss_last) == ([], None, None)


def test_two_private_runs_differ_whatever_the_seed(base: Base, tmp_path: Path) -> None:
    one, two = (run(base, tmp_path / name, seed=1).organ for name in "ab")
    assert one.sha256 != two.sha256


def test_an_empty_sample_is_a_step_of_noise_that_is_taken_and_charged(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path
) -> None:
    plan = replace(PLAN, sample_rate=1e-6, steps=3)
    trained = run(base, tmp_path / "o.organ", plan=plan, charge=ToLedger(ledger=ledger, name="notes"))
    assert trained.steps == started(own_ledger) == charged(own_ledger) == 3
    changed, untouched = weights(trained.organ.path), weights(extract(base, span=SPAN, out=tmp_path / "b").path)
    assert all(not torch.equal(changed[name], untouched[name]) for name in changed)  # noise alone moved it


def test_bfloat16_and_the_loop_train_too_and_the_manifest_says_so(base: Base, tmp_path: Path) -> None:
    how = run(base, tmp_path / "o.organ", data=PEOPLE, plan=PER_PERSON, precision="bfloat16", engine="loop").organ
    assert how.manifest.training is not None
    assert how.manifest.training["precision"] == "bfloat16"
    assert how.manifest.training["engine"] == "per-record loop"
    assert {str(tensor.dtype) for tensor in weights(how.path).values()} == {"torch.float32"}


# the same organ, however it is computed ------------------------------------------------------------------------------


class Store:
    """Keeps activations in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Tensor]] = {}

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        return self.kept.get(key)

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self.kept[key] = tensors


@pytest.mark.parametrize(("data", "plan"), UNITS, ids=["record", "person"])
def test_micro_batches_and_a_stored_prefix_give_the_same_organ(
    base: Base, tmp_path: Path, data: Records, plan: DpPlan
) -> None:
    store, found = Store(), {}
    for name, micro_tokens, kept in [("whole", 10_000, None), ("split", 40, store), ("single", 1, store)]:
        found[name] = train(
            base, records=data, settings=replace(SETTINGS, dp=replace(plan, noise_multiplier=0.2), lr=1e-3),
            out=tmp_path / name, charge=PublicRecords(), speed=Speed(micro_tokens=micro_tokens), prefix_store=kept,
            source=Seeded(5),
        ).organ.path  # fmt: skip
    assert store.kept
    start = weights(extract(base, span=SPAN, out=tmp_path / "start").path)
    for name, tensor in weights(found["whole"]).items():
        assert not torch.allclose(tensor, start[name], atol=1e-4)  # it did move
        for other in ("split", "single"):  # a tick of the noise's grid is 1/4096 of its deviation
            assert torch.allclose(tensor, weights(found[other])[name], atol=2e-5), (name, other)


@pytest.mark.parametrize(("data", "plan"), UNITS, ids=["record", "person"])
def test_memory_is_set_by_the_micro_batch_and_not_by_the_sample(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Records, plan: DpPlan
) -> None:
    positions: list[int] = []
    real = SpanData.losses

    def counted(self: object, indices: object, layout: Layout, **others: object) -> Tensor:
        positions.append(layout.tokens.numel())
        return real(self, indices, layout, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(SpanData, "losses", counted)
    run(base, tmp_path / "o", data=data, plan=replace(plan, sample_rate=1.0, steps=1), speed=Speed(micro_tokens=MICRO))
    assert len(positions) > 8
    assert max(positions) <= MICRO


# who pays ------------------------------------------------------------------------------------------------------------


def test_no_gradient_is_computed_before_the_plan_is_reserved(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(ToLedger(ledger=ledger, name="notes"))
    real = private_steps.unit_losses

    def losses(data: SpanData, units: list[tuple[int, ...]]) -> Tensor:
        if len(data.lengths) == len(TEXTS.texts):  # the sentinel's made-up units are fewer
            assert charged(own_ledger) == PLAN.steps
            assert started(own_ledger) == len([word for word in watched.seen if word.startswith("step")])
            watched.note("gradient")
        return real(data, units)

    monkeypatch.setattr(private_steps, "unit_losses", losses)
    trained = run(base, tmp_path / "o.organ", charge=watched, speed=Speed(micro_tokens=10_000))
    steps = [word for word in watched.seen if word != "gradient"]
    assert steps == ["reserve", "reserved", "step 1", "step 2", "step 3", "step 4", "commit"]
    assert watched.seen.index("gradient") > watched.seen.index("step 1")
    (charge,) = charges(own_ledger)
    assert (charge.state, charge.repeats) == ("committed", {})
    assert trained.organ.manifest.training is not None
    assert trained.organ.manifest.training["ledger_head"] == charge.head


def test_a_private_run_without_anybody_to_pay_is_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(NobodyPays):
        train(base, records=TEXTS, settings=SETTINGS, out=tmp_path / "o.organ")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_nothing(base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path) -> None:
    account = ToLedger(ledger=ledger, name="notes", cap=0.1)
    with pytest.raises(BudgetSpent):
        run(base, tmp_path / "o.organ", charge=account)
    assert charges(own_ledger) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "plan", "error"),
    [(replace(TEXTS, most_of_a_person=2), PLAN, UnitUnderstates), (TEXTS, PER_PERSON, NoPeople)],
    ids=["understates", "no people"],
)
def test_a_unit_that_does_not_suit_the_records_is_refused_and_nothing_spent(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path, data: Records, plan: DpPlan, error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(base, tmp_path / "o.organ", data=data, plan=plan, charge=ToLedger(ledger=ledger, name="notes"))
    assert charges(own_ledger) == []
    assert list(tmp_path.iterdir()) == []


class CountsTwice(BookKeeping):
    """An engine that is wrong."""

    def clip_into(self, sums: dict[str, Tensor], *, losses: Losses, units: int, max_grad_norm: float) -> None:
        for _ in range(2):
            super().clip_into(sums, losses=losses, units=units, max_grad_norm=max_grad_norm)


def test_what_fails_for_nothing_fails_before_anything_is_spent(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = ToLedger(ledger=ledger, name="notes")
    (tmp_path / "o.organ").write_text("already here")
    with pytest.raises(OutputExists):
        run(base, tmp_path / "o.organ", charge=account)
    monkeypatch.setattr(training, "choose_engine", lambda layers, **_: CountsTwice(layers))
    with pytest.raises(SentinelDisagrees):
        run(base, tmp_path / "new.organ", charge=account)
    assert charges(own_ledger) == []


def test_a_second_run_of_the_same_command_pays_again(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path
) -> None:
    for name in "ab":
        run(base, tmp_path / name, charge=ToLedger(ledger=ledger, name="notes"))
    assert charged(own_ledger) == started(own_ledger) == 2 * PLAN.steps


def test_a_claim_from_an_organ_counts_all_that_the_records_ever_spent(
    base: Base, tmp_path: Path, ledger: Ledger
) -> None:
    """The second organ has seen the records in both runs, so its epsilon alone would be too small."""
    account = ToLedger(ledger=ledger, name="notes")
    first = run(base, tmp_path / "a", charge=account).organ
    second = train(base, records=TEXTS, settings=SETTINGS, out=tmp_path / "b", init=first.path, charge=account).organ
    fresh = run(base, tmp_path / "c", charge=account).organ  # from the base: what it has seen is its own run's

    def said(organ: OrganInfo) -> float:
        assert organ.manifest.training is not None
        return float(organ.manifest.training["dp"]["epsilon"])

    assert said(first) == said(fresh) == PLAN.epsilon().value
    assert said(second) == replace(PLAN, runs=2).epsilon().value


def test_a_plan_of_several_runs_is_reserved_once_and_committed_with_the_last(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path
) -> None:
    plan = replace(PLAN, runs=2, noise_multiplier=3.0)
    for later, state in [(1, "reserved"), (0, "committed")]:
        account = ToLedger(ledger=ledger, name="notes", run="federation/7", later_runs=later)
        run(base, tmp_path / str(later), plan=plan, charge=account)
        (charge,) = charges(own_ledger)
        assert (charge.state, charge.repeats) == (state, {})
    assert started(own_ledger) == charged(own_ledger) == 2 * PLAN.steps


# interruptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "repeated"),
    [("reserved", 0), ("step 1", 1), ("step 3", 1), ("release mean_loss", 0), ("commit", None)],
)
def test_a_run_that_dies_goes_on_under_its_reservation_and_pays_for_what_it_repeats(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path, word: str, repeated: int | None
) -> None:
    plan = replace(PLAN, releases=(MEAN_LOSS,))
    account = ToLedger(ledger=ledger, name="notes")
    with pytest.raises(Killed):
        run(base, tmp_path / "o.organ", plan=plan, charge=Watched(account, killed_at(word)), declared_units=40)
    assert charged(own_ledger) == PLAN.steps  # from the reservation on, whatever was done
    if repeated is None:  # the organ is there, and paid
        assert (tmp_path / "o.organ").exists()
        assert list(tmp_path.glob(".*")) == []
        return
    assert not (tmp_path / "o.organ").exists()
    trained = run(base, tmp_path / "o.organ", plan=plan, charge=account, declared_units=40)
    (charge,) = charges(own_ledger)
    assert charge.state == "committed"
    assert started(own_ledger) == charged(own_ledger) == PLAN.steps + repeated
    again = int(word == "release mean_loss")
    assert started(own_ledger, "mean_loss") == charged(own_ledger, "mean_loss") == 1 + again
    assert trained.organ.manifest.training is not None
    claim = trained.organ.manifest.training["dp"]
    assert claim == plan.as_claim(repeated_steps=repeated, repeated_releases={"mean_loss": 1} if again else {})
    assert trained.organ.manifest.training["audit"]["steps"] == PLAN.steps
    assert list(tmp_path.glob(".*")) == []


def test_a_number_once_released_is_not_drawn_a_second_time(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, releases=(MEAN_LOSS, NoisedRelease(name="units", noise_multiplier=20.0)))
    account = ToLedger(ledger=ledger, name="notes")

    def die(*_: object) -> dict[str, object]:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(private_steps.PrivateSteps, "summary", die)
        with pytest.raises(Killed):
            run(base, tmp_path / "o.organ", plan=plan, charge=account, declared_units=40)
    (resume,) = tmp_path.glob(".*.resume")
    with safe_open(resume, framework="pt") as kept:
        released = json.loads(kept.metadata()["facts"])["released"]
    trained = run(base, tmp_path / "o.organ", plan=plan, charge=account, declared_units=40)
    assert trained.organ.manifest.training is not None
    assert trained.organ.manifest.training["releases"] == released
    assert [one["name"] for one in released] == ["mean_loss", "units"]
    assert started(own_ledger, "mean_loss") == started(own_ledger, "units") == 1
    assert started(own_ledger) == PLAN.steps


def test_a_run_whose_resume_point_is_lost_is_a_new_run(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path
) -> None:
    account = ToLedger(ledger=ledger, name="notes")
    with pytest.raises(Killed):
        run(base, tmp_path / "o.organ", charge=Watched(account, killed_at("step 3")))
    (resume,) = tmp_path.glob(".*.resume")
    resume.unlink()
    run(base, tmp_path / "o.organ", charge=account)
    assert [charge.state for charge in charges(own_ledger)] == ["reserved", "committed"]
    assert started(own_ledger) == PLAN.steps + 3
    assert charged(own_ledger) == 2 * PLAN.steps


def test_a_repeated_step_that_does_not_fit_is_refused_before_it_is_computed(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path
) -> None:
    account = ToLedger(ledger=ledger, name="notes", cap=PLAN.epsilon().value)
    with pytest.raises(Killed):
        run(base, tmp_path / "o.organ", charge=Watched(account, killed_at("step 2")))
    with pytest.raises(BudgetSpent):
        run(base, tmp_path / "o.organ", charge=account)
    assert not (tmp_path / "o.organ").exists()
    assert charged(own_ledger) == PLAN.steps
    assert started(own_ledger) == 2


def test_an_alarm_of_the_audit_writes_no_organ_and_the_budget_stays_spent(
    base: Base, tmp_path: Path, ledger: Ledger, own_ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quieter(sums: Mapping[str, Tensor], *, plan: DpPlan, source: Seeded) -> dict[str, Tensor]:
        return noisy_gradient(sums, plan=replace(plan, noise_multiplier=0.3), source=source)

    monkeypatch.setattr("not_fed.organ.private_steps.noisy_gradient", quieter)
    with pytest.raises(AuditAlarm):
        run(base, tmp_path / "o.organ", charge=ToLedger(ledger=ledger, name="notes"))
    assert not (tmp_path / "o.organ").exists()
    assert charged(own_ledger) == PLAN.steps


def test_a_private_run_says_that_its_start_promises_nothing(base: Base, tmp_path: Path) -> None:
    """Epsilon is about this run: what the start learnt before, perhaps from the same records, no noise takes back."""
    plain, private, told = tmp_path / "plain.organ", tmp_path / "private.organ", list[str]()
    train(base, records=TEXTS, settings=replace(SETTINGS, dp=None), out=plain)
    paid: dict[str, Any] = {"records": TEXTS, "settings": SETTINGS, "charge": PublicRecords(), "warn": told.append}
    train(base, out=private, init=plain, **paid)
    assert len(told) == 1
    assert "without privacy" in told[0]
    train(base, out=tmp_path / "next.organ", init=private, **paid)
    assert len(told) == 1  # control: a start with a claim of its own
