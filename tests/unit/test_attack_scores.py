"""The statistics of the attacks, on scores whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from not_fed.bench.attack_bounds import chance_exposure, exposure, refuted_epsilon
from not_fed.bench.attack_scores import (
    BadShadows,
    Bools,
    Floats,
    TooFewUnits,
    centred,
    coin_halves,
    lira_scores,
    mean_interval,
    measure,
)


def one(values: list[float], truth: list[bool]) -> tuple[Floats, Bools]:
    return np.array([values]), np.array([truth])


def test_perfect_scores_have_the_whole_area_and_no_false_alarm() -> None:
    found = measure(*one([5.0, 4, 3, 2, 1, 0], [True, True, True, False, False, False]))
    assert (found.auc.value, found.auc.low, found.auc.high) == (1, 1, 1)
    assert found.tpr[0.001].value == 1
    assert found.curve[0] == (0, 0)
    assert found.curve[-1] == (1, 1)
    assert (found.members, found.others) == (3, 3)


def test_known_scores_have_the_area_that_can_be_counted_by_hand() -> None:
    """Of the 3 * 2 pairs of a member and another, 4 are in order and one is a tie: 4.5 / 6."""
    found = measure(*one([0.9, 0.4, 0.7, 0.2, 0.7], [True, True, True, False, False]))
    assert found.auc.value == pytest.approx(4.5 / 6)
    assert found.tpr[0.01].value == pytest.approx(1 / 3)
    equal = measure(*one([1.0] * 6, [True, False] * 3))
    assert equal.auc.value == pytest.approx(0.5)
    assert equal.tpr[0.01].value == 0


def test_the_area_agrees_with_the_area_of_two_normal_distributions() -> None:
    random, shift = np.random.default_rng(5), 1.0
    truth = random.random((6, 400)) < 0.5
    found = measure(random.normal(size=truth.shape) + shift * truth, truth)
    expected = 0.5 * (1 + math.erf(shift / 2))
    assert found.auc.low < expected < found.auc.high
    assert found.auc.high - found.auc.low < 0.1


def test_the_interval_holds_chance_for_scores_that_know_nothing() -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        truth = random.random((1, 80)) < 0.5
        found = measure(random.normal(size=truth.shape), truth)
        held += found.auc.low <= 0.5 <= found.auc.high
    assert held >= 52  # 57 of 60 are expected


def test_several_organs_resample_in_pairs_so_that_one_odd_organ_widens_the_interval() -> None:
    random = np.random.default_rng(3)
    truth = coin_halves(4, 60, seed=0)
    even = random.normal(size=truth.shape) + truth
    odd = even.copy()
    odd[:2] -= 4 * truth[:2]
    wide, narrow = measure(odd, truth).auc, measure(even, truth).auc
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_members_alone_or_others_alone_are_refused() -> None:
    with pytest.raises(TooFewUnits):
        measure(*one([1.0, 2.0], [True, True]))
    with pytest.raises(TooFewUnits):
        measure(*one([1.0], [True]))


def shadowed(effect: float, *, seed: int, units: int = 150, pairs: int = 5) -> tuple[Floats, Bools]:
    """Records of very different difficulty, each of which an organ that saw it knows a little better."""
    random = np.random.default_rng(seed)
    members = coin_halves(pairs, units, seed=seed)
    difficulty = random.normal(scale=5, size=units)
    return difficulty + effect * members + random.normal(scale=0.3, size=members.shape), members


def test_shadow_organs_find_members_that_one_threshold_cannot() -> None:
    statistic, members = shadowed(1.0, seed=2)
    assert measure(statistic, members).auc.value < 0.65
    assert measure(lira_scores(statistic, members), members).auc.low > 0.9


def test_shadow_organs_are_no_wiser_than_chance_about_organs_that_learnt_nothing() -> None:
    areas = [measure(lira_scores(*found), found[1]).auc.value for found in (shadowed(0.0, seed=s) for s in range(12))]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.02)  # neither above nor, by a leak of the design, below


def test_a_target_is_never_among_its_own_shadows() -> None:
    statistic, members = shadowed(1.0, seed=4)
    before = lira_scores(statistic, members)
    statistic[1] += np.random.default_rng(0).normal(size=statistic.shape[1])  # the partner, who has the other half
    assert (lira_scores(statistic, members)[0] == before[0]).all()
    assert (lira_scores(statistic, members)[2] != before[2]).any()


@pytest.mark.parametrize("rows", [slice(0, 4), slice(0, 7), [0, 1, 2, 3, 4, 6]])
def test_shadows_come_in_pairs_four_or_more(rows: slice | list[int]) -> None:
    statistic, members = shadowed(1.0, seed=1)
    with pytest.raises(BadShadows):
        lira_scores(statistic[rows], members[rows])


def test_an_organ_that_reads_all_better_gains_no_score() -> None:
    statistic = np.array([[1.0, 2.0, 4.0], [11.0, 12.0, 14.0]])
    assert (centred(statistic)[0] == centred(statistic)[1]).all()


def test_coins_are_fair_partners_are_opposite_and_nobody_trains_on_all() -> None:
    rows = coin_halves(20, 200, seed=3)
    assert rows.shape == (40, 200)
    assert (rows[::2] != rows[1::2]).all()
    assert rows[::2].mean() == pytest.approx(0.5, abs=0.03)
    assert not coin_halves(50, 2, seed=0).all(axis=1).any()


def test_right_guesses_refute_what_their_clopper_pearson_bound_says() -> None:
    """Every guess right: the surest bound is that of 160 guesses among 200 units, one of the audit's eight tries."""
    truth = np.arange(200) < 100
    found = refuted_epsilon(np.linspace(1, 0, 200), truth, delta=0.0)
    low = beta.ppf(0.05 / 8, 160, 1)
    assert found.epsilon == pytest.approx(math.log(low / (1 - low)), rel=1e-6) == found.most
    with_delta = refuted_epsilon(np.linspace(1, 0, 200), truth, delta=1e-5)
    assert 0.9 * found.epsilon < with_delta.epsilon < found.epsilon
    wrong = refuted_epsilon(np.linspace(0, 1, 200), truth, delta=1e-5)
    assert (wrong.epsilon, wrong.most) == (0, with_delta.most)


def test_honest_guesses_seldom_refute_their_epsilon() -> None:
    """Randomised response at epsilon 1 shows an attacker as much as epsilon 1 allows."""
    random, epsilon = np.random.default_rng(11), 1.0
    refuted = 0
    for _ in range(200):
        truth = random.random(60) < 0.5
        kept = random.random(60) < 1 / (1 + math.exp(-epsilon))
        scores = np.where(kept, truth, ~truth) + random.random(60) / 2
        refuted += refuted_epsilon(scores, truth, delta=1e-5).epsilon > epsilon
    assert refuted <= 19  # 5 % of 200, and three deviations of luck


@pytest.mark.parametrize(("rank", "bits"), [(1, 8.0), (2, 7.0), (64, 2.0), (256, 0.0)])
def test_exposure_is_the_bits_that_a_rank_saves(rank: int, bits: float) -> None:
    others = np.arange(255, dtype=np.float64)
    assert exposure(rank - 1.5, others) == pytest.approx(bits)


def test_equal_losses_give_a_middling_rank_and_not_the_first() -> None:
    assert exposure(1.0, np.ones(255)) == pytest.approx(8 - math.log2(1 + 255 / 2))


def test_luck_with_many_secrets_stays_near_its_mean() -> None:
    assert 1.44 < chance_exposure(100, 256) < 1.8
    assert 3.9 < chance_exposure(1, 256) < 4.7  # the first of twenty ranks
    assert chance_exposure(3, 128, tries=3) > chance_exposure(3, 128) + 0.3


def test_a_mean_lies_in_its_interval_and_equal_values_have_none() -> None:
    found = mean_interval([1.0, 2.0, 6.0])
    assert found.low < found.value == 3.0 < found.high
    assert (mean_interval([2.0] * 5).low, mean_interval([2.0] * 5).high) == (2.0, 2.0)
