"""Poisson sampling: each record by itself, with the chance of the plan, never above it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from not_fed.privacy.randomness import Keystream, OperatingSystem
from not_fed.privacy.sampling import BadSampleRate, poisson_subset
from tests.support.seeded import Seeded

COUNT = 200_000


@pytest.mark.parametrize("sample_rate", [0.001, 0.2, 0.5, 0.97])
def test_each_record_joins_with_the_planned_chance(sample_rate: float) -> None:
    """A step's size lies within six standard deviations of the binomial's mean, and varies: it is no fixed size."""
    source = OperatingSystem()
    spread = math.sqrt(COUNT * sample_rate * (1 - sample_rate))
    sizes = [len(poisson_subset(COUNT, sample_rate=sample_rate, source=source)) for _ in range(5)]
    assert all(abs(size - COUNT * sample_rate) < 6 * spread for size in sizes)
    assert len(set(sizes)) > 1


def test_steps_and_records_are_independent() -> None:
    source = OperatingSystem()
    first, second = (set(poisson_subset(COUNT, sample_rate=0.3, source=source)) for _ in range(2))
    neighbours = sum(index + 1 in first for index in first)
    spread = 6 * math.sqrt(COUNT * 0.09 * 0.91)
    assert abs(len(first & second) - COUNT * 0.09) < spread
    assert abs(neighbours - COUNT * 0.09) < spread * 1.5  # overlapping pairs vary a little more
    assert abs(sum(first) / len(first) / COUNT - 0.5) < 6 * math.sqrt(1 / 12 / len(first))


@pytest.mark.parametrize("sample_rate", [0.25, 1 / 3, 0.1])
def test_a_record_joins_exactly_when_its_own_bits_are_below_the_rate(sample_rate: float) -> None:
    source = Seeded(1)
    chosen = poisson_subset(5000, sample_rate=sample_rate, source=source)
    words = Keystream(Seeded(1).fresh_key()).words(5000).tolist()
    below = math.floor(Fraction(sample_rate) * 2**64)
    assert chosen == [index for index, word in enumerate(words) if word < below]
    assert source.handed_out == [bytearray(32)]  # and its key is forgotten


@pytest.mark.parametrize("sample_rate", [0.25, 0.1, 1.0])
def test_the_boundary_itself_does_not_join(sample_rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    below = math.floor(Fraction(sample_rate) * 2**64)
    words = np.array([below - 1, *([below] if below < 2**64 else [])], dtype=np.uint64)
    monkeypatch.setattr(Keystream, "words", lambda _stream, _count: words)
    assert poisson_subset(len(words), sample_rate=sample_rate, source=Seeded()) == [0]


def test_at_rate_one_everybody_joins() -> None:
    assert poisson_subset(1000, sample_rate=1.0, source=OperatingSystem()) == list(range(1000))


def test_a_step_may_be_empty() -> None:
    assert poisson_subset(0, sample_rate=0.5, source=OperatingSystem()) == []
    assert poisson_subset(10, sample_rate=1e-18, source=OperatingSystem()) == []


@pytest.mark.parametrize("sample_rate", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_rate_that_is_no_chance_is_refused(sample_rate: float) -> None:
    with pytest.raises(BadSampleRate):
        poisson_subset(10, sample_rate=sample_rate, source=OperatingSystem())
