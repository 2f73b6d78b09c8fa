"""A body of several organs: trained, measured and transplanted as one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from not_fed.errors import InputError
from not_fed.organ.anatomy import Span, SpanOutside
from not_fed.organ.body import SpansOverlap, read_body
from not_fed.organ.charging import PublicRecords
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.extract import extract
from not_fed.organ.fit import OtherBase
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.train import TrainSettings, train
from not_fed.organ.transplant import UndoDiffers, apply_transplant, plan_body, plan_transplant, undo_transplant
from not_fed.privacy.accounting import DpPlan
from tests.support import tiny
from tests.support.folders import records, save_base

LOW, SPAN, HIGH = Span(0, 1), Span(1, 3), Span(3, 4)
SETTINGS = TrainSettings(span=SPAN, lr=1e-2, epochs=1, batch_tokens=60, max_tokens=32)


class Store:
    """Keeps activations as a site's cache does, one a place, and counts."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Tensor]] = {}
        self.hits = 0

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        self.hits += key in self.kept
        return self.kept.get(key)

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        self.kept[key] = tensors


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tiny.tiny_llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def organs(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[Span, Path]:
    """One trained organ for each span, each on the base alone."""
    folder = tmp_path_factory.mktemp("organs")
    settings = {span: replace(SETTINGS, span=span, seed=span.start) for span in (LOW, SPAN, HIGH)}
    return {
        span: train(base, records=records(40), settings=one, out=folder / f"{span.start}.organ").organ.path
        for span, one in settings.items()
    }


def transplanted(base: Base, folder: Path, *paths: Path) -> Base:
    """The same body as an ordinary checkpoint: one transplant after the other."""
    for number, path in enumerate(paths):
        plan = plan_transplant(organ=read_organ(path), base=base)
        assert plan.exact
        base = open_base(apply_transplant(plan, out=folder / f"model-{number}"))
    return base


def test_training_on_a_body_is_training_in_the_model_that_it_becomes(
    base: Base, organs: dict[Span, Path], tmp_path: Path
) -> None:
    """The same first step, loss for loss: prefix, span and suffix all meet the body's organs."""
    body = [organs[HIGH], organs[LOW]]
    trained = train(base, records=records(40), settings=SETTINGS, body=body, out=tmp_path / "on-body")
    whole = transplanted(base, tmp_path, *body)
    oracle = train(whole, records=records(40), settings=SETTINGS, out=tmp_path / "in-model")
    alone = train(base, records=records(40), settings=SETTINGS, out=tmp_path / "alone")
    assert trained.loss_curve == pytest.approx(oracle.loss_curve, rel=1e-6)
    assert trained.loss_first != pytest.approx(alone.loss_first, rel=1e-3)  # control: the body matters
    how = trained.organ.manifest.training or {}
    assert how["body"] == [read_organ(organs[LOW]).sha256, read_organ(organs[HIGH]).sha256]
    assert trained.organ.base_sha256 == base.sha256


def test_a_body_is_measured_as_the_model_it_becomes(base: Base, organs: dict[Span, Path], tmp_path: Path) -> None:
    texts = records(20, seed=9)
    evaluator = Evaluator(base, records=texts, span=Span(0, 4))
    before = evaluator.perplexity().value
    whole = transplanted(base, tmp_path, organs[LOW], organs[SPAN], organs[HIGH])
    expected = Evaluator(whole, records=texts, span=Span(0, 1)).perplexity().value
    assert evaluator.perplexity([organs[SPAN], organs[HIGH], organs[LOW]]).value == pytest.approx(expected, rel=1e-5)
    two = evaluator.perplexity([organs[LOW]]).value
    assert two == pytest.approx(evaluator.perplexity(organs[LOW]).value)
    assert two != pytest.approx(expected, rel=1e-4)  # those that were in before are out again
    assert evaluator.perplexity().value == pytest.approx(before)


def test_a_measurement_that_cannot_hold_an_organ_says_so(base: Base, organs: dict[Span, Path]) -> None:
    evaluator = Evaluator(base, records=records(5), span=SPAN)
    with pytest.raises(SpanOutside):
        evaluator.perplexity([organs[SPAN], organs[HIGH]])
    assert evaluator.perplexity(organs[SPAN]).value > 0  # control


def test_organs_that_share_a_layer_are_no_body(base: Base, organs: dict[Span, Path], tmp_path: Path) -> None:
    wide = extract(base, span=Span(2, 4), out=tmp_path / "wide").path
    for pair in ([organs[SPAN], wide], [wide, wide], [organs[HIGH], wide]):
        with pytest.raises(SpansOverlap):
            read_body(pair, base=base)
        with pytest.raises(SpansOverlap):
            plan_body([read_organ(path) for path in pair], base=base)
    with pytest.raises(SpansOverlap, match="trained"):
        train(base, records=records(5), settings=SETTINGS, body=[organs[SPAN]], out=tmp_path / "o")
    with pytest.raises(SpansOverlap):
        Evaluator(base, records=records(5), span=Span(0, 4)).perplexity([organs[SPAN], wide])
    assert [one.span for one in read_body([organs[HIGH], organs[LOW]], base=base, beside=SPAN)] == [LOW, HIGH]


def test_a_body_is_transplanted_at_once_and_undone_at_once(
    base: Base, organs: dict[Span, Path], tmp_path: Path
) -> None:
    body = [read_organ(organs[span]) for span in (HIGH, LOW, SPAN)]
    plan = plan_body(body, base=base)
    assert ([graft.at for graft in plan.grafts], plan.exact) == ([LOW, SPAN, HIGH], True)
    at_once = open_base(apply_transplant(plan, out=tmp_path / "at-once"))
    one_by_one = transplanted(base, tmp_path, organs[LOW], organs[SPAN], organs[HIGH])
    assert at_once.sha256 == one_by_one.sha256 != base.sha256
    assert undo_transplant(tmp_path / "at-once", out=tmp_path / "undone") == base.sha256
    assert open_base(tmp_path / "undone").sha256 == base.sha256


def test_repeated_transplants_are_undone_in_the_opposite_order(
    base: Base, organs: dict[Span, Path], tmp_path: Path
) -> None:
    transplanted(base, tmp_path, organs[SPAN], organs[LOW], organs[HIGH])
    for number, expected in ((2, "model-1"), (1, "model-0")):
        undo_transplant(tmp_path / f"model-{number}", out=tmp_path / f"undone-{number}")
        assert open_base(tmp_path / f"undone-{number}").sha256 == open_base(tmp_path / expected).sha256
    assert undo_transplant(tmp_path / "model-0", out=tmp_path / "undone-0") == base.sha256


def test_the_record_of_a_body_is_of_no_use_without_what_was_taken_out(
    base: Base, organs: dict[Span, Path], tmp_path: Path
) -> None:
    body = [read_organ(organs[span]) for span in (LOW, HIGH)]
    apply_transplant(plan_body(body, base=base), out=tmp_path / "model")
    taken_out = tmp_path / "model" / "not-fed" / "taken-out-3-4.organ"
    taken_out.write_bytes((tmp_path / "model" / "not-fed" / "taken-out-0-1.organ").read_bytes())
    with pytest.raises(UndoDiffers):
        undo_transplant(tmp_path / "model", out=tmp_path / "undone")
    taken_out.unlink()
    with pytest.raises(InputError):
        undo_transplant(tmp_path / "model", out=tmp_path / "undone")
    assert not (tmp_path / "undone").exists()


def test_an_organ_of_another_base_is_no_part_of_a_body(base: Base, tmp_path: Path) -> None:
    other = save_base(tiny.tiny_llama(seed=1), tmp_path / "other")
    theirs = extract(other, span=LOW, out=tmp_path / "theirs").path
    with pytest.raises(OtherBase):
        train(base, records=records(5), settings=SETTINGS, body=[theirs], out=tmp_path / "o")


def test_a_kept_prefix_serves_until_a_layer_below_changes(base: Base, organs: dict[Span, Path], tmp_path: Path) -> None:
    store, again = Store(), iter(range(9))

    def hit(*body: Path) -> bool:
        before, out = store.hits, tmp_path / f"{next(again)}.organ"
        train(base, records=records(10), settings=SETTINGS, body=body, out=out, prefix_store=store)
        return store.hits > before

    assert not hit()
    assert hit(organs[HIGH])  # a layer above changes nothing below
    assert not hit(organs[LOW], organs[HIGH])
    assert hit(organs[LOW])
    other = train(base, records=records(9), settings=replace(SETTINGS, span=LOW), out=tmp_path / "low").organ.path
    assert not hit(other)


def test_a_resume_point_on_another_body_is_ignored(base: Base, organs: dict[Span, Path], tmp_path: Path) -> None:
    def stop(what: str, *, done: int, total: int, note: str = "") -> None:
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    expected: OrganInfo = train(
        base, records=records(40), settings=SETTINGS, body=[organs[HIGH]], out=tmp_path / "whole"
    ).organ
    for body in ([], [organs[HIGH]]):
        with pytest.raises(KeyboardInterrupt):
            train(base, records=records(40), settings=SETTINGS, body=body, out=tmp_path / "cut", progress=stop)
    went_on = train(base, records=records(40), settings=SETTINGS, body=[organs[HIGH]], out=tmp_path / "cut").organ
    assert went_on.sha256 == expected.sha256


def test_a_private_run_on_a_body_says_what_all_its_rounds_have_spent(
    base: Base, organs: dict[Span, Path], tmp_path: Path
) -> None:
    """The body may have seen these records in an earlier round: it counts as a start does."""
    plan = DpPlan(sample_rate=0.3, steps=2, noise_multiplier=1.5, max_grad_norm=1.0, divisor=10, delta=1e-5)
    warned: list[str] = []
    train(
        base, records=records(20), settings=replace(SETTINGS, dp=plan), body=[organs[LOW]], out=tmp_path / "o",
        charge=PublicRecords(), warn=warned.append,
    )  # fmt: skip
    assert any("without privacy" in line for line in warned)
