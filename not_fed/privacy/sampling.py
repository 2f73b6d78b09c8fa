"""Who joins a step: each record by itself, with the same chance, decided by the operating system's randomness."""

from __future__ import annotations

from not_fed.errors import InputError
from not_fed.privacy.randomness import RandomSource, keystream


class BadSampleRate(InputError):
    """The chance of a record to join a step is not a number above 0 and at most 1."""

    code = "sample-rate"


def poisson_subset(count: int, *, sample_rate: float, source: RandomSource) -> list[int]:
    """The records of one step, by index from 0 to count - 1, in order. May be empty: that step is only noise.

    Raises:
        BadSampleRate: sample_rate is not above 0 and at most 1.
    Guarantees: record i joins if and only if its own 64 random bits are below floor(sample_rate * 2^64), so never more
        often than accounted for; independent of the other records and of other calls.
    Proved by: tests/unit/test_sampling.py::test_each_record_joins_with_the_planned_chance

    >>> from not_fed.privacy.randomness import OperatingSystem
    >>> poisson_subset(3, sample_rate=1.0, source=OperatingSystem())
    [0, 1, 2]
    """
    if not 0.0 < sample_rate <= 1.0:
        raise BadSampleRate(
            where="plan, field sample_rate",
            expected="a number above 0 and at most 1",
            got=repr(sample_rate),
            hint="nothing was trained",
        )
    joins_below = int(sample_rate * 2.0**64)  # a power of two: exact, and int() rounds down
    with keystream(source) as stream:
        return [index for index, word in enumerate(stream.words(count).tolist()) if word < joins_below]
