"""Numbers of a secure sum: changes of weights as whole numbers, whole numbers as words of a ring, and back.

A change x becomes round(clip(x, -S, S) / step) with step = S / (2^(b-1) - 1), nearest rounding, and counts w times.
The words of a vector are those of the change, then four check words (one of each site: their sum is the number of
sites, or a mask did not cancel), then the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from not_fed.envelope.summing import VECTOR_HEAD
from not_fed.errors import InputError
from not_fed.trust.plans import SumPlan

CHECK_WORDS, TAIL_WORDS = 4, 5
BLOCK_WORDS = 1 << 15  # 128 KiB: stays in a core's cache while it is rounded, masked and hashed (measured)

Words = NDArray[np.unsignedinteger[Any]]


class NotFinite(InputError):
    """A change of weights is not a number; nothing was sent."""

    code = "update-not-finite"


class BadSumWeight(InputError):
    """A site's weight in a secure sum is a whole number up to the plan's max_weight."""

    code = "bad-sum-weight"


@dataclass(frozen=True, slots=True)
class Ring:
    """The fixed-point numbers of one plan."""

    word_bits: int
    value_bits: int
    clip: float
    max_weight: int

    @classmethod
    def of(cls, plan: SumPlan) -> Ring:
        """The plan's own; that no sum can overflow was checked when the plan was made."""
        return cls(plan.word_bits, plan.value_bits, plan.clip, plan.max_weight)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Unsigned, little-endian, the same bytes on every machine."""
        return np.dtype(f"<u{self.word_bits // 8}")

    @property
    def _signed(self) -> np.dtype[Any]:
        return np.dtype(f"<i{self.word_bits // 8}")

    @property
    def levels(self) -> int:
        """The largest whole number of one change: 2^(b-1) - 1."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def step(self) -> float:
        """What one unit of the ring is worth."""
        return self.clip / self.levels

    def vector_bytes(self, parameters: int) -> int:
        """The size of a vector on its way, with its head."""
        return len(VECTOR_HEAD) + (parameters + TAIL_WORDS) * self.dtype.itemsize

    def check_weight(self, weight: int) -> None:
        """Raises BadSumWeight."""
        if type(weight) is not int or not 1 <= weight <= self.max_weight:
            raise BadSumWeight(
                where="weight of this site", expected=f"a whole number from 1 to {self.max_weight}", got=str(weight),
                hint="correct sum_weight in site.toml, or let the stewards sign a larger max_weight",
            )  # fmt: skip

    def round(self, change: NDArray[np.float32]) -> NDArray[np.float64]:
        """Whole numbers, as float64, shape of `change`.

        Noise inside the sum would be added to these, before masking. None is, and no epsilon is claimed for it.

        Raises:
            NotFinite.
        """
        scaled: NDArray[np.float64] = np.multiply(change, 1.0 / self.step, dtype=np.float64)
        if not np.isfinite(scaled.sum()) and not np.isfinite(scaled).all():
            raise NotFinite(
                where="change of the weights", expected="finite numbers", got="NaN or infinity",
                hint="nothing was sent; lower the learning rate",
            )  # fmt: skip
        np.rint(scaled, out=scaled)
        return np.clip(scaled, -self.levels, self.levels, out=scaled) if self._reaches(scaled) else scaled

    def _reaches(self, numbers: NDArray[np.float64]) -> bool:
        """Whether any is as large as a number may be: two passes in the place of the five that it saves."""
        return bool(max(numbers.max(initial=0.0), -numbers.min(initial=0.0)) >= self.levels)

    def words(self, numbers: NDArray[np.float64], *, weight: int) -> Words:
        """The words of whole numbers, each `weight` times; negative ones count down from the ring's size."""
        if weight != 1:
            numbers = numbers * weight
        return numbers.astype(self._signed).view(self.dtype)

    def tail(self, weight: int) -> Words:
        """Check words and weight of one site."""
        return np.array([1] * CHECK_WORDS + [weight], dtype=self.dtype)

    def numbers(self, total: Words) -> NDArray[np.int64]:
        """The signed reading of words: exact, since no sum under a plan reaches half of the ring."""
        signed: NDArray[Any] = total.view(self._signed)
        return signed.astype(np.int64)

    def mean(self, total: Words, *, weight: int) -> NDArray[np.float64]:
        """The weighted mean change behind a sum of words."""
        mean: NDArray[np.float64] = self.numbers(total).astype(np.float64)
        np.multiply(mean, self.step / weight, out=mean)
        return mean
