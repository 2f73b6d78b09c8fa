"""What no canary can see: neighbouring data sets through the real training step, from text to clipped sum.

Canaries enter behind the engine. Here one unit is taken away, and the sum must move by exactly the clip, since every
unit's gradient is longer than it: by more, and epsilon would be wrong; by less, and the unit was not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from not_fed.organ import private_steps
from not_fed.organ.anatomy import Span
from not_fed.organ.charging import PublicRecords
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import Records
from not_fed.organ.train import Speed, TrainSettings, train
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.audit.probe import Probe
from not_fed.privacy.engine.engine import Wanted
from tests.support import tiny
from tests.support.folders import records, save_base

CLIP = 1e-3  # below every unit's norm
EVERYBODY = DpPlan(sample_rate=1.0, steps=1, noise_multiplier=1.0, max_grad_norm=CLIP, divisor=1.0, delta=1e-5)
BUILDERS = {
    "llama": tiny.tiny_llama, "gpt2": tiny.tiny_gpt2, "mistral": tiny.tiny_mistral, "gpt-oss": tiny.tiny_gpt_oss,
}  # fmt: skip
TEXTS = records(7)
PEOPLE = ("ann", "bob", "ann", "cas", "bob", "bob", "dan")


class Seen(Exception):
    """Stops a training once its first clipped sum is known."""

    def __init__(self, sums: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sums = torch.cat([total.reshape(-1) for total in sums.values()])


@pytest.fixture(scope="module", params=BUILDERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(BUILDERS[request.param](), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(autouse=True)
def _before_canaries_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(probe: Probe, sums: Mapping[str, Tensor]) -> None:
        raise Seen(sums)

    monkeypatch.setattr(Probe, "add_to", stop)
    monkeypatch.setattr(private_steps, "require_bounded", lambda *_, **__: None)


def summed(
    base: Base, data: Records, *, folder: Path, plan: DpPlan = EVERYBODY, engine: Wanted = "auto", micro: int = 2048
) -> Tensor:
    """The clipped sum of a step that everybody joins."""
    run = TrainSettings(span=Span(1, 3), max_tokens=24, dp=plan, engine=engine)
    with pytest.raises(Seen) as seen:
        train(base, records=data, settings=run, out=folder / "o.organ", charge=PublicRecords(),
              speed=Speed(micro_tokens=micro))  # fmt: skip
    for left in folder.glob(".*"):
        left.unlink()
    sums: Tensor = seen.value.sums
    return sums


def without(place: int) -> Records:
    return Records(tuple(text for other, text in enumerate(TEXTS) if other != place))


def test_taking_a_record_away_moves_the_sum_by_exactly_the_clip(base: Base, tmp_path: Path) -> None:
    whole = summed(base, Records(tuple(TEXTS)), folder=tmp_path)
    for place in range(len(TEXTS)):
        moved = (whole - summed(base, without(place), folder=tmp_path)).norm()
        assert float(moved) == pytest.approx(CLIP, rel=1e-3)


def test_taking_a_person_away_moves_the_sum_by_exactly_the_clip(base: Base, tmp_path: Path) -> None:
    """However many records they have."""
    plan = replace(EVERYBODY, unit="person", records_per_person=3)
    data = Records(tuple(TEXTS), PEOPLE, "patient_id", 3)
    whole = summed(base, data, folder=tmp_path, plan=plan)
    for person in sorted(set(PEOPLE)):
        kept = [(text, who) for text, who in zip(TEXTS, PEOPLE, strict=True) if who != person]
        others = Records(tuple(text for text, _ in kept), tuple(who for _, who in kept), "patient_id", 3)
        moved = (whole - summed(base, others, folder=tmp_path, plan=plan)).norm()
        assert float(moved) == pytest.approx(CLIP, rel=1e-3)


@pytest.mark.parametrize("unit", ["record", "person"])
def test_micro_batches_do_not_change_the_sum(base: Base, tmp_path: Path, unit: str) -> None:
    plan = EVERYBODY if unit == "record" else replace(EVERYBODY, unit="person", records_per_person=3)
    data = Records(tuple(TEXTS), PEOPLE, "patient_id", 3) if unit == "person" else Records(tuple(TEXTS))
    whole, parts = (summed(base, data, folder=tmp_path, plan=plan, micro=size) for size in (2048, 16))
    assert float((whole - parts).norm()) < 1e-4 * CLIP


@settings(max_examples=10, deadline=None)
@given(words=st.lists(st.integers(0, 120), min_size=2, max_size=20), place=st.integers(0, 3))
def test_no_record_whatever_it_says_moves_the_sum_by_more_than_the_clip(
    words: list[int], place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    base = save_base(tiny.tiny_llama(), folder / "base")
    texts = list(TEXTS[:4])
    without_it = summed(base, Records(tuple(texts)), folder=folder)
    texts.insert(place, " ".join(f"w{word}" for word in words))
    moved = summed(base, Records(tuple(texts)), folder=folder) - without_it
    assert float(moved.norm()) <= CLIP * (1 + 1e-3)
