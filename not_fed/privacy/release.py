"""Numbers about the private records that may leave: with Gaussian noise, charged, and divided by a declared number.

The number of units is private itself, so no release divides by it. A loss is bounded before it is added, so that one
unit can move the sum by no more than the sensitivity, whatever its text is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from not_fed.errors import InputError
from not_fed.privacy.accounting import NoisedRelease
from not_fed.privacy.noise import gaussian
from not_fed.privacy.randomness import RandomSource

MEAN_LOSS, UNITS = "mean_loss", "units"
RELEASES = (MEAN_LOSS, UNITS)
WORST_LOSS = 8.0  # nats a token; losses are clipped to 0..8
MIDDLE = WORST_LOSS / 2  # taken off before the sum, so that a unit moves it by 4 at most instead of 8
TICKS = 2**20  # losses are added as whole numbers of 2^-20: a sum without rounding errors has exactly its sensitivity
GRID = 2.0**-12  # of the noise's deviation, as in a step of training


class UnknownRelease(InputError):
    """There is no way to let this number out with noise."""

    code = "release-unknown"


class NotDeclared(InputError):
    """A mean with noise needs a declared number of units to divide by."""

    code = "release-divisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A number that may leave, with all that its noise depends on.

    Attributes:
        value: noise included.
        noise_multiplier: standard deviation of the noise over the sensitivity; what was charged.
        sensitivity: how far one unit can move the sum, added or removed.
        divisor: the declared number that the noisy sum was divided by.
    """

    name: str
    value: float
    noise_multiplier: float
    sensitivity: float
    divisor: float

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in `value`."""
        return self.noise_multiplier * self.sensitivity / self.divisor

    def as_manifest(self) -> dict[str, Any]:
        """As a manifest's training summary lists it."""
        return asdict(self)


def release_mean_loss(
    losses_per_unit: Iterable[float], *, release: NoisedRelease, declared_units: float, source: RandomSource
) -> Released:
    """The mean of the units' losses, with noise.

    Args:
        losses_per_unit: each unit's mean loss in nats a token; clipped to 0..8 here. One that is not a number counts
            as the middle.
        release: its name is `mean_loss`; its noise multiplier is what the plan charged.
        declared_units: a public number near the number of units, such as the divisor over the sample rate.
        source: where randomness comes from; the operating system outside tests.
    Returns:
        4 + (sum of (loss - 4) + N(0, (4 * noise multiplier)^2)) / declared units. Where the declared number is wrong
        by a factor, the distance from 4 is.
    Raises:
        UnknownRelease: another name. NotDeclared: no positive number of units.
    Guarantees: one unit more or less moves the sum by at most 4; the noisy sum is a multiple of its noise's deviation
        over 4096 before the division.
    Proved by: tests/unit/test_release.py::test_one_unit_moves_the_sum_by_no_more_than_the_sensitivity
    """
    _require(release, name=MEAN_LOSS)
    if not (math.isfinite(declared_units) and declared_units >= 1):
        raise NotDeclared(
            where="release mean_loss, declared units", expected="a number of at least 1", got=f"{declared_units:g}",
            hint="declare about how many units there are; never count them",
        )  # fmt: skip
    ticks = sum(_ticks(loss) for loss in losses_per_unit)
    noisy = _with_noise(ticks / TICKS, sensitivity=MIDDLE, release=release, source=source)
    return Released(
        name=MEAN_LOSS, value=MIDDLE + noisy / declared_units, noise_multiplier=release.noise_multiplier,
        sensitivity=MIDDLE, divisor=declared_units,
    )  # fmt: skip


def release_units(units: int, *, release: NoisedRelease, source: RandomSource) -> Released:
    """How many units there are, with noise: records, or people where the person is the unit.

    Raises:
        UnknownRelease: the release has another name than `units`.
    Proved by: tests/unit/test_release.py::test_the_noise_has_the_deviation_that_is_charged
    """
    _require(release, name=UNITS)
    value = _with_noise(float(units), sensitivity=1.0, release=release, source=source)
    return Released(
        name=UNITS, value=value, noise_multiplier=release.noise_multiplier, sensitivity=1.0, divisor=1.0
    )  # fmt: skip


def comparison_noise(*, clip: float, noise_multiplier: float, source: RandomSource) -> float:
    """The noise of one comparison, drawn before anything is compared, so that a crash cannot draw a second one.

    Returns:
        a draw from N(0, (clip * noise multiplier)^2): to be kept as secret as the records, and forgotten after use.
    Proved by: tests/unit/test_release.py::test_a_comparison_has_the_noise_that_is_charged
    """
    return float(gaussian((1,), std=clip * noise_multiplier, source=source)[0])


def is_no_worse(changes_per_unit: Iterable[float], *, tolerance: float, clip: float, noise: float | None) -> bool:
    """Whether the units' losses rise by at most the tolerance, on the average: one bit.

    Args:
        changes_per_unit: each unit's mean loss with the new organ less that with the old one, nats a token. One that is
            not a number counts as a rise by the clip.
        tolerance: in nats, taken off each unit's change, so that no mean is needed and nobody counts the units.
        clip: no unit adds more than this to the sum, or takes more off it.
        noise: from `comparison_noise` with this clip; None compares exactly, and then no epsilon covers the bit.
    Guarantees: one unit more or less moves the sum by at most the clip, so that the bit is a Gaussian mechanism of that
        sensitivity, post-processed; with the same noise and the same changes it is the same bit.
    Proved by: tests/unit/test_release.py::test_one_unit_moves_a_comparison_by_no_more_than_the_clip
    """
    total = sum(_clipped_ticks(change - tolerance, clip=clip) for change in changes_per_unit) / TICKS
    return total + (noise or 0.0) <= 0.0


def require_known(releases: Iterable[NoisedRelease]) -> None:
    """Refuse what could only fail after the training that pays for it.

    Raises:
        UnknownRelease: a name that nobody can release, or one name twice.
    Proved by: tests/unit/test_release.py::test_an_unknown_release_or_one_named_twice_is_refused_beforehand
    """
    names = [release.name for release in releases]
    for name in names:
        if name not in RELEASES or names.count(name) > 1:
            raise UnknownRelease(
                where="release", expected=f"{' or '.join(RELEASES)}, each once",
                got=f"{name} more than once" if name in RELEASES else name,
                hint="name another, or leave it out; nothing was trained or spent",
            )  # fmt: skip


def _require(release: NoisedRelease, *, name: str) -> None:
    if release.name != name:
        raise UnknownRelease(
            where="release", expected=f"one named {name}", got=release.name,
            hint=f"numbers that can leave with noise: {', '.join(RELEASES)}",
        )  # fmt: skip


def _ticks(loss: float) -> int:
    """How much a unit adds to the sum, in whole ticks: from -4 to 4."""
    bounded = MIDDLE if math.isnan(loss) else min(max(float(loss), 0.0), WORST_LOSS)
    return round((bounded - MIDDLE) * TICKS)


def _clipped_ticks(change: float, *, clip: float) -> int:
    """How much a unit adds to a comparison, in whole ticks; never more than the clip, which need not be whole."""
    bounded = clip if math.isnan(change) else min(max(change, -clip), clip)
    return math.trunc(bounded * TICKS)


def _with_noise(total: float, *, sensitivity: float, release: NoisedRelease, source: RandomSource) -> float:
    deviation = release.noise_multiplier * sensitivity
    grid = deviation * GRID
    noise = float(gaussian((1,), std=deviation, source=source)[0])
    return round((total + noise) / grid) * grid
