"""The probe: it passes the code as it is, and stops each way of breaking it, at the interface where gradients meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from not_fed.envelope.passport import AuditResult
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.audit import probe as audit_module
from not_fed.privacy.audit.probe import METHOD, METHOD_WITHOUT_ROOM, AuditAlarm, Probe
from not_fed.privacy.dp_sgd import noisy_gradient
from not_fed.privacy.randomness import OperatingSystem
from tests.support.seeded import Seeded

SHAPES = {"matrix": (100, 300), "norm": (40,), "other": (200, 50)}
PLAN = DpPlan(sample_rate=0.2, steps=10, noise_multiplier=1.345, max_grad_norm=0.5, divisor=7.0, delta=1e-5)
Release = Callable[[Mapping[str, Tensor], DpPlan], dict[str, Tensor]]


def honest(sums: Mapping[str, Tensor], plan: DpPlan) -> dict[str, Tensor]:
    return noisy_gradient(sums, plan=plan, source=OperatingSystem())


def run(
    plan: DpPlan = PLAN, *, release: Release = honest, records: float = 0.0, steps: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES, probe: Probe | None = None, canaries: int = 5000,
) -> Probe:  # fmt: skip
    """The steps of a training whose records' gradients stay the same, `records` clips on each coordinate."""
    probe = probe or Probe(shapes, plan=plan, source=OperatingSystem(), canaries=canaries)
    dice = torch.Generator().manual_seed(1)
    signal = {
        name: records * plan.max_grad_norm * torch.randn(shape, dtype=torch.float64, generator=dice)
        for name, shape in shapes.items()
    }
    for _ in range(plan.steps if steps is None else steps):
        probe.draw(30)
        sums = {name: total.clone() for name, total in signal.items()}
        probe.add_to(sums)
        probe.saw(release(sums, plan))
    return probe


SETTINGS = {
    "epsilon 3": PLAN,
    "one step of all": replace(PLAN, sample_rate=1.0, steps=1),
    "two steps": replace(PLAN, steps=2, noise_multiplier=0.8),
    "many small steps": replace(PLAN, sample_rate=0.01, steps=25, noise_multiplier=0.6),
}


@pytest.mark.parametrize("records", [0.0, 3.0], ids=["faint records", "loud records"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_correct_code_passes_twenty_of_twenty(setting: str, records: float) -> None:
    """Also where real gradients are louder than the noise: they can only hide canaries, never accuse."""
    for _ in range(20):
        found = run(SETTINGS[setting], records=records).result()
        assert found["verdict"] == "consistent"
        assert found["epsilon_lower_bound"] <= found["expected_at_most"]
        assert found["fdp_epsilon_lower_bound"] <= found["fdp_expected_at_most"]
        assert found["noise_ratio"] > 0.9


def test_the_attack_finds_something_and_says_what_a_passport_takes() -> None:
    """An attack that never sees anything would pass everything."""
    found = run(replace(PLAN, noise_multiplier=0.771)).result()
    assert 1.0 < found["epsilon_lower_bound"] < 7.3  # epsilon 8 is what this plan costs
    assert 1.0 < found["fdp_epsilon_lower_bound"] < 7.3
    assert found["noise_ratio"] == pytest.approx(1.0, abs=0.05)
    assert (found["method"], found["canaries"], found["confidence"], found["steps"]) == (METHOD, 5000, 0.95, 10)
    assert (
        found["canaries"]
        == AuditResult.model_validate(
            {name: found[name] for name in AuditResult.model_fields if name in found}
        ).canaries
    )


def weaker(factor: float) -> Release:
    return lambda sums, plan: honest(sums, replace(plan, noise_multiplier=factor * plan.noise_multiplier))


def silent(sums: Mapping[str, Tensor], plan: DpPlan) -> dict[str, Tensor]:
    return {name: (total / plan.divisor).float() for name, total in sums.items()}


def averaged(sums: Mapping[str, Tensor], plan: DpPlan) -> dict[str, Tensor]:
    """Noise added twice, to two copies, and both let out: whoever takes their mean has less noise."""
    first, second = honest(sums, plan), honest(sums, plan)
    return {name: (first[name] + second[name]) / 2 for name in sums}


class Reused:
    """One draw of noise for all steps."""

    def __init__(self) -> None:
        self.noise: dict[str, Tensor] = {}

    def __call__(self, sums: Mapping[str, Tensor], plan: DpPlan) -> dict[str, Tensor]:
        self.noise = self.noise or honest({name: torch.zeros_like(total) for name, total in sums.items()}, plan)
        return {name: self.noise[name] + (total / plan.divisor).float() for name, total in sums.items()}


@pytest.mark.parametrize("records", [0.0, 0.5], ids=["faint records", "records"])
@pytest.mark.parametrize(
    "release",
    [silent, weaker(0.25), weaker(0.5), weaker(0.9), averaged, Reused()],
    ids=["no noise", "a quarter", "half", "nine tenths", "averaged", "reused"],
)
def test_noise_that_is_not_the_plans_stops_the_training(release: Release, records: float) -> None:
    with pytest.raises(AuditAlarm, match="noise"):
        run(release=release, records=records)


def test_a_divisor_that_follows_the_batch_stops_the_training() -> None:
    dice = np.random.default_rng(2)

    def release(sums: Mapping[str, Tensor], plan: DpPlan) -> dict[str, Tensor]:
        return honest(sums, replace(plan, divisor=float(dice.binomial(35, 0.2)) or 1.0))

    with pytest.raises(AuditAlarm, match="noise"):
        run(release=release)


def test_units_join_as_if_there_were_no_canaries() -> None:
    probe = Probe(SHAPES, plan=PLAN, source=Seeded(3))
    counts = np.zeros(50)
    for _ in range(400):
        drawn = probe.draw(50)
        assert drawn == sorted(set(drawn) & set(range(50)))
        counts[drawn] += 1
    assert np.all(np.abs(counts - 80) < 5 * math.sqrt(400 * 0.2 * 0.8))
    assert probe.draw(0) == []


@pytest.mark.parametrize("rate", [1.0, 0.25, 0.1])
def test_a_draw_that_is_not_the_plans_is_an_alarm(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    real = audit_module.poisson_subset
    monkeypatch.setattr(
        audit_module, "poisson_subset",
        lambda count, *, sample_rate, source: real(count, sample_rate=rate, source=source),
    )  # fmt: skip
    with pytest.raises(AuditAlarm, match="sampling"):
        run().result()


def test_guessing_alone_sees_a_full_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack does not lean on the simpler tests."""
    monkeypatch.setattr(audit_module, "poisson_subset", lambda count, *, sample_rate, source: list(range(count)))
    monkeypatch.setattr(Probe, "_require_draws", lambda probe: None)
    with pytest.raises(AuditAlarm, match="canaries told apart"):
        run().result()


@pytest.mark.parametrize("factor", [0.0, 0.25])
def test_guessing_alone_sees_noise_that_is_too_small(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    monkeypatch.setattr(Probe, "_require_noise", lambda probe, *_, **__: None)
    with pytest.raises(AuditAlarm, match="canaries told apart"):
        run(release=weaker(factor) if factor else silent).result()


def test_a_missing_clip_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "clip_factor", lambda norms, *, max_grad_norm: torch.ones_like(norms))
    with pytest.raises(AuditAlarm, match="canaries told apart"):
        run().result()


@pytest.mark.parametrize("steps", [9, 11])
def test_steps_left_out_or_repeated_are_an_alarm(steps: int) -> None:
    with pytest.raises(AuditAlarm, match="steps"):
        run(steps=steps).result()


def test_nan_is_an_alarm() -> None:
    with pytest.raises(AuditAlarm, match="NaN"):
        run(release=lambda sums, _: {name: total.float() * math.nan for name, total in sums.items()})


def test_a_probe_goes_on_after_an_interruption() -> None:
    """Half the steps, a resume file, the other half: the same numbers as in one go."""
    whole, halves = (Probe(SHAPES, plan=PLAN, source=Seeded(5)) for _ in range(2))
    first = [honest({name: torch.zeros(shape) for name, shape in SHAPES.items()}, PLAN) for _ in range(10)]

    def feed(probe: Probe, released: list[dict[str, Tensor]], seed: int) -> None:
        probe._source = Seeded(seed)
        for one in released:
            probe.draw(4)
            probe.add_to({name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()})
            probe.saw(one)

    feed(whole, first[:5], 1)
    feed(whole, first[5:], 2)
    feed(halves, first[:5], 1)
    saved = {name: tensor.clone() for name, tensor in halves.state().items()}
    again = Probe.restore(saved, SHAPES, plan=PLAN, source=Seeded(0))
    feed(again, first[5:], 2)
    assert again.result() == whole.result()


def test_every_tensor_has_a_canary_and_none_has_two_on_one_coordinate() -> None:
    probe = Probe(SHAPES, plan=PLAN, source=OperatingSystem())
    places = dict(zip(SHAPES, probe.state()["places"].split(probe.state()["counts"].tolist()), strict=True))
    for name, shape in SHAPES.items():
        assert 1 <= len(places[name]) <= math.prod(shape)
        assert len(set(places[name].tolist())) == len(places[name])
        assert 0 <= int(places[name].min()) <= int(places[name].max()) < math.prod(shape)
    assert len(places["matrix"]) == pytest.approx(5000 * 0.75, rel=0.01)


def test_a_member_that_joins_adds_one_clip_to_one_coordinate() -> None:
    plan = replace(PLAN, sample_rate=1.0)
    probe = Probe(SHAPES, plan=plan, source=OperatingSystem())
    probe.draw(3)
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    probe.add_to(sums)
    flat = torch.cat([total.reshape(-1) for total in sums.values()])
    assert int((flat != 0).sum()) == int(probe.state()["members"].sum())
    assert flat[flat != 0].numpy() == pytest.approx(plan.max_grad_norm, rel=2e-5)
    assert float(flat.max()) <= plan.max_grad_norm


def test_small_spans_have_few_canaries_and_say_when_they_are_too_few() -> None:
    found = run(shapes={"a": (16, 20), "b": (5,)}).result()
    assert found["canaries"] == 41
    assert found["method"] == METHOD_WITHOUT_ROOM
    assert run(shapes={"a": (40, 40)}).result()["canaries"] == 200
    assert run(shapes={"a": (1,)}).result()["canaries"] == 1


def test_a_step_is_drawn_added_to_and_seen_in_this_order() -> None:
    probe = Probe(SHAPES, plan=PLAN, source=OperatingSystem())
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    with pytest.raises(RuntimeError, match="draw"):
        probe.add_to(sums)
    probe.draw(3)
    with pytest.raises(RuntimeError, match="draw"):
        probe.saw(honest(sums, PLAN))
    probe.add_to(sums)
    with pytest.raises(RuntimeError, match="draw"):
        probe.add_to(sums)
