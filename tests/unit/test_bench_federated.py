"""`bench federated` on a tiny model: each average is what it is said to be, and finished federations are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from not_fed.bench.dp_trainee import Recipe
from not_fed.bench.federated import Size, bench_federated, table, ways_for
from not_fed.bench.federated_work import Federation, Rounds, Training, Way, add_residual
from not_fed.organ.checkpoint import Base, open_base
from not_fed.privacy.accounting import DpPlan, plan_dp
from tests.support.tiny import tiny_llama
from tests.unit.test_bench_dp import saved
from tests.unit.test_bench_organ import some_texts

ROUNDS = Rounds(rounds=2, steps=1, rank=2)
ALL = ((0, 4),)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return open_base(saved(tiny_llama(), tmp_path_factory.mktemp("base")))


def federation(base: Base, way: Way) -> Federation:
    return Federation(base, way=way, sites={name: some_texts() for name in ("one", "two", "three")}, rounds=ROUNDS)


def plan() -> DpPlan:
    return plan_dp(epsilon=8.0, delta=1e-5, sample_rate=0.5, steps=2, max_grad_norm=1.0, divisor=20.0)


def training(*, private: bool = False) -> Training:
    return Training(recipe=Recipe(lr=1e-2, clip=1.0), plan=plan(), private=private)


def test_factors_and_residual_are_the_exact_mean_of_the_products(base: Base) -> None:
    """And without the residual they are not: the mean of factors misses something, which is why organs are averaged."""
    one = federation(base, Way(learns="lora", how="fedex"))
    names, source = one._modules(), torch.Generator().manual_seed(0)
    assert len(names) == 4 * 7  # seven linear layers each
    learnt = [
        {name: torch.randn(weight.shape, generator=source) for name, weight in one.trainee.learning.items()}
        for _ in range(3)
    ]
    mean = {name: torch.stack([each[name] for each in learnt]).mean(0) for name in learnt[0]}
    before = {name: module.base_layer.weight.detach().clone() for name, module in names.items()}
    add_residual(learnt, mean, names=names)
    for name, module in names.items():
        a, b = f"{name}.lora_A.default.weight", f"{name}.lora_B.default.weight"
        exact = 2 * torch.stack([each[b] @ each[a] for each in learnt]).mean(0)  # alpha is twice the rank
        averaged = module.base_layer.weight - before[name] + 2 * mean[b] @ mean[a]
        assert torch.allclose(averaged, exact, atol=1e-4), name
        assert not torch.allclose(2 * mean[b] @ mean[a], exact, atol=1e-1), name


def test_of_ffa_lora_one_half_is_everybodys_and_stays(base: Base) -> None:
    one = federation(base, Way(learns="ffa"))
    halves = {name: w.detach().clone() for name, w in one.trainee.model.model.named_parameters() if ".lora_A." in name}
    found = one.run(training())
    assert halves
    after = dict(one.trainee.model.model.named_parameters())
    assert all(torch.equal(after[name], half) for name, half in halves.items())
    assert any(weight.abs().sum() > 0 for name, weight in after.items() if ".lora_B." in name)
    b_half = sum(weight.numel() for name, weight in after.items() if ".lora_B." in name)
    assert found["bytes"] == 4 * b_half * 3 * 2 * ROUNDS.rounds


def test_of_ffa_lora_only_the_half_that_learns_is_clipped_and_noised(base: Base) -> None:
    """And the other half is another one for another seed, as LoRA's is."""
    one = federation(base, Way(learns="ffa"))
    assert len(one.trainee.engine.parameters) == len(one.trainee.learning)
    halves = []
    for seed in (0, 1):
        one.trainee.reset(seed=seed)
        halves.append(next(w.clone() for name, w in one.trainee.model.parameters().items() if ".lora_A." in name))
    assert not torch.equal(*halves)


def test_a_round_of_organs_ends_with_the_mean_of_what_the_sites_learnt(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each site moves its organ by a number of its own from the same start; every round ends with the mean of them."""
    one = federation(base, Way(learns="organ", spans=((1, 3),)))
    moved = {"one": 1.0, "two": 2.0, "three": 6.0}
    began = {name: weight.detach().clone() for name, weight in one.trainee.learning.items()}

    def move(site: str, _: Training) -> None:
        with torch.no_grad():
            for weight in one.trainee.learning.values():
                weight.add_(moved[site])

    monkeypatch.setattr(one, "_train", move)
    one.run(training())
    for name, weight in one.trainee.learning.items():
        assert torch.allclose(weight, began[name] + 3.0 * ROUNDS.rounds, atol=1e-5), name


def test_an_organ_that_learns_through_factors_is_averaged_as_weights(base: Base) -> None:
    """And begins its next round with factors that change nothing."""
    one = federation(base, Way(learns="organ", spans=ALL, rank=2))
    before = {name: w.detach().clone() for name, w in one.trainee.model.model.named_parameters()}
    found = one.run(training())
    after = dict(one.trainee.model.model.named_parameters())
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in after if ".base_layer." in name}
    weights = sum(w.numel() for name, w in one.trainee.model.parameters().items() if ".lora_" not in name)
    assert found["bytes"] == 4 * weights * 3 * 2 * ROUNDS.rounds


def test_spans_in_turn_leave_a_body_of_several_organs(base: Base) -> None:
    one = federation(base, Way(learns="organ", spans=((2, 4), (0, 2))))
    before = {name: w.detach().clone() for name, w in one.trainee.model.model.named_parameters()}
    one.run(training())
    after = dict(one.trainee.model.model.named_parameters())
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in after if ".layers." in name}


def test_a_federation_under_epsilon_takes_clipped_and_noised_steps(base: Base) -> None:
    """A clip of nearly nothing with noise in proportion: without privacy the weights would move otherwise."""
    found = []
    for private in (False, True):
        one = federation(base, Way(learns="organ", spans=((1, 3),)))
        calls: list[float] = []
        inner = one.trainee.engine.clip_into

        def counted(*args: object, _inner: object = inner, _calls: list[float] = calls, **kwargs: object) -> None:
            _calls.append(float(kwargs["max_grad_norm"]))  # type: ignore[arg-type]
            _inner(*args, **kwargs)  # type: ignore[operator]

        one.trainee.engine.clip_into = counted  # type: ignore[method-assign]
        one.run(training(private=private))
        found.append(calls)
    assert found[0] == []
    assert set(found[1]) == {1.0}


def test_a_finished_comparison_has_every_way_and_runs_nothing_a_second_time(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Size(records=20, sample_rate=0.5, rounds=ROUNDS, epsilons=(None, 8.0), seeds=(0,), most_rates=2)
    sites, out = {name: some_texts() for name in ("one", "two")}, tmp_path / "bench.json"
    result = bench_federated(base, sites=sites, size=size, out=out)
    names = [(way.name, epsilon) for epsilon in (None, 8.0) for way in ways_for(4, epsilon=epsilon)]
    assert [(row["name"], row["epsilon"]) for row in result["rows"]] == names
    assert all(row["bytes"] == 0 for row in result["rows"] if row["how"] in ("alone", "pooled"))
    by_how = {row["how"]: row["bytes"] for row in result["rows"] if row["learns"] == "lora"}
    assert by_how["fedex"] == by_how["mean"] * 3 // 2  # two sites: up once, down both
    assert "records pooled" in table(result)
    monkeypatch.setattr(Federation, "run", None)
    assert bench_federated(base, sites=sites, size=size, out=out)["rows"] == result["rows"]
