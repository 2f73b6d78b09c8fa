"""The audit that every private training carries: virtual units in the real draw, the real clip and the real noise.

A canary is a virtual unit whose raw gradient is 100 times the clip, on one coordinate of the trained weights. A fair
coin makes it a member or a stranger; members are drawn together with the real units, scaled by the same `clip_factor`
and added to the sums before the noise. From the released gradients the probe then guesses the coins, as an attacker
would, and measures the noise where strangers stand.

It costs no privacy: coordinates and coins never depend on the records, and all that the probe reports follows from
them and from gradients that are released anyway (post-processing). It costs a few index operations in each step.

What it cannot see: how a unit's norm is computed (canaries enter behind the engine; `check_against_autograd` looks at
that), and what a site does that runs other code and reports this one's numbers. An audit is its author's word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from not_fed.errors import BudgetError
from not_fed.privacy.accounting import DpPlan
from not_fed.privacy.audit.bounds import CONFIDENCE, Bounds, Guesses, bounds_of, guess
from not_fed.privacy.audit.law import FALSE_ALARM, Expected, expect, least_noise_ratio, score
from not_fed.privacy.dp_sgd import clip_factor
from not_fed.privacy.randomness import RandomSource, keystream
from not_fed.privacy.sampling import poisson_subset

METHOD = "one-run audit with canaries (Steinke 2023, Mahloujifar 2024), noise and sampling tests"
METHOD_WITHOUT_ROOM = "noise and sampling tests; too few weights for an audit with canaries"
CANARIES, FEWEST_CANARIES = 5000, 100
COORDINATES_PER_CANARY = 8  # canaries stay on at most an eighth of the coordinates, so that they do not hurt learning
RAW_NORM = 100.0  # of a canary's gradient before the clip, in clips: without a clip it cannot be overlooked


class AuditAlarm(BudgetError):
    """The training does not do what its privacy plan says, so epsilon would not be true."""

    code = "audit-alarm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a finished run's audit found.

    Attributes:
        guesses: how an attacker fared.
        bounds: lower bounds on the run's epsilon that follow.
        expected: what the right code gives.
        noise_ratio: measured deviation of the noise over the planned one. Real gradients can only raise it.
    """

    guesses: tuple[Guesses, ...]
    bounds: Bounds
    expected: Expected
    noise_ratio: float


class Probe:
    """Canaries for one run. In every step: `draw`, then `add_to`, then `saw`.

    Args:
        shapes: of the trained weights, by name.
        plan: what the training claims to do.
        canaries: about how many; fewer where the weights are few.
        source: where coordinates, coins and draws come from; the operating system outside tests.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        plan: DpPlan,
        source: RandomSource,
        canaries: int = CANARIES,
    ) -> None:
        self.plan, self._source = plan, source
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        share = min(canaries, sum(sizes.values()) / COORDINATES_PER_CANARY) / sum(sizes.values())
        self._places = {
            name: _distinct(min(size, max(1, round(share * size))), below=size, source=source)
            for name, size in sizes.items()
        }
        self.canaries = sum(len(places) for places in self._places.values())
        with keystream(source) as stream:
            self._members = (stream.words(self.canaries) >> np.uint64(63)).astype(bool)
        self._scores = np.zeros(self.canaries)
        self._before: NDArray[np.float64] | None = None  # what strangers' coordinates showed, one step in two
        self._squares, self._pair_squares = 0.0, 0.0
        self._joins, self._steps = 0, 0
        self._joined: NDArray[np.int64] | None = None
        self._added = False

    def draw(self, units: int) -> list[int]:
        """The units of one step, by position from 0 to units - 1, in order. May be empty.

        Guarantees: each unit joins independently with the plan's sample_rate. The canaries join in the same draw, so
            that a draw which is not the plan's shows.
        Proved by: tests/unit/test_audit.py::test_units_join_as_if_there_were_no_canaries
        """
        members = np.flatnonzero(self._members)
        drawn = poisson_subset(units + len(members), sample_rate=self.plan.sample_rate, source=self._source)
        self._joined = members[[place - units for place in drawn if place >= units]]
        self._added = False
        return [place for place in drawn if place < units]

    def add_to(self, sums: Mapping[str, Tensor]) -> None:
        """Add the canaries that joined to the sums of clipped gradients, before the noise.

        Args:
            sums: by weight name, float64, contiguous; changed in place.
        """
        if self._joined is None or self._added:
            raise RuntimeError("call draw() once, then add_to() once, then saw()")
        clip = self.plan.max_grad_norm
        raw = RAW_NORM * clip
        shown = float(clip_factor(torch.tensor([raw]), max_grad_norm=clip)) * raw
        values, start = np.zeros(self.canaries), 0
        values[self._joined] = shown
        for name, places in self._places.items():
            total = sums[name]
            part = torch.from_numpy(values[start : start + len(places)]).to(total)
            total.view(-1).index_add_(0, places.to(total.device), part)
            start += len(places)
        self._added = True

    def saw(self, released: Mapping[str, Tensor]) -> None:
        """Take in the gradient of one step as it is released, after noise and division.

        Raises:
            AuditAlarm: this step's noise is smaller than planned, or not a number. The training must stop here.
        Guarantees: the right noise raises in at most one of 10^6 runs, whatever the records are.
        Proved by: tests/unit/test_audit.py::test_correct_code_passes_twenty_of_twenty
        """
        if self._joined is None or not self._added:
            raise RuntimeError("call draw() once, then add_to() once, then saw()")
        scale = self.plan.divisor / self.plan.max_grad_norm
        shown = torch.cat([released[name].reshape(-1)[places.to(released[name].device)].double().cpu()
                           for name, places in self._places.items()]).numpy() * scale  # fmt: skip
        if not np.isfinite(shown).all():
            raise _alarm("released gradient", expected="numbers", got="NaN or infinity")
        noise = self.plan.noise_multiplier
        self._scores += score(shown, sample_rate=self.plan.sample_rate, noise_multiplier=noise)
        strangers = shown[~self._members] / noise
        self._squares += float(strangers @ strangers)
        self._steps += 1
        self._joins += len(self._joined)
        self._joined = None
        self._require_step_noise("noise of a step", strangers)
        self._compare(strangers)

    def _compare(self, strangers: NDArray[np.float64]) -> None:
        """Every two steps once: noise that is used twice cancels, and so does most of what real gradients add."""
        if self._before is None:
            self._before = strangers
            return
        difference = (strangers - self._before) / math.sqrt(2.0)
        self._before = None
        self._pair_squares += float(difference @ difference)
        self._require_step_noise("noise of two steps, one against the other", difference)

    def _require_step_noise(self, where: str, noise: NDArray[np.float64]) -> None:
        ratio = math.sqrt(float(noise @ noise) / max(1, len(noise)))
        self._require_noise(where, ratio, samples=len(noise), tests=2 * self.plan.steps)

    def state(self) -> dict[str, Tensor]:
        """What a resume file keeps between steps.

        Secret while the run lasts: who knows the coins can make any training pass its audit. It holds no sums without
        noise, so it says no more about records than the gradients that epsilon accounts for.
        """
        before = np.zeros(0) if self._before is None else self._before
        numbers = [self._squares, self._pair_squares, float(self._joins), float(self._steps)]
        return {
            "places": torch.cat(list(self._places.values())),
            "counts": torch.tensor([len(places) for places in self._places.values()]),
            "members": torch.from_numpy(self._members.copy()),
            "scores": torch.from_numpy(self._scores.copy()),
            "before": torch.from_numpy(before.copy()),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }

    @classmethod
    def restore(
        cls,
        state: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
        *,
        plan: DpPlan,
        source: RandomSource,
    ) -> Self:
        """The probe of an interrupted run of the same plan on the same weights.

        Proved by: tests/unit/test_audit.py::test_a_probe_goes_on_after_an_interruption
        """
        probe = cls(shapes, plan=plan, source=source, canaries=1)
        parts = torch.split(state["places"], state["counts"].tolist())
        probe._places = dict(zip(shapes, parts, strict=True))
        probe.canaries = len(state["members"])
        probe._members = state["members"].numpy().copy()
        probe._scores = state["scores"].numpy().copy()
        probe._before = state["before"].numpy().copy() if len(state["before"]) else None
        squares, pair_squares, joins, steps = state["numbers"].tolist()
        probe._squares, probe._pair_squares = squares, pair_squares
        probe._joins, probe._steps = int(joins), int(steps)
        return probe

    def measure(self) -> Measured:
        """What was found so far, without a verdict."""
        plan, steps, strangers = self.plan, max(1, self._steps), max(1, int((~self._members).sum()))
        guesses = guess(self._scores, self._members)
        ratios = [math.sqrt(self._squares / (strangers * steps))]
        if self._steps >= 2:
            ratios.append(math.sqrt(self._pair_squares / (strangers * (self._steps // 2))))
        return Measured(
            guesses=guesses,
            bounds=bounds_of(guesses, canaries=self.canaries, delta=plan.delta),
            expected=expect(plan.sample_rate, plan.noise_multiplier, steps, canaries=self.canaries, delta=plan.delta),
            noise_ratio=min(ratios),
        )

    def result(self) -> dict[str, Any]:
        """The finished run's audit, for the manifest: the fields of the passport's `AuditResult`.

        Raises:
            AuditAlarm: the run did not do what its plan says. No organ may be written.
        Guarantees: the right code raises in at most one of 10^5 runs, whatever the records are.
        Proved by: tests/unit/test_audit.py::test_correct_code_passes_twenty_of_twenty
        """
        found = self.measure()
        self._require_steps()
        self._require_draws()
        self._require_guesses(found)
        pairs = self._steps // 2 if self._steps >= 2 else 1
        self._require_noise("noise of the run", found.noise_ratio, samples=pairs * int((~self._members).sum()), tests=1)
        return {
            "method": METHOD if self.canaries >= FEWEST_CANARIES else METHOD_WITHOUT_ROOM,
            "epsilon_lower_bound": _down(found.bounds.epsilon),
            "confidence": CONFIDENCE,
            "canaries": self.canaries,
            "delta": self.plan.delta,
            "fdp_epsilon_lower_bound": _down(found.bounds.fdp_epsilon),
            "expected_at_most": _up(found.expected.at_most.epsilon),
            "fdp_expected_at_most": _up(found.expected.at_most.fdp_epsilon),
            "noise_ratio": round(found.noise_ratio, 4),
            "steps": self._steps,
            "verdict": "consistent",
        }

    def _require_steps(self) -> None:
        if self._steps != self.plan.steps:
            raise _alarm("steps", expected=f"{self.plan.steps:,}, each with noise", got=f"{self._steps:,}")

    def _require_draws(self) -> None:
        from scipy.stats import binom

        chances, rate = self._steps * int(self._members.sum()), self.plan.sample_rate
        least, most = binom.ppf(FALSE_ALARM / 2, chances, rate), binom.isf(FALSE_ALARM / 2, chances, rate)
        if not least <= self._joins <= most:
            raise _alarm(
                "sampling",
                expected=f"each to join with the chance {rate:g}",
                got=f"{self._joins / max(1, chances):.4f}",
            )

    def _require_guesses(self, found: Measured) -> None:
        if any(one.right > most for one, most in zip(found.guesses, found.expected.most_right, strict=True)):
            at_most, bounds = found.expected.at_most, found.bounds
            raise _alarm(
                "canaries told apart",
                expected=f"lower bounds up to {at_most.epsilon:.2f}, f-DP {at_most.fdp_epsilon:.2f}",
                got=f"{bounds.epsilon:.2f}, f-DP {bounds.fdp_epsilon:.2f}",
            )

    def _require_noise(self, where: str, ratio: float, *, samples: int, tests: int) -> None:
        least = least_noise_ratio(samples, tests=tests)
        if ratio < least:
            raise _alarm(where, expected=f"{least:.3f} of the planned deviation or more", got=f"{ratio:.3f} of it")


def _alarm(where: str, *, expected: str, got: str) -> AuditAlarm:
    return AuditAlarm(
        where=f"audit, {where}",
        expected=expected,
        got=got,
        hint="no organ was written; what the run spent stays spent. Do not train on private records with this code",
    )


def _distinct(count: int, *, below: int, source: RandomSource) -> Tensor:
    """`count` different numbers from 0 to below - 1, shape (count,), int64."""
    with keystream(source) as stream:
        if 2 * count > below:
            return torch.from_numpy(np.argsort(stream.words(below), kind="stable")[:count].copy())
        found: dict[int, None] = {}  # in the order in which they were drawn
        while len(found) < count:
            found.update(dict.fromkeys((stream.words(count) % np.uint64(below)).tolist()))
        return torch.tensor(list(found)[:count])


def _down(value: float) -> float:
    return math.floor(value * 1e4) / 1e4


def _up(value: float) -> float:
    return math.ceil(value * 1e4) / 1e4
