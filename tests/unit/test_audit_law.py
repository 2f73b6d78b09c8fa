"""What an attack on the right code finds follows by convolution; dice agree."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from not_fed.privacy.audit.bounds import Guesses, guess, plans_of_guesses
from not_fed.privacy.audit.law import expect, law_of, least_noise_ratio, score, typical_bounds

SETTINGS = [(0.2, 1.345, 10), (0.2, 0.771, 10), (1.0, 2.0, 1), (0.5, 3.0, 2), (0.02, 0.6, 60), (1.0, 9.0, 30)]
CANARIES = 2000


def thrown(
    dice: np.random.Generator, rate: float, noise: float, steps: int, *, true_rate: float, true_noise: float
) -> tuple[Guesses, ...]:
    """One audit of a mechanism, played with dice."""
    members, scores = dice.random(CANARIES) < 0.5, np.zeros(CANARIES)
    for _ in range(steps):
        joined: NDArray[np.bool_] = members & (dice.random(CANARIES) < true_rate)
        observed = joined + true_noise * dice.normal(size=CANARIES)
        scores += score(observed, sample_rate=rate, noise_multiplier=noise)
    return guess(scores, members)


@pytest.mark.parametrize(("rate", "noise", "steps"), SETTINGS)
@pytest.mark.parametrize("broken", ["right", "no noise", "full batch"])
def test_the_law_is_the_one_of_dice(rate: float, noise: float, steps: int, broken: str) -> None:
    """Right guesses on average over 30 audits, to five standard errors."""
    true_rate, true_noise = (1.0 if broken == "full batch" else rate), (0.0 if broken == "no noise" else noise)
    law = law_of(sample_rate=rate, noise_multiplier=noise, steps=steps, true_rate=true_rate, true_noise=true_noise)
    dice = np.random.default_rng(3)
    audits = [thrown(dice, rate, noise, steps, true_rate=true_rate, true_noise=true_noise) for _ in range(30)]
    for place, (top, bottom) in enumerate(plans_of_guesses(CANARIES)):
        seen = np.array([audit[place].right for audit in audits])
        hoped = top * law.members_above(top / CANARIES)
        hoped += bottom * law.strangers_below(bottom / CANARIES) if bottom else 0.0
        assert abs(seen.mean() - hoped) < 5 * np.sqrt(0.25 * (top + bottom) / 30) + 0.5, (top, bottom)


@pytest.mark.parametrize(("rate", "noise", "steps"), SETTINGS)
def test_dice_stay_below_what_is_expected_at_most(rate: float, noise: float, steps: int) -> None:
    """In 300 audits of the right mechanism; the alarm is made for one in a million."""
    expected, dice = expect(rate, noise, steps, canaries=CANARIES, delta=1e-5), np.random.default_rng(4)
    closest = 0.0
    for _ in range(300):
        audit = thrown(dice, rate, noise, steps, true_rate=rate, true_noise=noise)
        for one, most in zip(audit, expected.most_right, strict=True):
            assert one.right <= most
            closest = max(closest, one.right / most)
    assert closest > 0.9  # and not by a threshold that nothing could reach
    assert expected.typical.epsilon <= expected.at_most.epsilon


def test_a_score_tells_members_from_strangers_as_well_as_can_be() -> None:
    """The log of the two densities' ratio, written out."""
    observed, rate, noise = np.array([-2.0, 0.0, 0.5, 3.0]), 0.3, 1.2

    def density(centre: float) -> NDArray[np.float64]:
        value: NDArray[np.float64] = np.exp(-((observed - centre) ** 2) / (2 * noise**2))
        return value

    wanted = np.log((0.7 * density(0.0) + 0.3 * density(1.0)) / density(0.0))
    assert np.allclose(score(observed, sample_rate=rate, noise_multiplier=noise), wanted)


def test_without_noise_the_bounds_are_those_that_others_measured() -> None:
    """5,000 canaries, q = 0.2, ten steps: others, guessing in fewer ways, got bounds of 4.5 and (f-DP) 8.1."""
    for noise in (0.771, 1.345):  # epsilon 8 and 3
        law = law_of(sample_rate=0.2, noise_multiplier=noise, steps=10, true_noise=0.0)
        found = typical_bounds(law, canaries=5000, delta=1e-5)
        assert 4.4 < found.epsilon < 5.3
        assert 8.0 < found.fdp_epsilon < 9.4


@pytest.mark.parametrize("samples", [1, 100, 25_000])
def test_the_right_noise_is_never_too_small(samples: int) -> None:
    least, dice = least_noise_ratio(samples), np.random.default_rng(5)
    ratios = [np.sqrt(np.mean(dice.normal(size=samples) ** 2)) for _ in range(200)]
    assert min(ratios) > least
    assert least_noise_ratio(25_000) > 0.97  # sharp enough for three per cent


def test_many_steps_do_not_take_longer() -> None:
    found = expect(0.001, 1.0, 1_000_000, canaries=5000, delta=1e-6)
    assert 0 < found.typical.epsilon < found.at_most.epsilon < 10
