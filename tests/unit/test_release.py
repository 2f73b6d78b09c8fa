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
