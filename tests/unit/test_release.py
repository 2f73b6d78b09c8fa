"""A number leaves with the noise that it was charged for, and one unit moves it by no more than that noise covers."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from not_fed.privacy.accounting import NoisedRelease
from not_fed.privacy.release import (
    GRID,
    RELEASES,
    NotDeclared,
    Released,
    UnknownRelease,
    comparison_noise,
    is_no_worse,
    release_mean_loss,
    release_units,
    require_known,
)
from tests.support.seeded import Seeded

LOSS = NoisedRelease(name="mean_loss", noise_multiplier=10.0)
COUNT = NoisedRelease(name="units", noise_multiplier=3.0)
ANY_LOSS = some.floats(allow_nan=True, allow_infinity=True, width=64)


def mean_loss(losses: list[float], *, declared: float = 1.0, seed: int = 0) -> Released:
    return release_mean_loss(losses, release=LOSS, declared_units=declared, source=Seeded(seed))


@given(losses=some.lists(ANY_LOSS, max_size=30), one=ANY_LOSS, seed=some.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_one_unit_moves_the_sum_by_no_more_than_the_sensitivity(losses: list[float], one: float, seed: int) -> None:
    """Under the same noise, with any float as a loss; the grid, which is public, can add half a step on either side."""
    without, with_one = mean_loss(losses, seed=seed), mean_loss([*losses, one], seed=seed)
    step = LOSS.noise_multiplier * without.sensitivity * GRID
    assert without.sensitivity == 4.0
    assert abs(with_one.value - without.value) <= without.sensitivity + step * (1 + 1e-9)


@pytest.mark.parametrize(
    ("loss", "counts_as"), [(math.nan, 4.0), (math.inf, 8.0), (-math.inf, 0.0), (1e300, 8.0), (-1.0, 0.0), (2.5, 2.5)]
)
def test_a_loss_out_of_range_counts_as_its_bound(loss: float, counts_as: float) -> None:
    assert mean_loss([loss]).value == mean_loss([counts_as]).value


def test_the_declared_number_divides_and_never_the_number_of_units() -> None:
    few, many = mean_loss([2.0] * 10, declared=1000.0), mean_loss([2.0] * 1000, declared=1000.0)
    assert few.divisor == many.divisor == 1000.0
    assert many.value - few.value == pytest.approx(-2.0 * 990 / 1000, abs=1e-4)


def test_the_noise_has_the_deviation_that_is_charged() -> None:
    """Over 2,000 draws each, within five standard errors of a deviation."""
    for released in (
        [mean_loss([3.0] * 5, declared=50.0, seed=seed) for seed in range(2000)],
        [release_units(70, release=COUNT, source=Seeded(seed)) for seed in range(2000)],
    ):
        found = statistics.stdev(one.value for one in released)
        assert found == pytest.approx(released[0].deviation, rel=5 / math.sqrt(2 * 2000))
        centre = statistics.fmean(one.value for one in released)
        true = 4 - 5 / 50 if released[0].name == "mean_loss" else 70.0
        assert abs(centre - true) < 5 * released[0].deviation / math.sqrt(2000)


def test_a_released_number_lies_on_a_public_grid() -> None:
    grid = COUNT.noise_multiplier * GRID
    for seed in range(20):
        value = release_units(3, release=COUNT, source=Seeded(seed)).value
        assert value / grid == pytest.approx(round(value / grid), abs=1e-6)


def test_every_release_draws_noise_of_its_own() -> None:
    source = Seeded(1)
    twice = [release_units(3, release=COUNT, source=source).value for _ in range(2)]
    assert twice[0] != twice[1]
    assert all(not any(key) for key in source.handed_out), "a key was left in memory"


def test_another_name_and_a_mean_without_a_declared_number_are_refused() -> None:
    with pytest.raises(UnknownRelease):
        release_mean_loss([1.0], release=COUNT, declared_units=10.0, source=Seeded())
    with pytest.raises(UnknownRelease):
        release_units(1, release=LOSS, source=Seeded())
    for declared in (0.0, -5.0, math.nan, math.inf):
        with pytest.raises(NotDeclared):
            mean_loss([1.0], declared=declared)


@pytest.mark.parametrize("names", [("nonsense",), ("mean_loss", "units", "mean_loss")], ids="-".join)
def test_an_unknown_release_or_one_named_twice_is_refused_beforehand(names: tuple[str, ...]) -> None:
    """A wrong word on the command line costs nothing: it used to fail after the training that had paid for it."""
    releases = [NoisedRelease(name=name, noise_multiplier=10.0) for name in names]
    with pytest.raises(UnknownRelease, match="mean_loss or units, each once"):
        require_known(releases)
    require_known([NoisedRelease(name=name, noise_multiplier=10.0) for name in RELEASES])


@given(
    changes=some.lists(ANY_LOSS, max_size=12), one=ANY_LOSS, tolerance=some.floats(-1, 1), clip=some.floats(1e-3, 16)
)
@settings(max_examples=150, deadline=None)
def test_one_unit_moves_a_comparison_by_no_more_than_the_clip(
    changes: list[float], one: float, tolerance: float, clip: float
) -> None:
    """The noise at which the answer turns is the sum itself: with one unit more it turns at most a clip away."""

    def turns_between(values: list[float], low: float, high: float) -> bool:
        asked = [is_no_worse(values, tolerance=tolerance, clip=clip, noise=noise) for noise in (low, high)]
        return asked == [True, False]

    at = -sum(_counted(change, tolerance, clip) for change in changes)
    assert turns_between(changes, at - 1e-4, at + 1e-4)
    assert turns_between([*changes, one], at - clip - 1e-4, at + clip + 1e-4)


def _counted(change: float, tolerance: float, clip: float) -> float:
    rise = change - tolerance
    return clip if math.isnan(rise) else math.trunc(min(max(rise, -clip), clip) * 2**20) / 2**20


def test_a_comparison_says_yes_up_to_the_tolerance_and_a_loss_that_is_no_number_is_a_rise() -> None:
    def ask(changes: list[float], *, tolerance: float = 0.25, noise: float | None = None) -> bool:
        return is_no_worse(changes, tolerance=tolerance, clip=1.0, noise=noise)

    assert ask([0.25, 0.25])
    assert not ask([0.25, 0.2501])
    assert ask([])
    assert not ask([math.nan])
    assert not ask([0.2, math.inf])
    assert ask([50.0, -0.8, -0.8]), "one unit counts by its clip at most"
    assert not ask([0.25], noise=1e-6)
    assert ask([5.0], noise=-1.5)
    assert ask([0.0, 0.0], tolerance=0.0)
    assert not ask([-0.1, -0.1], tolerance=-0.2), "below 0 it has to fall by as much"


def test_a_comparison_has_the_noise_that_is_charged() -> None:
    """Over 2,000 draws, within five standard errors of a deviation."""
    draws = [comparison_noise(clip=0.5, noise_multiplier=4.0, source=Seeded(seed)) for seed in range(2000)]
    assert statistics.stdev(draws) == pytest.approx(2.0, rel=5 / math.sqrt(2 * 2000))
    assert abs(statistics.mean(draws)) < 5 * 2.0 / math.sqrt(2000)
